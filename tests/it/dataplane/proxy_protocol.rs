//! `viaduct.dev/proxy-protocol`: the backend learns who its client is before the client has said anything.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use viaduct::model::{Knobs, Protocol::Tcp, ProxyProtocol};

use super::rig::{Rig, soon};

/// What the backend reads of a client that has not said anything yet, as long as `length` says of the client's address
/// and the one it used; and these two.
async fn header(
    version: ProxyProtocol,
    loopback: &str,
    length: impl FnOnce([SocketAddr; 2]) -> usize,
) -> (Vec<u8>, [SocketAddr; 2]) {
    let listener = TcpListener::bind(loopback).await.unwrap();
    let mut rig = Rig::start(Tcp, &[listener.local_addr().unwrap()]);
    rig.apply_service(Knobs {
        proxy_protocol: Some(version),
        ..Knobs::default()
    });
    let at = rig.open().await;
    let mut client = TcpStream::connect(at).await.unwrap();
    let ends = [client.local_addr().unwrap(), at];
    let (mut backend, _) = soon("accept", listener.accept()).await.unwrap();
    let mut header = vec![0; length(ends)];
    soon("header", backend.read_exact(&mut header))
        .await
        .unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    soon("question", backend.read_to_end(&mut question))
        .await
        .unwrap();
    assert_eq!(question, b"question", "and nothing else");
    backend.write_all(b"answer").await.unwrap();
    drop(backend);
    let mut answer = Vec::new();
    soon("answer", client.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"answer");
    (header, ends)
}

#[tokio::test]
async fn version_1_names_the_client_and_the_address_it_used() {
    for (loopback, family) in [("127.0.0.1:0", "TCP4"), ("[::1]:0", "TCP6")] {
        let expected = |[client, at]: [SocketAddr; 2]| {
            let (ip, from, to) = (client.ip(), client.port(), at.port());
            format!("PROXY {family} {ip} {ip} {from} {to}\r\n")
        };
        let length = |ends| expected(ends).len();
        let (header, ends) = header(ProxyProtocol::V1, loopback, length).await;
        assert_eq!(String::from_utf8(header).unwrap(), expected(ends));
    }
}

#[tokio::test]
async fn version_2_names_them_in_binary() {
    for (loopback, family, length) in [("127.0.0.1:0", 0x11, 12), ("[::1]:0", 0x21, 36)] {
        let (header, [client, at]) = header(ProxyProtocol::V2, loopback, |_| 16 + length).await;
        assert_eq!(&header[..12], b"\r\n\r\n\0\r\nQUIT\n");
        let length = u8::try_from(length).unwrap();
        assert_eq!(header[12..16], [0x21, family, 0, length]);
        let ports = [client.port().to_be_bytes(), at.port().to_be_bytes()].concat();
        assert_eq!(header[header.len() - 4..], ports);
    }
}

#[tokio::test]
async fn the_server_may_speak_first_and_dead_backends_are_skipped() {
    let mut backends = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    backends.sort_by_key(|backend| backend.local_addr().unwrap());
    let addrs = backends.each_ref().map(|b| b.local_addr().unwrap());
    let [dead, live] = backends;
    drop(dead);
    live.set_nonblocking(true).unwrap();
    let live = TcpListener::from_std(live).unwrap();
    let mut rig = Rig::start(Tcp, &addrs);
    rig.apply_service(Knobs {
        proxy_protocol: Some(ProxyProtocol::V2),
        ..Knobs::default()
    });
    let mut client = TcpStream::connect(rig.open().await).await.unwrap();
    let (mut backend, _) = soon("accept", live.accept()).await.unwrap();
    backend.write_all(b"220 hello").await.unwrap();
    let mut hello = [0; 9];
    soon("the server speaks first", client.read_exact(&mut hello))
        .await
        .unwrap();
    assert_eq!(&hello, b"220 hello");
    let mut header = [0; 28];
    soon("header", backend.read_exact(&mut header))
        .await
        .unwrap();
    assert_eq!(header[12], 0x21);
    assert_eq!(rig.figures(addrs[0]), (0, 1));
}
