//! What may be written, what holds in the end, and what is refused by name.

use super::*;
use crate::dns::PodMode;
use crate::sources::pod_networks::PodInterfaces;

fn resolve(settings: Settings) -> Result<Config, ConfigError> {
    let settings = Settings {
        manifests: Some("/".into()),
        hostname_override: Some("Node-1 ".into()),
        ..settings
    };
    Config::resolve(settings, Profile::Run)
}

fn message(settings: Settings) -> String {
    resolve(settings).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_those_of_kube_proxy() {
    let config = resolve(Settings::default()).unwrap();
    assert_eq!(config.node_name.as_str(), "node-1");
    assert_eq!(config.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(config.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!(config.sync_period, Duration::from_secs(30));
    assert_eq!(config.node_port_addresses, NodePortAddresses::All);
    assert!(config.localhost_node_ports && !config.masquerade_all);
    assert!(config.dns.listen.is_empty());
}

#[test]
fn zero_requests_a_second_are_the_default_and_fewer_are_no_bound() {
    let rate = |qps, burst| {
        let settings = Settings {
            kube_api_qps: qps,
            kube_api_burst: burst,
            ..Settings::default()
        };
        resolve(settings).map(|config| config.api_rate)
    };
    let limited = |per_second, burst| Some(Rate { per_second, burst });
    assert_eq!(rate(None, None).unwrap(), limited(5.0, 10));
    assert_eq!(rate(Some(0.0), Some(0)).unwrap(), limited(5.0, 10));
    assert_eq!(rate(Some(0.5), Some(3)).unwrap(), limited(0.5, 3));
    assert_eq!(rate(Some(-1.0), Some(3)).unwrap(), None);
    let error = rate(Some(f64::NAN), None).unwrap_err().to_string();
    assert_eq!(error, "--kube-api-qps: NaN is no rate");
}

#[test]
fn connection_tracking_is_left_alone_unless_it_is_named() {
    let limits = |settings| resolve(settings).unwrap().tracking_limits;
    assert_eq!(limits(Settings::default()), TrackingLimits::default());
    let only_min = limits(Settings {
        conntrack_min: Some(7),
        ..Settings::default()
    });
    assert_eq!(
        (only_min.max_per_core, only_min.min),
        (Some(32_768), Some(7))
    );
    let per_core = limits(Settings {
        conntrack_max_per_core: Some(7),
        ..Settings::default()
    });
    assert_eq!(
        (per_core.max_per_core, per_core.min),
        (Some(7), Some(131_072))
    );
}

#[test]
fn on_a_cluster_tracking_has_the_floor_of_kube_proxy_where_nothing_is_named() {
    let floor = |settings| {
        let cluster = Settings {
            manifests: None,
            master: Some(vec!["https://192.0.2.1:6443".parse().unwrap()]),
            ..settings
        };
        Config::resolve(cluster, Profile::Run)
            .unwrap()
            .tracking_floor
    };
    let defaults = TrackingLimits {
        max_per_core: Some(32_768),
        min: Some(131_072),
        tcp_established: Some(Duration::from_secs(86_400)),
        tcp_close_wait: Some(Duration::from_secs(3600)),
        ..TrackingLimits::default()
    };
    assert_eq!(floor(Settings::default()), defaults);
    let named = Settings {
        conntrack_min: Some(7),
        conntrack_tcp_timeout_established: Some("0s".parse().unwrap()),
        conntrack_tcp_timeout_close_wait: Some("2m".parse().unwrap()),
        ..Settings::default()
    };
    assert_eq!(floor(named), TrackingLimits::default());
    let dry = Settings {
        capture: Some("none".parse().unwrap()),
        ..Settings::default()
    };
    assert_eq!(floor(dry), TrackingLimits::default());
    assert_eq!(
        resolve(Settings::default()).unwrap().tracking_floor,
        TrackingLimits::default()
    );
}

#[test]
fn a_bind_address_may_lack_its_port_or_be_empty() {
    let config = resolve(Settings {
        healthz_bind_address: Some("::1".into()),
        metrics_bind_address: Some(String::new()),
        ..Settings::default()
    })
    .unwrap();
    assert_eq!(config.healthz, Some("[::1]:10256".parse().unwrap()));
    assert_eq!(config.metrics, None);
}

#[test]
fn a_bad_value_names_its_flag() {
    let cidrs = |list: &[&str]| {
        Some(
            list.iter()
                .map(|cidr| Text(cidr.parse().unwrap()))
                .collect(),
        )
    };
    let two_of_one = Settings {
        service_cluster_ip_range: cidrs(&["10.0.0.0/16", "10.1.0.0/16"]),
        ..Settings::default()
    };
    assert_eq!(
        message(two_of_one),
        "--service-cluster-ip-range: two CIDRs must be of different families"
    );
    let outside = Settings {
        capture: Some(Text(Mode::Loopback.into())),
        service_cluster_ip_range: cidrs(&["10.96.0.0/16"]),
        ..Settings::default()
    };
    assert!(message(outside).contains("10.96.0.0/16 is outside 127.0.0.0/8"));
    let mixed = Settings {
        nodeport_addresses: Some(vec!["primary".into(), "10.0.0.0/8".into()]),
        ..Settings::default()
    };
    assert!(message(mixed).starts_with("--nodeport-addresses: `primary` stands alone"));
    let address = Settings {
        healthz_bind_address: Some("nowhere:1".into()),
        ..Settings::default()
    };
    assert!(message(address).starts_with("--healthz-bind-address: nowhere:1 is not"));
    let service = Settings {
        dns_service: Some("kube-dns".into()),
        ..Settings::default()
    };
    assert_eq!(
        message(service),
        "--dns-service: kube-dns is not NAMESPACE/NAME"
    );
    let domain = Settings {
        cluster_domain: Some("a..b".into()),
        ..Settings::default()
    };
    assert_eq!(
        message(domain),
        "--cluster-domain: a..b is not a domain name"
    );
    let zero = Settings {
        iptables_sync_period: Some(Text(GoDuration(Duration::ZERO))),
        ..Settings::default()
    };
    assert_eq!(
        message(zero),
        "--iptables-sync-period: must be longer than 0"
    );
    let retries = Settings {
        retries: Some(11),
        ..Settings::default()
    };
    assert_eq!(message(retries), "--retries: 11 is no number from 0 to 10");
    let hasty = Settings {
        tcp_keepalive: Some(Text(GoDuration(Duration::from_millis(999)))),
        ..Settings::default()
    };
    assert_eq!(message(hasty), "--tcp-keepalive: must be at least 1s");
}

#[test]
fn pods_are_recognised_in_the_modes_of_kube_proxy() {
    let mode = |mode: &str, name: Option<&str>| Settings {
        detect_local_mode: Some(Text(mode.parse().unwrap())),
        pod_bridge_interface: name.map(str::to_owned),
        pod_interface_name_prefix: name.map(str::to_owned),
        cluster_cidr: Some(vec![Text("10.244.0.0/16".parse().unwrap())]),
        ..Settings::default()
    };
    let detected = |settings| resolve(settings).unwrap().detect_local;
    let by_cidr = DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(detected(mode("ClusterCIDR", None)), by_cidr);
    assert_eq!(detected(mode("NodeCIDR", None)), DetectLocal::NodeCidr);
    let bridge = PodInterfaces::Bridge("cni0".to_owned());
    assert_eq!(
        detected(mode("BridgeInterface", Some("cni0"))),
        DetectLocal::Interfaces(bridge)
    );
    let prefix = PodInterfaces::Prefix("cali".to_owned());
    assert_eq!(
        detected(mode("InterfaceNamePrefix", Some("cali"))),
        DetectLocal::Interfaces(prefix)
    );
    assert_eq!(
        message(mode("BridgeInterface", None)),
        "--pod-bridge-interface: required by --detect-local-mode BridgeInterface"
    );
    assert_eq!(
        message(mode("InterfaceNamePrefix", Some(" "))),
        "--pod-interface-name-prefix: required by --detect-local-mode InterfaceNamePrefix"
    );
    assert!("clustercidr".parse::<DetectLocalMode>().is_err());
}

#[test]
fn the_directory_must_be_there() {
    let settings = Settings {
        manifests: Some("/nonexistent".into()),
        ..Settings::default()
    };
    let error = Config::resolve(settings, Profile::Run).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--manifests: /nonexistent is not a directory"
    );
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file: Settings = serde_saphyr::from_str("drainTimeout: 9s\ndnsPods: verified\n").unwrap();
    let flags = Settings {
        drain_timeout: Some(Text(GoDuration(Duration::from_secs(1)))),
        ..Settings::default()
    };
    let config = resolve(flags.or(file)).unwrap();
    assert_eq!(config.drain_timeout, Duration::from_secs(1));
    assert_eq!(config.dns.pods, PodMode::Verified);
    assert_eq!(config.dns.domains, ["cluster.local"]);
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "apiVersion: viaduct.dev/v1alpha1\nkind: ViaductConfiguration\ncolour: red\n",
    )
    .unwrap();
    let message = ReadSettings::of(Some(file.path())).unwrap_err().to_string();
    assert!(
        message.contains("colour") && message.contains('3'),
        "{message}"
    );
}

#[test]
fn another_kind_of_document_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "apiVersion: v1\nkind: Service\n").unwrap();
    let message = ReadSettings::of(Some(file.path())).unwrap_err().to_string();
    assert!(
        message.contains("apiVersion: v1 is not viaduct.dev/v1alpha1"),
        "{message}"
    );
}

// Every key with its default, and nothing else: the file in the repository is the reference for operators.
#[test]
fn the_reference_file_shows_every_key_with_its_default() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/viaduct.yaml");
    let written = serde_json::to_value(ReadSettings::of(Some(&path)).unwrap().settings).unwrap();
    let mut expected = serde_json::to_value(Settings::defaults(Profile::Run)).unwrap();
    // Paths depend on who runs it; the file shows root's.
    expected["adminSocket"] = "/run/viaduct/admin.sock".into();
    expected["dataDir"] = "/var/lib/viaduct".into();
    assert_eq!(written, expected);
    let text = std::fs::read_to_string(&path).unwrap();
    for key in written.as_object().unwrap().keys() {
        assert!(
            text.contains(&format!("{key}:")),
            "{key} is not in config/viaduct.yaml"
        );
    }
}
