//! TCP through the program between machines: an end stays an end, a reset a reset, who speaks first is heard, and a
//! reader that stalls costs others nothing, nor does one that no descriptor is left for.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
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

pub(super) fn a_shortage_of_descriptors_passes(node: Node) {
    let streams = Streams::start(node);
    let (mut client, mut backend) = streams.pair();
    let limit = streams.descriptors_at_most("3");
    // The kernel greets it, but nobody can take it in.
    let mut late = streams.node.world.in_ns(Place::Outside, || {
        TcpStream::connect_timeout(&streams.service, patience()).unwrap()
    });
    let before = streams.cpu_ticks();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        client.write_all(b"x").unwrap();
        backend.read_exact(&mut [0]).unwrap();
        thread::sleep(Duration::from_millis(10));
    }
    let ticks = streams.cpu_ticks() - before;
    assert!(ticks < 20, "it spins: {ticks} of 50 ticks");

    streams.descriptors_at_most(&limit);
    late.write_all(b"late").unwrap();
    let (mut served, _) = streams.backend.accept().unwrap();
    served.read_exact(&mut [0; 4]).unwrap();
    streams.pair();
    client.write_all(b"y").unwrap();
    backend.read_exact(&mut [0]).unwrap();
}

impl Streams {
    // Changes the program's soft limit; says what it was.
    fn descriptors_at_most(&self, n: &str) -> String {
        let pid = self.node.pid().to_string();
        let prlimit = |arguments: &[&str]| {
            let output = Command::new("prlimit")
                .args(["--pid", &pid])
                .args(arguments)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let before = prlimit(&["--nofile", "--output", "SOFT", "--noheadings"]);
        prlimit(&[&format!("--nofile={n}:")]);
        before.trim().to_owned()
    }

    // Hundredths of a second that the program has computed.
    fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.node.pid())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        // utime and stime: proc(5) fields 14 and 15, the name being the second.
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

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
