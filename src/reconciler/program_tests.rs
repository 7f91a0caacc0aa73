//! The order of effects, watched through a recorder.

mod company;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::balancers::Algorithms;
use crate::capture::CaptureError;
use crate::capture::plan::{Arrival, ListenerId, ListenerSpec, ListenerState, Rules};
use crate::dataplane::{OpenError, Opened};
use crate::health_checks::Unbound;
use crate::model::{
    Algorithm, Event, Family, Protocol, ServiceKind, ServicePortKey, SourceIp, TrafficPolicy,
};
use crate::routing::{HealthCheck, NodeView, RoutingTable, TableBuilder};
use crate::sources::kube::Notice;
use crate::telemetry::Health;
use crate::testkit::{
    EndpointWith, ep, ip, node_name, port, service, service_name, service_port, slice, tcp,
};

use super::metrics::Metrics;
use super::pace::GATHER;
use super::program::{Effects, Programmer};

/// Writes down what it is asked to do, and does nothing.
struct Recorder {
    arrival: Option<Arrival>,
    log: Vec<String>,
    next_port: u16,
    fail_opens: usize,
    fail_writes: usize,
    fail_health_checks: usize,
    predecessor_lives: bool,
    opened_beside: BTreeSet<ListenerId>,
    stranger: bool,
    successor_has_ended: bool,
}

impl Recorder {
    fn new(arrival: Arrival) -> Self {
        Self {
            arrival: Some(arrival),
            log: Vec::new(),
            next_port: 40000,
            fail_opens: 0,
            fail_writes: 0,
            fail_health_checks: 0,
            predecessor_lives: false,
            opened_beside: BTreeSet::new(),
            stranger: false,
            successor_has_ended: false,
        }
    }
}

impl Effects for Recorder {
    fn arrival(&self, _family: Family) -> Option<Arrival> {
        self.arrival
    }

    async fn open(&mut self, spec: &ListenerSpec) -> Result<Opened, OpenError> {
        let word = match spec.state {
            ListenerState::Serving => "open",
            ListenerState::HeldClosed => "hold",
        };
        self.log.push(format!("{word} {}", spec.id.route));
        if self.fail_opens > 0 {
            self.fail_opens -= 1;
            return Err(OpenError::Descriptors { addr: spec.bind });
        }
        self.next_port += 1;
        let port = if spec.bind.port() == 0 {
            self.next_port
        } else {
            spec.bind.port() + 8000
        };
        let is_new = self.predecessor_lives && self.opened_beside.insert(spec.id.clone());
        let state = if is_new {
            ListenerState::HeldClosed
        } else {
            spec.state
        };
        let addr = SocketAddr::new(spec.bind.ip(), port);
        Ok(Opened { addr, state })
    }

    async fn close(&mut self, id: &ListenerId) {
        self.log.push(format!("close {}", id.route));
        self.opened_beside.remove(id);
    }

    fn predecessor_lives(&mut self) -> bool {
        self.predecessor_lives
    }

    fn regain(&mut self) -> bool {
        std::mem::take(&mut self.successor_has_ended)
    }

    async fn yield_to_successor(&mut self) {}

    async fn accompanied(&mut self) -> io::Result<Vec<ListenerId>> {
        let found = self.opened_beside.iter().filter(|_| self.stranger);
        Ok(found.cloned().collect())
    }

    fn publish(&mut self, table: Arc<RoutingTable>, changed: &[ServicePortKey]) {
        self.log.push(format!(
            "publish {} routes, {} changed",
            table.routes().count(),
            changed.len()
        ));
    }

    fn families(&self) -> Vec<Family> {
        vec![Family::V4]
    }

    async fn write_rules(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        let ports: BTreeSet<u16> = rules.redirects.values().copied().collect();
        self.log.push(format!("rules {ports:?}"));
        if self.fail_writes > 0 {
            self.fail_writes -= 1;
            return Err(CaptureError::ToolMissing { tool: "nft" });
        }
        Ok(())
    }

    async fn clear_other_modes(&mut self, _family: Family) {}

    async fn check_rules(&mut self, _family: Family) -> Result<bool, CaptureError> {
        self.log.push("check".to_owned());
        Ok(false)
    }

    async fn answer_health_checks(&mut self, wanted: &[HealthCheck]) -> Vec<Unbound> {
        let told = |check: &HealthCheck| format!("{}={}", check.bind, check.local_endpoints);
        let told: Vec<String> = wanted.iter().map(told).collect();
        self.log.push(format!("health checks [{}]", told.join(" ")));
        let failures = self.fail_health_checks.min(wanted.len());
        self.fail_health_checks -= failures;
        let unbound = |check: &HealthCheck| Unbound {
            service: check.service.clone(),
            bind: check.bind,
            source: io::ErrorKind::AddrInUse.into(),
        };
        wanted[..failures].iter().map(unbound).collect()
    }

    fn tell(&mut self, notice: Notice) {
        self.log.push(format!("tell {notice}"));
    }
}

struct Bench {
    programmer: Programmer<Recorder>,
    builder: TableBuilder,
    now: Instant,
}

impl Bench {
    fn new(recorder: Recorder) -> Self {
        let now = Instant::now();
        let mut builder = TableBuilder::new(Arc::new(Algorithms::default()), Algorithm::RoundRobin);
        builder.set_node(NodeView::default());
        let programmer = Programmer::new(
            recorder,
            Health::default(),
            Metrics::new(&prometheus::Registry::new()).unwrap(),
            Duration::from_secs(30),
            now,
        );
        Self {
            programmer,
            builder,
            now,
        }
    }

    // Applies events, lets the gathering time pass, and tells what was done.
    async fn step(&mut self, events: Vec<Event>) -> Vec<String> {
        for event in events {
            self.builder.apply(event);
        }
        self.programmer.program(&mut self.builder, self.now).await;
        self.now += GATHER;
        self.programmer.write(self.now).await;
        std::mem::take(&mut self.programmer.effects_mut().log)
    }
}

fn web() -> Event {
    Event::ServiceApplied(Arc::new(service("web", "10.96.0.10")))
}

fn endpoints(ready: bool) -> Event {
    let endpoint = if ready {
        ep("10.1.0.1")
    } else {
        ep("10.1.0.1").unready()
    };
    Event::SliceApplied(Arc::new(slice("web-1", "web", [endpoint])))
}

#[tokio::test]
async fn a_listener_opens_before_the_table_and_the_table_before_the_rules() {
    let mut bench = Bench::new(Recorder::new(Arrival::Redirected));
    let log = bench.step(vec![web(), endpoints(true)]).await;
    assert_eq!(
        log,
        [
            "open default/web",
            "publish 1 routes, 1 changed",
            "rules {40001}"
        ]
    );
}

#[tokio::test]
async fn a_listener_closes_after_the_rules_that_led_to_it_are_gone() {
    let mut bench = Bench::new(Recorder::new(Arrival::Redirected));
    bench.step(vec![web(), endpoints(true)]).await;
    let log = bench
        .step(vec![Event::ServiceDeleted(service_name("web"))])
        .await;
    assert_eq!(
        log,
        [
            "publish 0 routes, 1 changed",
            "rules {}",
            "close default/web"
        ]
    );
}

#[tokio::test]
async fn a_listener_stays_while_its_rules_cannot_be_removed() {
    let mut bench = Bench::new(Recorder::new(Arrival::Redirected));
    bench.step(vec![web(), endpoints(true)]).await;
    bench.programmer.effects_mut().fail_writes = 1;
    let log = bench
        .step(vec![Event::ServiceDeleted(service_name("web"))])
        .await;
    assert_eq!(log, ["publish 0 routes, 1 changed", "rules {}"]);
    bench.now += Duration::from_secs(1);
    assert_eq!(
        bench.step(vec![]).await[1..],
        ["rules {}", "close default/web"]
    );
}

#[tokio::test]
async fn a_change_of_endpoints_touches_neither_rules_nor_listeners() {
    let mut bench = Bench::new(Recorder::new(Arrival::Redirected));
    bench.step(vec![web(), endpoints(true)]).await;
    let more = slice("web-1", "web", [ep("10.1.0.1"), ep("10.1.0.2")]);
    let log = bench.step(vec![Event::SliceApplied(Arc::new(more))]).await;
    assert_eq!(log, ["publish 1 routes, 1 changed"]);
}

#[tokio::test]
async fn the_last_endpoint_that_goes_holds_the_port_closed_and_the_first_opens_it() {
    let mut bench = Bench::new(Recorder::new(Arrival::Redirected));
    assert_eq!(bench.step(vec![web()]).await[0], "hold default/web");
    assert_eq!(
        bench.step(vec![endpoints(true)]).await[..2],
        ["open default/web", "publish 1 routes, 1 changed"]
    );
    assert_eq!(
        bench.step(vec![endpoints(false)]).await[..2],
        ["hold default/web", "publish 1 routes, 1 changed"]
    );
}

#[tokio::test]
async fn a_listener_that_cannot_be_opened_is_not_captured_and_tried_again() {
    let mut bench = Bench::new(Recorder::new(Arrival::Redirected));
    bench.programmer.effects_mut().fail_opens = 1;
    let log = bench.step(vec![web(), endpoints(true)]).await;
    assert_eq!(
        log,
        [
            "open default/web",
            "publish 1 routes, 1 changed",
            "rules {}"
        ]
    );
    bench.now += Duration::from_secs(1);
    assert!(bench.programmer.reopen_due(bench.now));
    let log = bench.step(vec![]).await;
    assert_eq!(
        log,
        [
            "open default/web",
            "publish 1 routes, 1 changed",
            "rules {40001}"
        ]
    );
    assert!(!bench.programmer.reopen_due(bench.now));
}

#[tokio::test]
async fn a_port_that_could_not_be_held_closed_is_tried_again() {
    let mut bench = Bench::new(Recorder::new(Arrival::Redirected));
    bench.step(vec![web(), endpoints(true)]).await;
    bench.programmer.effects_mut().fail_opens = 1;
    let hold = ["hold default/web", "publish 1 routes, 1 changed"];
    assert_eq!(bench.step(vec![endpoints(false)]).await[..2], hold);
    bench.now += Duration::from_secs(1);
    assert!(bench.programmer.reopen_due(bench.now));
    assert_eq!(bench.step(vec![]).await[..2], hold);
    assert!(!bench.programmer.reopen_due(bench.now));
    bench.now += Duration::from_secs(1);
    assert!(!bench.step(vec![]).await.contains(&hold[0].to_owned()));
}

#[tokio::test]
async fn a_port_that_had_to_move_is_in_the_table_that_is_published() {
    let mut bench = Bench::new(Recorder::new(Arrival::Direct));
    bench.step(vec![web(), endpoints(true)]).await;
    let table = bench.builder.build().table;
    assert_eq!(table.served_port(&tcp("10.96.0.10:80")), 8080);
}

#[tokio::test]
async fn a_direct_listener_leaves_its_address_before_another_takes_it() {
    let mut bench = Bench::new(Recorder::new(Arrival::Direct));
    bench.step(vec![web(), endpoints(true)]).await;
    let mut renamed = service("web", "10.96.0.10");
    renamed.ports[0].name = "http".into();
    let log = bench
        .step(vec![Event::ServiceApplied(Arc::new(renamed))])
        .await;
    assert_eq!(log[..2], ["close default/web", "hold default/web:http"]);
}

#[tokio::test]
async fn who_asks_for_clients_to_be_shown_in_vain_is_told_once_and_served() {
    for (arrival, told) in [(Arrival::Direct, true), (Arrival::Diverted, false)] {
        let mut bench = Bench::new(Recorder::new(arrival));
        let mut asking = service("web", "10.96.0.10");
        asking.knobs.source_ip = Some(SourceIp::Transparent);
        let event = Event::ServiceApplied(Arc::new(asking));
        let log = bench.step(vec![event.clone(), endpoints(true)]).await;
        let tells = |log: &[String]| log.iter().filter(|line| line.contains("source-ip")).count();
        assert_eq!(tells(&log), usize::from(told), "{log:?}");
        assert!(log.contains(&"open default/web".to_owned()));
        let log = bench.step(vec![event, endpoints(false)]).await;
        assert_eq!(tells(&log), 0, "{log:?}");
    }
}

#[tokio::test]
async fn a_direct_listener_ends_before_the_table_is_without_it() {
    let mut bench = Bench::new(Recorder::new(Arrival::Direct));
    bench.step(vec![web(), endpoints(true)]).await;
    let log = bench
        .step(vec![Event::ServiceDeleted(service_name("web"))])
        .await;
    assert_eq!(
        log,
        [
            "close default/web",
            "publish 0 routes, 1 changed",
            "rules {}"
        ]
    );
}

#[tokio::test]
async fn a_direct_listener_is_not_ahead_of_an_address_that_waits_for_its_rules() {
    let mut bench = Bench::new(Recorder::new(Arrival::Direct));
    bench.step(vec![web(), endpoints(true)]).await;
    // Written by now. A further port of it would be in effect at once, an address that is new would not.
    let mut more = service("web", "10.96.0.10");
    more.ports.push(service_port("b", Protocol::Tcp, 2000));
    let other = service("xyz", "10.96.0.11");
    let slices = [
        ("web-1", "web", true),
        ("web-2", "web", false),
        ("xyz-1", "xyz", true),
    ];
    let slices = slices.map(|(name, of, unnamed)| {
        let mut slice = slice(name, of, [ep("10.1.0.1")]);
        if !unnamed {
            slice.ports[0].name = "b".into();
        }
        Event::SliceApplied(Arc::new(slice))
    });
    let events = [more, other].map(|service| Event::ServiceApplied(Arc::new(service)));
    let log = bench.step(events.into_iter().chain(slices).collect()).await;
    assert_eq!(
        log,
        [
            "hold default/web:b",
            "open default/xyz",
            "publish 3 routes, 3 changed",
            "rules {8080, 10000}",
            "open default/web:b",
        ]
    );
    // Nothing waits: it serves before the table says so.
    let mut more = service("xyz", "10.96.0.11");
    more.ports[0].port = port(90);
    let log = bench
        .step(vec![Event::ServiceApplied(Arc::new(more))])
        .await;
    assert_eq!(log[..2], ["close default/xyz", "open default/xyz"]);
}

#[tokio::test]
async fn a_service_deleted_and_made_again_before_its_rules_are_gone_keeps_its_port() {
    let mut bench = Bench::new(Recorder::new(Arrival::Redirected));
    bench.step(vec![web(), endpoints(true)]).await;
    bench
        .builder
        .apply(Event::ServiceDeleted(service_name("web")));
    bench
        .programmer
        .program(&mut bench.builder, bench.now)
        .await;
    bench.programmer.effects_mut().log.clear();
    let log = bench.step(vec![web(), endpoints(false)]).await;
    assert_eq!(log, ["hold default/web", "publish 1 routes, 1 changed"]);
}

#[tokio::test]
async fn ports_that_may_have_to_move_are_opened_last() {
    let mut bench = Bench::new(Recorder::new(Arrival::Direct));
    let mut both = service("web", "10.96.0.10");
    both.ports = vec![
        service_port("a", Protocol::Tcp, 80),
        service_port("b", Protocol::Tcp, 8080),
    ];
    let log = bench
        .step(vec![Event::ServiceApplied(Arc::new(both))])
        .await;
    assert_eq!(log[..2], ["hold default/web:b", "hold default/web:a"]);
}

// `default/web` as a LoadBalancer with the policy Local, whose one endpoint is on this node.
fn checked_web(bench: &mut Bench) -> Vec<Event> {
    bench.builder.set_node(here("0.0.0.0 ::"));
    let mut web = service("web", "10.96.0.10 fd00::10");
    web.kind = ServiceKind::LoadBalancer;
    web.external_policy = TrafficPolicy::Local;
    web.health_check_node_port = Some(port(30999));
    let local = slice("web-1", "web", [ep("10.1.0.1").on("here")]);
    vec![
        Event::ServiceApplied(Arc::new(web)),
        Event::SliceApplied(Arc::new(local)),
    ]
}

fn here(health_check_addresses: &str) -> NodeView {
    NodeView {
        name: Some(node_name("here")),
        health_check_addresses: health_check_addresses.split_whitespace().map(ip).collect(),
        ..NodeView::default()
    }
}

fn health_checks(log: &[String]) -> Vec<&str> {
    let checks = log.iter().map(String::as_str);
    checks.filter(|line| line.starts_with("health")).collect()
}

#[tokio::test]
async fn health_checks_follow_the_table_in_captured_families() {
    let mut bench = Bench::new(Recorder::new(Arrival::Redirected));
    let events = checked_web(&mut bench);
    let log = bench.step(events).await;
    let published = log.iter().position(|line| line.starts_with("publish"));
    let told = log
        .iter()
        .position(|line| line == "health checks [0.0.0.0:30999=1]");
    assert!(published.is_some() && published < told, "{log:?}");
    let log = bench.step(vec![endpoints(false)]).await;
    assert_eq!(health_checks(&log), ["health checks [0.0.0.0:30999=0]"]);
    assert!(health_checks(&bench.step(vec![endpoints(false)]).await).is_empty());
    bench.builder.set_node(here("172.18.0.2 172.18.1.2"));
    let log = bench.step(vec![]).await;
    assert_eq!(
        health_checks(&log),
        ["health checks [172.18.0.2:30999=0 172.18.1.2:30999=0]"]
    );
    let log = bench
        .step(vec![Event::ServiceDeleted(service_name("web"))])
        .await;
    assert_eq!(health_checks(&log), ["health checks []"]);
}

#[tokio::test]
async fn a_health_check_that_cannot_be_bound_is_tried_on_changes_and_once_a_second() {
    let mut bench = Bench::new(Recorder::new(Arrival::Redirected));
    let events = checked_web(&mut bench);
    bench.programmer.effects_mut().fail_health_checks = 3;
    assert_eq!(health_checks(&bench.step(events).await).len(), 1);
    let other = Event::ServiceApplied(Arc::new(service("other", "10.96.0.11")));
    assert!(health_checks(&bench.step(vec![other]).await).is_empty());
    let same = || {
        let slice = slice("web-2", "web", [ep("10.1.0.2")]);
        vec![Event::SliceApplied(Arc::new(slice))]
    };
    assert_eq!(health_checks(&bench.step(same()).await).len(), 1);
    let failed_at = bench.now - GATHER;
    bench.now = failed_at + Duration::from_secs(1) - Duration::from_nanos(1);
    let next = bench.programmer.write(bench.now).await;
    assert!(bench.programmer.effects_mut().log.is_empty());
    assert_eq!(next, failed_at + Duration::from_secs(1));
    bench.programmer.write(next).await;
    bench.programmer.write(next + Duration::from_secs(1)).await;
    bench.programmer.write(next + Duration::from_secs(2)).await;
    let log = std::mem::take(&mut bench.programmer.effects_mut().log);
    assert_eq!(health_checks(&log).len(), 2, "the last one was not needed");
    assert!(health_checks(&bench.step(same()).await).is_empty());
}
