//! An address of the health or metrics server that somebody else has.

use std::net::TcpListener;

use super::listener::{node, service, slice};
use super::proxy::Proxy;
use crate::api_server::ApiServer;
use crate::cluster::{eventually, http_get};

/// The flag of each server, and the reason of the Event about it.
const SERVERS: [(&str, &str); 2] = [
    ("--healthz-bind-address", "FailedToStartProxierHealthcheck"),
    ("--metrics-bind-address", "FailedToStartMetricServer"),
];

fn server() -> ApiServer {
    let server = ApiServer::start();
    server.apply(service("web", "10.96.0.10"));
    server.apply(slice("web", &["10.1.0.1"], 8080));
    server.apply(node("z1"));
    server
}

#[test]
fn an_address_that_is_taken_is_told_and_bound_as_soon_as_it_is_free() {
    let server = server();
    for (flag, reason) in SERVERS {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        let taken = address.to_string();
        let proxy = Proxy::start(&["--master", &server.url(), flag, &taken]);
        proxy.waits_for("address cannot be bound");
        proxy.explains("10.96.0.10:80", &["10.1.0.1:8080"]);
        let event = eventually(reason, || {
            let posted = server.posted().into_iter();
            let mut those = posted.filter(|event| event["reason"] == reason);
            those.next().ok_or_else(|| proxy.log())
        });
        let note = event["note"].as_str().unwrap();
        assert!(note.starts_with(&taken), "{note}");
        assert!(note.contains("in use"), "{note}");
        drop(holder);
        eventually("an answer", || match http_get(address, "/healthz") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        proxy.stop();
    }
}

#[test]
fn an_address_that_is_taken_is_the_end_where_that_is_asked_for() {
    let server = server();
    for (flag, _) in SERVERS {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap().to_string();
        let url = server.url();
        let words = ["--master", &url, flag, &taken, "--bind-address-hard-fail"];
        let mut proxy = Proxy::start(&words);
        proxy.waits_for(&format!("error: {flag} {taken}"));
        let status = eventually("the end", || {
            proxy.child.try_wait().unwrap().ok_or("still running")
        });
        assert_eq!(status.code(), Some(1));
        let log = proxy.log();
        assert!(log.contains("in use"), "{log}");
        drop(holder);
        let free = Proxy::start(&words);
        free.address("healthz");
        free.stop();
    }
}
