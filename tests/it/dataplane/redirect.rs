//! Behind NAT: the original destination decides for TCP, and UDP replies find their way back. In a network namespace
//! of an ordinary user.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use viaduct::capture::plan::{Entry, ListenerState};
use viaduct::model::Protocol::{self, Tcp, Udp};
use viaduct::model::{Knobs, ProxyProtocol};

use super::rig::{Rig, eventually, in_own_process, soon};

#[test]
fn redirected_tcp_is_served_and_uncaptured_tcp_is_reset() {
    own_network("dataplane::redirect::tcp");
}

#[test]
fn redirected_udp_is_answered_from_the_address_that_was_asked() {
    own_network("dataplane::redirect::udp");
}

#[test]
fn the_proxy_protocol_names_the_virtual_address() {
    own_network("dataplane::redirect::proxy_protocol");
}

fn own_network(test: &str) {
    if !in_own_process(test, &["unshare", "-Urn"]) {
        eprintln!("SKIPPED {test}: no user namespaces here");
    }
}

fn sh(script: &str) {
    let done = Command::new("sh").args(["-ec", script]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{script}: {said}");
}

/// Another host, 192.0.2.10, for which this one is 192.0.2.1 and the way to 10.96.0.0/16.
struct Neighbour(Child);

impl Neighbour {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo ready; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn();
        let mut neighbour = Self(child.unwrap());
        let mut ready = [0; 6];
        let output = neighbour.0.stdout.as_mut().unwrap();
        std::io::Read::read_exact(output, &mut ready).unwrap();
        let pid = neighbour.0.id();
        sh(&format!(
            "ip link set lo up
             ip route add 10.96.0.0/16 dev lo
             ip link add near type veth peer name far netns {pid}
             ip addr add 192.0.2.1/24 dev near
             ip addr add 192.0.2.2/24 dev near
             ip link set near up
             nsenter -t {pid} -n sh -ec '
               ip link set lo up
               ip addr add 192.0.2.10/24 dev far
               ip link set far up
               ip route add 10.96.0.0/16 via 192.0.2.1'"
        ));
        // A link drops what is sent before the kernel has noticed that both ends are up.
        sh(&format!(
            "up() {{ \"$@\" ip -o link | grep -q 'state UP'; }}
             until up env && up nsenter -t {pid} -n; do :; done"
        ));
        neighbour
    }

    /// Sends `ping` with bash, and returns what comes back within a second.
    fn ask(&self, protocol: Protocol, to: &str) -> String {
        let script = format!(
            "exec 3<>/dev/{}/{to} && printf ping >&3 && timeout 1 head -c 4 <&3",
            protocol.lower()
        );
        let pid = self.0.id().to_string();
        let output = Command::new("nsenter")
            .args(["-t", &pid, "-n", "bash", "-c", &script])
            .output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Leads 10.96.0.1:80 and :81 to a wildcard listener for the Service, which has only port 80.
async fn capture(rig: &Rig, protocol: Protocol, entry: Entry) -> SocketAddr {
    let mut spec = rig.spec(ListenerState::Serving);
    spec.id.entry = entry;
    spec.bind = "0.0.0.0:0".parse().unwrap();
    let at = rig.plane.open(&spec).await.unwrap();
    let (protocol, port) = (protocol.lower(), at.port());
    sh(&format!(
        "nft -f - <<END
         table ip t {{
           chain pre {{ type nat hook prerouting priority -100;
             ip daddr 10.96.0.1 {protocol} dport {{ 80, 81 }} redirect to :{port}; }}
           chain out {{ type nat hook output priority -100;
             ip daddr 10.96.0.1 {protocol} dport {{ 80, 81 }} redirect to :{port}; }}
         }}
END"
    ));
    at
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a network of its own; run by the test above"]
async fn tcp() {
    let neighbour = Neighbour::new();
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::start(Tcp, &[backend.local_addr().unwrap()]);
    let at = capture(&rig, Tcp, Entry::All).await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = backend.accept().await.unwrap();
            let mut ping = [0; 4];
            stream.read_exact(&mut ping).await.unwrap();
            stream.write_all(b"pong").await.unwrap();
        }
    });
    let ask = async |to: &str| {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(b"ping").await?;
        let mut pong = [0; 4];
        stream.read_exact(&mut pong).await
    };
    assert_eq!(soon("local", ask("10.96.0.1:80")).await.unwrap(), 4);
    assert_eq!(neighbour.ask(Tcp, "10.96.0.1/80"), "pong");

    let uncaptured = || rig.metric("viaduct_uncaptured_total", "");
    let another = soon("no port of the Service", ask("10.96.0.1:81")).await;
    assert_eq!(another.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let past = format!("127.0.0.1:{}", at.port());
    let past = soon("past capture", ask(&past)).await;
    assert_eq!(past.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(neighbour.ask(Tcp, &format!("192.0.2.1/{}", at.port())), "");
    eventually("three were uncaptured", || uncaptured() == 3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a network of its own; run by the test above"]
async fn proxy_protocol() {
    let neighbour = Neighbour::new();
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut rig = Rig::start(Tcp, &[backend.local_addr().unwrap()]);
    rig.apply_service(Knobs {
        proxy_protocol: Some(ProxyProtocol::V1),
        ..Knobs::default()
    });
    capture(&rig, Tcp, Entry::All).await;
    let serving = tokio::spawn(async move {
        let mut stream = BufReader::new(backend.accept().await.unwrap().0);
        let mut header = String::new();
        stream.read_line(&mut header).await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        stream.write_all(b"pong").await.unwrap();
        header
    });
    assert_eq!(neighbour.ask(Tcp, "10.96.0.1/80"), "pong");
    let header = soon("the header", serving).await.unwrap();
    let words: Vec<&str> = header.split_whitespace().collect();
    assert_eq!(words[..4], ["PROXY", "TCP4", "192.0.2.10", "10.96.0.1"]);
    assert_eq!(words[5], "80", "{header}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a network of its own; run by the test above"]
async fn udp() {
    let neighbour = Neighbour::new();
    let backend = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::start(Udp, &[backend.local_addr().unwrap()]);
    let at = capture(&rig, Udp, Entry::ClusterIp).await;
    tokio::spawn(async move {
        loop {
            let (_, from) = backend.recv_from(&mut [0; 16]).await.unwrap();
            backend.send_to(b"pong", from).await.unwrap();
        }
    });
    let client = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    client.connect("10.96.0.1:80").await.unwrap();
    client.send(b"ping").await.unwrap();
    let mut pong = [0; 16];
    // A connected socket takes datagrams from its peer only.
    assert_eq!(soon("local", client.recv(&mut pong)).await.unwrap(), 4);
    assert_eq!(neighbour.ask(Udp, "10.96.0.1/80"), "pong");
    for own in ["192.0.2.1", "192.0.2.2"] {
        let to = format!("{own}/{}", at.port());
        assert_eq!(neighbour.ask(Udp, &to), "pong", "{own} answers as itself");
    }
}
