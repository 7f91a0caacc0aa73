//! What the data path counts. Labels come from closed sets; nothing here depends on clients or Services.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters and gauges of the data path, shared by all data threads.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// TCP connections accepted and admitted.
    pub tcp_connections: IntCounter,
    /// TCP connections at this moment.
    pub tcp_active: IntGauge,
    /// TCP connections reset without having been served, by reason.
    pub tcp_refused: IntCounterVec,
    /// TCP connections that did not come through capture.
    pub uncaptured: IntCounter,
    /// Bytes relayed to backends over TCP.
    pub tcp_bytes_to_backends: IntCounter,
    /// Bytes relayed to clients over TCP.
    pub tcp_bytes_to_clients: IntCounter,
    /// Failed dial attempts, by reason.
    pub dial_failures: IntCounterVec,
    /// Ejections of backends that failed too often.
    pub ejections: IntCounter,
    /// Failed accepts, by reason.
    pub accept_errors: IntCounterVec,
    /// UDP flows opened.
    pub udp_flows: IntCounter,
    /// UDP flows at this moment.
    pub udp_active: IntGauge,
    /// Datagrams forwarded to backends.
    pub udp_datagrams_to_backends: IntCounter,
    /// Datagrams forwarded to clients.
    pub udp_datagrams_to_clients: IntCounter,
    /// Payload bytes forwarded to backends over UDP.
    pub udp_bytes_to_backends: IntCounter,
    /// Payload bytes forwarded to clients over UDP.
    pub udp_bytes_to_clients: IntCounter,
    /// Datagrams dropped, by reason.
    pub udp_drops: IntCounterVec,
}

impl Metrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// If one of the names is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let by = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let tcp_bytes = by(
            "viaduct_tcp_bytes_total",
            "Bytes relayed over TCP, by direction.",
            "direction",
        )?;
        let udp_datagrams = by(
            "viaduct_udp_datagrams_total",
            "UDP datagrams forwarded, by direction.",
            "direction",
        )?;
        let udp_bytes = by(
            "viaduct_udp_bytes_total",
            "UDP payload bytes forwarded, by direction.",
            "direction",
        )?;
        Ok(Self {
            tcp_connections: counter(
                "viaduct_tcp_connections_total",
                "TCP connections accepted and admitted.",
            )?,
            tcp_active: gauge(
                "viaduct_tcp_connections_active",
                "TCP connections at this moment.",
            )?,
            tcp_refused: by(
                "viaduct_tcp_refused_connections_total",
                "TCP connections reset without having been served, by reason.",
                "reason",
            )?,
            uncaptured: counter(
                "viaduct_uncaptured_total",
                "TCP connections reset because they did not come through capture.",
            )?,
            tcp_bytes_to_backends: tcp_bytes.with_label_values(&[TO_BACKEND]),
            tcp_bytes_to_clients: tcp_bytes.with_label_values(&[TO_CLIENT]),
            dial_failures: by(
                "viaduct_dial_failures_total",
                "Failed attempts to reach a backend, by reason; each may have been made good by another backend.",
                "reason",
            )?,
            ejections: counter(
                "viaduct_backend_ejections_total",
                "Times that a backend was left out for a while because it failed too often.",
            )?,
            accept_errors: by(
                "viaduct_accept_errors_total",
                "Failed accepts, by reason.",
                "reason",
            )?,
            udp_flows: counter("viaduct_udp_flows_total", "UDP flows opened.")?,
            udp_active: gauge("viaduct_udp_flows_active", "UDP flows at this moment.")?,
            udp_datagrams_to_backends: udp_datagrams.with_label_values(&[TO_BACKEND]),
            udp_datagrams_to_clients: udp_datagrams.with_label_values(&[TO_CLIENT]),
            udp_bytes_to_backends: udp_bytes.with_label_values(&[TO_BACKEND]),
            udp_bytes_to_clients: udp_bytes.with_label_values(&[TO_CLIENT]),
            udp_drops: by(
                "viaduct_udp_dropped_datagrams_total",
                "UDP datagrams dropped, by reason.",
                "reason",
            )?,
        })
    }
}

const TO_BACKEND: &str = "to_backend";
const TO_CLIENT: &str = "to_client";
