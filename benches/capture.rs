//! What capturing costs, mode by mode, in namespaces of its own.
//!
//! * `from nothing`: until the kernel does what is asked for 1, 100 and 10,000 Services.
//! * `one change`: one Service comes or goes at 10,000.
//! * `connect`: a pod's `connect(2)` to the first, the last or any Service, among 10 and among 10,000; then the ratio.
//! * `program`: the same in the whole program, from the process, or the file with one more Service, until a pod connects.
//!
//! One TCP port per Service, IPv4. `cargo bench --bench capture [-- MODE...]`; the last figures are in README.md beside
//! this file.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "the figures are the point, and a benchmark may end at the first surprise"
)]

#[path = "../tests/netns/isolation.rs"]
mod isolation;
#[allow(
    dead_code,
    clippy::wildcard_enum_match_arm,
    reason = "it is the tests', and they use the rest"
)]
#[path = "../tests/support/world.rs"]
mod world;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::runtime::Builder;

use viaduct::capture::plan::{Arrival, Rules};
use viaduct::capture::{self, Capture, CaptureError, Mode};
use viaduct::model::{Family, Frontend, Protocol};
use viaduct::net::sockets::{Bound, Sharing, Terms, Transport};

use world::{Place, World};

const FEW: u16 = 10;
const MANY: u16 = 10_000;
const CHANGES: u16 = 40;
/// In turn with few and with many Services, so that whatever else the machine does falls on both.
const ROUNDS: usize = 5;
const CONNECTIONS: u16 = 1_000;
const PORT: u16 = 80;

fn main() {
    isolation::enter().expect("namespaces");
    let modes = [Mode::Nftables, Mode::Iptables, Mode::Tproxy, Mode::Local];
    let named: Vec<String> = std::env::args().skip(1).collect();
    let asked = |mode: &Mode| {
        let mut named = named
            .iter()
            .filter(|word| !word.starts_with('-'))
            .peekable();
        named.peek().is_none() || named.any(|word| word == mode.as_str())
    };
    println!(
        "{:9}{:>29}{:>20}{:>40}{:>24}",
        "mode",
        "from nothing: 1, 100, 10,000",
        "one more, one less",
        "connect first, last, any: 10; 10,000; ratio",
        "program: start, change"
    );
    for mode in modes.into_iter().filter(asked) {
        let [one, hundred, all] = [1, 100, MANY].map(|services| from_nothing(mode, services));
        let [gone, come] = one_change(mode);
        let connect = connections(mode);
        let (start, change) = whole_program(mode);
        println!(
            "{mode:9}{one:>9.1?}{hundred:>9.1?}{all:>11.1?} {come:>9.2?}{gone:>10.2?}   {connect:>42}   {start:>8.2?}{change:>9.1?}",
        );
    }
}

// The median of three.
fn from_nothing(mode: Mode, services: u16) -> Duration {
    let rules = rules(services, own_port);
    let once = |_| {
        let node = Node::new(mode);
        let ((), took) = timed(|| node.drive(async |capture| capture.apply(&rules).await));
        took
    };
    at((0..3).map(once).collect(), 500)
}

// The medians of one less and of one more.
fn one_change(mode: Mode) -> [Duration; 2] {
    let node = Node::new(mode);
    let times = node.drive(async |capture| {
        let mut rules = rules(MANY, own_port);
        capture.apply(&rules).await?;
        let mut times = [Vec::new(), Vec::new()];
        for number in 0..CHANGES {
            // Of one that is among others, as most are.
            let (frontend, port) = (frontend(number * 200), 20_000 + number * 200);
            for come in [false, true] {
                if come {
                    rules.cluster_ips.insert(frontend.ip);
                    rules.redirects.insert(frontend, port);
                } else {
                    rules.cluster_ips.remove(&frontend.ip);
                    rules.redirects.remove(&frontend);
                }
                let began = Instant::now();
                capture.apply(&rules).await?;
                times[usize::from(come)].push(began.elapsed());
            }
        }
        Ok(times)
    });
    times.map(|times| at(times, 500))
}

/// The median time of a connect, to the first Service, the last one and any, in microseconds.
fn connections(mode: Mode) -> String {
    let node = Node::new(mode);
    let mut times: [[Vec<Duration>; 3]; 2] = Default::default();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let arrival = node.drive(async |capture| Ok(capture.arrival()));
        let listener = |addr: SocketAddr| {
            let listener = node.world.in_ns(Place::Node, || listen(arrival, addr));
            let port = listener.local_addr().unwrap().port();
            let ended = &ended;
            scope.spawn(move || accept(&listener, ended));
            port
        };
        let direct = arrival == Arrival::Direct;
        let port = if direct {
            PORT
        } else {
            listener((Ipv4Addr::UNSPECIFIED, 0).into())
        };
        let last = [FEW - 1, MANY - 1];
        let middle = [FEW / 2, MANY / 2];
        if direct {
            for number in [0, last[0], last[1], middle[0], middle[1]] {
                listener(frontend(number).addr());
            }
        }
        for _ in 0..ROUNDS {
            for (size, services) in [FEW, MANY].into_iter().enumerate() {
                let rules = rules(services, |_| port);
                node.drive(async |capture| capture.apply(&rules).await);
                let any = |n: u16| {
                    if direct {
                        middle[size]
                    } else {
                        n.wrapping_mul(7919) % services
                    }
                };
                let targets: [&(dyn Fn(u16) -> u16 + Sync); 3] = [&|_| 0, &|_| last[size], &any];
                for (place, target) in targets.into_iter().enumerate() {
                    times[size][place].extend(connect(&node.world, target));
                }
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
    let [few, many] = times.map(|size| size.map(|times| at(times, 500).as_secs_f64() * 1e6));
    let micros = |[first, last, any]: [f64; 3]| format!("{first:.0} {last:.0} {any:.0} µs");
    let ratios = [0, 1, 2].map(|place| many[place] / few[place]);
    let [first, last, any] = ratios;
    format!(
        "{}; {}; {first:.2} {last:.2} {any:.2}",
        micros(few),
        micros(many)
    )
}

fn listen(arrival: Arrival, addr: SocketAddr) -> TcpListener {
    let terms = Terms {
        transparent: arrival == Arrival::Diverted,
        ..Terms::default()
    };
    let bound = Bound::under(terms, Transport::Tcp, addr, Sharing::First).unwrap();
    let listener = bound.listen().unwrap();
    listener.set_nonblocking(false).unwrap();
    // So that its thread sees now and then that it should end.
    let wait = Some(Duration::from_millis(50));
    SockRef::from(&listener).set_read_timeout(wait).unwrap();
    listener
}

fn accept(listener: &TcpListener, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        // Nobody within the time.
        let _ = listener.accept();
    }
}

fn connect(world: &World, target: impl Fn(u16) -> u16 + Sync) -> Vec<Duration> {
    world.in_ns(Place::Pod, || {
        let once = |n| {
            let to = frontend(target(n)).addr();
            let (stream, took) = timed(|| TcpStream::connect(to).unwrap());
            // Nothing of it waits for its port to become free.
            SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            took
        };
        (0..CONNECTIONS).map(once).collect()
    })
}

/// The start with all Services, and the median of one more.
fn whole_program(mode: Mode) -> (Duration, Duration) {
    let world = World::new();
    // Whatever nobody captures is refused at once.
    world.shell(Place::Outside, "ip route add local 10.96.0.0/12 dev lo");
    let root = tempfile::tempdir().unwrap();
    let manifests = root.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    for first in (0..MANY).step_by(100) {
        write(&manifests, first, 100);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
    command
        .args([
            "run",
            "--hostname-override",
            "n0",
            "--capture",
            mode.as_str(),
        ])
        .args(["--service-cluster-ip-range", "10.96.0.0/16"])
        .args(["--healthz-bind-address", "", "--metrics-bind-address", ""])
        .args(["--manifests".as_ref(), manifests.as_os_str()])
        .args([
            "--admin-socket".as_ref(),
            root.path().join("admin.sock").as_os_str(),
        ])
        .args(["--data-dir".as_ref(), root.path().join("data").as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let (program, start) = timed(|| {
        let program = world.spawn_in(Place::Node, &mut command);
        await_connection(&world, MANY - 1);
        program
    });
    let more = |n| {
        let number = MANY + n;
        write(&manifests, number, 1);
        let ((), took) = timed(|| await_connection(&world, number));
        took
    };
    let change = at((0..CHANGES).map(more).collect(), 500);
    drop(program);
    (start, change)
}

fn await_connection(world: &World, number: u16) {
    let to = frontend(number).addr();
    let until = Instant::now() + Duration::from_secs(120);
    world.in_ns(Place::Pod, || {
        while TcpStream::connect(to).is_err() {
            assert!(Instant::now() < until, "{to} is never captured");
        }
    });
}

// Some Services and their slices, in place at once.
fn write(directory: &Path, first: u16, services: u16) {
    let mut text = String::new();
    for number in first..first + services {
        let ip = frontend(number).ip;
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: service-{number}}}\nspec:\n  clusterIP: {ip}\n  ports: [{{name: http, port: {PORT}}}]\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: service-{number}-a\n  labels: {{kubernetes.io/service-name: service-{number}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.244.0.21]}}]\n"
        )
        .expect("a String takes everything");
    }
    let draft = directory.join("draft.tmp");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, directory.join(format!("services-{first:05}.yaml"))).unwrap();
}

/// A world whose node captures in one mode, and forgets it when it ends.
struct Node {
    world: World,
    capture: std::sync::Mutex<Box<dyn Capture>>,
}

impl Node {
    fn new(mode: Mode) -> Self {
        let world = World::new();
        let metrics =
            capture::Metrics::new(&prometheus::Registry::new()).expect("a registry of its own");
        let open = async { capture::open(mode, Family::V4, &metrics).await };
        let capture = world.in_ns(Place::Node, || block_on(open)).unwrap();
        Self {
            world,
            capture: capture.into(),
        }
    }

    // The tools are started by the thread that drives the capture, so that thread is on the node.
    fn drive<T: Send>(
        &self,
        work: impl AsyncFnOnce(&mut Box<dyn Capture>) -> Result<T, CaptureError> + Send,
    ) -> T {
        let drive = || block_on(work(&mut self.capture.lock().unwrap()));
        self.world.in_ns(Place::Node, drive).unwrap()
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

// `services` Services, led to the ports that `to` gives them.
fn rules(services: u16, to: impl Fn(u16) -> u16) -> Rules {
    let mut rules = Rules::none(Family::V4);
    let node = [Place::Pod, Place::Outside].map(|place| place.gateway(false));
    rules.local_addresses = node
        .into_iter()
        .chain([Ipv4Addr::LOCALHOST.into()])
        .collect();
    rules.node_addresses.clone_from(&rules.local_addresses);
    for number in 0..services {
        let frontend = frontend(number);
        rules.cluster_ips.insert(frontend.ip);
        rules.redirects.insert(frontend, to(number));
    }
    rules
}

fn own_port(number: u16) -> u16 {
    20_000 + number
}

fn frontend(number: u16) -> Frontend {
    let [high, low] = number.to_be_bytes();
    Frontend {
        ip: IpAddr::from([10, 96, high, low]),
        port: PORT,
        protocol: Protocol::Tcp,
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let done = work();
    (done, began.elapsed())
}

/// What so many of 1,000 do not exceed.
fn at(mut times: Vec<Duration>, per_mille: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * per_mille / 1000]
}
