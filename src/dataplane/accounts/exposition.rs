//! The accounts as Prometheus figures.
//!
//! The number of series is bounded whatever the cluster: at most [`MAX_SERVICES`] service ports and [`MAX_BACKENDS`]
//! backends have series of their own, the first by name, and the rest is one series without names. `viaduct get` shows
//! every one of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType, Summary,
};

use crate::model::Protocol;

use super::figures::{BackendFigures, ServiceFigures, index};
use super::{Accounts, BUCKETS, Fault};

/// Service ports with series of their own: some 25 each.
const MAX_SERVICES: usize = 1_000;

/// Backends with series of their own: 6 each.
const MAX_BACKENDS: usize = 2_000;

/// Shows the accounts of all data threads.
pub(in super::super) struct Exposition {
    accounts: Arc<Accounts>,
    families: Vec<(Desc, &'static str, &'static str, MetricType)>,
}

const TCP_CONNECTIONS: usize = 0;
const TCP_ACTIVE: usize = 1;
const TCP_BYTES: usize = 2;
const UDP_FLOWS: usize = 3;
const UDP_ACTIVE: usize = 4;
const UDP_DATAGRAMS: usize = 5;
const UDP_BYTES: usize = 6;
const SERVICE_FLOWS: usize = 7;
const SERVICE_BYTES: usize = 8;
const SERVICE_FAULTS: usize = 9;
const SERVICE_CONNECT: usize = 10;
const BACKEND_FLOWS: usize = 11;
const BACKEND_BYTES: usize = 12;
const BACKEND_FAILURES: usize = 13;
const BACKEND_CONNECT: usize = 14;

const FAMILIES: [(&str, &str, MetricType); 15] = [
    (
        "viaduct_tcp_connections_total",
        "TCP connections accepted and admitted.",
        MetricType::COUNTER,
    ),
    (
        "viaduct_tcp_connections_active",
        "TCP connections at this moment.",
        MetricType::GAUGE,
    ),
    (
        "viaduct_tcp_bytes_total",
        "Bytes relayed over TCP, by direction.",
        MetricType::COUNTER,
    ),
    (
        "viaduct_udp_flows_total",
        "UDP flows opened.",
        MetricType::COUNTER,
    ),
    (
        "viaduct_udp_flows_active",
        "UDP flows at this moment.",
        MetricType::GAUGE,
    ),
    (
        "viaduct_udp_datagrams_total",
        "UDP datagrams forwarded, by direction.",
        MetricType::COUNTER,
    ),
    (
        "viaduct_udp_bytes_total",
        "UDP payload bytes forwarded, by direction.",
        MetricType::COUNTER,
    ),
    (
        "viaduct_service_flows_total",
        "TCP connections and UDP flows admitted, by service port.",
        MetricType::COUNTER,
    ),
    (
        "viaduct_service_bytes_total",
        "Payload bytes forwarded, by service port and direction.",
        MetricType::COUNTER,
    ),
    (
        "viaduct_service_faults_total",
        "Flows that were not served or ended by a reset, by service port and reason.",
        MetricType::COUNTER,
    ),
    (
        "viaduct_service_connect_seconds",
        "Time that attempts to reach a backend took where they did, by service port.",
        MetricType::HISTOGRAM,
    ),
    (
        "viaduct_backend_flows_total",
        "TCP connections and UDP flows that reached it, by backend.",
        MetricType::COUNTER,
    ),
    (
        "viaduct_backend_bytes_total",
        "Payload bytes forwarded, by backend and direction.",
        MetricType::COUNTER,
    ),
    (
        "viaduct_backend_failures_total",
        "Attempts to reach it that failed, by backend.",
        MetricType::COUNTER,
    ),
    (
        "viaduct_backend_connect_seconds",
        "Time that attempts to reach it took where they did, by backend: sum and number.",
        MetricType::SUMMARY,
    ),
];

impl Exposition {
    /// Shows `accounts`.
    ///
    /// # Errors
    /// Never in practice: the names are fixed.
    pub(in super::super) fn new(accounts: Arc<Accounts>) -> Result<Self, prometheus::Error> {
        let describe = |(name, help, kind): (&'static str, &'static str, MetricType)| {
            let desc = Desc::new(name.into(), help.into(), Vec::new(), Default::default())?;
            Ok((desc, name, help, kind))
        };
        let families = FAMILIES.into_iter().map(describe);
        Ok(Self {
            accounts,
            families: families.collect::<Result<_, prometheus::Error>>()?,
        })
    }
}

impl Collector for Exposition {
    fn desc(&self) -> Vec<&Desc> {
        self.families.iter().map(|(desc, ..)| desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (by_key, gone) = self.accounts.figures();
        let mut shown: [Vec<Metric>; FAMILIES.len()] = Default::default();
        let mut totals = gone;
        let mut services: BTreeMap<[String; 4], ServiceFigures> = BTreeMap::new();
        for (key, figures) in by_key {
            totals[index(key.protocol)].add(&figures);
            let name = [
                key.service.namespace.to_string(),
                key.service.name.to_string(),
                key.port.to_string(),
                key.protocol.to_string(),
            ];
            // Both families of a service port are one.
            services.entry(name).or_default().add(&figures);
        }
        show_totals(&mut shown, &totals);
        show_services(&mut shown, &services);
        show_backends(&mut shown, &services);
        let families = self.families.iter().zip(shown);
        families
            .filter(|(_, metrics)| !metrics.is_empty())
            .map(|((_, name, help, kind), metrics)| {
                let mut family = MetricFamily::default();
                family.set_name((*name).into());
                family.set_help((*help).into());
                family.set_field_type(*kind);
                family.set_metric(metrics);
                family
            })
            .collect()
    }
}

fn show_totals(shown: &mut [Vec<Metric>; FAMILIES.len()], totals: &[ServiceFigures; 2]) {
    let [tcp, udp] = totals;
    let figures = [
        (TCP_CONNECTIONS, TCP_ACTIVE, TCP_BYTES, tcp),
        (UDP_FLOWS, UDP_ACTIVE, UDP_BYTES, udp),
    ];
    for (opened, active, bytes, of) in figures {
        shown[opened].push(counter(&[], of.opened));
        // Two threads are read one after the other: a flow may seem to end before it began.
        shown[active].push(gauge(of.opened.saturating_sub(of.ended)));
        show_directions(&mut shown[bytes], &[], &of.all_backends());
    }
    let datagrams = [udp.datagrams_to_backends, udp.datagrams_to_clients];
    for (direction, n) in DIRECTIONS.into_iter().zip(datagrams) {
        shown[UDP_DATAGRAMS].push(counter(&[("direction", direction)], n));
    }
}

fn show_services(
    shown: &mut [Vec<Metric>; FAMILIES.len()],
    services: &BTreeMap<[String; 4], ServiceFigures>,
) {
    let mut rest = ServiceFigures::default();
    for (_, figures) in services.iter().skip(MAX_SERVICES) {
        rest.add(figures);
    }
    let unnamed = Default::default();
    let named = services.iter().take(MAX_SERVICES);
    let rest = (services.len() > MAX_SERVICES).then_some((&unnamed, &rest));
    for (name, figures) in named.chain(rest) {
        let labels = service_labels(name);
        shown[SERVICE_FLOWS].push(counter(&labels, figures.opened));
        for fault in Fault::ALL {
            let n = figures.faults[fault as usize];
            if n > 0 {
                let mut labels = labels.clone();
                labels.push(("reason", fault.as_str()));
                shown[SERVICE_FAULTS].push(counter(&labels, n));
            }
        }
        let backends = figures.all_backends();
        show_directions(&mut shown[SERVICE_BYTES], &labels, &backends);
        if name[3] == Protocol::Tcp.to_string() {
            shown[SERVICE_CONNECT].push(histogram(&labels, &backends));
        }
    }
}

fn show_backends(
    shown: &mut [Vec<Metric>; FAMILIES.len()],
    services: &BTreeMap<[String; 4], ServiceFigures>,
) {
    let mut all = services.iter().flat_map(|(name, figures)| {
        let backends = figures.backends.iter();
        backends.map(move |(addr, backend)| (name, addr.to_string(), backend))
    });
    for (name, addr, backend) in all.by_ref().take(MAX_BACKENDS) {
        show_backend(shown, name, &addr, backend);
    }
    let mut rest = None::<BackendFigures>;
    for (_, _, backend) in all {
        rest.get_or_insert_default().add(backend);
    }
    if let Some(rest) = rest {
        show_backend(shown, &Default::default(), "", &rest);
    }
}

fn show_backend(
    shown: &mut [Vec<Metric>; FAMILIES.len()],
    name: &[String; 4],
    addr: &str,
    backend: &BackendFigures,
) {
    let mut labels = service_labels(name);
    labels.push(("backend", addr));
    shown[BACKEND_FLOWS].push(counter(&labels, backend.flows));
    show_directions(&mut shown[BACKEND_BYTES], &labels, backend);
    shown[BACKEND_FAILURES].push(counter(&labels, backend.failures));
    let mut summary = Summary::default();
    summary.set_sample_count(backend.reached_within.iter().sum());
    summary.set_sample_sum(seconds(backend.reaching_us));
    let mut metric = Metric::from_label(pairs(&labels));
    metric.set_summary(summary);
    shown[BACKEND_CONNECT].push(metric);
}

const DIRECTIONS: [&str; 2] = ["to_backend", "to_client"];

fn show_directions(
    shown: &mut Vec<Metric>,
    labels: &[(&'static str, &str)],
    backends: &BackendFigures,
) {
    let bytes = [backends.bytes_to_backend, backends.bytes_to_client];
    for (direction, n) in DIRECTIONS.into_iter().zip(bytes) {
        let mut labels = labels.to_vec();
        labels.push(("direction", direction));
        shown.push(counter(&labels, n));
    }
}

fn service_labels(name: &[String; 4]) -> Vec<(&'static str, &str)> {
    let names = ["namespace", "service", "port", "protocol"];
    names
        .into_iter()
        .zip(name.iter().map(String::as_str))
        .collect()
}

fn pairs(labels: &[(&'static str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&'static str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).into());
        pair.set_value((*value).into());
        pair
    };
    labels.iter().map(pair).collect()
}

fn counter(labels: &[(&'static str, &str)], n: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(n as f64);
    let mut metric = Metric::from_label(pairs(labels));
    metric.set_counter(counter);
    metric
}

fn gauge(n: u64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(n as f64);
    Metric::from_gauge(gauge)
}

fn histogram(labels: &[(&'static str, &str)], backends: &BackendFigures) -> Metric {
    let mut cumulative = 0;
    let bucket = |(upper, n): (&u64, &u64)| {
        cumulative += n;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(seconds(*upper));
        bucket.set_cumulative_count(cumulative);
        bucket
    };
    let buckets = BUCKETS.iter().zip(&backends.reached_within);
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.map(bucket).collect());
    histogram.set_sample_count(backends.reached_within.iter().sum());
    histogram.set_sample_sum(seconds(backends.reaching_us));
    let mut metric = Metric::from_label(pairs(labels));
    metric.set_histogram(histogram);
    metric
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
