//! kube-proxy's configuration, taken over: its document (`document`) and its flags (`flags`).
//!
//! What means something here becomes [`Settings`]; what does not is named, so that one line can warn about it. A field
//! that is empty or zero says nothing, as in kube-proxy, which then fills in its default.

mod document;
mod flags;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use ipnet::IpNet;
use serde_json::Value;

use crate::capture::Mode;
use crate::model::Family;

use super::values::{GoDuration, Text};
use super::{ConfigError, Settings};

use document::{ClientConnection, Conntrack, Iptables, KubeProxyConfiguration};

pub use flags::KubeProxyFlags;

pub(super) use document::KIND;

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

/// A field whose value does not do.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {message}")]
struct Invalid {
    field: &'static str,
    message: String,
}

fn invalid(field: &'static str, message: impl Into<String>) -> Invalid {
    Invalid {
        field,
        message: message.into(),
    }
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
    if version != document::API_VERSION {
        let wanted = document::API_VERSION;
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
    let rules = Rules::of(&document)?;
    let client = document.client_connection.unwrap_or_default();
    let conntrack = document.conntrack.unwrap_or_default();
    let servers = Servers::beside("bindAddress", document.bind_address.as_deref())?;
    detect_local(
        "detectLocalMode",
        document.detect_local_mode.as_deref(),
        &document.detect_local.unwrap_or_default(),
    )?;
    duration("configSyncPeriod", document.config_sync_period.as_deref())?;
    Ok(Settings {
        kubeconfig: said(client.kubeconfig).map(Into::into),
        capture: mode.map(Text),
        hostname_override: said(document.hostname_override),
        cluster_cidr: cidrs("clusterCIDR", document.cluster_cidr.as_deref())?,
        nodeport_addresses: document.node_port_addresses.filter(|list| !list.is_empty()),
        iptables_localhost_nodeports: rules.localhost_node_ports,
        masquerade_all: rules.masquerade_all,
        iptables_sync_period: rules.sync_period,
        iptables_min_sync_period: rules.min_sync_period,
        udp_idle_timeout: duration("udpIdleTimeout", document.udp_idle_timeout.as_deref())?,
        healthz_bind_address: host_port("healthzBindAddress", document.healthz_bind_address)?
            .or(servers.healthz),
        metrics_bind_address: host_port("metricsBindAddress", document.metrics_bind_address)?
            .or(servers.metrics),
        oom_score_adj: document.oom_score_adj,
        conntrack_max_per_core: count("conntrack.maxPerCore", conntrack.max_per_core)?,
        conntrack_min: count("conntrack.min", conntrack.min)?,
        conntrack_tcp_timeout_established: duration(
            "conntrack.tcpEstablishedTimeout",
            conntrack.tcp_established_timeout.as_deref(),
        )?,
        conntrack_tcp_timeout_close_wait: duration(
            "conntrack.tcpCloseWaitTimeout",
            conntrack.tcp_close_wait_timeout.as_deref(),
        )?,
        conntrack_tcp_be_liberal: conntrack.tcp_be_liberal.filter(|liberal| *liberal),
        conntrack_udp_timeout: duration(
            "conntrack.udpTimeout",
            conntrack.udp_timeout.as_deref(),
        )?,
        conntrack_udp_timeout_stream: duration(
            "conntrack.udpStreamTimeout",
            conntrack.udp_stream_timeout.as_deref(),
        )?,
        ..Settings::default()
    })
}

fn without_meaning(document: &KubeProxyConfiguration) -> Vec<String> {
    let client = document.client_connection.clone().unwrap_or_default();
    let masquerade_bit = |section: &Option<Iptables>| {
        let section = section.as_ref();
        section.is_some_and(|section| section.masquerade_bit.is_some())
    };
    let address = document.bind_address.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
    let given = [
        ("featureGates", document.feature_gates.as_ref().is_some_and(|gates| !gates.is_empty())),
        ("clientConnection.acceptContentTypes", client.accept_content_types.is_some_and(|types| !types.is_empty())),
        ("clientConnection.contentType", client.content_type.is_some_and(|types| !types.is_empty())),
        ("clientConnection.qps", client.qps.is_some_and(|qps| qps != 0.0)),
        ("clientConnection.burst", client.burst.is_some_and(|burst| burst != 0)),
        ("logging", document.logging.as_ref().is_some_and(says_something)),
        ("bindAddress", address.is_some_and(|ip| !ip.is_unspecified())),
        ("bindAddressHardFail", document.bind_address_hard_fail == Some(true)),
        ("enableProfiling", document.enable_profiling == Some(true)),
        ("showHiddenMetricsForVersion", said(document.show_hidden_metrics_for_version.clone()).is_some()),
        ("iptables.masqueradeBit", masquerade_bit(&document.iptables)),
        ("nftables.masqueradeBit", masquerade_bit(&document.nftables)),
        ("ipvs", document.ipvs.as_ref().is_some_and(says_something)),
        ("winkernel", document.winkernel.as_ref().is_some_and(says_something)),
        ("configSyncPeriod", !is_zero(document.config_sync_period.as_deref())),
        ("portRange", said(document.port_range.clone()).is_some()),
        ("windowsRunAsService", document.windows_run_as_service == Some(true)),
    ];
    let named = given.into_iter().filter(|(_, given)| *given);
    named.map(|(name, _)| name.to_owned()).collect()
}
