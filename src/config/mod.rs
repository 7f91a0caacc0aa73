//! Configuration: what an operator may set, where it may be written, and what holds in the end.
//!
//! [`Settings`] are the flags, the environment and the file alike; flag > environment > file > default. [`Config`] is
//! the outcome, narrowed once. `config/viaduct.yaml` shows every key with its default; a test holds the two together.

mod configz;
mod detect_local;
mod file;
mod follow;
mod kube_proxy;
mod paths;
mod settings;
mod source;
#[cfg(test)]
mod tests;
mod values;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde_json::{Map, Value};

use crate::capture::{Ladder, Mode};
use crate::dns::{Limits, PodMode, UpstreamOrder};
use crate::model::{Algorithm, Family, Knobs, NodeName, OutlierEjection, ServiceName};
use crate::routing::NodePortAddresses;
use crate::sources::kube::AccessError;
use crate::sources::prober::ExecProbes;

pub use configz::configz;
pub use detect_local::{DetectLocal, DetectLocalMode};
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
pub const LIVE_KEYS: [&str; 6] = [
    "drainTimeout",
    "iptablesLocalhostNodeports",
    "iptablesMinSyncPeriod",
    "masqueradeAll",
    "nodeportAddresses",
    "oomScoreAdj",
];

/// Seconds that clients may keep names of the cluster. The answers are in memory, so asking again costs little, and
/// what is kept for longer is stale for longer.
const CLUSTER_TTL: u32 = 5;
const MAX_CLUSTER_TTL: u32 = 3600;

/// DNS settings, narrowed.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsConfig {
    /// Listen addresses; none = no DNS.
    pub listen: Vec<SocketAddr>,
    /// General upstreams; none = from `/etc/resolv.conf`.
    pub upstreams: Vec<SocketAddr>,
    /// Upstreams of single domains.
    pub domain_upstreams: Vec<(String, SocketAddr)>,
    /// Which of several upstreams is asked first.
    pub upstream_order: UpstreamOrder,
    /// The cluster domains, main one first, without a dot at the end.
    pub domains: Vec<String>,
    /// Seconds that clients may keep a name of the cluster.
    pub ttl: u32,
    /// Seconds that they may keep the absence of one.
    pub negative_ttl: u32,
    /// Bounds.
    pub limits: Limits,
    /// How Pod names are answered.
    pub pods: PodMode,
    /// The Service that leads here.
    pub service: ServiceName,
    /// Whether Services without ready endpoints are hidden.
    pub hide_empty: bool,
    /// Whether the search lists of Pods are followed.
    pub search_completion: bool,
}

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
        Ok(Self {
            settings: effective,
            source,
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
            oom_score_adj: oom_score_adj(settings.oom_score_adj)?,
            udp_idle_timeout: positive("udp-idle-timeout", plain(settings.udp_idle_timeout))?,
            connect_timeout: positive("connect-timeout", plain(settings.connect_timeout))?,
            retries: retries(settings.retries)?,
            tcp_keepalive: seconds("tcp-keepalive", plain(settings.tcp_keepalive))?,
            tcp_user_timeout: seconds("tcp-user-timeout", plain(settings.tcp_user_timeout))?,
            data_threads: settings.data_threads.unwrap_or(0),
            dns: dns(&settings)?,
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

/// What a loopback interface answers without being asked to.
const LOOPBACK: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));

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

fn node_name(given: Option<&str>) -> Result<NodeName, ConfigError> {
    let hostname = || {
        nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
    };
    let raw = given
        .map(str::to_owned)
        .or_else(hostname)
        .unwrap_or_default();
    NodeName::parse(&raw)
        .ok_or_else(|| value_error("hostname-override", "this host has no name; give one"))
}

fn service_cidrs(cidrs: Vec<IpNet>, capture: &Ladder) -> Result<Vec<IpNet>, ConfigError> {
    let flag = "service-cluster-ip-range";
    let outside = cidrs.iter().find(|cidr| !LOOPBACK.contains(*cidr));
    if let (true, Some(cidr)) = (capture.is(Mode::Loopback), outside) {
        let message =
            format!("{cidr} is outside {LOOPBACK}, and --capture loopback can serve nothing else");
        return Err(value_error(flag, message));
    }
    match cidrs.as_slice() {
        [] => Err(value_error(flag, "at least one CIDR is required")),
        [_] => Ok(cidrs),
        [first, second] if Family::of(first.addr()) != Family::of(second.addr()) => Ok(cidrs),
        [_, _] => Err(value_error(flag, "two CIDRs must be of different families")),
        [_, _, ..] => Err(value_error(flag, "at most one CIDR of each family")),
    }
}

fn node_port_addresses(given: &[String]) -> Result<NodePortAddresses, ConfigError> {
    let flag = "nodeport-addresses";
    if given.is_empty() {
        return Ok(NodePortAddresses::All);
    }
    if given.iter().any(|entry| entry == "primary") {
        return match given {
            [_] => Ok(NodePortAddresses::Primary),
            [..] => Err(value_error(
                flag,
                "`primary` stands alone; leave out the CIDRs or `primary`",
            )),
        };
    }
    let parse = |entry: &String| {
        entry
            .trim()
            .parse()
            .map_err(|_| value_error(flag, format!("{entry} is neither a CIDR nor `primary`")))
    };
    given
        .iter()
        .map(parse)
        .collect::<Result<_, _>>()
        .map(NodePortAddresses::Within)
}

fn algorithm(given: Option<&str>) -> Result<Algorithm, ConfigError> {
    let given = given.unwrap_or("round-robin");
    Algorithm::parse(given).ok_or_else(|| {
        let known: Vec<&str> = Algorithm::ALL.iter().map(|(name, _)| *name).collect();
        value_error(
            "lb-algorithm",
            format!("{given} is unknown; known are {}", known.join(", ")),
        )
    })
}

fn positive(flag: &'static str, given: Option<GoDuration>) -> Result<Duration, ConfigError> {
    match given {
        Some(GoDuration(duration)) if !duration.is_zero() => Ok(duration),
        Some(_) | None => Err(value_error(flag, "must be longer than 0")),
    }
}

// The kernel counts keepalive in seconds.
fn seconds(flag: &'static str, given: Option<GoDuration>) -> Result<Option<Duration>, ConfigError> {
    match given {
        Some(GoDuration(duration)) if duration < Duration::from_secs(1) => {
            Err(value_error(flag, "must be at least 1s"))
        }
        given => Ok(given.map(|GoDuration(duration)| duration)),
    }
}

fn min_sync_period(settings: &Settings) -> Result<Duration, ConfigError> {
    let given = plain(settings.iptables_min_sync_period).map_or(Duration::ZERO, |given| given.0);
    let period = plain(settings.iptables_sync_period).map_or(given, |period| period.0);
    if given > period {
        let message = "must not be longer than --iptables-sync-period";
        return Err(value_error("iptables-min-sync-period", message));
    }
    Ok(given)
}

// Source: proc_pid_oom_score_adj(5).
fn oom_score_adj(given: Option<i32>) -> Result<Option<i32>, ConfigError> {
    match given {
        Some(score) if !(-1000..=1000).contains(&score) => {
            let message = format!("{score} is no number from -1000 to 1000");
            Err(value_error("oom-score-adj", message))
        }
        given => Ok(given),
    }
}

fn retries(given: Option<u8>) -> Result<u8, ConfigError> {
    let given = given.unwrap_or(3);
    if given > Knobs::MAX_RETRIES {
        let message = format!("{given} is no number from 0 to {}", Knobs::MAX_RETRIES);
        return Err(value_error("retries", message));
    }
    Ok(given)
}

// As kube-proxy: an address without a port gets the default port, and an empty one switches the server off.
fn bind_address(
    flag: &'static str,
    given: Option<&str>,
    default_port: u16,
) -> Result<Option<SocketAddr>, ConfigError> {
    let given = given.unwrap_or_default().trim();
    if given.is_empty() {
        return Ok(None);
    }
    let with_port = given.parse::<SocketAddr>().ok();
    let without = || {
        given
            .parse::<IpAddr>()
            .ok()
            .map(|ip| SocketAddr::new(ip, default_port))
    };
    match with_port.or_else(without) {
        Some(address) => Ok(Some(address)),
        None => Err(value_error(
            flag,
            format!("{given} is not ADDRESS:PORT; an IPv6 address needs [brackets]"),
        )),
    }
}

// One of the cluster's domains, in lower case and without a dot at the end.
fn domain(raw: &str) -> Result<String, ConfigError> {
    let domain = raw.trim().trim_end_matches('.').to_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if domain.len() > 200 || !domain.split('.').all(label) {
        return Err(value_error(
            "cluster-domain",
            format!("{raw} is not a domain name"),
        ));
    }
    Ok(domain)
}

fn dns(settings: &Settings) -> Result<DnsConfig, ConfigError> {
    let raw_domains = settings
        .cluster_domain
        .as_deref()
        .unwrap_or("cluster.local");
    let domains = raw_domains.split(',').map(domain);
    let domains: Vec<String> = domains.collect::<Result<_, _>>()?;
    let seconds = |flag, value: Option<u32>| match value.unwrap_or(CLUSTER_TTL) {
        seconds if seconds <= MAX_CLUSTER_TTL => Ok(seconds),
        seconds => Err(value_error(
            flag,
            format!("{seconds} is not within 0-{MAX_CLUSTER_TTL} seconds"),
        )),
    };
    let mut limits = Limits::default();
    for limit in plain_list(settings.dns_limit.clone()) {
        limits = limits.with(limit);
    }
    limits.allowed = plain_list(settings.dns_allow.clone());
    let raw_service = settings
        .dns_service
        .as_deref()
        .unwrap_or("kube-system/kube-dns");
    let service = match raw_service.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            ServiceName::new(namespace, name)
        }
        Some(_) | None => {
            return Err(value_error(
                "dns-service",
                format!("{raw_service} is not NAMESPACE/NAME"),
            ));
        }
    };
    let mut upstreams = Vec::new();
    let mut domain_upstreams = Vec::new();
    for upstream in plain_list(settings.dns_upstream.clone()) {
        match upstream.domain {
            Some(domain) => domain_upstreams.push((domain, upstream.address)),
            None => upstreams.push(upstream.address),
        }
    }
    Ok(DnsConfig {
        listen: settings.dns_listen.clone().unwrap_or_default(),
        upstreams,
        domain_upstreams,
        upstream_order: plain(settings.dns_upstream_order).unwrap_or_default(),
        domains,
        ttl: seconds("dns-ttl", settings.dns_ttl)?,
        negative_ttl: seconds("dns-negative-ttl", settings.dns_negative_ttl)?,
        limits,
        pods: plain(settings.dns_pods).unwrap_or(PodMode::Insecure),
        service,
        hide_empty: settings.dns_hide_empty.unwrap_or(false),
        search_completion: settings.dns_search_completion.unwrap_or(false),
    })
}
