//! kube-proxy's configuration, taken over: its document (`document`) and its flags (`flags`).
//!
//! What means something here becomes [`Settings`]; what does not is named, so that one line can warn about it. A field
//! that is empty or zero says nothing, as in kube-proxy, which then fills in its default.

mod document;
mod fields;
mod flags;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::Path;

use super::values::Text;
use super::{ConfigError, Settings};

use document::{Conntrack, Iptables, KubeProxyConfiguration};
use fields::{
    Interfaces, Invalid, Servers, check_detect_local, cidrs, count, duration, host_port, in_range,
    is_zero, mode, said, says_something, zero_or_duration,
};

pub use flags::KubeProxyFlags;

pub(super) use document::{API_VERSION, KIND};

/// What was read, and what there is to say about it.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// What means something here.
    pub(super) settings: Settings,
    /// The fields or flags without a meaning here that were given all the same.
    pub(super) without_meaning: Vec<String>,
    /// What a strict reader would have refused, with line and column.
    pub(super) loose: Option<String>,
}

/// Takes over the document `text` of the file `path`.
///
/// # Errors
///
/// What is no such document, with line and column, and values that do not do, with their field.
pub(super) fn take(path: &Path, text: &str) -> Result<Taken, ConfigError> {
    let failed = |message| ConfigError::Parse {
        path: path.to_owned(),
        message,
    };
    let (document, loose) = document::parse(text).map_err(|error| failed(error.to_string()))?;
    let version = document.api_version.as_deref().unwrap_or("nothing");
    if version != API_VERSION {
        let wanted = API_VERSION;
        return Err(failed(format!("apiVersion: {version} is not {wanted}")));
    }
    let without_meaning = without_meaning(&document);
    Ok(Taken {
        settings: settings(document).map_err(|error| failed(error.to_string()))?,
        without_meaning,
        loose,
    })
}

fn settings(document: KubeProxyConfiguration) -> Result<Settings, Invalid> {
    let mode = mode("mode", document.mode.as_deref())?;
    let rules = rules(&document)?;
    let client = document.client_connection.unwrap_or_default();
    let servers = Servers::beside("bindAddress", document.bind_address.as_deref())?;
    let local = document.detect_local.unwrap_or_default();
    check_detect_local(&Interfaces {
        mode: ("detectLocalMode", document.detect_local_mode.as_deref()),
        bridge: (
            "detectLocal.bridgeInterface",
            local.bridge_interface.as_deref(),
        ),
        prefix: (
            "detectLocal.interfaceNamePrefix",
            local.interface_name_prefix.as_deref(),
        ),
    })?;
    duration("configSyncPeriod", document.config_sync_period.as_deref())?;
    let tracking = conntrack(&document.conntrack.unwrap_or_default())?;
    let own = Settings {
        kube_api_qps: client.qps.filter(|qps| *qps != 0.0),
        kube_api_burst: count("clientConnection.burst", client.burst)?.filter(|burst| *burst != 0),
        kubeconfig: said(client.kubeconfig).map(Into::into),
        capture: mode.map(|mode| Text(mode.into())),
        detect_local_mode: said(document.detect_local_mode).and_then(|mode| mode.parse().ok()),
        pod_bridge_interface: said(local.bridge_interface),
        pod_interface_name_prefix: said(local.interface_name_prefix),
        hostname_override: said(document.hostname_override),
        cluster_cidr: cidrs("clusterCIDR", document.cluster_cidr.as_deref())?,
        nodeport_addresses: document.node_port_addresses.filter(|list| !list.is_empty()),
        iptables_localhost_nodeports: rules.iptables_localhost_nodeports,
        masquerade_all: rules.masquerade_all,
        iptables_sync_period: rules.iptables_sync_period,
        iptables_min_sync_period: rules.iptables_min_sync_period,
        udp_idle_timeout: duration("udpIdleTimeout", document.udp_idle_timeout.as_deref())?,
        healthz_bind_address: host_port("healthzBindAddress", document.healthz_bind_address)?
            .or(servers.healthz),
        metrics_bind_address: host_port("metricsBindAddress", document.metrics_bind_address)?
            .or(servers.metrics),
        bind_address_hard_fail: document.bind_address_hard_fail.filter(|hard| *hard),
        oom_score_adj: in_range("oomScoreAdj", document.oom_score_adj, -1000..=1000)?,
        ..Settings::default()
    };
    Ok(own.or(tracking))
}

fn without_meaning(document: &KubeProxyConfiguration) -> Vec<String> {
    let client = document.client_connection.clone().unwrap_or_default();
    let masquerade_bit = |section: &Option<Iptables>| {
        let section = section.as_ref();
        section.is_some_and(|section| section.masquerade_bit.is_some())
    };
    let address = document.bind_address.as_deref();
    let address = address.and_then(|ip| ip.parse::<IpAddr>().ok());
    let given = [
        (
            "featureGates",
            document
                .feature_gates
                .as_ref()
                .is_some_and(|gates| !gates.is_empty()),
        ),
        (
            "clientConnection.acceptContentTypes",
            client
                .accept_content_types
                .is_some_and(|types| !types.is_empty()),
        ),
        (
            "clientConnection.contentType",
            client.content_type.is_some_and(|types| !types.is_empty()),
        ),
        (
            "logging",
            document.logging.as_ref().is_some_and(says_something),
        ),
        (
            "bindAddress",
            address.is_some_and(|ip| !ip.is_unspecified()),
        ),
        ("enableProfiling", document.enable_profiling == Some(true)),
        (
            "showHiddenMetricsForVersion",
            said(document.show_hidden_metrics_for_version.clone()).is_some(),
        ),
        ("iptables.masqueradeBit", masquerade_bit(&document.iptables)),
        ("nftables.masqueradeBit", masquerade_bit(&document.nftables)),
        ("ipvs", document.ipvs.as_ref().is_some_and(says_something)),
        (
            "winkernel",
            document.winkernel.as_ref().is_some_and(says_something),
        ),
        (
            "configSyncPeriod",
            !is_zero(document.config_sync_period.as_deref()),
        ),
        ("portRange", said(document.port_range.clone()).is_some()),
        (
            "windowsRunAsService",
            document.windows_run_as_service == Some(true),
        ),
    ];
    let named = given.into_iter().filter(|(_, given)| *given);
    named.map(|(name, _)| name.to_owned()).collect()
}

fn conntrack(given: &Conntrack) -> Result<Settings, Invalid> {
    let timeout = |field, given: &Option<String>| duration(field, given.as_deref());
    // Absent they have a default, and zero leaves the kernel's.
    let timeout_or_zero = |field, given: &Option<String>| zero_or_duration(field, given.as_deref());
    Ok(Settings {
        conntrack_max_per_core: count("conntrack.maxPerCore", given.max_per_core)?,
        conntrack_min: count("conntrack.min", given.min)?,
        conntrack_tcp_be_liberal: given.tcp_be_liberal.filter(|liberal| *liberal),
        conntrack_tcp_timeout_established: timeout_or_zero(
            "conntrack.tcpEstablishedTimeout",
            &given.tcp_established_timeout,
        )?,
        conntrack_tcp_timeout_close_wait: timeout_or_zero(
            "conntrack.tcpCloseWaitTimeout",
            &given.tcp_close_wait_timeout,
        )?,
        conntrack_udp_timeout: timeout("conntrack.udpTimeout", &given.udp_timeout)?,
        conntrack_udp_timeout_stream: timeout(
            "conntrack.udpStreamTimeout",
            &given.udp_stream_timeout,
        )?,
        ..Settings::default()
    })
}

// kube-proxy reads the section of its mode; both say the same things here.
fn rules(document: &KubeProxyConfiguration) -> Result<Settings, Invalid> {
    let nftables = document.mode.as_deref() == Some("nftables");
    let (names, section) = if nftables {
        (
            [
                "nftables.syncPeriod",
                "nftables.minSyncPeriod",
                "nftables.masqueradeBit",
            ],
            &document.nftables,
        )
    } else {
        (
            [
                "iptables.syncPeriod",
                "iptables.minSyncPeriod",
                "iptables.masqueradeBit",
            ],
            &document.iptables,
        )
    };
    let section = section.clone().unwrap_or_default();
    in_range(names[2], section.masquerade_bit, 0..=31)?;
    Ok(Settings {
        iptables_localhost_nodeports: section.localhost_node_ports,
        masquerade_all: section.masquerade_all.filter(|all| *all),
        iptables_sync_period: duration(names[0], section.sync_period.as_deref())?,
        iptables_min_sync_period: duration(names[1], section.min_sync_period.as_deref())?,
        ..Settings::default()
    })
}
