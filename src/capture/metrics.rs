//! Figures of capturing under the names that dashboards for kube-proxy read.
//!
//! Each is published by the modes to which it means something, from the moment they are opened: rules of iptables by
//! `iptables`, refused transactions of nf_tables by the modes that have a table, flows of connection tracking by those
//! that translate addresses. Source: kubernetes/pkg/proxy/metrics.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, exponential_buckets,
};

use crate::model::Family;

/// The figures of all modes and families.
#[derive(Clone, Debug)]
pub struct Metrics {
    forgetting: HistogramVec,
    forgotten: IntCounterVec,
    rules: IntGaugeVec,
    written: IntGaugeVec,
    failures: IntCounterVec,
    partial_failures: IntCounterVec,
    nftables_failures: IntCounterVec,
}

/// What a write of iptables was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Replace whatever is there.
    Full,
    /// Write what differs from what is thought to be there.
    Partial,
}

impl Metrics {
    /// Registers the figures.
    ///
    /// # Errors
    ///
    /// A name that is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["ip_family"])?;
            registered(registry, counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &["ip_family", "table"])?;
            registered(registry, gauge)
        };
        let forgetting = HistogramOpts::new(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "How long it took to find and forget stale UDP flows.",
        );
        let forgetting = forgetting.buckets(exponential_buckets(0.001, 2.0, 15)?);
        Ok(Self {
            forgetting: registered(registry, HistogramVec::new(forgetting, &["ip_family"])?)?,
            forgotten: counter(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "Stale UDP flows that connection tracking was made to forget.",
            )?,
            rules: gauge(
                "kubeproxy_sync_proxy_rules_iptables_total",
                "Rules of ours in iptables, by table.",
            )?,
            written: gauge(
                "kubeproxy_sync_proxy_rules_iptables_last",
                "Rules that the last write put into iptables, by table.",
            )?,
            failures: counter(
                "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
                "Failed writes of all rules of a table of iptables.",
            )?,
            partial_failures: counter(
                "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
                "Failed writes of what had changed in a table of iptables, each followed by one of all rules.",
            )?,
            nftables_failures: counter(
                "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                "Failed transactions of nf_tables.",
            )?,
        })
    }

    /// A mode that forgets stale flows begins.
    pub(super) fn forgets(&self, family: Family) {
        self.forgetting.with_label_values(&[family.as_str()]);
        self.forgotten.with_label_values(&[family.as_str()]);
    }

    /// A mode that has a table of nf_tables begins.
    pub(super) fn has_table(&self, family: Family) {
        self.nftables_failures.with_label_values(&[family.as_str()]);
    }

    /// A mode that writes iptables begins.
    pub(super) fn has_chains(&self, family: Family) {
        for failures in [&self.failures, &self.partial_failures] {
            failures.with_label_values(&[family.as_str()]);
        }
    }

    /// Connection tracking has forgotten `flows` stale ones.
    pub(super) fn forgot(&self, family: Family, flows: usize, took: Duration) {
        let label = [family.as_str()];
        let duration = self.forgetting.with_label_values(&label);
        duration.observe(took.as_secs_f64());
        let forgotten = self.forgotten.with_label_values(&label);
        forgotten.inc_by(u64::try_from(flows).unwrap_or(u64::MAX));
    }

    /// A table of iptables holds `held` rules of ours, of which the last write put `written` there.
    pub(super) fn wrote_chains(&self, family: Family, table: &str, held: usize, written: usize) {
        for (gauge, rules) in [(&self.rules, held), (&self.written, written)] {
            let gauge = gauge.with_label_values(&[family.as_str(), table]);
            gauge.set(i64::try_from(rules).unwrap_or(i64::MAX));
        }
    }

    /// A write of iptables was refused.
    pub(super) fn chains_refused(&self, family: Family, extent: Extent) {
        let failures = match extent {
            Extent::Full => &self.failures,
            Extent::Partial => &self.partial_failures,
        };
        failures.with_label_values(&[family.as_str()]).inc();
    }

    /// A transaction of nf_tables was refused.
    pub(super) fn table_refused(&self, family: Family) {
        let failures = self.nftables_failures.with_label_values(&[family.as_str()]);
        failures.inc();
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    figure: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(figure.clone()))?;
    Ok(figure)
}
