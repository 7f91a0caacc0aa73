//! Each rung made impossible in turn: the next is taken and said so, and where none is left the end is an explanation.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use super::BALANCER;
use super::node::{Node, SERVICE, Web};
use crate::rig::all_rules;
use crate::world::{Place, eventually};

pub(super) fn the_next_rung_is_taken_where_one_is_impossible(mut node: Node) {
    let before = all_rules(&node.world);
    node.capture = Some("auto");
    node.apply(&Web::default());
    // The tools of each variant of iptables are one program.
    let rungs: [(&[&str], &str); 7] = [
        (&[], "nftables"),
        (&["nft"], "iptables"),
        (
            &["nat", "iptables-restore", "iptables-legacy-restore"],
            "tproxy",
        ),
        (
            &["nft", "iptables-restore", "iptables-legacy-restore"],
            "local",
        ),
        (&["netfilter", "iptables-legacy-restore"], "local"),
        (&["nat", "mangle", "iptables-legacy-restore"], "tproxy"),
        (
            &[
                "powerless-nft",
                "powerless-iptables-restore",
                "powerless-iptables-legacy-restore",
            ],
            "local",
        ),
    ];
    for (hidden, rung) in rungs {
        node.hidden = hidden.to_vec();
        node.start();
        let chosen = format!("IPv4: {rung}, IPv6: {rung}");
        eventually(|| {
            let log = node.log();
            let last = log
                .lines()
                .rfind(|line| line.contains("capture modes chosen"));
            match last {
                Some(line) if line.contains(&chosen) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        for ip in SERVICE {
            node.await_served(SocketAddr::new(ip.parse().unwrap(), 80));
        }
        let log = node.log();
        for sign in hidden.iter().filter_map(|lack| words_about(lack)) {
            let told = log.lines().rfind(|line| line.contains(&chosen));
            assert!(told.unwrap().contains(sign), "{sign}: {log}");
        }
        assert!(node.end().success(), "{rung}");
        assert_eq!(all_rules(&node.world), before, "{rung}");
    }
}

// What the line about the choice says of it.
fn words_about(lack: &str) -> Option<&'static str> {
    match lack {
        "mangle" => Some("table mangle: "),
        "powerless-nft" => Some("not permitted"),
        _ => None,
    }
}

pub(super) fn a_family_that_fails_later_is_told_and_tried_again_and_stops_no_other(mut node: Node) {
    node.capture = Some("nftables");
    node.hidden = vec!["ip6-later"];
    node.apply(&Web::default());
    node.start();
    for ip in SERVICE {
        node.await_served(SocketAddr::new(ip.parse().unwrap(), 80));
    }
    let balanced = |status, spec| Web {
        kind: "LoadBalancer",
        status,
        spec,
        ..Web::default()
    };
    let ask = |port: u16, path: &str| {
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        node.http(Place::Node, to, path).unwrap()
    };
    node.break_ipv6();
    // A few elements need no `nft`.
    let status = "{loadBalancer: {ingress: [{ip: 203.0.113.7}, {ip: '2001:db8:7::7'}]}}";
    node.apply(&balanced(status, ""));
    for ip in BALANCER {
        node.await_served(SocketAddr::new(ip.parse().unwrap(), 80));
    }
    // Intervals do.
    let status = "{loadBalancer: {ingress: [{ip: 203.0.113.8}, {ip: '2001:db8:7::8'}]}}";
    let ranges = "loadBalancerSourceRanges: [192.0.2.0/25, 2001:db8::/80]";
    node.apply(&balanced(status, ranges));
    let [v4, v6] = ["203.0.113.8:80", "[2001:db8:7::8]:80"].map(|to| to.parse().unwrap());
    node.await_served(v4);
    eventually(|| {
        let told = ask(10256, "/readyz");
        let names = told.contains(r#""failures":{"ipv6":"#) && told.contains("not permitted");
        names.then_some(()).ok_or(told)
    });
    let figures = ask(10249, "/metrics");
    for line in [
        r#"viaduct_rules_failing{ip_family="ipv6"} 1"#,
        r#"viaduct_rules_failures_total{ip_family="ipv6"} "#,
    ] {
        assert!(figures.contains(line), "{figures}");
    }
    assert!(node.log().contains("rules could not be"), "{}", node.log());
    node.mend_ipv6();
    node.await_served(v6);
    eventually(|| {
        let told = ask(10256, "/readyz");
        (!told.contains("failures")).then_some(()).ok_or(told)
    });
    assert!(ask(10249, "/metrics").contains(r#"viaduct_rules_failing{ip_family="ipv6"} 0"#));
}

pub(super) fn doctor_tells_what_works_and_who_else_is_here(node: Node) {
    let ask = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
        let output = node
            .world
            .in_ns(Place::Node, || command.arg("doctor").output())
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    };
    let before = all_rules(&node.world);
    let (status, text) = ask();
    assert_eq!(status, Some(0), "{text}");
    for mode in ["nftables", "iptables", "tproxy", "local"] {
        if mode == "iptables" {
            let by = |line: &str| line.contains("works here, by ip") && line.contains("-restore v");
            assert!(text.lines().any(by), "{text}");
        }
        let works =
            |line: &&str| line.starts_with(&format!("capture {mode} ")) && line.contains(" ok ");
        assert_eq!(text.lines().filter(works).count(), 2, "{mode}: {text}");
    }
    let routes = |text: &str, found: &str| {
        let about = |line: &&str| line.starts_with("default route ") && line.contains(found);
        text.lines().filter(about).count()
    };
    assert_eq!(routes(&text, " ok "), 2, "{text}");
    assert_eq!(all_rules(&node.world), before, "nothing stays");
    let line = "ip -4 route del default; ip -6 route del default";
    node.world.shell(Place::Node, line);
    let (status, text) = ask();
    assert_eq!(status, Some(0), "{text}");
    assert_eq!(routes(&text, " no "), 2, "{text}");
    node.world.shell(Place::Node, "nft add table ip kube-proxy");
    let (status, text) = ask();
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("kube-proxy --cleanup"), "{text}");
}

pub(super) fn without_a_rung_the_end_is_an_explanation(node: Node) {
    let program = env!("CARGO_BIN_EXE_viaduct");
    for (capture, rungs) in [
        ("auto", &["nftables", "iptables", "tproxy", "local"][..]),
        ("local", &["local"]),
    ] {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--inh-caps=-net_admin",
                "--bounding-set=-net_admin",
                program,
            ])
            .args(["run", "--capture", capture, "--manifests"])
            .arg(node.manifests())
            .arg("--admin-socket")
            .arg(node.manifests().with_file_name("other.sock"))
            .arg("--data-dir")
            .arg(node.manifests().with_file_name("other"));
        let output = node.world.in_ns(Place::Node, || command.output()).unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}");
        let last = words.lines().last().unwrap_or_default();
        assert!(
            last.starts_with(&format!("error: --capture {capture}: ")),
            "{last}"
        );
        for rung in rungs {
            assert!(last.contains(&format!("{rung}: ")), "{rung}: {last}");
        }
        assert!(last.contains("CAP_NET_ADMIN"), "{last}");
    }
}
