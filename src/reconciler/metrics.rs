//! Figures of the control loop under the names that dashboards for kube-proxy read.
//!
//! What a sync is to kube-proxy is here a write of a family's rules; it is full when it replaces everything. Never a
//! label from outside: families, policies, kinds of Service, nothing else. Source: kubernetes/pkg/proxy/metrics; for the
//! latency of DNS CoreDNS's `kubernetes_dns_programming_duration_seconds`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, exponential_buckets,
};

use crate::model::{Event, Family, ServiceKind, ServiceName, TrafficPolicy};
use crate::routing::{Route, RoutingTable};

/// Stamps per family that may wait for their change to be in effect, and as many for their table; past it further ones
/// are not measured.
const MAX_WAITING: usize = 10_000;

/// The figures, and what is being measured.
#[derive(Debug)]
pub struct Metrics {
    sync: HistogramVec,
    full: HistogramVec,
    partial: HistogramVec,
    last: GaugeVec,
    queued: GaugeVec,
    programming: HistogramVec,
    dns_programming: HistogramVec,
    rebuild: Histogram,
    endpoints: Changes,
    services: Changes,
    no_local: IntGaugeVec,
    failures: IntCounterVec,
    failing: IntGaugeVec,
    started: Timestamp,
    waiting: BTreeMap<Family, Vec<Timestamp>>,
    unpublished: Vec<(ServiceName, Timestamp)>,
}

// Changes of one kind: all of them, and those that are not in effect yet.
#[derive(Debug)]
struct Changes {
    pending: IntGauge,
    total: IntCounter,
}

/// Service ports with a Local policy that have endpoints elsewhere but none here: internal, external.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NoLocal([i64; 2]);

impl Metrics {
    /// Registers the figures. Changes stamped before this moment are not measured: they waited for us to start.
    ///
    /// # Errors
    ///
    /// A name that is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let milliseconds = exponential_buckets(0.001, 2.0, 15)?;
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(registry, HistogramVec::new(opts, &["ip_family"])?)
        };
        let gauge = |name: &str, help: &str| {
            registered(
                registry,
                GaugeVec::new(Opts::new(name, help), &["ip_family"])?,
            )
        };
        let rebuild = HistogramOpts::new(
            "viaduct_table_rebuild_duration_seconds",
            "How long it took to make a table from the one before and what had changed.",
        );
        let rebuild = rebuild.buckets(exponential_buckets(0.000_01, 4.0, 10)?);
        let dns_programming = HistogramOpts::new(
            "viaduct_dns_programming_duration_seconds",
            "From the change that a slice tells of until DNS answers by it, by kind of Service (cluster_ip or headless).",
        );
        let dns_programming = dns_programming.buckets(exponential_buckets(0.001, 2.0, 20)?);
        let no_local = IntGaugeVec::new(
            Opts::new(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "Service ports with a Local traffic policy and endpoints, none of them on this node.",
            ),
            &["ip_family", "traffic_policy"],
        )?;
        let failures = IntCounterVec::new(
            Opts::new(
                "viaduct_rules_failures_total",
                "Attempts to write or check the kernel's rules that failed.",
            ),
            &["ip_family"],
        )?;
        let failing = IntGaugeVec::new(
            Opts::new(
                "viaduct_rules_failing",
                "1 while the kernel's rules cannot be written or checked.",
            ),
            &["ip_family"],
        )?;
        Ok(Self {
            sync: histogram(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "How long a write of rules took.",
                &milliseconds,
            )?,
            full: histogram(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "How long a write that replaced all rules took.",
                &milliseconds,
            )?,
            partial: histogram(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "How long a write of what had changed took.",
                &milliseconds,
            )?,
            last: gauge(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When rules were last brought up to date.",
            )?,
            queued: gauge(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When a write of rules was last asked for.",
            )?,
            programming: histogram(
                "kubeproxy_network_programming_duration_seconds",
                "From the change that a slice tells of to its effect here.",
                &programming_buckets(),
            )?,
            dns_programming: registered(
                registry,
                HistogramVec::new(dns_programming, &["service_kind"])?,
            )?,
            rebuild: registered(registry, Histogram::with_opts(rebuild)?)?,
            endpoints: Changes::new(registry, "endpoint")?,
            services: Changes::new(registry, "service")?,
            no_local: registered(registry, no_local)?,
            failures: registered(registry, failures)?,
            failing: registered(registry, failing)?,
            started: Timestamp::now(),
            waiting: BTreeMap::new(),
            unpublished: Vec::new(),
        })
    }

    /// Something has changed; it is not in effect yet.
    pub(super) fn changed(&mut self, event: &Event) {
        match event {
            Event::ServiceApplied(_) | Event::ServiceDeleted(_) => self.services.add(),
            Event::SliceApplied(slice) => {
                self.endpoints.add();
                let waiting = self.waiting.entry(slice.family).or_default();
                let stamp = slice.triggered.filter(|at| *at >= self.started);
                if waiting.len() < MAX_WAITING {
                    waiting.extend(stamp);
                }
                if self.unpublished.len() < MAX_WAITING {
                    let stamp = stamp.map(|stamp| (slice.service.clone(), stamp));
                    self.unpublished.extend(stamp);
                }
            }
            Event::SliceDeleted(_) => self.endpoints.add(),
            Event::NodeApplied(_)
            | Event::NodeDeleted
            | Event::PodApplied(_)
            | Event::PodDeleted(..)
            | Event::NamespaceApplied(_)
            | Event::NamespaceDeleted(_) => {}
        }
    }

    /// A table was made from what had changed.
    pub(super) fn rebuilt(&self, took: Duration) {
        self.rebuild.observe(took.as_secs_f64());
    }

    /// Everything that has changed is in the table that DNS answers from.
    pub(super) fn published(&mut self, table: &RoutingTable, now: Timestamp) {
        for (service, stamp) in self.unpublished.drain(..) {
            let kind = table.service(&service).map(|entry| &entry.service.kind);
            if let Some(label) = kind.and_then(kind_label) {
                let latency = now.duration_since(stamp).as_secs_f64().max(0.0);
                let latencies = self.dns_programming.with_label_values(&[label]);
                latencies.observe(latency);
            }
        }
    }

    /// Everything that has changed for the family is in effect.
    pub(super) fn in_effect(&mut self, family: Family, now: Timestamp) {
        let programming = self.programming.with_label_values(&[family.as_str()]);
        for stamp in self.waiting.remove(&family).unwrap_or_default() {
            programming.observe(now.duration_since(stamp).as_secs_f64().max(0.0));
        }
    }

    /// Everything that has changed is in effect.
    pub(super) fn all_in_effect(&self) {
        self.endpoints.pending.set(0);
        self.services.pending.set(0);
    }

    /// A write of the family's rules was asked for.
    pub(super) fn queued(&self, family: Family) {
        set_now(&self.queued, family);
    }

    /// The family's rules were written, all of them anew or only what differs.
    pub(super) fn written(&self, family: Family, took: Duration, extent: Extent) {
        let label = [family.as_str()];
        let by_extent = match extent {
            Extent::Full => &self.full,
            Extent::Partial => &self.partial,
        };
        for histogram in [&self.sync, by_extent] {
            histogram
                .with_label_values(&label)
                .observe(took.as_secs_f64());
        }
        set_now(&self.last, family);
    }

    /// The family's rules could not be written or checked.
    pub(super) fn failed(&self, family: Family) {
        self.failures.with_label_values(&[family.as_str()]).inc();
        self.failing.with_label_values(&[family.as_str()]).set(1);
    }

    /// They could again.
    pub(super) fn recovered(&self, family: Family) {
        self.failing.with_label_values(&[family.as_str()]).set(0);
    }

    /// A Service's figures are `after` in place of `before`.
    pub(super) fn recount(&self, family: Family, before: NoLocal, after: NoLocal) {
        for (index, policy) in ["internal", "external"].into_iter().enumerate() {
            let gauge = self.no_local.with_label_values(&[family.as_str(), policy]);
            gauge.add(after.0[index] - before.0[index]);
        }
    }
}

/// How much a write replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    Full,
    Partial,
}

impl NoLocal {
    /// Of these routes, those of one family.
    pub(super) fn of<'a>(family: Family, routes: impl Iterator<Item = &'a Route>) -> Self {
        let mut counted = Self::default();
        let lacking = |route: &&Route| {
            route.key.family == family && route.any_endpoints && route.local.is_empty()
        };
        for route in routes.filter(lacking) {
            let policies = [route.internal_policy, route.external_policy];
            for (count, policy) in counted.0.iter_mut().zip(policies) {
                *count += i64::from(policy == TrafficPolicy::Local);
            }
        }
        counted
    }
}

impl Changes {
    fn new(registry: &Registry, kind: &str) -> Result<Self, prometheus::Error> {
        let name = |end: &str| format!("kubeproxy_sync_proxy_rules_{kind}_changes_{end}");
        let pending = IntGauge::new(
            name("pending"),
            format!("Changes of {kind}s not in effect yet."),
        )?;
        let total = IntCounter::new(name("total"), format!("Changes of {kind}s."))?;
        Ok(Self {
            pending: registered(registry, pending)?,
            total: registered(registry, total)?,
        })
    }

    fn add(&self) {
        self.pending.inc();
        self.total.inc();
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    figure: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(figure.clone()))?;
    Ok(figure)
}

fn set_now(gauge: &GaugeVec, family: Family) {
    if let Ok(since_epoch) = SystemTime::now().duration_since(UNIX_EPOCH) {
        let gauge = gauge.with_label_values(&[family.as_str()]);
        gauge.set(since_epoch.as_secs_f64());
    }
}

// `None` if no name depends on slices.
fn kind_label(kind: &ServiceKind) -> Option<&'static str> {
    match kind {
        ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => {
            Some("cluster_ip")
        }
        ServiceKind::Headless => Some("headless"),
        ServiceKind::ExternalName(_) => None,
    }
}

// 0.25, 0.5, 1 to 59 by 1, 60 to 115 by 5, 120 to 300 by 30.
fn programming_buckets() -> Vec<f64> {
    let steps = |first: u32, last: u32, step: usize| (first..=last).step_by(step).map(f64::from);
    [0.25, 0.5]
        .into_iter()
        .chain(steps(1, 59, 1))
        .chain(steps(60, 115, 5))
        .chain(steps(120, 300, 30))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::balancers::Algorithms;
    use crate::model::Algorithm;
    use crate::routing::TableBuilder;
    use crate::testkit::{service, slice};

    use super::*;

    #[test]
    fn the_buckets_are_those_of_kube_proxy() {
        let buckets = programming_buckets();
        assert_eq!(buckets.len(), 2 + 59 + 12 + 7);
        assert!(buckets.is_sorted());
        assert_eq!((buckets[1], buckets[61], buckets[73]), (0.5, 60.0, 120.0));
        assert_eq!(buckets.last(), Some(&300.0));
    }

    #[test]
    fn every_name_is_there_once_something_has_been_written() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        metrics.queued(Family::V4);
        metrics.written(Family::V4, Duration::from_millis(3), Extent::Full);
        metrics.recount(Family::V4, NoLocal([0, 0]), NoLocal([2, 1]));
        metrics.recount(Family::V4, NoLocal([2, 1]), NoLocal([1, 1]));
        metrics.failed(Family::V6);
        metrics.failed(Family::V6);
        metrics.recovered(Family::V6);
        let text = crate::telemetry::render(&registry);
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"} 0",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.004\"} 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"16.384\"} 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 1",
            "viaduct_rules_failures_total{ip_family=\"IPv6\"} 2",
            "viaduct_rules_failing{ip_family=\"IPv6\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_latency_of_dns_is_told_by_kind_of_service_once_its_table_is_out() {
        let registry = Registry::new();
        let mut metrics = Metrics::new(&registry).unwrap();
        let now = metrics.started + Duration::from_secs(2);
        let stamped = |service: &str, at: Timestamp| {
            let mut slice = slice(&format!("{service}-1"), service, []);
            slice.triggered = Some(at);
            Event::SliceApplied(Arc::new(slice))
        };
        let mut builder = TableBuilder::new(Arc::new(Algorithms::default()), Algorithm::default());
        for (name, kind) in [
            ("web", ServiceKind::NodePort),
            ("db", ServiceKind::Headless),
            ("out", ServiceKind::ExternalName("www.test".into())),
        ] {
            let mut service = service(name, "");
            service.kind = kind;
            builder.apply(Event::ServiceApplied(Arc::new(service)));
        }
        // What changed before the start waited for the start, and a slice may have no Service.
        let before = metrics.started - Duration::from_secs(1);
        for (service, at) in [
            ("web", metrics.started),
            ("web", before),
            ("db", metrics.started + Duration::from_millis(1_900)),
            ("db", now + Duration::from_secs(1)),
            ("out", now),
            ("ghost", now),
        ] {
            let event = stamped(service, at);
            metrics.changed(&event);
            builder.apply(event);
        }
        metrics.published(&builder.build().table, now);
        metrics.published(&builder.build().table, now);
        metrics.rebuilt(Duration::from_micros(50));
        let text = crate::telemetry::render(&registry);
        for line in [
            r#"viaduct_dns_programming_duration_seconds_bucket{service_kind="cluster_ip",le="1.024"} 0"#,
            r#"viaduct_dns_programming_duration_seconds_bucket{service_kind="cluster_ip",le="2.048"} 1"#,
            r#"viaduct_dns_programming_duration_seconds_count{service_kind="cluster_ip"} 1"#,
            // A clock behind ours counts as none at all.
            r#"viaduct_dns_programming_duration_seconds_bucket{service_kind="headless",le="0.001"} 1"#,
            r#"viaduct_dns_programming_duration_seconds_bucket{service_kind="headless",le="0.128"} 2"#,
            r#"viaduct_dns_programming_duration_seconds_count{service_kind="headless"} 2"#,
            "viaduct_table_rebuild_duration_seconds_count 1",
            r#"viaduct_table_rebuild_duration_seconds_bucket{le="0.00016"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let kinds = text.matches("viaduct_dns_programming_duration_seconds_count");
        assert_eq!(kinds.count(), 2, "{text}");
    }
}
