//! A cluster without a Service, and of 10,000 Services with 20,000, 50,000 and 100,000 endpoints, behind the API server of
//! the tests.
//!
//! * `synced`: from the start of the process until its first table is complete.
//! * `memory` and `peak`: resident, at rest and at most; `idle`: CPU in ten seconds in which nothing happens.
//! * `busy`: CPU while 100 slices a second change, each by one endpoint.
//!
//! DNS answers on loopback, where nobody asks. Capture `none`, so the kernel's rules are not part of it, and an endpoint does not change them. `cargo bench --bench cluster`;
//! `VIADUCT` names another binary to ask. The last figures are in README.md beside this file.

#![allow(clippy::print_stdout, reason = "the figures are the point")]

#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "it is the tests', and they use the rest"
)]
#[path = "../tests/support/api_server.rs"]
mod api_server;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use api_server::ApiServer;

const SERVICES: usize = 10_000;
const SPAN: Duration = Duration::from_secs(10);
const CHANGES: u32 = 1_000;
/// For what the start has begun to be finished, such as writing the state to disk.
const SETTLED: Duration = Duration::from_secs(5);

fn main() {
    println!("endpoints   synced   memory     peak    idle    busy");
    measure(0, 0);
    for endpoints in [2, 5, 10] {
        measure(SERVICES, endpoints);
    }
}

fn measure(services: usize, endpoints: usize) {
    let server = ApiServer::start();
    for number in 0..services {
        server.apply(service(number));
        server.apply(slice(number, endpoints, 0));
    }
    // History would only be read past.
    server.compact();
    let directory = tempfile::tempdir().expect("a directory");
    let began = Instant::now();
    let mut proxy = start(&server, directory.path());
    let log = BufReader::new(proxy.0.stderr.take().expect("it is a pipe"));
    let mut lines = log.lines().map_while(Result::ok);
    lines
        .find(|line| line.contains("initial state is complete"))
        .expect("it gets there");
    let synced = began.elapsed();
    // Nobody waits for the rest of the log, but it has to go somewhere.
    let rest = std::thread::spawn(move || lines.count());
    std::thread::sleep(SETTLED);
    let idle = share(&proxy.0, || std::thread::sleep(SPAN));
    let (memory, peak) = (megabytes(&proxy.0, "VmRSS:"), megabytes(&proxy.0, "VmHWM:"));
    let busy = share(&proxy.0, || {
        let began = Instant::now();
        for change in 0..if services == 0 { 0 } else { CHANGES } {
            // Services all over the cluster, one after the other.
            let number = (change as usize * 7919) % services;
            server.apply(slice(number, endpoints, change as usize + 1));
            let due = SPAN * (change + 1) / CHANGES;
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    });
    println!(
        "{:9} {synced:8.2?} {memory:5} MB {peak:5} MB {:5.2} % {:5.2} %",
        services * endpoints,
        100.0 * idle,
        100.0 * busy
    );
    drop(proxy);
    rest.join().expect("it only counts");
}

/// Ends with its owner, however that ends.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(server: &ApiServer, directory: &std::path::Path) -> Proxy {
    let own = env!("CARGO_BIN_EXE_viaduct").to_owned();
    let child = Command::new(std::env::var("VIADUCT").unwrap_or(own))
        .args(["run", "--capture", "none", "--hostname-override", "here"])
        .args(["--master", &server.url()])
        .args(["--healthz-bind-address", "", "--metrics-bind-address", ""])
        .args([
            "--dns-listen",
            "127.0.0.1:0",
            "--dns-upstream",
            "127.0.0.1:9",
        ])
        .arg("--admin-socket")
        .arg(directory.join("admin.sock"))
        .arg("--data-dir")
        .arg(directory.join("data"))
        .stderr(Stdio::piped())
        .spawn();
    Proxy(child.expect("the program starts"))
}

/// The part of one core that the process takes while `work` is done.
fn share(process: &Child, work: impl FnOnce()) -> f64 {
    let (began, before) = (Instant::now(), on_cpu(process));
    work();
    let used = on_cpu(process).saturating_sub(before);
    used.as_secs_f64() / began.elapsed().as_secs_f64()
}

/// On a CPU so far, in user and kernel mode, threads that have ended included: fields 14 and 15 of proc_pid_stat(5), in
/// hundredths of a second everywhere.
fn on_cpu(process: &Child) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("it runs");
    // The second field is a name in brackets, which may hold anything.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

fn megabytes(process: &Child, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()));
    let status = status.unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() / 1024
}

// As a real one writes it, field managers and all.
fn metadata(name: String, number: usize) -> Value {
    let managed = json!([{"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {}}, "f:spec": {"f:ports": {}}}}]);
    json!({
        "name": name,
        "namespace": format!("team-{}", number % 100),
        "uid": format!("00000000-0000-0000-0000-{number:012}"),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"app": format!("service-{number}"), "kubernetes.io/service-name": format!("service-{number}")},
        "managedFields": managed,
    })
}

fn service(number: usize) -> Value {
    let ip = format!(
        "10.{}.{}.{}",
        96 + number / 62_500,
        number / 250 % 250,
        number % 250 + 1
    );
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(format!("service-{number}"), number),
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None", "selector": {"app": format!("service-{number}")},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]},
        "status": {"loadBalancer": {}},
    })
}

/// The slice of a Service; its first endpoint is another with every `turn`.
fn slice(number: usize, endpoints: usize, turn: usize) -> Value {
    let endpoint = |index: usize| {
        let place = number * endpoints + index;
        let ip = if index == 0 && turn > 0 {
            format!(
                "172.{}.{}.{}",
                16 + turn / 62_500,
                turn / 250 % 250,
                turn % 250 + 1
            )
        } else {
            format!(
                "10.{}.{}.{}",
                128 + place / 62_500,
                place / 250 % 250,
                place % 250 + 1
            )
        };
        json!({
            "addresses": [ip], "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", place % 500), "zone": format!("zone-{}", place % 3),
            "targetRef": {"kind": "Pod", "namespace": format!("team-{}", number % 100),
                "name": format!("service-{number}-{index:05}"), "uid": format!("00000000-0000-0000-0001-{place:012}")},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": metadata(format!("service-{number}-abcde"), number),
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}
