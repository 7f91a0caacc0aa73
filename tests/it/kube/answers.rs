//! Answers that are right but slow, or that end before they are whole.

use std::time::Duration;

use viaduct::control::Kind;
use viaduct::sources::kube::{DnsNeeds, Patience};

use super::listener::{Listener, access, node, patience, service, slice};
use crate::api_server::{ApiServer, Fault};
use crate::cluster::eventually;

/// A server with Services of two pages, and a slice.
fn server() -> ApiServer {
    let server = ApiServer::start();
    for index in 1..=4 {
        server.apply(service(&format!("s{index}"), &format!("10.96.0.{index}")));
    }
    server.apply(slice("s1", &["10.1.0.1"], 8080));
    server.apply(node("z1"));
    server
}

/// Little enough of it that a test can see it end.
fn impatient() -> Patience {
    Patience {
        answer: Duration::from_millis(300),
        page: Duration::from_millis(300),
        watch: Duration::from_secs(1),
        ..patience()
    }
}

fn agree(listener: &Listener, server: &ApiServer) {
    listener.agrees(server, Kind::Service, "services");
    listener.agrees(server, Kind::EndpointSlice, "endpointslices");
}

#[test]
fn a_byte_at_a_time_is_an_answer_too() {
    let server = server();
    server.set_fault(Fault::Trickle);
    let listener = Listener::to(&server);
    listener.synced();
    agree(&listener, &server);
    server.apply(service("s9", "10.96.0.9"));
    server.apply(service("s1", "10.96.0.101"));
    server.delete("services", "default", "s2");
    agree(&listener, &server);
    assert_eq!(listener.out_of_touch(), None);
    assert_eq!(listener.heard().lists[&Kind::Service], 1);
}

#[test]
fn a_list_that_stalls_is_given_up_and_holds_up_no_other() {
    let server = server();
    server.set_fault_of("services", Fault::Stall);
    let listener = Listener::with(access(&[&server]), DnsNeeds::Nothing, impatient());
    listener.loses_touch("the answer takes too long");
    // Meanwhile the slices are followed, and half a list of Services is no state to begin with.
    listener.agrees(&server, Kind::EndpointSlice, "endpointslices");
    server.apply(slice("s1", &["10.1.0.2"], 8080));
    listener.agrees(&server, Kind::EndpointSlice, "endpointslices");
    assert_eq!(listener.heard().synced, 0);
    server.set_fault(Fault::None);
    listener.synced();
    agree(&listener, &server);
    listener.is_in_touch();
}

#[test]
fn a_watch_that_stalls_is_asked_for_again_and_holds_up_no_other() {
    let server = server();
    let listener = Listener::with(access(&[&server]), DnsNeeds::Nothing, impatient());
    listener.synced();
    server.set_fault_of("services", Fault::Stall);
    server.end_watches();
    server.apply(service("s1", "10.96.0.101"));
    // Half of the event is all that comes, on however many watches.
    listener.loses_touch("the answer takes too long");
    server.apply(slice("s1", &["10.1.0.2"], 8080));
    listener.agrees(&server, Kind::EndpointSlice, "endpointslices");
    server.set_fault(Fault::None);
    agree(&listener, &server);
    listener.is_in_touch();
    assert_eq!(listener.heard().lists[&Kind::Service], 1);
}

#[test]
fn a_server_that_stalls_gives_way_to_the_next() {
    let first = server();
    let second = first.sibling();
    first.set_fault(Fault::Stall);
    let servers = access(&[&first, &second]);
    let listener = Listener::with(servers, DnsNeeds::Nothing, impatient());
    listener.synced();
    agree(&listener, &second);
    listener.is_in_touch();
}

#[test]
fn half_a_list_is_none() {
    let server = server();
    let listener = Listener::to(&server);
    listener.synced();
    let before = listener.heard().objects;
    server.set_fault(Fault::Break);
    server.compact();
    server.end_watches();
    listener.loses_touch("");
    server.delete("services", "default", "s2");
    eventually("further tries", || {
        let lists = server.asked().into_iter().filter(|asked| !asked.is_watch());
        let n = lists.filter(|asked| asked.resource == "services").count();
        (n >= 2 + 3).then_some(()).ok_or(n)
    });
    assert_eq!(listener.heard().objects, before);
    server.set_fault(Fault::None);
    agree(&listener, &server);
    listener.is_in_touch();
}
