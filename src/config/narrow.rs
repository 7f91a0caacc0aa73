//! Single values, narrowed: what a setting means, and what is refused under its flag.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use crate::capture::{Ladder, Mode};
use crate::model::{Algorithm, Family, Knobs, NodeName};
use crate::net::tracking_limits::TrackingLimits;
use crate::routing::NodePortAddresses;
use crate::sources::kube::Rate;

use super::values::{GoDuration, Text};
use super::{ConfigError, Settings, plain, value_error};

/// What a loopback interface answers without being asked to.
const LOOPBACK: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));

pub(super) fn node_name(given: Option<&str>) -> Result<NodeName, ConfigError> {
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

pub(super) fn service_cidrs(
    cidrs: Vec<IpNet>,
    capture: &Ladder,
) -> Result<Vec<IpNet>, ConfigError> {
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

pub(super) fn node_port_addresses(given: &[String]) -> Result<NodePortAddresses, ConfigError> {
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

pub(super) fn algorithm(given: Option<&str>) -> Result<Algorithm, ConfigError> {
    let given = given.unwrap_or("round-robin");
    Algorithm::parse(given).ok_or_else(|| {
        let known: Vec<&str> = Algorithm::ALL.iter().map(|(name, _)| *name).collect();
        value_error(
            "lb-algorithm",
            format!("{given} is unknown; known are {}", known.join(", ")),
        )
    })
}

pub(super) fn positive(
    flag: &'static str,
    given: Option<GoDuration>,
) -> Result<Duration, ConfigError> {
    match given {
        Some(GoDuration(duration)) if !duration.is_zero() => Ok(duration),
        Some(_) | None => Err(value_error(flag, "must be longer than 0")),
    }
}

// The kernel counts keepalive in seconds.
pub(super) fn seconds(
    flag: &'static str,
    given: Option<GoDuration>,
) -> Result<Option<Duration>, ConfigError> {
    match given {
        Some(GoDuration(duration)) if duration < Duration::from_secs(1) => {
            Err(value_error(flag, "must be at least 1s"))
        }
        given => Ok(given.map(|GoDuration(duration)| duration)),
    }
}

pub(super) fn min_sync_period(settings: &Settings) -> Result<Duration, ConfigError> {
    let given = plain(settings.iptables_min_sync_period).map_or(Duration::ZERO, |given| given.0);
    let period = plain(settings.iptables_sync_period).map_or(given, |period| period.0);
    if given > period {
        let message = "must not be longer than --iptables-sync-period";
        return Err(value_error("iptables-min-sync-period", message));
    }
    Ok(given)
}

// Source: proc_pid_oom_score_adj(5).
pub(super) fn oom_score_adj(given: Option<i32>) -> Result<Option<i32>, ConfigError> {
    match given {
        Some(score) if !(-1000..=1000).contains(&score) => {
            let message = format!("{score} is no number from -1000 to 1000");
            Err(value_error("oom-score-adj", message))
        }
        given => Ok(given),
    }
}

// Zero is the default, and a rate below it no bound. Source: client-go `RESTClientForConfigAndClient`.
pub(super) fn api_rate(qps: Option<f64>, burst: Option<u32>) -> Result<Option<Rate>, ConfigError> {
    let default = Rate::default();
    let per_second = match qps.filter(|qps| *qps != 0.0) {
        Some(qps) if !qps.is_finite() => {
            return Err(value_error("kube-api-qps", format!("{qps} is no rate")));
        }
        Some(qps) if qps < 0.0 => return Ok(None),
        given => given.unwrap_or(default.per_second),
    };
    let burst = burst.filter(|burst| *burst > 0).unwrap_or(default.burst);
    Ok(Some(Rate { per_second, burst }))
}

/// kube-proxy's default of `--conntrack-max-per-core`.
const TRACKED_PER_CORE: u32 = 32_768;
/// kube-proxy's default of `--conntrack-min`.
const TRACKED_AT_LEAST: u32 = 131_072;
/// kube-proxy's default of `--conntrack-tcp-timeout-established`.
const TRACKED_ESTABLISHED: Duration = Duration::from_secs(24 * 3600);
/// kube-proxy's default of `--conntrack-tcp-timeout-close-wait`. The kernel's minute is too short for a connection that one
/// side has ended: once it is forgotten, what the client sends is not translated any more.
const TRACKED_CLOSE_WAIT: Duration = Duration::from_secs(3600);

// One of the first two brings kube-proxy's default of the other; with neither, nothing is set.
pub(super) fn tracking_limits(settings: &Settings) -> TrackingLimits {
    let limited = settings.conntrack_max_per_core.or(settings.conntrack_min);
    let timeout = |given: Option<Text<GoDuration>>| given.map(|Text(GoDuration(timeout))| timeout);
    TrackingLimits {
        max_per_core: limited.map(|_| settings.conntrack_max_per_core.unwrap_or(TRACKED_PER_CORE)),
        min: limited.map(|_| settings.conntrack_min.unwrap_or(TRACKED_AT_LEAST)),
        tcp_established: timeout(settings.conntrack_tcp_timeout_established),
        tcp_close_wait: timeout(settings.conntrack_tcp_timeout_close_wait),
        tcp_be_liberal: settings.conntrack_tcp_be_liberal.unwrap_or(false),
        udp: timeout(settings.conntrack_udp_timeout),
        udp_stream: timeout(settings.conntrack_udp_timeout_stream),
    }
}

// kube-proxy's defaults of what is not named. Zero is a name for "leave it".
pub(super) fn tracking_floor(settings: &Settings) -> TrackingLimits {
    let named = tracking_limits(settings);
    let unlimited = named.max_per_core.is_none();
    let unless = |named: Option<Duration>, default| named.is_none().then_some(default);
    TrackingLimits {
        max_per_core: unlimited.then_some(TRACKED_PER_CORE),
        min: unlimited.then_some(TRACKED_AT_LEAST),
        tcp_established: unless(named.tcp_established, TRACKED_ESTABLISHED),
        tcp_close_wait: unless(named.tcp_close_wait, TRACKED_CLOSE_WAIT),
        ..TrackingLimits::default()
    }
}

pub(super) fn retries(given: Option<u8>) -> Result<u8, ConfigError> {
    let given = given.unwrap_or(3);
    if given > Knobs::MAX_RETRIES {
        let message = format!("{given} is no number from 0 to {}", Knobs::MAX_RETRIES);
        return Err(value_error("retries", message));
    }
    Ok(given)
}

// As kube-proxy: an address without a port gets the default port, and an empty one switches the server off.
pub(super) fn bind_address(
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
