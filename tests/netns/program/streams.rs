//! TCP through the program between machines: an end stays an end, a reset a reset, who speaks first is heard, and a
//! reader that stalls costs others nothing.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::node::{Node, SERVICE};
use super::pods::{PORT, State, slice};
use crate::world::{Place, QUIET, eventually, patience};

/// More than all buffers on the way hold.
const BULK: usize = 64 << 20;

/// A Service with one backend, whose connections the test answers itself.
struct Streams {
    node: Node,
    backend: TcpListener,
    service: SocketAddr,
}

impl Streams {
    fn start(mut node: Node) -> Self {
        let address = Place::Remote.ip(false);
        let backend = node.world.in_ns(Place::Remote, || {
            TcpListener::bind((address, PORT)).unwrap()
        });
        let service = format!(
            "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec: {{clusterIP: '{}', ports: [{{name: t, port: 80}}]}}
",
            SERVICE[0]
        );
        node.apply_text(&(service + &slice(&[(address, State::Ready)])));
        node.start();
        let streams = Self {
            node,
            backend,
            service: SocketAddr::new(SERVICE[0].parse().unwrap(), 80),
        };
        eventually(|| streams.connect(QUIET).map_err(|error| error.to_string()));
        streams
    }

    // A connection, as its client and its backend have it.
    fn pair(&self) -> (TcpStream, TcpStream) {
        self.connect(patience()).unwrap()
    }

    fn connect(&self, wait: Duration) -> io::Result<(TcpStream, TcpStream)> {
        let client = self.node.world.in_ns(Place::Outside, || {
            TcpStream::connect_timeout(&self.service, wait)
        })?;
        let timeout = TimeVal::milliseconds(i64::try_from(wait.as_millis()).unwrap());
        setsockopt(&self.backend, sockopt::ReceiveTimeout, &timeout)?;
        let (backend, _) = self.backend.accept()?;
        for end in [&client, &backend] {
            end.set_read_timeout(Some(patience()))?;
            end.set_write_timeout(Some(patience()))?;
        }
        Ok((client, backend))
    }
}

// Closes it with a reset.
fn reset(stream: TcpStream) {
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &at_once).unwrap();
}

// Writes until nobody takes any more for a while.
fn stuff(stream: &mut TcpStream) {
    stream
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let error = stream.write_all(&vec![7; BULK]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

pub(super) fn streams_end_as_their_peers_end_them(node: Node) {
    let streams = Streams::start(node);

    let (mut client, mut backend) = streams.pair();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    backend.read_to_string(&mut got).unwrap();
    backend.write_all(b"answer").unwrap();
    drop(backend);
    client.read_to_string(&mut got).unwrap();
    assert_eq!(got, "questionanswer");

    let (mut client, mut backend) = streams.pair();
    stuff(&mut backend);
    reset(backend);
    let mut got = Vec::new();
    let end = client.read_to_end(&mut got).unwrap_err();
    assert_eq!(
        end.kind(),
        ErrorKind::ConnectionReset,
        "after {}",
        got.len()
    );

    let (mut client, mut backend) = streams.pair();
    stuff(&mut client);
    reset(client);
    let mut got = Vec::new();
    let end = backend.read_to_end(&mut got).unwrap_err();
    assert_eq!(
        end.kind(),
        ErrorKind::ConnectionReset,
        "after {}",
        got.len()
    );
}

pub(super) fn a_backend_that_speaks_first_is_heard_at_once(node: Node) {
    let streams = Streams::start(node);
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        let (mut client, mut backend) = streams.pair();
        backend.write_all(b"220 ready\r\n").unwrap();
        client.read_exact(&mut [0; 11]).unwrap();
        quickest = quickest.min(begun.elapsed());
    }
    // An acknowledgement that waits for something to carry waits as long.
    assert!(quickest < Duration::from_millis(150), "{quickest:?}");
}

pub(super) fn a_stalled_reader_costs_a_fast_one_nothing(node: Node) {
    let streams = Streams::start(node);
    let before = streams.resident();
    let stalled: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, backend) = streams.pair();
            stuff(&mut client);
            (client, backend)
        })
        .collect();
    let (mut client, mut backend) = streams.pair();
    let sending = thread::spawn(move || client.write_all(&vec![9; BULK]).unwrap());
    let mut got = vec![0; BULK];
    backend.read_exact(&mut got).unwrap();
    sending.join().unwrap();
    assert!(got.iter().all(|byte| *byte == 9));
    // Each stalled one holds the rest of one read at most; pipes are the kernel's.
    let grown = streams.resident().saturating_sub(before);
    assert!(
        grown < 8 << 20,
        "{grown} bytes for {} stalled",
        stalled.len()
    );
}

impl Streams {
    // Bytes of the program's memory.
    fn resident(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.node.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kib: usize = line
            .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap();
        kib * 1024
    }
}
