//! Settings: what an operator may write, as a flag, an environment variable or a key of the file.
//!
//! One struct serves all three, so that a name exists once. Absent means "ask the next in line"; `Config::resolve`
//! narrows what is left at the end.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::capture::Ladder;
use crate::dns::{Limit, PodMode, UpstreamOrder};
use crate::model::OutlierEjection;
use crate::sources::kube::Master;

use super::DetectLocalMode;
use super::values::{GoDuration, PortRange, Text, Upstream};

/// What can be set, by flag, environment variable (`VIADUCT_` and the flag's name) or key of the file. A field that is
/// absent leaves the choice to the next place in line.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    #[arg(skip)]
    #[doc(hidden)]
    pub api_version: Option<String>,
    #[arg(skip)]
    #[doc(hidden)]
    pub kind: Option<String>,

    /// Directory of manifests to serve; Viaduct is then its own control plane
    #[arg(long, value_name = "DIR", env = "VIADUCT_MANIFESTS")]
    pub manifests: Option<PathBuf>,

    /// Kubeconfig of the cluster to serve [default, without --manifests: the service account of the Pod we are in]
    #[arg(long, value_name = "FILE", env = "VIADUCT_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// URL of an API server, in place of the kubeconfig's or the Pod's own; more than one are tried in turn
    #[arg(
        long,
        value_name = "URL",
        env = "VIADUCT_MASTER",
        value_delimiter = ','
    )]
    pub master: Option<Vec<Text<Master>>>,

    /// Requests a second to the API server in the long run; below 0 there is no bound [default: 5]
    #[arg(
        long,
        value_name = "N",
        env = "VIADUCT_KUBE_API_QPS",
        allow_hyphen_values = true
    )]
    pub kube_api_qps: Option<f64>,

    /// Requests to the API server at once after a rest [default: 10]
    #[arg(long, value_name = "N", env = "VIADUCT_KUBE_API_BURST")]
    pub kube_api_burst: Option<u32>,

    /// How traffic is captured: auto, loopback, none, or the first that works of a list of nftables, iptables, tproxy and local [default: auto; dev: loopback]
    #[arg(long, value_name = "MODE", env = "VIADUCT_CAPTURE")]
    pub capture: Option<Text<Ladder>>,

    /// Name of this node [default: the hostname]
    #[arg(long, value_name = "NAME", env = "VIADUCT_HOSTNAME_OVERRIDE")]
    pub hostname_override: Option<String>,

    /// CIDRs of the Pods on this node, to tell them from callers outside
    #[arg(
        long,
        value_name = "CIDR",
        env = "VIADUCT_CLUSTER_CIDR",
        value_delimiter = ','
    )]
    pub cluster_cidr: Option<Vec<Text<IpNet>>>,

    /// How Pods on this node are recognised: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix [default: ClusterCIDR]
    #[arg(long, value_name = "MODE", env = "VIADUCT_DETECT_LOCAL_MODE")]
    pub detect_local_mode: Option<Text<DetectLocalMode>>,

    /// Bridge that Pods are attached to, for --detect-local-mode BridgeInterface
    #[arg(long, value_name = "NAME", env = "VIADUCT_POD_BRIDGE_INTERFACE")]
    pub pod_bridge_interface: Option<String>,

    /// How the names of Pods' interfaces begin, for --detect-local-mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", env = "VIADUCT_POD_INTERFACE_NAME_PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// CIDRs that cluster IPs are allocated from; the first is the primary family [default: 10.96.0.0/16; loopback: 127.96.0.0/16]
    #[arg(
        long,
        value_name = "CIDR",
        env = "VIADUCT_SERVICE_CLUSTER_IP_RANGE",
        value_delimiter = ','
    )]
    pub service_cluster_ip_range: Option<Vec<Text<IpNet>>>,

    /// Ports that node ports are allocated from [default: 30000-32767]
    #[arg(
        long,
        value_name = "FIRST-LAST",
        env = "VIADUCT_SERVICE_NODE_PORT_RANGE"
    )]
    pub service_node_port_range: Option<Text<PortRange>>,

    /// CIDR that load-balancer addresses are allocated from [default: none, they stay pending; dev: 127.98.0.0/16]
    #[arg(long, value_name = "CIDR", env = "VIADUCT_LOAD_BALANCER_IP_RANGE")]
    pub load_balancer_ip_range: Option<Text<IpNet>>,

    /// CIDR that simulated Pods without an address get theirs from [default: 127.97.0.0/16]
    #[arg(long, value_name = "CIDR", env = "VIADUCT_POD_CIDR")]
    pub pod_cidr: Option<Text<IpNet>>,

    /// Addresses that answer node ports: CIDRs, or `primary` alone [default: every local address; dev: 127.0.0.0/8]
    #[arg(
        long,
        value_name = "CIDR",
        env = "VIADUCT_NODEPORT_ADDRESSES",
        value_delimiter = ','
    )]
    pub nodeport_addresses: Option<Vec<String>>,

    /// Whether 127.0.0.0/8 answers node ports, where --nodeport-addresses leaves it in [default: true]
    #[arg(
        long,
        value_name = "BOOL",
        env = "VIADUCT_IPTABLES_LOCALHOST_NODEPORTS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub iptables_localhost_nodeports: Option<bool>,

    /// Accepted as kube-proxy's; backends see this node as the client anyway
    #[arg(
        long,
        value_name = "BOOL",
        env = "VIADUCT_MASQUERADE_ALL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub masquerade_all: Option<bool>,

    /// Balancing algorithm of Services that name none [default: round-robin]
    #[arg(skip)]
    pub lb_algorithm: Option<String>,

    /// Failed dials in a row after which a backend is left out for a while, or off [default: 3]
    #[arg(skip)]
    pub outlier_ejection: Option<Text<OutlierEjection>>,

    /// Rules are checked, and failed ones tried again, this often [default: 30s]
    #[arg(long, value_name = "DURATION", env = "VIADUCT_IPTABLES_SYNC_PERIOD")]
    pub iptables_sync_period: Option<Text<GoDuration>>,

    /// The kernel is written to at most this often [default: changes of 10ms are gathered, and no more]
    #[arg(
        long,
        value_name = "DURATION",
        env = "VIADUCT_IPTABLES_MIN_SYNC_PERIOD"
    )]
    pub iptables_min_sync_period: Option<Text<GoDuration>>,

    /// Connections that the kernel may track, for each core; 0 leaves it as it is [default: at least 32768 on a cluster, else left as it is]
    #[arg(long, value_name = "N", env = "VIADUCT_CONNTRACK_MAX_PER_CORE")]
    pub conntrack_max_per_core: Option<u32>,

    /// Connections that it may track at least, whatever --conntrack-max-per-core comes to [default: 131072]
    #[arg(long, value_name = "N", env = "VIADUCT_CONNTRACK_MIN")]
    pub conntrack_min: Option<u32>,

    /// Silence after which the kernel forgets an established TCP connection; 0 leaves it as it is [default: at least 24h on a cluster]
    #[arg(
        long,
        value_name = "DURATION",
        env = "VIADUCT_CONNTRACK_TCP_TIMEOUT_ESTABLISHED"
    )]
    pub conntrack_tcp_timeout_established: Option<Text<GoDuration>>,

    /// Silence after which it forgets one that a side has ended; 0 leaves it as it is [default: at least 1h on a cluster]
    #[arg(
        long,
        value_name = "DURATION",
        env = "VIADUCT_CONNTRACK_TCP_TIMEOUT_CLOSE_WAIT"
    )]
    pub conntrack_tcp_timeout_close_wait: Option<Text<GoDuration>>,

    /// Whether it takes TCP segments outside of the window for part of their connection [default: left as it is]
    #[arg(
        long,
        value_name = "BOOL",
        env = "VIADUCT_CONNTRACK_TCP_BE_LIBERAL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub conntrack_tcp_be_liberal: Option<bool>,

    /// Silence after which it forgets datagrams that nobody has answered
    #[arg(long, value_name = "DURATION", env = "VIADUCT_CONNTRACK_UDP_TIMEOUT")]
    pub conntrack_udp_timeout: Option<Text<GoDuration>>,

    /// Silence after which it forgets datagrams that were answered
    #[arg(
        long,
        value_name = "DURATION",
        env = "VIADUCT_CONNTRACK_UDP_TIMEOUT_STREAM"
    )]
    pub conntrack_udp_timeout_stream: Option<Text<GoDuration>>,

    /// How soon the kernel ends this process when memory runs out, from -1000 (never) to 1000 [default: left alone]
    #[arg(
        long,
        value_name = "N",
        env = "VIADUCT_OOM_SCORE_ADJ",
        allow_hyphen_values = true
    )]
    pub oom_score_adj: Option<i32>,

    /// A UDP flow without a datagram for so long ends [default: 60s]
    #[arg(skip)]
    pub udp_idle_timeout: Option<Text<GoDuration>>,

    /// How long the first attempt to reach a backend may take [default: 250ms]
    #[arg(skip)]
    pub connect_timeout: Option<Text<GoDuration>>,

    /// Attempts that may follow the first [default: 3]
    #[arg(skip)]
    pub retries: Option<u8>,

    /// A TCP peer silent for so long is probed, and again after as long [default: the kernel's tcp_keepalive_time]
    #[arg(skip)]
    pub tcp_keepalive: Option<Text<GoDuration>>,

    /// A TCP connection whose bytes stay unacknowledged for so long ends [default: as the kernel has it]
    #[arg(skip)]
    pub tcp_user_timeout: Option<Text<GoDuration>>,

    /// Data threads [default: one per core]
    #[arg(skip)]
    pub data_threads: Option<usize>,

    /// Address the DNS server listens on; may be given more than once; none = no DNS [dev: 127.0.0.1:5353]
    #[arg(
        long,
        value_name = "ADDR:PORT",
        env = "VIADUCT_DNS_LISTEN",
        value_delimiter = ','
    )]
    pub dns_listen: Option<Vec<SocketAddr>>,

    /// Where other names are asked for, ADDR[:PORT], or DOMAIN=ADDR[:PORT] for one domain [default: /etc/resolv.conf]
    #[arg(
        long,
        value_name = "[DOMAIN=]ADDR[:PORT]",
        env = "VIADUCT_DNS_UPSTREAM",
        value_delimiter = ','
    )]
    pub dns_upstream: Option<Vec<Text<Upstream>>>,

    /// Which of several upstreams is asked first: random, or sequential for the first that answers [default: random]
    #[arg(long, value_name = "ORDER", env = "VIADUCT_DNS_UPSTREAM_ORDER")]
    pub dns_upstream_order: Option<Text<UpstreamOrder>>,

    /// Domains of the cluster's names; the main one first [default: cluster.local]
    #[arg(long, value_name = "DOMAIN", env = "VIADUCT_CLUSTER_DOMAIN")]
    pub cluster_domain: Option<String>,

    /// Seconds that clients may keep a name of the cluster, 0-3600 [default: 5]
    #[arg(long, value_name = "SECONDS", env = "VIADUCT_DNS_TTL")]
    pub dns_ttl: Option<u32>,

    /// Seconds that clients may keep the absence of one, 0-3600 [default: 5]
    #[arg(long, value_name = "SECONDS", env = "VIADUCT_DNS_NEGATIVE_TTL")]
    pub dns_negative_ttl: Option<u32>,

    /// Networks whose clients get answers besides loopback, private, link-local and Pod addresses
    #[arg(
        long,
        value_name = "CIDR",
        env = "VIADUCT_DNS_ALLOW",
        value_delimiter = ','
    )]
    pub dns_allow: Option<Vec<Text<IpNet>>>,

    /// Bounds of the DNS server: forwards, client-forwards, connections, client-connections, pipelined, udp-size,
    /// aliases, cache (MiB), idle-timeout, read-timeout, write-timeout, serve-stale (seconds)
    #[arg(
        long,
        value_name = "NAME=NUMBER",
        env = "VIADUCT_DNS_LIMIT",
        value_delimiter = ','
    )]
    pub dns_limit: Option<Vec<Text<Limit>>>,

    /// Pod names in DNS: disabled, insecure or verified [default: insecure]
    #[arg(long, value_name = "MODE", env = "VIADUCT_DNS_PODS")]
    pub dns_pods: Option<Text<PodMode>>,

    /// The Service that leads to this DNS server [default: kube-system/kube-dns]
    #[arg(long, value_name = "NAMESPACE/NAME", env = "VIADUCT_DNS_SERVICE")]
    pub dns_service: Option<String>,

    /// Hide cluster-IP Services without a ready endpoint from DNS
    #[arg(long, env = "VIADUCT_DNS_HIDE_EMPTY", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub dns_hide_empty: Option<bool>,

    /// Follow the search list of a Pod that asks for a name of it and give the first name that exists; watches all Pods
    #[arg(long, env = "VIADUCT_DNS_SEARCH_COMPLETION", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub dns_search_completion: Option<bool>,

    /// Whether the commands of exec probes are run: on this machine, as the user of this process [default: true]
    #[arg(
        long,
        value_name = "BOOL",
        env = "VIADUCT_EXEC_PROBES",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub exec_probes: Option<bool>,

    /// Address of /healthz, /livez and /readyz; empty = off [default: 0.0.0.0:10256; dev: 127.0.0.1:10256]
    #[arg(long, value_name = "ADDR:PORT", env = "VIADUCT_HEALTHZ_BIND_ADDRESS")]
    pub healthz_bind_address: Option<String>,

    /// Address of /metrics; empty = off [default: 127.0.0.1:10249]
    #[arg(long, value_name = "ADDR:PORT", env = "VIADUCT_METRICS_BIND_ADDRESS")]
    pub metrics_bind_address: Option<String>,

    /// End at once if one of these two addresses is taken, instead of serving without and trying again [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        env = "VIADUCT_BIND_ADDRESS_HARD_FAIL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub bind_address_hard_fail: Option<bool>,

    /// Unix socket that `viaduct get` asks [default: /run/viaduct/admin.sock, or below $XDG_RUNTIME_DIR]
    #[arg(long, value_name = "PATH", env = "VIADUCT_ADMIN_SOCKET")]
    pub admin_socket: Option<PathBuf>,

    /// Where allocations, or the last state of a cluster, are kept across restarts [default: /var/lib/viaduct, or below $XDG_STATE_HOME]
    #[arg(long, value_name = "DIR", env = "VIADUCT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,

    /// How long flows may go on after a stop signal [default: 5s]
    #[arg(long, value_name = "DURATION", env = "VIADUCT_DRAIN_TIMEOUT")]
    pub drain_timeout: Option<Text<GoDuration>>,
}

impl Settings {
    /// `apiVersion` of the configuration file.
    pub const API_VERSION: &'static str = "viaduct.dev/v1alpha1";
    /// `kind` of the configuration file.
    pub const KIND: &'static str = "ViaductConfiguration";

    /// Reads the text of a configuration file.
    ///
    /// # Errors
    ///
    /// An unknown key or a bad value (with line and column), another kind of document.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let settings: Self = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        for (key, found, wanted) in [
            ("apiVersion", &settings.api_version, Self::API_VERSION),
            ("kind", &settings.kind, Self::KIND),
        ] {
            if found.as_deref() != Some(wanted) {
                let found = found.as_deref().unwrap_or("nothing");
                return Err(format!("{key}: {found} is not {wanted}"));
            }
        }
        Ok(settings)
    }

    /// These settings, with `rest` where they say nothing.
    #[must_use]
    pub fn or(self, rest: Self) -> Self {
        macro_rules! first {
            ($($field:ident),*) => { Self { $($field: self.$field.or(rest.$field)),* } };
        }
        first!(
            api_version,
            kind,
            manifests,
            kubeconfig,
            master,
            kube_api_qps,
            kube_api_burst,
            capture,
            hostname_override,
            cluster_cidr,
            detect_local_mode,
            pod_bridge_interface,
            pod_interface_name_prefix,
            service_cluster_ip_range,
            service_node_port_range,
            load_balancer_ip_range,
            pod_cidr,
            nodeport_addresses,
            iptables_localhost_nodeports,
            masquerade_all,
            lb_algorithm,
            outlier_ejection,
            iptables_sync_period,
            iptables_min_sync_period,
            conntrack_max_per_core,
            conntrack_min,
            conntrack_tcp_timeout_established,
            conntrack_tcp_timeout_close_wait,
            conntrack_tcp_be_liberal,
            conntrack_udp_timeout,
            conntrack_udp_timeout_stream,
            oom_score_adj,
            udp_idle_timeout,
            connect_timeout,
            retries,
            tcp_keepalive,
            tcp_user_timeout,
            data_threads,
            dns_listen,
            dns_upstream,
            dns_upstream_order,
            cluster_domain,
            dns_ttl,
            dns_negative_ttl,
            dns_allow,
            dns_limit,
            dns_pods,
            dns_service,
            dns_hide_empty,
            dns_search_completion,
            exec_probes,
            healthz_bind_address,
            metrics_bind_address,
            bind_address_hard_fail,
            admin_socket,
            data_dir,
            drain_timeout
        )
    }
}
