//! Who is held back across tables: ejections, and backends that join others.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::model::{Knobs, OutlierEjection};
use crate::routing::{Backend, Route, Warming};
use crate::testkit::{addr, ep, ip, slice, start};

use super::*;

fn web_with(knobs: Knobs) -> Service {
    Service { knobs, ..web() }
}

fn route(table: &RoutingTable) -> &Arc<Route> {
    table.route(&port_key("web")).unwrap()
}

fn backend<'a>(table: &'a RoutingTable, text: &str) -> &'a Arc<Backend> {
    let mut all = route(table).cluster.iter();
    all.find(|backend| backend.addr == addr(text)).unwrap()
}

fn picked(table: &RoutingTable, tried: &[&str], now: Instant) -> Option<String> {
    let route = route(table);
    let tried: Vec<_> = tried.iter().map(|text| addr(text)).collect();
    let backend = route.pick(&route.cluster, ip("192.0.2.1"), &tried, now);
    backend.map(|backend| backend.addr.to_string())
}

fn fail(backend: &Backend, times: usize, now: Instant) {
    for _ in 0..times {
        backend.failed(now);
    }
}

#[test]
fn an_ejected_backend_is_passed_over_until_nobody_else_is_left_and_across_tables() {
    let (mut builder, table) = built([
        put(web()),
        put_slice(slice("web-1", "web", [ep("10.1.0.1"), ep("10.1.0.2")])),
    ]);
    let first = picked(&table, &[], start()).unwrap();
    fail(backend(&table, &first), 3, start());
    let second = picked(&table, &[], start()).unwrap();
    assert_ne!(second, first);
    assert_eq!(picked(&table, &[&second], start()), Some(first.clone()));
    assert_eq!(picked(&table, &[&second, &first], start()), None);
    let three = [ep("10.1.0.1"), ep("10.1.0.2"), ep("10.1.0.3")];
    let table = apply(&mut builder, [put_slice(slice("web-1", "web", three))]);
    assert!(backend(&table, &first).is_ejected(start()));
    for _ in 0..5 {
        assert_ne!(picked(&table, &[], start()), Some(first.clone()));
    }
    backend(&table, &first).succeeded();
    assert!(!backend(&table, &first).is_ejected(start()));
}

#[test]
fn a_service_says_when_its_backends_are_ejected() {
    let rule = |rule| {
        put(web_with(Knobs {
            outlier_ejection: Some(rule),
            ..Knobs::default()
        }))
    };
    let endpoints = || put_slice(slice("web-1", "web", [ep("10.1.0.1"), ep("10.1.0.2")]));
    let (mut builder, table) = built([rule(OutlierEjection::Off), endpoints()]);
    let one = |table: &RoutingTable| backend(table, "10.1.0.1:8080").clone();
    fail(&one(&table), 100, start());
    assert!(!one(&table).is_ejected(start()));
    one(&table).succeeded();
    let five = NonZeroU32::new(5).map(OutlierEjection::After).unwrap();
    let table = apply(&mut builder, [rule(five)]);
    fail(&one(&table), 4, start());
    assert!(!one(&table).is_ejected(start()));
    fail(&one(&table), 1, start());
    assert!(one(&table).is_ejected(start()));
}

#[test]
fn backends_that_join_others_warm_up_and_a_first_set_does_not() {
    let knobs = Knobs {
        slow_start: Some(Duration::from_secs(10)),
        ..Knobs::default()
    };
    let endpoints = |ips: &[&str]| put_slice(slice("web-1", "web", ips.iter().map(|ip| ep(ip))));
    let (mut builder, table) = built([put(web_with(knobs)), endpoints(&["10.1.0.1", "10.1.0.2"])]);
    assert!(!route(&table).held_back.is_anybody(start()), "the first");
    let table = apply(&mut builder, [endpoints(&["10.1.0.1", "10.1.0.3"])]);
    assert!(backend(&table, "10.1.0.3:8080").is_warming());
    assert!(!backend(&table, "10.1.0.1:8080").is_warming());
    let shares = |table: &RoutingTable, now| {
        let warming = Warming {
            held_back: &route(table).held_back,
            length: Duration::from_secs(10),
        };
        let shares = warming.shares(&route(table).cluster, now);
        let sum: f64 = shares.iter().sum();
        (shares.len(), sum)
    };
    assert_eq!(shares(&table, start()), (2, 1.1));
    let half = start() + Duration::from_secs(5);
    assert_eq!(shares(&table, half), (2, 1.5));
    let table = apply(&mut builder, [endpoints(&["10.1.0.8", "10.1.0.9"])]);
    assert_eq!(
        shares(&table, half),
        (0, 0.0),
        "all are new: nobody to spare them"
    );
    assert!(!route(&table).held_back.is_anybody(half));
    let table = apply(&mut builder, [endpoints(&["10.1.0.8"])]);
    let table_without = apply(
        &mut builder,
        [put(web()), endpoints(&["10.1.0.8", "10.1.0.7"])],
    );
    assert!(!route(&table).held_back.is_anybody(half));
    assert!(
        !route(&table_without).held_back.is_anybody(half),
        "not asked for"
    );
}
