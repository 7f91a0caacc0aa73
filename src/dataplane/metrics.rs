//! What the data path counts beside the accounts of Services and backends. Labels come from closed sets. All of this is
//! for what goes wrong: counters that all threads share are too dear for what every flow does.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::accounts::{Accounts, Exposition};

/// Counters and gauges of the data path, shared by all data threads.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// What each service port and backend carries.
    pub(super) accounts: Arc<Accounts>,
    /// TCP connections reset without having been served, by reason.
    pub tcp_refused: IntCounterVec,
    /// TCP connections that did not come through capture.
    pub uncaptured: IntCounter,
    /// Failed dial attempts, by reason.
    pub dial_failures: IntCounterVec,
    /// Ejections of backends that failed too often.
    pub ejections: IntCounter,
    /// Failed accepts, by reason.
    pub accept_errors: IntCounterVec,
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
        let by = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let accounts = Arc::new(Accounts::default());
        registry.register(Box::new(Exposition::new(accounts.clone())?))?;
        Ok(Self {
            accounts,
            tcp_refused: by(
                "viaduct_tcp_refused_connections_total",
                "TCP connections reset without having been served, by reason.",
                "reason",
            )?,
            uncaptured: counter(
                "viaduct_uncaptured_total",
                "TCP connections reset because they did not come through capture.",
            )?,
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
            udp_drops: by(
                "viaduct_udp_dropped_datagrams_total",
                "UDP datagrams dropped, by reason.",
                "reason",
            )?,
        })
    }
}
