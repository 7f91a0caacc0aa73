//! What kube-proxy's dashboards and probes ask of a node, asked of the running program: every name, its kind and labels
//! in each mode, and that the values are those of the kernel.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use serde_json::Value;
use viaduct::capture::Mode;
use viaduct::model::Protocol;

use super::node::{Node, SERVICE, Web};
use crate::world::{Answer, Place, QUIET, ask_again, eventually, patience};

const METRICS_PORT: u16 = 10249;
const HEALTH_PORT: u16 = 10256;

/// The modes in which kube-proxy's figure has a meaning.
#[derive(Clone, Copy)]
enum In {
    /// Whatever captures.
    Every,
    /// Those that translate addresses.
    Translating,
    /// Those with a table of nf_tables.
    Table,
    /// Rules of iptables.
    Iptables,
}

/// Name, kind, labels, modes. Source: kubernetes/pkg/proxy/metrics.
const FIGURES: &[(&str, &str, &[&str], In)] = &[
    (
        "sync_proxy_rules_duration_seconds",
        "histogram",
        &["ip_family"],
        In::Every,
    ),
    (
        "sync_full_proxy_rules_duration_seconds",
        "histogram",
        &["ip_family"],
        In::Every,
    ),
    (
        "sync_partial_proxy_rules_duration_seconds",
        "histogram",
        &["ip_family"],
        In::Every,
    ),
    (
        "sync_proxy_rules_last_timestamp_seconds",
        "gauge",
        &["ip_family"],
        In::Every,
    ),
    (
        "sync_proxy_rules_last_queued_timestamp_seconds",
        "gauge",
        &["ip_family"],
        In::Every,
    ),
    (
        "network_programming_duration_seconds",
        "histogram",
        &["ip_family"],
        In::Every,
    ),
    (
        "sync_proxy_rules_endpoint_changes_pending",
        "gauge",
        &[],
        In::Every,
    ),
    (
        "sync_proxy_rules_endpoint_changes_total",
        "counter",
        &[],
        In::Every,
    ),
    (
        "sync_proxy_rules_service_changes_pending",
        "gauge",
        &[],
        In::Every,
    ),
    (
        "sync_proxy_rules_service_changes_total",
        "counter",
        &[],
        In::Every,
    ),
    (
        "sync_proxy_rules_no_local_endpoints_total",
        "gauge",
        &["ip_family", "traffic_policy"],
        In::Every,
    ),
    ("proxy_healthz_total", "counter", &["code"], In::Every),
    ("proxy_livez_total", "counter", &["code"], In::Every),
    (
        "conntrack_reconciler_sync_duration_seconds",
        "histogram",
        &["ip_family"],
        In::Translating,
    ),
    (
        "conntrack_reconciler_deleted_entries_total",
        "counter",
        &["ip_family"],
        In::Translating,
    ),
    (
        "sync_proxy_rules_nftables_sync_failures_total",
        "counter",
        &["ip_family"],
        In::Table,
    ),
    (
        "sync_proxy_rules_iptables_total",
        "gauge",
        &["ip_family", "table"],
        In::Iptables,
    ),
    (
        "sync_proxy_rules_iptables_last",
        "gauge",
        &["ip_family", "table"],
        In::Iptables,
    ),
    (
        "sync_proxy_rules_iptables_restore_failures_total",
        "counter",
        &["ip_family"],
        In::Iptables,
    ),
    (
        "sync_proxy_rules_iptables_partial_restore_failures_total",
        "counter",
        &["ip_family"],
        In::Iptables,
    ),
];

impl In {
    fn holds(self, mode: Mode) -> bool {
        match self {
            Self::Every => true,
            Self::Translating => matches!(mode, Mode::Nftables | Mode::Iptables),
            Self::Table => matches!(mode, Mode::Nftables | Mode::Tproxy),
            Self::Iptables => mode == Mode::Iptables,
        }
    }
}

pub(super) fn every_figure_of_kube_proxy_is_there_and_true(mut node: Node) {
    node.start();
    // So that what follows is a change, and not part of the first write.
    eventually(|| {
        let name = "sync_full_proxy_rules_duration_seconds_count";
        match samples(&scrape(&node), name).len() {
            2 => Ok(()),
            other => Err(format!("{other} families are written")),
        }
    });
    // Ports with endpoints elsewhere only, and slices that say when they changed.
    let stamp = format!("'{}'", jiff::Timestamp::now());
    let labels = "labels: {kubernetes.io/service-name: web}";
    let stamped = format!(
        "{labels}, annotations: {{endpoints.kubernetes.io/last-change-trigger-time: {stamp}}}"
    );
    let web = Web {
        spec: "externalTrafficPolicy: Local",
        endpoints: &["remote"],
        ..Web::default()
    };
    node.apply_text(&web.manifest().replace(labels, &stamped));
    let [v4, v6] = SERVICE.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80));
    let clients = [v4, v6].map(|to| node.world.udp_client(Place::Pod, to));
    for (client, to) in clients.iter().zip([v4, v6]) {
        eventually(|| match node.ask(Place::Pod, Protocol::Udp, to, QUIET) {
            Answer::Words(_) => Ok(()),
            other => Err(format!("{to}: {other:?}")),
        });
        assert_eq!(ask_again(client, patience()).words(), "remote");
    }
    for path in ["/healthz", "/livez"] {
        // On a busy machine a write may take longer than the second that these periods allow.
        eventually(|| match get(&node, HEALTH_PORT, path) {
            (200, ..) => Ok(()),
            other => Err(format!("{path}: {other:?}")),
        });
    }

    let scrape = eventually(|| {
        let scrape = scrape(&node);
        let wrong = missing_or_surplus(&scrape, node.mode);
        if wrong.is_empty() {
            Ok(scrape)
        } else {
            Err(wrong.join("; "))
        }
    });
    for family in ["IPv4", "IPv6"] {
        let value = |name: &str, label: &str| {
            value(
                &scrape,
                name,
                &[("ip_family", family), ("traffic_policy", label)],
            )
        };
        // The ports t and u.
        let name = "sync_proxy_rules_no_local_endpoints_total";
        assert_eq!(value(name, "external"), Some(2.0), "{family}");
        assert_eq!(value(name, "internal"), Some(0.0), "{family}");
    }
    assert_eq!(
        value(&scrape, "proxy_healthz_total", &[("code", "200")]),
        Some(1.0)
    );
    if node.mode == Mode::Iptables {
        assert_rules_are_counted(&node, &scrape);
    }

    std::fs::remove_file(node.manifests().join("web.yaml")).unwrap();
    if In::Translating.holds(node.mode) {
        for family in ["IPv4", "IPv6"] {
            let name = "conntrack_reconciler_deleted_entries_total";
            let forgotten = || value(&self::scrape(&node), name, &[("ip_family", family)]);
            eventually(|| match forgotten() {
                Some(n) if n >= 1.0 => Ok(()),
                other => Err(format!("{family}: {other:?}")),
            });
        }
    }
    assert!(node.end().success());
}

pub(super) fn the_metrics_server_answers_what_kube_proxys_does(mut node: Node) {
    node.flags.push("--conntrack-udp-timeout=45s".to_owned());
    node.apply(&Web::default());
    node.start();
    let ask = |path: &str| get(&node, METRICS_PORT, path);
    let (kind, body) = eventually(|| match ask("/healthz") {
        (200, kind, body) => Ok((kind, body)),
        other => Err(format!("{other:?}")),
    });
    assert_eq!((kind, body), plain("ok"));
    let (status, kind, body) = ask("/proxyMode");
    assert_eq!((status, (kind, body)), (200, plain(node.mode.as_str())));
    let (status, kind, body) = ask("/configz");
    assert_eq!((status, kind.as_str()), (200, "application/json"));
    let configz: Value = serde_json::from_str(&body).unwrap();
    let ours = &configz["kubeproxy.config.k8s.io"];
    assert_eq!(ours["mode"], node.mode.as_str());
    assert_eq!(ours["hostnameOverride"], "n0");
    assert_eq!(ours["conntrack"]["udpTimeout"], "45s");
    assert_eq!(ours["clientConnection"]["qps"], 5.0);
    let (status, kind, _) = ask("/metrics");
    assert_eq!(status, 200);
    assert!(kind.starts_with("text/plain"), "{kind}");
    let absent = [
        "/debug/pprof/",
        "/debug/flags/v",
        "/metrics/slis",
        "/flagz",
        "/statusz",
    ];
    for absent in absent {
        assert_eq!(ask(absent).0, 404, "{absent}");
    }
}

fn plain(text: &str) -> (String, String) {
    ("text/plain; charset=utf-8".to_owned(), text.to_owned())
}

fn scrape(node: &Node) -> String {
    get(node, METRICS_PORT, "/metrics").2
}

/// Status, content type and body; a server that does not answer has status 0.
fn get(node: &Node, port: u16, path: &str) -> (u16, String, String) {
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, patience())?;
        stream.set_read_timeout(Some(patience()))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = node.world.in_ns(Place::Node, ask).unwrap_or_default();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let kind = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "));
    (
        status.unwrap_or(0),
        kind.unwrap_or_default().to_owned(),
        body.to_owned(),
    )
}

fn missing_or_surplus(scrape: &str, mode: Mode) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, kind, labels, modes) in FIGURES {
        let declared = format!("# TYPE kubeproxy_{name} {kind}");
        let there = scrape.lines().any(|line| line == declared);
        if there != modes.holds(mode) {
            wrong.push(format!("{declared}: {there}"));
            continue;
        }
        let sample = if *kind == "histogram" {
            format!("{name}_count")
        } else {
            (*name).to_owned()
        };
        let wanted: BTreeSet<&str> = labels.iter().copied().collect();
        let found = samples(scrape, &sample);
        if there && (found.is_empty() || found.iter().any(|(labels, _)| keys(labels) != wanted)) {
            wrong.push(format!("{name}: {found:?}"));
        }
    }
    wrong
}

/// The labels and the value of every sample of a figure.
fn samples<'a>(scrape: &'a str, name: &str) -> Vec<(Vec<(&'a str, &'a str)>, f64)> {
    let name = format!("kubeproxy_{name}");
    let sample = |line: &'a str| {
        let rest = line.strip_prefix(&name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        let labels = match labels.strip_prefix('{') {
            Some(labels) => labels.strip_suffix('}')?,
            None if labels.is_empty() => "",
            None => return None,
        };
        let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.map(|(key, value)| (key, value.trim_matches('"')));
        Some((pairs.collect(), value.parse().unwrap()))
    };
    scrape.lines().filter_map(sample).collect()
}

fn keys<'a>(labels: &[(&'a str, &'a str)]) -> BTreeSet<&'a str> {
    labels.iter().map(|(key, _)| *key).collect()
}

/// The value of the one sample that has no labels but these, each with its value.
fn value(scrape: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let found = samples(scrape, name);
    let fits = |of: &[(&str, &str)]| of.iter().all(|label| labels.contains(label));
    let mut fitting = found.iter().filter(|(of, _)| fits(of));
    let value = fitting.next().map(|(_, value)| *value);
    assert!(fitting.next().is_none(), "{name}: {found:?}");
    value
}

fn assert_rules_are_counted(node: &Node, scrape: &str) {
    for (family, tool) in [("IPv4", "iptables"), ("IPv6", "ip6tables")] {
        for table in ["nat", "mangle"] {
            let count = format!("{tool}-save -t {table} | grep -c '^-A .*VIADUCT-' || true");
            let there = node.world.shell(Place::Node, &count);
            let labels = [("ip_family", family), ("table", table)];
            let told = |name| value(scrape, name, &labels).unwrap();
            let total = told("sync_proxy_rules_iptables_total");
            assert_eq!(there.trim(), total.to_string(), "{family} {table}");
            assert!(told("sync_proxy_rules_iptables_last") <= total);
        }
        let failures = |kind: &str| {
            let name = format!("sync_proxy_rules_iptables_{kind}_failures_total");
            value(scrape, &name, &[("ip_family", family)])
        };
        assert_eq!(failures("restore"), Some(0.0));
        assert_eq!(failures("partial_restore"), Some(0.0));
    }
}
