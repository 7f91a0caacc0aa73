//! What the prober counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::control::{Outcome, ProbeKind};

/// Counters and gauges of the prober. Labels come from closed sets.
#[derive(Clone, Debug)]
pub struct Metrics {
    results: IntCounterVec,
    /// Probes that had to wait for their turn.
    pub(super) delayed: IntCounter,
    /// Containers that are not probed because too many are.
    pub(super) rejected: IntCounter,
    /// Containers that are probed.
    pub(super) targets: IntGauge,
}

impl Metrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    ///
    /// When one of the names is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let results = IntCounterVec::new(
            Opts::new(
                "viaduct_probe_results_total",
                "Probes of containers by kind (startup or readiness) and result (success, failure, or unknown where the probe could not be run).",
            ),
            &["probe", "result"],
        )?;
        let delayed = IntCounter::new(
            "viaduct_probe_delayed_total",
            "Probes that had to wait because too many were running.",
        )?;
        let rejected = IntCounter::new(
            "viaduct_probe_rejected_targets_total",
            "Containers not probed, and so not ready, because too many are.",
        )?;
        let targets = IntGauge::new("viaduct_probe_targets", "Containers that are probed.")?;
        registry.register(Box::new(results.clone()))?;
        registry.register(Box::new(delayed.clone()))?;
        registry.register(Box::new(rejected.clone()))?;
        registry.register(Box::new(targets.clone()))?;
        Ok(Self {
            results,
            delayed,
            rejected,
            targets,
        })
    }

    /// Counts one probe.
    pub(super) fn count(&self, kind: ProbeKind, outcome: Outcome) {
        let result = match outcome {
            Outcome::Success => "success",
            Outcome::Failure => "failure",
            Outcome::Unknown => "unknown",
        };
        self.results
            .with_label_values(&[kind.as_str(), result])
            .inc();
    }
}
