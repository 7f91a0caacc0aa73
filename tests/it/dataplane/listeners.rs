//! Listeners: serving, held closed, changed in place, moved to another port.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use viaduct::capture::plan::ListenerState::{HeldClosed, Serving};
use viaduct::capture::plan::{Callers, Entry};
use viaduct::dataplane::Config;
use viaduct::model::Protocol::{Tcp, Udp};
use viaduct::routing::FrontendKind;

use super::rig::{Rig, eventually, is_reset, soon};

async fn tcp_refuses(at: SocketAddr) {
    let error = TcpStream::connect(at).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

async fn udp_refuses(at: SocketAddr) {
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(at).await.unwrap();
    client.send(b"x").await.unwrap();
    let error = soon("port unreachable", client.recv(&mut [0; 8]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_tcp_port_is_held_closed_served_and_held_again_in_place() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::with(Tcp, &[backend.local_addr().unwrap()], Config::default());
    let at = rig.plane.open(&rig.spec(HeldClosed)).await.unwrap();
    for _ in 0..3 {
        tcp_refuses(at).await;
        assert_eq!(rig.plane.open(&rig.spec(Serving)).await.unwrap(), at);
        let mut client = TcpStream::connect(at).await.unwrap();
        let (mut served, _) = soon("accept", backend.accept()).await.unwrap();
        assert_eq!(rig.plane.open(&rig.spec(HeldClosed)).await.unwrap(), at);
        served.write_all(b"x").await.unwrap();
        soon("established goes on", client.read_exact(&mut [0; 1]))
            .await
            .unwrap();
    }
    tcp_refuses(at).await;
    rig.plane.close(&rig.spec(Serving).id).await;
    TcpListener::bind(at).await.unwrap();
}

// More than a socket filter takes, none of them a client's.
fn too_many_networks() -> Vec<IpNet> {
    let strangers =
        (0..5000u32).map(|n| IpNet::from(IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + n))));
    strangers.collect()
}

#[tokio::test]
async fn callers_that_no_filter_keeps_out_are_refused_instead() {
    for protocol in [Tcp, Udp] {
        let backend = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let accepting = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = match protocol {
            Tcp => accepting.local_addr(),
            Udp => backend.local_addr(),
        };
        let rig = Rig::start(protocol, &[addr.unwrap()]);
        let observer = rig.plane.observer();
        let mut spec = rig.spec(Serving);
        spec.callers = Callers::Only(too_many_networks());
        let at = rig.plane.open(&spec).await.unwrap();
        assert!(observer.cannot_be_silent(|_, kind| kind == FrontendKind::ClusterIp));
        assert!(!observer.cannot_be_silent(|_, kind| kind == FrontendKind::NodePort));
        match protocol {
            Tcp => {
                is_reset(at).await;
                let refused = "viaduct_tcp_refused_connections_total";
                // Counted a moment after the client is told.
                eventually("it is counted", || rig.metric(refused, "policy") == 1.0).await;
            }
            Udp => {
                let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                client.send_to(b"x", at).await.unwrap();
                eventually("it is dropped", || {
                    rig.metric("viaduct_udp_dropped_datagrams_total", "policy") == 1.0
                })
                .await;
            }
        }
        let mut networks = too_many_networks();
        networks.push("127.0.0.0/8".parse().unwrap());
        spec.callers = Callers::Only(networks);
        assert_eq!(rig.plane.open(&spec).await.unwrap(), at);
        match protocol {
            Tcp => {
                let _client = TcpStream::connect(at).await.unwrap();
                soon("accept", accepting.accept()).await.unwrap();
            }
            Udp => {
                let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                client.send_to(b"x", at).await.unwrap();
                soon("x", backend.recv(&mut [0; 8])).await.unwrap();
            }
        }
        spec.callers = Callers::Only(vec!["127.0.0.0/8".parse().unwrap()]);
        rig.plane.open(&spec).await.unwrap();
        assert!(!observer.cannot_be_silent(|_, _| true), "this one is taken");
    }
}

#[tokio::test]
async fn a_udp_port_is_held_closed_served_and_held_again_in_place() {
    udp_in_place("127.0.0.1:0", None).await;
}

#[tokio::test]
async fn so_is_the_port_of_a_wildcard_address() {
    udp_in_place("0.0.0.0:0", Some(Entry::ClusterIp)).await;
}

async fn udp_in_place(bind: &str, entry: Option<Entry>) {
    let backend = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::with(Udp, &[backend.local_addr().unwrap()], Config::default());
    let spec = |state| {
        let mut spec = rig.spec(state);
        spec.bind = bind.parse().unwrap();
        spec.id.entry = entry.unwrap_or(spec.id.entry);
        spec
    };
    let bound = rig.plane.open(&spec(HeldClosed)).await.unwrap();
    let at = SocketAddr::from(([127, 0, 0, 1], bound.port()));
    for _ in 0..3 {
        udp_refuses(at).await;
        assert_eq!(rig.plane.open(&spec(Serving)).await.unwrap(), bound);
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"x", at).await.unwrap();
        soon("x", backend.recv(&mut [0; 8])).await.unwrap();
        assert_eq!(rig.plane.open(&spec(HeldClosed)).await.unwrap(), bound);
        assert_eq!(rig.plane.active_flows(), (0, 0), "its flows have ended");
    }
    udp_refuses(at).await;
    rig.plane.close(&spec(Serving).id).await;
    UdpSocket::bind(bound).await.unwrap();
}

#[tokio::test]
async fn connections_that_were_queued_are_served_when_the_listener_closes() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::start(Tcp, &[backend.local_addr().unwrap()]);
    for _ in 0..20 {
        let at = rig.open().await;
        // Connected, whether or not the data thread has accepted it by the time it is told to close.
        let mut client = TcpStream::connect(at).await.unwrap();
        rig.plane.close(&rig.spec(Serving).id).await;
        let (mut served, _) = soon("accept", backend.accept()).await.unwrap();
        served.write_all(b"x").await.unwrap();
        soon("x", client.read_exact(&mut [0; 1])).await.unwrap();
    }
}

#[tokio::test]
async fn a_taken_port_is_served_elsewhere_and_said_so() {
    let rig = Rig::start(Tcp, &[]);
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap();
    let keeps = TcpListener::bind((taken.ip(), 0)).await.unwrap();
    let mut spec = rig.spec(HeldClosed);
    spec.bind = keeps.local_addr().unwrap();
    let at = rig.plane.open(&spec).await.unwrap();
    assert_eq!(at.ip(), spec.bind.ip());
    let wanted = spec.bind.port();
    let first = wanted.checked_add(8000).unwrap_or(wanted + 1);
    assert!(
        (first..first.saturating_add(64)).contains(&at.port()),
        "{wanted} -> {at}"
    );
}

#[tokio::test]
async fn a_port_comes_back_while_connections_of_its_last_listener_go_on() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::with(Tcp, &[backend.local_addr().unwrap()], Config::default());
    let mut spec = rig.spec(Serving);
    spec.bind = rig.plane.open(&spec).await.unwrap();
    for state in [HeldClosed, Serving] {
        let mut client = TcpStream::connect(spec.bind).await.unwrap();
        let (mut served, _) = soon("accept", backend.accept()).await.unwrap();
        rig.plane.close(&spec.id).await;
        spec.state = state;
        let again = rig.plane.open(&spec).await.unwrap();
        assert_eq!(again, spec.bind, "{state:?}");
        served.write_all(b"x").await.unwrap();
        soon("x", client.read_exact(&mut [0; 1])).await.unwrap();
        spec.state = Serving;
        rig.plane.open(&spec).await.unwrap();
    }
}

#[tokio::test]
async fn opening_twice_changes_nothing() {
    let rig = Rig::start(Tcp, &[]);
    let one = rig.plane.open(&rig.spec(Serving)).await.unwrap();
    let two = rig.plane.open(&rig.spec(Serving)).await.unwrap();
    assert_eq!(one, two);
    rig.plane.close(&rig.spec(Serving).id).await;
    tcp_refuses(one).await;
    rig.plane.close(&rig.spec(Serving).id).await;
}

#[tokio::test]
async fn connections_past_the_bound_are_reset_and_counted() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config {
        threads: 1,
        max_flows: 1,
        ..Config::default()
    };
    let rig = Rig::with(Tcp, &[backend.local_addr().unwrap()], config);
    let at = rig.open().await;
    let first = TcpStream::connect(at).await.unwrap();
    soon("accept", backend.accept()).await.unwrap();
    is_reset(at).await;
    eventually("it is counted", || {
        rig.metric("viaduct_tcp_refused_connections_total", "limit") == 1.0
    })
    .await;
    drop(first);
    eventually("room again", || rig.plane.active_flows() == (0, 0)).await;
    let _third = TcpStream::connect(at).await.unwrap();
    soon("accept", backend.accept()).await.unwrap();
}
