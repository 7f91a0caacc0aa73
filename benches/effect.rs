//! How long a change of one endpoint takes until new flows go by it, among 10,000 Services, in the whole program.
//!
//! * `start`: from nothing to the first published table, reading every file.
//! * `change`: from the moment that the file is in place (rename) until the published table has the new backend.
//!
//! Two layouts, a file for each Service and a hundred Services in a file, each with 10 endpoints and with two; capture `none`,
//! so the kernel's rules are not part of it, and an endpoint does not change them. `cargo bench --bench effect`; the last figures are
//! in README.md beside this file.

#![allow(clippy::print_stdout, reason = "the figures are the point")]

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use viaduct::app::App;
use viaduct::config::{Config, Profile, Settings};
use viaduct::model::{Family, Protocol, ServiceName, ServicePortKey};
use viaduct::routing::Published;

const SERVICES: usize = 10_000;
const CHANGES: usize = 500;
/// More than any change takes.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() {
    println!("services/file endpoints    start  change p50      p99      max   memory");
    for (per_file, endpoints) in [(1, 10), (1, 2), (100, 10), (100, 2)] {
        // A process of its own, so that its memory is that of this layout.
        let layout = format!("{per_file},{endpoints}");
        match std::env::var("EFFECT_LAYOUT") {
            Err(_) => run_alone(&layout),
            Ok(wanted) if wanted == layout => measure(per_file, endpoints),
            Ok(_) => {}
        }
    }
}

fn run_alone(layout: &str) {
    let program = std::env::current_exe().expect("this program has a path");
    let output = std::process::Command::new(program)
        .env("EFFECT_LAYOUT", layout)
        .output()
        .expect("it runs again");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{}", text.lines().last().unwrap_or("failed"));
}

fn measure(per_file: usize, endpoints: usize) {
    let root = tempfile::tempdir().expect("a directory");
    let manifests = root.path().join("manifests");
    std::fs::create_dir(&manifests).expect("a directory");
    for first in (0..SERVICES).step_by(per_file) {
        write_file(&manifests, first, per_file, endpoints, None);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let (started, app, table) = runtime.block_on(async {
        let began = Instant::now();
        let app = App::build(config(root.path(), &manifests))
            .await
            .expect("it starts");
        let table = app.sources().table.clone();
        while !table.load().synced {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (began.elapsed(), app, table)
    });
    let mut times: Vec<Duration> = (0..CHANGES)
        .map(|n| change(&manifests, &table, n, per_file, endpoints))
        .collect();
    times.sort_unstable();
    let at = |percent: usize| times[(CHANGES - 1) * percent / 100];
    println!(
        "{per_file:13} {endpoints:9} {started:8.0?} {:11.2?} {:8.2?} {:8.2?} {:6} MB",
        at(50),
        at(99),
        at(100),
        resident_megabytes()
    );
    runtime.block_on(app.stop());
}

fn config(root: &Path, manifests: &Path) -> Config {
    let settings = serde_json::json!({
        "manifests": manifests,
        "capture": "none",
        "dataDir": root.join("data"),
        "adminSocket": root.join("admin.sock"),
        "dnsListen": ["127.0.0.1:0"],
        "healthzBindAddress": "",
        "metricsBindAddress": "",
        "serviceClusterIpRange": ["10.96.0.0/16"],
    });
    let settings: Settings = serde_json::from_value(settings).expect("settings");
    Config::resolve(settings, Profile::Run).expect("a configuration")
}

/// The time until the published table has the new endpoint of a Service.
fn change(dir: &Path, table: &Published, n: usize, per_file: usize, endpoints: usize) -> Duration {
    // Services all over the directory, one after the other.
    let service = (n * 7919) % SERVICES;
    let first = service - service % per_file;
    let (path, text) = file(dir, first, per_file, endpoints, Some((service, n)));
    let key = ServicePortKey {
        service: ServiceName::new("default", format!("service-{service}")),
        port: "http".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
    };
    let wanted: IpAddr = new_address(n).parse().expect("an address");
    let fresh = path.with_extension("tmp");
    std::fs::write(&fresh, text).expect("a file");
    let began = Instant::now();
    std::fs::rename(&fresh, &path).expect("a file");
    loop {
        let is_there = table.load().route(&key).is_some_and(|route| {
            route
                .cluster
                .iter()
                .any(|backend| backend.addr.ip() == wanted)
        });
        if is_there {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "the change never came");
        std::thread::yield_now();
    }
    let took = began.elapsed();
    std::thread::sleep(Duration::from_millis(5));
    took
}

fn write_file(
    dir: &Path,
    first: usize,
    per_file: usize,
    endpoints: usize,
    changed: Option<(usize, usize)>,
) {
    let (path, text) = file(dir, first, per_file, endpoints, changed);
    std::fs::write(path, text).expect("a file");
}

/// A file of Services and their slices; of one of them an endpoint is another than usual.
fn file(
    dir: &Path,
    first: usize,
    per_file: usize,
    endpoints: usize,
    changed: Option<(usize, usize)>,
) -> (PathBuf, String) {
    let mut text = String::new();
    for service in first..first + per_file {
        let address = |endpoint: usize| {
            let number = service * endpoints + endpoint;
            match changed.filter(|(of, _)| *of == service && endpoint == 0) {
                Some((_, n)) => new_address(n),
                None => format!(
                    "10.{}.{}.{}",
                    128 + number / 62_500,
                    number / 250 % 250,
                    number % 250 + 1
                ),
            }
        };
        let list: Vec<_> = (0..endpoints)
            .map(|endpoint| format!("- addresses: [{}]\n", address(endpoint)))
            .collect();
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: service-{service}\nspec:\n  ports:\n  - name: http\n    port: 80\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: service-{service}-a\n  labels:\n    \
             kubernetes.io/service-name: service-{service}\naddressType: IPv4\nports:\n- name: http\n  port: 8080\nendpoints:\n{}",
            list.concat()
        )
        .expect("a String takes everything");
    }
    (dir.join(format!("services-{first:05}.yaml")), text)
}

/// The address that the `n`th change brings.
fn new_address(n: usize) -> String {
    format!("172.31.{}.{}", n / 250, n % 250 + 1)
}

fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() / 1024
}
