//! What threads count adds up, and no total goes back when listeners, backends and Services come and go.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;

use super::*;
use crate::model::{Algorithm, Event};
use crate::routing::{RoutingTable, TableBuilder};
use crate::testkit::{FirstUntried, addr, port_key, service};

fn accounts() -> Arc<Accounts> {
    let accounts = Arc::new(Accounts::default());
    accounts.follow(Published::default());
    accounts
}

fn shown(accounts: &Arc<Accounts>) -> Vec<MetricFamily> {
    Exposition::new(accounts.clone()).unwrap().collect()
}

// The sum over all series of a family that have the label.
fn sum(families: &[MetricFamily], name: &str, label: &str) -> f64 {
    families
        .iter()
        .filter(|family| family.name() == name)
        .flat_map(MetricFamily::get_metric)
        .filter(|metric| label.is_empty() || metric.get_label().iter().any(|l| l.value() == label))
        .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
        .sum()
}

#[test]
fn two_threads_add_up_by_service_and_backend() {
    let accounts = accounts();
    let threads = [(); 2].map(|()| accounts.open(port_key("web")));
    let other = accounts.open(port_key("shop"));
    let mut flows_in_use = Vec::new();
    for (account, flows) in threads.iter().zip([3, 4]) {
        for _ in 0..flows {
            account.opened.add(1);
            let backend = account.backend(addr("10.1.0.1:80"));
            backend.reached(Duration::from_micros(250));
            backend.bytes_to_backend.add(10);
            flows_in_use.push(backend);
        }
        account.ended.add(1);
    }
    let second = threads[0].backend(addr("10.1.0.2:80"));
    second.reached(Duration::from_secs(60));
    second.bytes_to_client.add(5);
    second.failures.add(1);
    other.fault(Fault::NoBackend);

    let families = shown(&accounts);
    let sum = |name, label| sum(&families, name, label);
    assert_eq!(sum("viaduct_tcp_connections_total", ""), 7.0);
    assert_eq!(sum("viaduct_tcp_connections_active", ""), 5.0);
    assert_eq!(sum("viaduct_tcp_bytes_total", "to_backend"), 70.0);
    assert_eq!(sum("viaduct_service_flows_total", "web"), 7.0);
    assert_eq!(sum("viaduct_service_flows_total", "shop"), 0.0);
    assert_eq!(sum("viaduct_service_bytes_total", "to_client"), 5.0);
    assert_eq!(sum("viaduct_service_faults_total", "no_backend"), 1.0);
    assert_eq!(sum("viaduct_service_faults_total", "limit"), 0.0);
    assert_eq!(sum("viaduct_backend_flows_total", "10.1.0.1:80"), 7.0);
    assert_eq!(sum("viaduct_backend_failures_total", "10.1.0.2:80"), 1.0);
    let family = |name| {
        families
            .iter()
            .find(|family| family.name() == name)
            .unwrap()
    };
    let web = family("viaduct_service_connect_seconds")
        .get_metric()
        .iter();
    let web = web
        .map(prometheus::proto::Metric::get_histogram)
        .next_back()
        .unwrap();
    let counts: Vec<u64> = web
        .get_bucket()
        .iter()
        .map(|b| b.cumulative_count())
        .collect();
    assert_eq!(counts[..3], [0, 7, 7], "250 us is within 250 us");
    assert_eq!(counts.last(), Some(&7), "a minute is in no bucket");
    assert_eq!(web.get_sample_count(), 8);
}

#[test]
fn totals_outlive_listeners_backends_and_services() {
    let accounts = accounts();
    let account = accounts.open(port_key("web"));
    account.opened.add(2);
    account.ended.add(2);
    let backend = account.backend(addr("10.1.0.1:80"));
    backend.bytes_to_backend.add(10);
    let total = |name| sum(&shown(&accounts), name, "");
    assert_eq!(
        total("viaduct_backend_bytes_total"),
        10.0,
        "a flow still uses it"
    );
    drop(backend);
    assert_eq!(
        total("viaduct_backend_bytes_total"),
        0.0,
        "the table does not have it"
    );
    assert_eq!(total("viaduct_service_bytes_total"), 10.0);
    account.backend(addr("10.1.0.1:80")).bytes_to_backend.add(1);
    assert_eq!(total("viaduct_service_bytes_total"), 11.0);
    drop(account);
    assert_eq!(
        total("viaduct_service_flows_total"),
        0.0,
        "the Service is gone"
    );
    for _ in 0..2 {
        assert_eq!(total("viaduct_tcp_connections_total"), 2.0);
        assert_eq!(total("viaduct_tcp_bytes_total"), 11.0);
    }
    assert!(accounts.ledger().open.is_empty() && accounts.ledger().closed.is_empty());
}

#[test]
fn the_number_of_series_is_bounded() {
    let accounts = accounts();
    let all: Vec<_> = (0..1_100)
        .map(|n| {
            let account = accounts.open(port_key(&format!("web-{n}")));
            account.opened.add(1);
            let backends = [1, 2].map(|port| account.backend(addr(&format!("10.1.0.1:{port}"))));
            backends[0].failures.add(1);
            (account, backends)
        })
        .collect();
    let families = shown(&accounts);
    assert_eq!(
        sum(&families, "viaduct_service_flows_total", ""),
        all.len() as f64
    );
    assert_eq!(
        sum(&families, "viaduct_backend_failures_total", ""),
        all.len() as f64
    );
    let series = |name| {
        let family = families.iter().find(|family| family.name() == name);
        family.unwrap().get_metric().len()
    };
    assert_eq!(series("viaduct_service_flows_total"), 1_001);
    assert_eq!(series("viaduct_backend_flows_total"), 2_001);
}

#[test]
fn a_service_that_stays_keeps_what_its_closed_listeners_counted() {
    let table = Published::default();
    let accounts = Arc::new(Accounts::default());
    accounts.follow(table.clone());
    let mut builder = TableBuilder::new(Arc::new(FirstUntried), Algorithm::RoundRobin);
    builder.apply(Event::ServiceApplied(Arc::new(service("web", "10.96.0.1"))));
    table.publish(builder.build().table);
    for _ in 0..3 {
        accounts.open(port_key("web")).opened.add(1);
        shown(&accounts);
    }
    let flows = |accounts| sum(&shown(accounts), "viaduct_service_flows_total", "web");
    assert_eq!(flows(&accounts), 3.0);
    table.publish(Arc::new(RoutingTable::default()));
    assert_eq!(flows(&accounts), 0.0);
    assert_eq!(
        sum(&shown(&accounts), "viaduct_tcp_connections_total", ""),
        3.0
    );
}

#[test]
fn the_time_to_reach_a_backend_is_told_as_exactly_as_its_buckets() {
    let accounts = accounts();
    let account = accounts.open(port_key("web"));
    let backend = account.backend(addr("10.1.0.1:80"));
    let p99 = || {
        let carried = accounts.carried();
        let of = carried[&(port_key("web"), addr("10.1.0.1:80"))];
        of.connect_p99.map(|p99| p99.as_micros())
    };
    assert_eq!(p99(), None);
    backend.reached(Duration::from_micros(120));
    assert_eq!(
        p99(),
        Some(250),
        "the upper end of the bucket of the only one"
    );
    for _ in 0..98 {
        backend.reached(Duration::from_micros(120));
    }
    backend.reached(Duration::from_millis(30));
    assert_eq!(p99(), Some(250), "99 of 100");
    for _ in 0..3 {
        backend.reached(Duration::from_millis(30));
    }
    // Of 103, 102 are the 99 of 100: the third of four between 10 and 50 ms.
    assert_eq!(p99(), Some(40_000));
    for _ in 0..100 {
        backend.reached(Duration::from_secs(60));
    }
    assert_eq!(p99(), Some(4_000_000), "or more");
}
