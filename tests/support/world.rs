//! A small network of namespaces: a node, a pod on it, backends on it and elsewhere, and a client outside. Dual stack.
//!
//! ```text
//!   pod    10.244.0.10 ─┐
//!   local  10.244.0.21 ─┼─ node ── 192.0.2.0/24 ── outside
//!   remote 10.244.1.21 ─┘
//! ```
//!
//! The same digits serve in IPv6: `fd00:10:244::1:10`, `fd00:10:244::2:21`, `fd00:10:244:1::21`, `2001:db8::/64`. The
//! outside does not forward, so a packet to a virtual address that nobody captures vanishes there. Each world has
//! names of its own, so tests run in parallel; it is gone when it is dropped.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fs, panic, thread};

use nix::sched::{CloneFlags, setns};

/// A place in the network: one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The node under test.
    Node,
    /// A client pod on the node.
    Pod,
    /// A backend pod on the node.
    Local,
    /// A backend pod of another node.
    Remote,
    /// A client outside the cluster.
    Outside,
}

impl Place {
    const ALL: [Self; 5] = [
        Self::Node,
        Self::Pod,
        Self::Local,
        Self::Remote,
        Self::Outside,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Pod => "pod",
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Outside => "outside",
        }
    }

    /// Its addresses and the node's address towards it, with prefix lengths; the node has none towards itself.
    fn link(self) -> Option<[&'static str; 4]> {
        match self {
            Self::Node => None,
            Self::Pod => Some([
                "10.244.0.10/28",
                "10.244.0.1/28",
                "fd00:10:244::1:10/112",
                "fd00:10:244::1:1/112",
            ]),
            Self::Local => Some([
                "10.244.0.21/28",
                "10.244.0.30/28",
                "fd00:10:244::2:21/112",
                "fd00:10:244::2:1/112",
            ]),
            Self::Remote => Some([
                "10.244.1.21/24",
                "10.244.1.1/24",
                "fd00:10:244:1::21/120",
                "fd00:10:244:1::1/120",
            ]),
            Self::Outside => Some([
                "192.0.2.10/24",
                "192.0.2.1/24",
                "2001:db8::10/64",
                "2001:db8::1/64",
            ]),
        }
    }

    /// Its address.
    pub(crate) fn ip(self, v6: bool) -> IpAddr {
        match self {
            Self::Node => Self::Outside.gateway(v6),
            Self::Pod | Self::Local | Self::Remote | Self::Outside => {
                self.end(if v6 { 2 } else { 0 })
            }
        }
    }

    /// The node's address towards it.
    pub(crate) fn gateway(self, v6: bool) -> IpAddr {
        self.end(if v6 { 3 } else { 1 })
    }

    fn end(self, side: usize) -> IpAddr {
        let link = self.link().expect("the node has no link to itself");
        bare(link[side])
            .parse()
            .expect("the table of links holds addresses")
    }
}

/// The network.
pub(crate) struct World {
    name: String,
}

/// How a client was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// With these words.
    Words(String),
    /// Refused: RST or port unreachable.
    Refused,
    /// Not at all within the time.
    Silence,
    /// In another way.
    Other(String),
}

impl World {
    /// Builds it.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let world = Self {
            name: format!("w{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        };
        let mut script = String::new();
        for place in Place::ALL {
            script += &format!("netns add {}\n", world.space(place));
        }
        for place in Place::ALL {
            if place.link().is_some() {
                script += &format!(
                    "link add to-{} netns {} type veth peer name eth0 netns {}\n",
                    place.word(),
                    world.space(Place::Node),
                    world.space(place)
                );
            }
        }
        ip(&[], &script);
        for place in Place::ALL {
            world.in_ns(place, || set_up(place));
        }
        world
    }

    /// The name of a place's namespace.
    pub(crate) fn space(&self, place: Place) -> String {
        format!("{}-{}", self.name, place.word())
    }

    /// Runs `work` in a place, on a thread of its own. Sockets opened there stay there.
    pub(crate) fn in_ns<T: Send>(&self, place: Place, work: impl FnOnce() -> T + Send) -> T {
        let space = self.enter(place);
        let run = || {
            setns(&space, CloneFlags::CLONE_NEWNET).expect("our own namespace can be entered");
            work()
        };
        let done = thread::scope(|scope| scope.spawn(run).join());
        done.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// Starts a program in a place.
    pub(crate) fn spawn_in(&self, place: Place, command: &mut Command) -> Running {
        let child = self.in_ns(place, || command.spawn());
        Running(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// What a program writes on standard output; it must succeed.
    pub(crate) fn output_in(&self, place: Place, command: &mut Command) -> String {
        let output = self.in_ns(place, || command.stdin(Stdio::null()).output());
        let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a line of shell in a place; it must succeed. Returns what it wrote.
    pub(crate) fn shell(&self, place: Place, line: &str) -> String {
        self.output_in(place, Command::new("sh").args(["-ec", line]))
    }

    /// Connects and reads until the other side closes. Nothing within `wait` is silence.
    pub(crate) fn ask_tcp(&self, from: Place, to: SocketAddr, wait: Duration) -> Answer {
        self.in_ns(from, || {
            let answer = TcpStream::connect_timeout(&to, wait).and_then(|mut stream| {
                stream.set_read_timeout(Some(wait))?;
                stream.set_write_timeout(Some(wait))?;
                stream.write_all(b"hello\n")?;
                let mut words = String::new();
                stream.read_to_string(&mut words)?;
                Ok(words)
            });
            Answer::of(answer)
        })
    }

    /// Sends one datagram from a new port and waits for one. Nothing within `wait` is silence.
    pub(crate) fn ask_udp(&self, from: Place, to: SocketAddr, wait: Duration) -> Answer {
        let socket = self.udp_client(from, to);
        ask_again(&socket, wait)
    }

    /// A UDP socket in a place, connected to `to`: it keeps its port, and takes answers from there only.
    pub(crate) fn udp_client(&self, from: Place, to: SocketAddr) -> UdpSocket {
        self.in_ns(from, || {
            let socket = UdpSocket::bind((unspecified(to), 0)).expect("a free port");
            socket.connect(to).expect("a route");
            socket
        })
    }

    fn enter(&self, place: Place) -> File {
        let path = format!("/run/netns/{}", self.space(place));
        File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let script: String = Place::ALL
            .map(|place| format!("netns del {}\n", self.space(place)))
            .concat();
        ip(&[], &script);
    }
}

impl Answer {
    fn of(result: io::Result<String>) -> Self {
        match result {
            Ok(words) => Self::Words(words),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => Self::Refused,
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Silence,
                _ => Self::Other(error.to_string()),
            },
        }
    }

    /// What was said, if anything was.
    pub(crate) fn words(&self) -> &str {
        match self {
            Self::Words(words) => words,
            Self::Refused | Self::Silence | Self::Other(_) => "",
        }
    }
}

/// A program that ends with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a datagram from a socket that has been used before, and waits for one.
pub(crate) fn ask_again(socket: &UdpSocket, wait: Duration) -> Answer {
    let ask = || {
        socket.set_read_timeout(Some(wait))?;
        socket.send(b"hello")?;
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    Answer::of(ask())
}

/// How long something that should happen is waited for; `VIADUCT_TEST_PATIENCE` in seconds.
pub(crate) fn patience() -> Duration {
    let seconds = std::env::var("VIADUCT_TEST_PATIENCE").ok();
    let seconds = seconds.and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// How long nothing must happen before it counts as silence: longer than any answer here takes.
pub(crate) const QUIET: Duration = Duration::from_millis(600);

/// Tries until `check` says that all is well; its last complaint if patience ends first.
pub(crate) fn eventually<T>(mut check: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + patience();
    loop {
        match check() {
            Ok(value) => return value,
            Err(complaint) if Instant::now() > until => panic!("still not so: {complaint}"),
            Err(_) => thread::park_timeout(Duration::from_millis(20)),
        }
    }
}

fn unspecified(addr: SocketAddr) -> IpAddr {
    match addr {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

// Runs in the place's namespace.
fn set_up(place: Place) {
    let mut settings = vec![
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        // Answers of the kernel, not a limit of their rate, are what is tested.
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ];
    if place == Place::Node {
        settings.extend([
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            // As strict as distributions set it.
            ("ipv4/conf/all/rp_filter", "1"),
        ]);
    }
    for (name, value) in settings {
        fs::write(format!("/proc/sys/net/{name}"), value)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let (mut v4, mut v6) = (String::from("link set lo up\n"), String::new());
    let links = Place::ALL
        .into_iter()
        .filter(|other| place == Place::Node || *other == place);
    for (other, [far4, near4, far6, near6]) in
        links.filter_map(|other| Some((other, other.link()?)))
    {
        let (device, own4, own6) = if place == Place::Node {
            (format!("to-{}", other.word()), near4, near6)
        } else {
            ("eth0".to_owned(), far4, far6)
        };
        v4 += &format!("addr add {own4} dev {device}\nlink set {device} up\n");
        v6 += &format!("addr add {own6} dev {device} nodad\n");
        if place != Place::Node {
            v4 += &format!("route add default via {}\n", bare(near4));
            v6 += &format!("route add default via {}\n", bare(near6));
        } else if other == Place::Outside {
            v4 += &format!("route add default via {}\n", bare(far4));
            v6 += &format!("route add default via {}\n", bare(far6));
        }
    }
    ip(&[], &v4);
    ip(&["-6"], &v6);
}

fn bare(address: &str) -> &str {
    address.split('/').next().unwrap_or(address)
}

fn ip(flags: &[&str], script: &str) {
    let mut child = Command::new("ip")
        .args(flags)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ip is installed");
    let mut stdin = child.stdin.take().expect("standard input is piped");
    stdin
        .write_all(script.as_bytes())
        .expect("ip reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("ip ends");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip: {words}\n{script}");
}
