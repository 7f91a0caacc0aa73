//! What was broken on purpose, counted by kind: who reads a dashboard must be able to tell it from the real thing.

use prometheus::{IntCounterVec, Opts, Registry};

/// The kinds of faults, for the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Something came later, by a delay or a stall.
    Delay,
    /// An error instead of an answer.
    Error,
    /// Something was slowed down to a rate.
    Rate,
    /// A connection was reset.
    Reset,
    /// A datagram was lost.
    Loss,
    /// A datagram came twice.
    Duplicate,
    /// An answer was cut short.
    Cut,
    /// A connection was refused.
    Refuse,
    /// Something went in and nothing came out.
    Blackhole,
    /// A probe was told that the Pod is not ready.
    Flap,
}

impl FaultKind {
    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Error => "error",
            Self::Rate => "rate",
            Self::Reset => "reset",
            Self::Loss => "loss",
            Self::Duplicate => "duplicate",
            Self::Cut => "cut",
            Self::Refuse => "refuse",
            Self::Blackhole => "blackhole",
            Self::Flap => "flap",
        }
    }
}

/// The counter of injected faults. The default counts for nobody.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    injected: Option<IntCounterVec>,
}

impl Metrics {
    /// Makes and registers it.
    ///
    /// # Errors
    /// If its name is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let injected = IntCounterVec::new(
            Opts::new(
                "viaduct_faults_injected_total",
                "Faults injected on purpose, by kind. The kernel refuses what a simulated Pod refuses, uncounted.",
            ),
            &["kind"],
        )?;
        registry.register(Box::new(injected.clone()))?;
        Ok(Self {
            injected: Some(injected),
        })
    }

    /// One more of that kind.
    pub(super) fn count(&self, kind: FaultKind) {
        if let Some(injected) = &self.injected {
            injected.with_label_values(&[kind.as_str()]).inc();
        }
    }
}
