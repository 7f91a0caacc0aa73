//! Configuration: what an operator may set, where it may be written, and what holds in the end.
//!
//! [`Settings`] are the flags, the environment and the file alike; flag > environment > file > default. [`Config`] is
//! the outcome, narrowed once. `config/viaduct.yaml` shows every key with its default; a test holds the two together.

mod configz;
mod defaults;
mod detect_local;
mod dns;
mod file;
mod follow;
mod kube_proxy;
mod narrow;
mod paths;
mod settings;
mod source;
#[cfg(test)]
mod tests;
mod values;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::capture::{Ladder, Mode};
use crate::model::{Algorithm, Family, NodeName, OutlierEjection};
use crate::net::tracking_limits::TrackingLimits;
use crate::routing::NodePortAddresses;
use crate::sources::kube::{AccessError, Rate};
use crate::sources::prober::ExecProbes;

use narrow::{
    algorithm, api_rate, bind_address, min_sync_period, node_name, node_port_addresses,
    oom_score_adj, positive, retries, seconds, service_cidrs, tracking_floor, tracking_limits,
};

pub use configz::configz;
pub use detect_local::{DetectLocal, DetectLocalMode};
pub use dns::DnsConfig;
pub use file::{Given, ReadSettings};
pub use follow::FileChanges;
pub use kube_proxy::KubeProxyFlags;
pub use settings::Settings;
pub use source::Source;
pub use values::{GoDuration, PortRange, Text, Upstream};

/// What holds in the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// All settings as they hold, defaults included.
    pub settings: Settings,
    /// Where the objects come from.
    pub source: Source,
    /// How often the API servers are asked; `None` = as often as there is a reason to.
    pub api_rate: Option<Rate>,
    /// The capture modes to try.
    pub capture: Ladder,
    /// The node's name.
    pub node_name: NodeName,
    /// Who counts as a Pod of this node.
    pub detect_local: DetectLocal,
    /// One or two service CIDRs, primary first.
    pub service_cidrs: Vec<IpNet>,
    /// Node ports to allocate from.
    pub node_port_range: RangeInclusive<u16>,
    /// Load-balancer addresses to allocate from.
    pub load_balancer_range: Option<IpNet>,
    /// Addresses of simulated Pods.
    pub simulated_pod_cidr: IpNet,
    /// Which local addresses answer node ports.
    pub node_port_addresses: NodePortAddresses,
    /// Whether 127.0.0.0/8 answers node ports, if it is among these.
    pub localhost_node_ports: bool,
    /// `--masquerade-all` was given. Nothing depends on it but a line of log.
    pub masquerade_all: bool,
    /// The algorithm of Services that name none.
    pub algorithm: Algorithm,
    /// When failing backends of Services that do not say are left out.
    pub outlier_ejection: OutlierEjection,
    /// How often rules are checked and failures tried again.
    pub sync_period: Duration,
    /// The least time between two writes to the kernel; zero = as soon as changes are gathered.
    pub min_sync_period: Duration,
    /// What connection tracking shall do.
    pub tracking_limits: TrackingLimits,
    /// What it shall do at least where nobody said anything.
    pub tracking_floor: TrackingLimits,
    /// The process's own `oom_score_adj`; `None` = left alone.
    pub oom_score_adj: Option<i32>,
    /// Idle end of a UDP flow.
    pub udp_idle_timeout: Duration,
    /// How long the first attempt to reach a backend may take.
    pub connect_timeout: Duration,
    /// How many attempts may follow the first.
    pub retries: u8,
    /// After how long of silence a TCP peer is probed; `None` = as the kernel does.
    pub tcp_keepalive: Option<Duration>,
    /// How long sent bytes may stay unacknowledged; `None` = as the kernel does.
    pub tcp_user_timeout: Option<Duration>,
    /// Data threads; 0 = one per core.
    pub data_threads: usize,
    /// The DNS server, if there is one.
    pub dns: DnsConfig,
    /// Whether the commands of exec probes are run.
    pub exec_probes: ExecProbes,
    /// The health server.
    pub healthz: Option<SocketAddr>,
    /// The metrics server.
    pub metrics: Option<SocketAddr>,
    /// Whether the process ends where one of these two cannot be bound.
    pub bind_address_hard_fail: bool,
    /// The admin socket.
    pub admin_socket: PathBuf,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Bound of the drain.
    pub drain_timeout: Duration,
    /// `dev`: addresses outside the ranges are replaced, and taken ports give way to the next free one.
    pub dev: bool,
}

/// Keys that a running process takes over as they change. Any other makes it restart itself.
pub const LIVE_KEYS: [&str; 13] = [
    "conntrackMaxPerCore",
    "conntrackMin",
    "conntrackTcpBeLiberal",
    "conntrackTcpTimeoutCloseWait",
    "conntrackTcpTimeoutEstablished",
    "conntrackUdpTimeout",
    "conntrackUdpTimeoutStream",
    "drainTimeout",
    "iptablesLocalhostNodeports",
    "iptablesMinSyncPeriod",
    "masqueradeAll",
    "nodeportAddresses",
    "oomScoreAdj",
];

/// Why a configuration cannot be used. Each names the place.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("--config {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be; the message has line and column.
    #[error("--config {}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// There is no way to an API server.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A value does not do.
    #[error("--{flag}: {message}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What is wrong, and what to do.
        message: String,
    },
}

fn value_error(flag: &'static str, message: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        flag,
        message: message.into(),
    }
}

/// Which command asks: their defaults differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The node proxy.
    Run,
    /// A local cluster on loopback.
    Dev,
}

impl Config {
    /// Narrows settings that have their defaults filled in.
    ///
    /// # Errors
    ///
    /// The first value that does not do, by its flag.
    pub fn resolve(settings: Settings, profile: Profile) -> Result<Self, ConfigError> {
        let mut defaults = Settings::defaults(profile);
        let capture = plain(settings.capture.clone().or(defaults.capture.clone()));
        let capture = capture.unwrap_or_else(Ladder::auto);
        let loopback = capture.is(Mode::Loopback);
        if loopback {
            let dev = Settings::defaults(Profile::Dev);
            defaults.service_cluster_ip_range = dev.service_cluster_ip_range;
        }
        let settings = settings.or(defaults);
        let effective = settings.clone();
        let source = source::source(&settings)?;
        if loopback && source.manifests().is_none() {
            return Err(value_error(
                "capture",
                "loopback serves manifests only: a cluster's addresses are not on loopback",
            ));
        }
        // Nothing else of the host is changed for a directory of manifests, which may be anybody's; kube-proxy's place is
        // on a cluster.
        let in_place_of_kube_proxy = source.manifests().is_none() && !capture.is(Mode::None);
        let tracking_floor = if in_place_of_kube_proxy {
            tracking_floor(&settings)
        } else {
            TrackingLimits::default()
        };
        Ok(Self {
            settings: effective,
            source,
            api_rate: api_rate(settings.kube_api_qps, settings.kube_api_burst)?,
            node_name: node_name(settings.hostname_override.as_deref())?,
            detect_local: detect_local::detect_local(&settings)?,
            service_cidrs: service_cidrs(
                plain_list(settings.service_cluster_ip_range.clone()),
                &capture,
            )?,
            capture,
            node_port_range: plain(settings.service_node_port_range.clone())
                .map_or(30000..=32767, |range| range.0),
            load_balancer_range: plain(settings.load_balancer_ip_range),
            simulated_pod_cidr: plain(settings.pod_cidr)
                .ok_or_else(|| value_error("pod-cidr", "a CIDR is required"))?,
            node_port_addresses: node_port_addresses(
                settings.nodeport_addresses.as_deref().unwrap_or_default(),
            )?,
            localhost_node_ports: settings.iptables_localhost_nodeports.unwrap_or(true),
            masquerade_all: settings.masquerade_all.unwrap_or(false),
            exec_probes: match settings.exec_probes {
                Some(false) => ExecProbes::Refused,
                Some(true) | None => ExecProbes::Allowed,
            },
            algorithm: algorithm(settings.lb_algorithm.as_deref())?,
            outlier_ejection: settings
                .outlier_ejection
                .map(|Text(rule)| rule)
                .unwrap_or_default(),
            sync_period: positive("iptables-sync-period", plain(settings.iptables_sync_period))?,
            min_sync_period: min_sync_period(&settings)?,
            tracking_limits: tracking_limits(&settings),
            tracking_floor,
            oom_score_adj: oom_score_adj(settings.oom_score_adj)?,
            udp_idle_timeout: positive("udp-idle-timeout", plain(settings.udp_idle_timeout))?,
            connect_timeout: positive("connect-timeout", plain(settings.connect_timeout))?,
            retries: retries(settings.retries)?,
            tcp_keepalive: seconds("tcp-keepalive", plain(settings.tcp_keepalive))?,
            tcp_user_timeout: seconds("tcp-user-timeout", plain(settings.tcp_user_timeout))?,
            data_threads: settings.data_threads.unwrap_or(0),
            dns: dns::dns(&settings)?,
            healthz: bind_address(
                "healthz-bind-address",
                settings.healthz_bind_address.as_deref(),
                10256,
            )?,
            metrics: bind_address(
                "metrics-bind-address",
                settings.metrics_bind_address.as_deref(),
                10249,
            )?,
            bind_address_hard_fail: settings.bind_address_hard_fail.unwrap_or(false),
            admin_socket: settings.admin_socket.unwrap_or_else(paths::admin_socket),
            data_dir: settings.data_dir.unwrap_or_else(paths::data_dir),
            drain_timeout: plain(settings.drain_timeout)
                .map_or(Duration::from_secs(5), |timeout| timeout.0),
            dev: profile == Profile::Dev,
        })
    }

    /// The keys whose values differ between this configuration and `other`.
    pub fn changed_keys(&self, other: &Self) -> Vec<String> {
        let fields = |config: &Self| match serde_json::to_value(&config.settings) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) | Err(_) => Map::new(),
        };
        let (before, after) = (fields(self), fields(other));
        let differs = |(key, value): &(&String, &Value)| before.get(*key) != Some(*value);
        after
            .iter()
            .filter(differs)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// The families that Services can have here. A cluster may have both, whatever we are told of its ranges.
    pub fn families(&self) -> Vec<Family> {
        if self.source.manifests().is_none() {
            return Family::BOTH.to_vec();
        }
        self.service_cidrs
            .iter()
            .map(|cidr| Family::of(cidr.addr()))
            .collect()
    }
}

/// Where `viaduct get` looks for a running process if it is not told.
pub fn default_admin_socket() -> PathBuf {
    paths::admin_socket()
}

fn plain<T>(value: Option<Text<T>>) -> Option<T> {
    value.map(|text| text.0)
}

fn plain_list<T>(values: Option<Vec<Text<T>>>) -> Vec<T> {
    values.into_iter().flatten().map(|text| text.0).collect()
}
