//! What holds where nobody said anything, for each command.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::capture::{Ladder, Mode};
use crate::dns::{PodMode, UpstreamOrder};
use crate::model::OutlierEjection;

use super::values::{GoDuration, PortRange, Text};
use super::{DetectLocalMode, Profile, Settings, paths};

impl Settings {
    /// What holds where nobody said anything. Options without a default of their own stay absent.
    pub fn defaults(profile: Profile) -> Self {
        let dev = profile == Profile::Dev;
        let net = |text: &str| Text(text.parse::<IpNet>().expect("a literal CIDR"));
        let duration = |seconds| Some(Text(GoDuration(Duration::from_secs(seconds))));
        Self {
            api_version: Some(Self::API_VERSION.to_owned()),
            kind: Some(Self::KIND.to_owned()),
            master: Some(Vec::new()),
            kube_api_qps: Some(5.0),
            kube_api_burst: Some(10),
            capture: Some(Text(if dev {
                Mode::Loopback.into()
            } else {
                Ladder::auto()
            })),
            cluster_cidr: Some(Vec::new()),
            detect_local_mode: Some(Text(DetectLocalMode::ClusterCidr)),
            service_cluster_ip_range: Some(vec![net(if dev {
                "127.96.0.0/16"
            } else {
                "10.96.0.0/16"
            })]),
            service_node_port_range: Some(Text(PortRange(30000..=32767))),
            load_balancer_ip_range: dev.then(|| net("127.98.0.0/16")),
            pod_cidr: Some(net("127.97.0.0/16")),
            nodeport_addresses: Some(if dev {
                vec!["127.0.0.0/8".to_owned()]
            } else {
                Vec::new()
            }),
            iptables_localhost_nodeports: Some(true),
            masquerade_all: Some(false),
            lb_algorithm: Some("round-robin".to_owned()),
            outlier_ejection: Some(Text(OutlierEjection::default())),
            iptables_sync_period: duration(30),
            conntrack_tcp_be_liberal: Some(false),
            udp_idle_timeout: duration(60),
            connect_timeout: Some(Text(GoDuration(Duration::from_millis(250)))),
            retries: Some(3),
            tcp_keepalive: None,
            tcp_user_timeout: None,
            data_threads: Some(0),
            dns_listen: Some(if dev {
                vec![SocketAddr::from(([127, 0, 0, 1], 5353))]
            } else {
                Vec::new()
            }),
            dns_upstream: Some(Vec::new()),
            dns_upstream_order: Some(Text(UpstreamOrder::Random)),
            cluster_domain: Some("cluster.local".to_owned()),
            dns_ttl: Some(5),
            dns_negative_ttl: Some(5),
            dns_allow: Some(Vec::new()),
            dns_limit: Some(Vec::new()),
            dns_pods: Some(Text(PodMode::Insecure)),
            dns_service: Some("kube-system/kube-dns".to_owned()),
            dns_hide_empty: Some(false),
            dns_search_completion: Some(false),
            exec_probes: Some(true),
            healthz_bind_address: Some(
                if dev {
                    "127.0.0.1:10256"
                } else {
                    "0.0.0.0:10256"
                }
                .to_owned(),
            ),
            metrics_bind_address: Some("127.0.0.1:10249".to_owned()),
            bind_address_hard_fail: Some(false),
            admin_socket: Some(paths::admin_socket()),
            data_dir: Some(paths::data_dir()),
            drain_timeout: duration(5),
            ..Self::default()
        }
    }
}
