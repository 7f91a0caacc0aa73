//! Many at a time: idle connections and listeners, what each costs, and that nothing of it stays behind. In processes of
//! their own, because a process has 20,000 descriptors where the limit cannot be raised.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write, stdin};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use viaduct::capture::plan::{Entry, ListenerState};
use viaduct::dataplane::Config;
use viaduct::model::Protocol::Tcp;

use super::rig::{PATIENCE, Rig, in_own_process};

/// Tells the proxy's process where its backend is.
const BACKEND: &str = "VIADUCT_TEST_BACKEND";

const IDLE: usize = 9_000;
const LISTENERS: u16 = 10_000;

#[test]
fn nine_thousand_idle_connections_cost_little_and_leave_nothing() {
    assert!(in_own_process("dataplane::scale::ends", &[]));
}

#[test]
fn ten_thousand_listeners_fit_into_twenty_thousand_descriptors() {
    assert!(in_own_process("dataplane::scale::listeners", &[]));
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
struct Usage {
    resident_bytes: usize,
    descriptors: usize,
    /// Hundredths of a second.
    cpu_ticks: u64,
}

impl Usage {
    fn of(process: &str) -> Self {
        let read = |file| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap();
        let status = read("status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.unwrap().trim().strip_suffix(" kB").unwrap();
        let stat = read("stat");
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
        Self {
            resident_bytes: kib.parse::<usize>().unwrap() * 1024,
            descriptors: fs::read_dir(format!("/proc/{process}/fd")).unwrap().count(),
            // utime and stime, proc(5) fields 14 and 15; the third is the first after the name.
            cpu_ticks: ticks(11) + ticks(12),
        }
    }
}

// Until a process with nothing to do does nothing for a while.
fn comes_to_rest(process: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = Usage::of(process).cpu_ticks;
        std::thread::sleep(Duration::from_millis(300));
        let ticks = Usage::of(process).cpu_ticks - before;
        if ticks <= 1 {
            return;
        }
        assert!(Instant::now() < deadline, "it never rests: {ticks} ticks");
    }
}

// As many descriptors as this process may have.
fn raise_limit() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    usize::try_from(hard).unwrap()
}

#[test]
#[ignore = "uses up most descriptors of its process; run by the test above"]
fn listeners() {
    if raise_limit() < 20_000 {
        return eprintln!("SKIPPED: fewer than 20,000 descriptors allowed");
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = Config {
            threads: 2,
            ..Config::default()
        };
        let rig = Rig::with(Tcp, &[backend.local_addr().unwrap()], config);
        let before = Usage::of("self");
        let begun = Instant::now();
        let mut at = Vec::new();
        for port in 0..LISTENERS {
            let mut spec = rig.spec(ListenerState::Serving);
            if let Entry::At(frontend, _) = &mut spec.id.entry {
                frontend.port = port;
            }
            at.push(rig.plane.open(&spec).await.unwrap());
        }
        let took = begun.elapsed();
        let after = Usage::of("self");
        let each = (after.resident_bytes - before.resident_bytes) / usize::from(LISTENERS);
        println!("{LISTENERS} listeners: {took:?}, {each} bytes each, {after:?}");
        assert!(took < PATIENCE, "{took:?}");
        assert!(each < 4096, "{each} bytes per listener");
        // One each, and a second one for those that were opened while they were few.
        let used = after.descriptors - before.descriptors;
        assert!(used <= usize::from(LISTENERS) + 1_300, "{used} descriptors");
        for at in [at[0], at[at.len() - 1]] {
            let _client = TcpStream::connect(at).unwrap();
            backend.accept().unwrap();
        }
        comes_to_rest("self");
    });
}

/// A data path in another process.
struct Proxy {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    at: SocketAddr,
}

impl Proxy {
    fn start(backend: SocketAddr) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "dataplane::scale::proxy",
                "--ignored",
                "--nocapture",
            ])
            .env(BACKEND, backend.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let at = answer(&mut output, "at ").parse().unwrap();
        Self {
            child,
            input,
            output,
            at,
        }
    }

    fn usage(&self) -> Usage {
        Usage::of(&self.child.id().to_string())
    }

    fn flows(&mut self) -> usize {
        writeln!(self.input).unwrap();
        answer(&mut self.output, "flows ").parse().unwrap()
    }

    fn wait_for_flows(&mut self, n: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.flows() != n {
            assert!(Instant::now() < deadline, "never {n} flows");
        }
    }
}

fn answer(output: &mut impl BufRead, to: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the proxy is gone");
        // The harness may have begun the line.
        if let Some((_, answer)) = line.split_once(to) {
            return answer.trim().to_owned();
        }
    }
}

#[test]
#[ignore = "the proxy of the test below"]
fn proxy() {
    let backend = std::env::var(BACKEND).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = Config {
        threads: 2,
        ..Config::default()
    };
    let _inside = runtime.enter();
    let rig = Rig::with(Tcp, &[backend], config);
    println!("at {}", runtime.block_on(rig.open()));
    for _question in stdin().lines() {
        println!("flows {}", rig.plane.active_flows().0);
    }
}

#[test]
#[ignore = "uses up most descriptors of its process; run by the test above"]
fn ends() {
    if raise_limit() < 20_000 {
        return eprintln!("SKIPPED: fewer than 20,000 descriptors allowed");
    }
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut proxy = Proxy::start(backend.local_addr().unwrap());
    // Once through, so that what is made for the first flows is not taken for the cost of one.
    let connect = |proxy: &Proxy| {
        let client = TcpStream::connect(proxy.at).unwrap();
        (client, backend.accept().unwrap().0)
    };
    drop((0..50).map(|_| connect(&proxy)).collect::<Vec<_>>());
    proxy.wait_for_flows(0);
    let before = proxy.usage();
    let mut pairs: Vec<_> = (0..IDLE).map(|_| connect(&proxy)).collect();
    proxy.wait_for_flows(IDLE);
    let during = proxy.usage();
    let each = (during.resident_bytes - before.resident_bytes) / IDLE;
    println!("{IDLE} idle connections: {each} bytes each, {during:?}");
    assert!(each <= 1000, "{each} bytes per idle connection");
    assert_eq!(during.descriptors - before.descriptors, 2 * IDLE);

    comes_to_rest(&proxy.child.id().to_string());

    // All of them still carry; which client goes with which backend side is the kernel's choice.
    for (client, _) in &mut pairs {
        client.write_all(b"x").unwrap();
    }
    for (_, served) in &mut pairs {
        served.read_exact(&mut [0; 1]).unwrap();
    }
    drop(pairs);
    proxy.wait_for_flows(0);
    assert_eq!(proxy.usage().descriptors, before.descriptors);
    drop(proxy.input);
    assert!(proxy.child.wait().unwrap().success());
}
