//! The DNS server's settings, narrowed.

use std::net::SocketAddr;

use crate::dns::{Limits, PodMode, UpstreamOrder};
use crate::model::ServiceName;

use super::{ConfigError, Settings, plain, plain_list, value_error};

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

pub(super) fn dns(settings: &Settings) -> Result<DnsConfig, ConfigError> {
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
