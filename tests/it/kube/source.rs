//! Lists, watches, and every way in which they fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use viaduct::balancers::Algorithms;
use viaduct::control::Kind;
use viaduct::model::{Algorithm, Event};
use viaduct::routing::TableBuilder;
use viaduct::sources::convert;
use viaduct::sources::kube::{Access, DnsNeeds, Patience};

use super::listener::{Listener, access, node, patience, service, slice};
use crate::api_server::{ApiServer, Fault};
use crate::cluster::eventually;

/// A server with eight Services and a slice.
fn server() -> ApiServer {
    let server = ApiServer::start();
    for index in 1..=8 {
        server.apply(service(&format!("s{index}"), &format!("10.96.0.{index}")));
    }
    server.apply(slice("s1", &["10.1.0.1"], 8080));
    server.apply(node("z1"));
    server
}

fn agree(listener: &Listener, server: &ApiServer) {
    listener.agrees(server, Kind::Service, "services");
    listener.agrees(server, Kind::EndpointSlice, "endpointslices");
}

#[test]
fn a_list_comes_in_pages_and_the_watch_goes_on_from_it() {
    let server = server();
    let listener = Listener::to(&server);
    listener.synced();
    agree(&listener, &server);
    assert_eq!(listener.heard().synced, 1);
    let asked = server.asked();
    let pages: Vec<_> = asked
        .iter()
        .filter(|asked| asked.resource == "services" && !asked.is_watch())
        .map(|asked| (asked.query["limit"].as_str(), asked.query.get("continue")))
        .collect();
    let (three, six) = ("3".to_owned(), "6".to_owned());
    assert_eq!(pages, [("3", None), ("3", Some(&three)), ("3", Some(&six))]);

    server.apply(service("s9", "10.96.0.9"));
    server.apply(service("s1", "10.96.0.101"));
    server.delete("services", "default", "s2");
    agree(&listener, &server);
    assert_eq!(listener.heard().lists[&Kind::Service], 1);
}

#[test]
fn the_server_filters_unless_dns_needs_the_rest() {
    let server = server();
    server.apply(service("headless", "None"));
    server.apply(
        serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "empty"}}),
    );
    let plain = Listener::to(&server);
    plain.synced();
    let names = |listener: &Listener| -> Vec<String> {
        let heard = listener.heard().objects;
        heard.keys().map(ToString::to_string).collect()
    };
    let known = names(&plain);
    assert!(!known.contains(&"Service default/headless".to_owned()));
    assert!(!known.contains(&"Namespace empty".to_owned()));
    assert!(known.contains(&"Node here".to_owned()));

    // A label that is added takes the Service away, and one that is removed brings it back.
    let mut foreign = service("s3", "10.96.0.3");
    foreign["metadata"]["labels"] =
        serde_json::json!({"service.kubernetes.io/service-proxy-name": "x"});
    server.apply(foreign);
    let s3 = "Service default/s3".to_owned();
    eventually("the Service gone", || {
        (!names(&plain).contains(&s3)).then_some(()).ok_or(())
    });
    server.apply(service("s3", "10.96.0.3"));
    eventually("the Service back", || {
        names(&plain).contains(&s3).then_some(()).ok_or(())
    });

    let with_dns = Listener::with(access(&[&server]), DnsNeeds::NamesAndPods, patience());
    with_dns.synced();
    let known = names(&with_dns);
    assert!(known.contains(&"Service default/headless".to_owned()));
    assert!(known.contains(&"Namespace empty".to_owned()));
    assert!(server.asked().iter().any(|asked| asked.resource == "pods"));
}

#[test]
fn a_watch_that_ends_goes_on_from_the_last_bookmark() {
    let server = server();
    let listener = Listener::to(&server);
    listener.synced();
    server.apply(service("s0", "10.96.0.100"));
    server.apply(slice("s1", &["10.1.0.2"], 8080));
    agree(&listener, &server);
    server.bookmark("services");
    server.compact();
    server.bookmark("services");
    // What was before the bookmark is gone for good; the watch needs none of it.
    eventually("a watch from the bookmark", || {
        server.end_watches();
        let watches = server.asked().into_iter().filter(|asked| {
            asked.resource == "services"
                && asked.is_watch()
                && asked.query["resourceVersion"] == "15"
        });
        (watches.count() > 0)
            .then_some(())
            .ok_or_else(|| server.asked())
    });
    server.apply(service("s9", "10.96.0.9"));
    agree(&listener, &server);
    assert_eq!(listener.heard().lists[&Kind::Service], 1);
    // Slices had no bookmark, and were listed again.
    listener.is_in_touch();
}

#[test]
fn after_410_a_list_brings_back_what_was_missed() {
    let mut server = server();
    let listener = Listener::to(&server);
    listener.synced();
    server.stop();
    server.apply(service("s9", "10.96.0.9"));
    server.delete("services", "default", "s2");
    server.delete("endpointslices", "default", "s1-1");
    server.compact();
    listener.loses_touch("refused");
    server.restart();
    agree(&listener, &server);
    listener.is_in_touch();
    eventually("a second list", || {
        let lists = listener.heard().lists[&Kind::Service];
        (lists == 2).then_some(()).ok_or(lists)
    });
}

#[test]
fn a_server_that_is_gone_changes_nothing_and_is_found_again() {
    let mut server = server();
    let listener = Listener::to(&server);
    listener.synced();
    let before = listener.heard().objects;
    server.stop();
    listener.loses_touch("refused");
    assert_eq!(listener.heard().objects, before);
    server.restart();
    listener.is_in_touch();
    server.apply(service("s9", "10.96.0.9"));
    agree(&listener, &server);
    // It went on where it was: nothing had to be listed again.
    assert_eq!(listener.heard().lists[&Kind::Service], 1);
}

#[test]
fn a_connection_that_breaks_in_the_middle_of_an_object_loses_nothing() {
    let server = server();
    let listener = Listener::to(&server);
    listener.synced();
    server.apply_and_break(service("s1", "10.96.0.201"));
    server.apply(service("s2", "10.96.0.202"));
    agree(&listener, &server);
    assert_eq!(listener.heard().lists[&Kind::Service], 1);
}

#[test]
fn an_event_that_cannot_be_read_costs_a_list_and_no_object() {
    let server = server();
    let listener = Listener::to(&server);
    listener.synced();
    server.apply_in_garbage(service("s1", "10.96.0.201"));
    agree(&listener, &server);
    eventually("a second list", || {
        let lists = listener.heard().lists[&Kind::Service];
        (lists == 2).then_some(()).ok_or(lists)
    });
    listener.is_in_touch();
}

#[test]
fn a_version_that_the_server_does_not_know_costs_a_list() {
    let server = server();
    let listener = Listener::to(&server);
    listener.synced();
    for (n, code) in [(2, 410), (3, 504)] {
        server.set_fault(Fault::RefuseWatches(code));
        server.end_watches();
        eventually("another list", || {
            let lists = listener.heard().lists[&Kind::Service];
            (lists >= n).then_some(()).ok_or(lists)
        });
        server.set_fault(Fault::None);
        listener.is_in_touch();
    }
}

#[test]
fn whatever_a_server_answers_is_waited_out_and_told() {
    let server = server();
    let quick = Patience {
        answer: Duration::from_millis(200),
        page: Duration::from_millis(500),
        ..patience()
    };
    let cases = [
        (Fault::Garbage, "no answer of an API server"),
        (Fault::Refuse(500), "500"),
        (Fault::Refuse(429), "429"),
        (Fault::Refuse(403), "403"),
        (Fault::Silence, "no answer within 200ms"),
        (Fault::Endless, "more than 1048576 bytes"),
    ];
    for (fault, words) in cases {
        server.set_fault(fault);
        let listener = Listener::with(access(&[&server]), DnsNeeds::Nothing, quick.clone());
        listener.loses_touch(words);
        assert_eq!(listener.heard().synced, 0);
        server.set_fault(Fault::None);
        listener.synced();
        agree(&listener, &server);
        listener.is_in_touch();
    }
}

#[test]
fn watches_that_end_at_once_do_not_become_a_storm() {
    let server = server();
    server.set_fault(Fault::ShortWatches);
    let listener = Listener::to(&server);
    listener.synced();
    let begin = server.asked().len();
    let started = std::time::Instant::now();
    eventually("some watches", || {
        (server.asked().len() > begin + 12).then_some(()).ok_or(())
    });
    // A burst is spent by then; what follows comes at five a second.
    let n = server.asked().len() - begin;
    let allowed = 10.0 + 5.0 * started.elapsed().as_secs_f64() + 1.0;
    assert!((n as f64) <= allowed, "{n} requests, {allowed} allowed");
}

#[test]
fn services_and_slices_are_waited_for_and_a_node_that_is_refused_is_not() {
    let server = ApiServer::start();
    let listener = Listener::to(&server);
    // An empty cluster is a state too.
    listener.synced();
    assert_eq!(listener.heard().objects.len(), 0);
    assert_eq!(listener.heard().lists.len(), 3);
}

#[test]
fn the_next_server_takes_over_and_nothing_is_listed_again() {
    let mut first = server();
    let mut second = first.sibling();
    let listener = Listener::with(access(&[&first, &second]), DnsNeeds::Nothing, patience());
    listener.synced();
    first.stop();
    second.apply(service("s9", "10.96.0.9"));
    agree(&listener, &second);
    listener.is_in_touch();
    assert_eq!(listener.heard().lists[&Kind::Service], 1);
    first.restart();
    second.stop();
    first.apply(service("s1", "10.96.0.201"));
    agree(&listener, &first);
    assert_eq!(listener.heard().lists[&Kind::Service], 1);
}

// Our own rules would catch the connection, and before there are any, nobody serves the address at all.
#[test]
fn a_server_behind_a_service_is_reached_through_its_endpoints() {
    let server = server();
    let access = Access {
        kubeconfig: None,
        masters: vec!["http://127.77.0.1:443".parse().unwrap()],
    };
    let listener = Listener::with(access, DnsNeeds::Nothing, patience());
    listener.loses_touch("refused");
    let mut kubernetes = service("kubernetes", "127.77.0.1");
    kubernetes["spec"]["ports"] = serde_json::json!([{"port": 443}]);
    let SocketAddr::V4(address) = server.address() else {
        unreachable!("it listens on 127.0.0.1")
    };
    let endpoints = slice("kubernetes", &[&address.ip().to_string()], address.port());
    let kubernetes = convert::service(&serde_json::from_value(kubernetes).unwrap());
    let endpoints = convert::slice(&serde_json::from_value(endpoints).unwrap()).unwrap();
    let mut builder = TableBuilder::new(Arc::new(Algorithms::default()), Algorithm::default());
    builder.apply(Event::ServiceApplied(Arc::new(kubernetes.value)));
    builder.apply(Event::SliceApplied(Arc::new(endpoints.value)));
    listener.table.publish(builder.build().table);
    listener.synced();
    agree(&listener, &server);
}
