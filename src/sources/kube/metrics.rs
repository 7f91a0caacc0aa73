//! What is counted about the API server.

use std::time::Instant;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntCounterVec, Opts, Registry};

use crate::control::Kind;

use super::contact::Contact;

/// The counters of the source.
#[derive(Debug)]
pub struct Metrics {
    events: IntCounterVec,
    lists: IntCounterVec,
    failures: IntCounterVec,
    notices: IntCounterVec,
}

/// What became of a notice to users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Posted {
    /// It is an Event now.
    Sent,
    /// It was told lately, or too much was.
    Suppressed,
    /// The server does not take it.
    Failed,
}

impl Metrics {
    /// Registers them, and the age of what `contact` knows.
    ///
    /// # Errors
    ///
    /// A name that is registered already.
    pub fn new(registry: &Registry, contact: Contact) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        registry.register(Box::new(ContactAge::new(contact)?))?;
        Ok(Self {
            events: counter(
                "viaduct_api_events_total",
                "Changes that the API server's watches told.",
                &["kind"],
            )?,
            lists: counter(
                "viaduct_api_lists_total",
                "Complete lists that were read from the API server; one per kind at start, more after a gap.",
                &["kind"],
            )?,
            failures: counter(
                "viaduct_api_failures_total",
                "Lists and watches of the API server that failed.",
                &["kind", "reason"],
            )?,
            notices: counter(
                "viaduct_api_notices_total",
                "What users should know, by what became of it as an Event.",
                &["outcome"],
            )?,
        })
    }

    pub(super) fn event(&self, kind: Kind) {
        self.events.with_label_values(&[kind.as_str()]).inc();
    }

    pub(super) fn posted(&self, outcome: Posted) {
        let outcome = match outcome {
            Posted::Sent => "sent",
            Posted::Suppressed => "suppressed",
            Posted::Failed => "failed",
        };
        self.notices.with_label_values(&[outcome]).inc();
    }

    pub(super) fn listed(&self, kind: Kind) {
        self.lists.with_label_values(&[kind.as_str()]).inc();
    }

    pub(super) fn failed(&self, kind: Kind, reason: &'static str) {
        self.failures
            .with_label_values(&[kind.as_str(), reason])
            .inc();
    }
}

// Computed when it is asked for: it grows while nothing happens.
struct ContactAge {
    contact: Contact,
    gauge: Gauge,
}

impl ContactAge {
    fn new(contact: Contact) -> Result<Self, prometheus::Error> {
        let gauge = Gauge::new(
            "viaduct_api_out_of_touch_seconds",
            "For how long the API server has not been heard; 0 while it is.",
        )?;
        Ok(Self { contact, gauge })
    }
}

impl Collector for ContactAge {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let told = self.contact.out_of_touch(Instant::now());
        self.gauge
            .set(told.map_or(0.0, |told| told.age.as_secs_f64()));
        self.gauge.collect()
    }
}
