//! What the DNS server counts.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// Counters and gauges of the DNS server. Labels come from closed sets: query types outside a short list are `other`.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Questions, by transport, family, type and who answers.
    pub(super) requests: IntCounterVec,
    /// Replies, by response code.
    pub(super) responses: IntCounterVec,
    /// Seconds from a question to its reply.
    pub(super) duration: Histogram,
    /// Octets of a question.
    pub(super) request_size: Histogram,
    /// Octets of a reply.
    pub(super) response_size: Histogram,
    /// Replies that were cut to the client's size with TC set.
    pub(super) truncated: IntCounter,
    /// Messages without a reply, by reason.
    pub(super) dropped: IntCounterVec,
    /// Panics while a question was answered; each became SERVFAIL.
    pub(super) panics: IntCounter,
    /// Open TCP connections.
    pub(super) connections: IntGauge,
    /// Clients waiting for an upstream.
    pub(super) forwards_in_flight: IntGauge,
    /// Questions refused because too many wait already.
    pub(super) forwards_rejected: IntCounter,
    /// Questions sent to upstreams.
    pub(super) upstream_requests: IntCounter,
    /// Seconds from a question to an upstream's reply, by upstream and response code.
    pub(super) upstream_duration: HistogramVec,
    /// Probes of dead upstreams that got no reply.
    pub(super) health_failures: IntCounter,
    /// Questions for which every upstream was thought dead.
    pub(super) all_upstreams_down: IntCounter,
    /// Forwarded questions that became one with another.
    pub(super) coalesced: IntCounter,
    /// Questions answered with a name further down the search list of the Pod that asked.
    pub(super) completed_searches: IntCounter,
    /// Answers given after their time, because nobody had newer ones.
    pub(super) cache_stale: IntCounter,
    /// Octets of the cache.
    pub(super) cache_octets: IntGauge,
    /// Services in the table that is answered from.
    pub(super) table_services: IntGauge,
    /// When that table was first seen, in seconds of Unix time.
    pub(super) table_time: IntGauge,
    /// Attempts that got no usable reply, by reason.
    pub(super) upstream_failures: IntCounterVec,
    /// Questions answered from the cache.
    pub(super) cache_hits: IntCounter,
    /// Questions that were not in the cache.
    pub(super) cache_misses: IntCounter,
    /// Entries that went before their time.
    pub(super) cache_evictions: IntCounter,
    /// Entries in the cache.
    pub(super) cache_entries: IntGauge,
}

impl Metrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    ///
    /// When one of the names is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        // Answers from memory take microseconds, forwarded ones up to the budget of a few seconds.
        let buckets = vec![
            0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01,
            0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
        ];
        let sizes = vec![
            32.0, 64.0, 128.0, 256.0, 512.0, 1232.0, 4096.0, 16384.0, 65535.0,
        ];
        let of_buckets = |name: &str, help: &str, buckets: &Vec<f64>| {
            let options = HistogramOpts::new(name, help).buckets(buckets.clone());
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let histogram = |name: &str, help: &str| of_buckets(name, help, &buckets);
        Ok(Self {
            requests: counters(
                "viaduct_dns_requests_total",
                "DNS questions by transport, address family, type and zone (cluster, reverse, forward or refused).",
                &["proto", "family", "type", "zone"],
            )?,
            responses: counters(
                "viaduct_dns_responses_total",
                "DNS replies by response code.",
                &["rcode"],
            )?,
            duration: histogram(
                "viaduct_dns_request_duration_seconds",
                "Seconds from a DNS question to its reply.",
            )?,
            request_size: of_buckets(
                "viaduct_dns_request_size_bytes",
                "Octets of a DNS question.",
                &sizes,
            )?,
            response_size: of_buckets(
                "viaduct_dns_response_size_bytes",
                "Octets of a DNS reply.",
                &sizes,
            )?,
            truncated: counter(
                "viaduct_dns_truncated_responses_total",
                "DNS replies cut to the client's size with TC set.",
            )?,
            dropped: counters(
                "viaduct_dns_dropped_requests_total",
                "DNS messages left without a reply, by reason (not_a_query, no_source, own_loop, overload or not_sent).",
                &["reason"],
            )?,
            panics: counter(
                "viaduct_dns_panics_total",
                "Panics while a DNS question was answered; its client got SERVFAIL.",
            )?,
            connections: gauge(
                "viaduct_dns_tcp_connections",
                "Open DNS connections over TCP.",
            )?,
            forwards_in_flight: gauge(
                "viaduct_dns_forwards_in_flight",
                "DNS questions waiting for an upstream resolver.",
            )?,
            forwards_rejected: counter(
                "viaduct_dns_rejected_forwards_total",
                "DNS questions refused because too many were waiting for an upstream resolver.",
            )?,
            upstream_requests: counter(
                "viaduct_dns_upstream_requests_total",
                "DNS questions sent to upstream resolvers, repetitions included.",
            )?,
            upstream_duration: {
                let name = "viaduct_dns_upstream_duration_seconds";
                let help = "Seconds until an upstream resolver replied, earlier attempts included, by upstream and response code.";
                let options = HistogramOpts::new(name, help).buckets(buckets.clone());
                let histograms = HistogramVec::new(options, &["upstream", "rcode"])?;
                registry.register(Box::new(histograms.clone()))?;
                histograms
            },
            health_failures: counter(
                "viaduct_dns_upstream_health_failures_total",
                "Probes of upstream resolvers thought dead that got no reply.",
            )?,
            all_upstreams_down: counter(
                "viaduct_dns_upstreams_all_down_total",
                "Forwarded DNS questions for which every upstream resolver was thought dead; one was asked all the same.",
            )?,
            coalesced: counter(
                "viaduct_dns_coalesced_forwards_total",
                "Forwarded DNS questions that waited for the answer to another, equal one.",
            )?,
            completed_searches: counter(
                "viaduct_dns_completed_searches_total",
                "DNS questions of Pods answered with a name further down their search list.",
            )?,
            cache_stale: counter(
                "viaduct_dns_cache_stale_total",
                "DNS answers given from the cache after their time, because no upstream resolver had a newer one.",
            )?,
            cache_octets: gauge("viaduct_dns_cache_bytes", "Octets of the DNS cache.")?,
            table_services: gauge(
                "viaduct_dns_table_services",
                "Services in the table that DNS answers from.",
            )?,
            table_time: gauge(
                "viaduct_dns_table_timestamp_seconds",
                "Unix time at which DNS saw the table that it answers from.",
            )?,
            upstream_failures: counters(
                "viaduct_dns_upstream_failures_total",
                "Attempts to ask an upstream resolver that failed, by reason (timeout, io, malformed or rcode).",
                &["reason"],
            )?,
            cache_hits: counter(
                "viaduct_dns_cache_hits_total",
                "Forwarded DNS questions answered from the cache.",
            )?,
            cache_misses: counter(
                "viaduct_dns_cache_misses_total",
                "Forwarded DNS questions that were not in the cache.",
            )?,
            cache_evictions: counter(
                "viaduct_dns_cache_evictions_total",
                "DNS cache entries removed to make room.",
            )?,
            cache_entries: gauge("viaduct_dns_cache_entries", "Entries in the DNS cache.")?,
        })
    }
}

impl Metrics {
    /// Counts a message that gets no reply; `reason` is one of those in the metric's help.
    pub(super) fn drop_one(&self, reason: &str) {
        self.drop_some(reason, 1);
    }

    /// Counts several of them.
    pub(super) fn drop_some(&self, reason: &str, n: u32) {
        self.dropped
            .with_label_values(&[reason])
            .inc_by(u64::from(n));
    }
}

/// A number of octets, as histograms want it.
pub(super) fn float(octets: usize) -> f64 {
    // Messages are far shorter.
    f64::from(u32::try_from(octets).unwrap_or(u32::MAX))
}

/// What is counted when a reply is given again.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Questions like this one.
    pub(super) requests: IntCounter,
    /// Replies with its code.
    pub(super) responses: IntCounter,
    /// Answers from the cache, if it is one.
    pub(super) cache_hits: Option<IntCounter>,
}

impl Tally {
    /// Counts one.
    pub(super) fn count(&self) {
        self.requests.inc();
        self.responses.inc();
        if let Some(hits) = &self.cache_hits {
            hits.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_register_once() {
        let registry = Registry::new();
        assert!(Metrics::new(&registry).is_ok());
        assert!(Metrics::new(&registry).is_err());
    }
}
