//! Readiness: real servers come and go behind their probes, and their Services follow.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, eventually, http_get, patience, served_by};

/// A server that says its name to whoever asks for `/`, and to a probe of `/healthz` the status that it was told.
struct Server {
    address: SocketAddr,
    told: Arc<Told>,
}

#[derive(Default)]
struct Told {
    status: AtomicU16,
    /// The status of the next answer only; 0 = as always.
    once: AtomicU16,
    n_probes: AtomicUsize,
}

impl Server {
    fn start(name: &'static str, status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            told: Arc::default(),
        };
        server.say(status);
        let told = server.told.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that leaves early has its own test.
                let _ = answer(stream.unwrap(), name, &told);
            }
        });
        server
    }

    fn say(&self, status: u16) {
        self.told.status.store(status, Ordering::SeqCst);
    }

    fn say_once(&self, status: u16) {
        self.told.once.store(status, Ordering::SeqCst);
    }

    /// Waits for so many probes more.
    fn wait_for_probes(&self, n: usize) {
        let until = self.told.n_probes.load(Ordering::SeqCst) + n;
        eventually("a probe", || {
            let seen = self.told.n_probes.load(Ordering::SeqCst);
            if seen < until { Err(seen) } else { Ok(()) }
        });
    }
}

fn answer(mut stream: TcpStream, name: &str, told: &Told) -> std::io::Result<()> {
    stream.set_read_timeout(Some(patience()))?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    let probe = head.starts_with(b"GET /healthz ");
    let code = match probe.then(|| told.once.swap(0, Ordering::SeqCst)) {
        Some(0) => told.status.load(Ordering::SeqCst),
        Some(once) => once,
        None => 200,
    };
    write!(
        stream,
        "HTTP/1.1 {code} Word\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}",
        name.len()
    )?;
    told.n_probes
        .fetch_add(usize::from(probe), Ordering::SeqCst);
    Ok(())
}

/// A Service `web` and its only Pod, at an address of this machine, with the fields of its `metadata` and its probe.
fn manifest(address: SocketAddr, metadata: &str, probe: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: http}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web-1, labels: {{app: web}}{metadata}}}
spec:
  containers:
  - name: main
    image: example.com/web
    ports: [{{name: http, containerPort: {}}}]
    readinessProbe: {{periodSeconds: 1, {probe}}}
status: {{podIP: {}}}
",
        address.port(),
        address.ip(),
    )
}

const HEALTHZ: &str = "httpGet: {path: /healthz, port: http}, failureThreshold: 2";

fn wait_until_served(address: SocketAddr, by: &str) {
    eventually("service", || match served_by(address) {
        Ok(name) if name == by => Ok(()),
        other => Err(other),
    });
}

fn wait_until_refused(address: SocketAddr) {
    eventually("refusal", || {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => Err(other),
        }
    });
}

fn slice(cluster: &Cluster) -> Value {
    let slices = cluster.items("endpointslices");
    assert_eq!(slices.len(), 1);
    slices[0].clone()
}

fn pod_row(cluster: &Cluster) -> String {
    let output = cluster.get(&["pods", "web-1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let row = text.lines().nth(1).unwrap_or_default();
    row.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_service_follows_the_probe_of_its_pod() {
    let server = Server::start("web-1", 503);
    let mut cluster = Cluster::start(&[("web.yaml", &manifest(server.address, "", HEALTHZ))]);
    let web = cluster.served_at("web");
    let line = cluster.wait_for_log(&["readiness changed", "default/web-1", "HTTP status 503"]);
    assert!(line.contains("ready=false"), "{line}");
    wait_until_refused(web);
    assert_eq!(pod_row(&cluster), "web-1 False Running");

    server.say(200);
    wait_until_served(web, "web-1");
    assert_eq!(pod_row(&cluster), "web-1 True Running");

    server.say(500);
    wait_until_refused(web);
    let metrics = http_get(cluster.address("Metrics"), "/metrics").unwrap().1;
    for sample in [
        "viaduct_probe_results_total{probe=\"readiness\",result=\"failure\"}",
        "viaduct_probe_results_total{probe=\"readiness\",result=\"success\"}",
        "viaduct_probe_targets 1",
    ] {
        assert!(metrics.contains(sample), "{sample} in {metrics}");
    }
}

#[test]
fn flapping_below_the_threshold_changes_no_slice() {
    let server = Server::start("web-1", 200);
    let cluster = Cluster::start(&[("web.yaml", &manifest(server.address, "", HEALTHZ))]);
    wait_until_served(cluster.served_at("web"), "web-1");
    let before = slice(&cluster);
    // One failure, which is below two, then successes; when the second is answered, the first has been judged.
    server.say_once(503);
    server.wait_for_probes(3);
    assert_eq!(slice(&cluster), before);
}

#[test]
fn a_terminating_pod_is_probed_on_until_it_is_gone() {
    let server = Server::start("web-1", 200);
    let cluster = Cluster::start(&[("web.yaml", &manifest(server.address, "", HEALTHZ))]);
    let web = cluster.served_at("web");
    wait_until_served(web, "web-1");
    let conditions = |ready, serving, terminating| serde_json::json!({"ready": ready, "serving": serving, "terminating": terminating});
    let shows = |expected: Value| {
        eventually("the conditions", || {
            let found = slice(&cluster)["endpoints"][0]["conditions"].clone();
            if found == expected {
                Ok(())
            } else {
                Err(found)
            }
        });
    };
    let deleted = ", deletionTimestamp: \"2026-01-01T00:00:00Z\"";
    cluster.write("web.yaml", &manifest(server.address, deleted, HEALTHZ));
    shows(conditions(false, true, true));
    assert_eq!(pod_row(&cluster), "web-1 True Terminating");
    // Nobody else is ready, so it has the traffic for as long as it serves.
    wait_until_served(web, "web-1");
    server.say(503);
    shows(conditions(false, false, true));
    wait_until_refused(web);
    server.say(200);
    shows(conditions(false, true, true));
    wait_until_served(web, "web-1");
    let service = manifest(server.address, "", HEALTHZ);
    let service = service.split("---").next().unwrap();
    cluster.write("web.yaml", service);
    wait_until_refused(web);
    assert_eq!(slice(&cluster)["endpoints"], Value::Null);
}

#[test]
fn commands_decide_where_they_may_run() {
    let server = Server::start("web-1", 200);
    let directory = tempfile::tempdir().unwrap();
    let flag = directory.path().join("ready");
    let probe = format!("exec: {{command: [test, -e, {}]}}", flag.display());
    let manifest = manifest(server.address, "", &probe);
    let cluster = Cluster::start(&[("web.yaml", &manifest)]);
    let web = cluster.served_at("web");
    wait_until_refused(web);
    std::fs::write(&flag, "").unwrap();
    wait_until_served(web, "web-1");

    let mut cautious = Cluster::start_with(&[("web.yaml", &manifest)], &["--exec-probes=false"]);
    cautious.wait_for_log(&["probe cannot be run", "exec probes are switched off"]);
    wait_until_refused(cautious.served_at("web"));
}

#[test]
fn a_simulated_pod_is_probed_where_it_answers() {
    let probes = [
        "httpGet: {port: http}",
        "tcpSocket: {port: 8080}",
        "httpGet: {port: 8081}",
    ];
    let mut manifests = String::from(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n",
    );
    for (i, probe) in probes.iter().enumerate() {
        manifests += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: web-{i}\n  labels: {{app: web}}\n  annotations: {{viaduct.dev/simulate: echo}}\n\
             spec:\n  containers:\n  - name: main\n    image: example.com/web\n    ports: [{{name: http, containerPort: 8080}}]\n    \
             readinessProbe: {{{probe}, failureThreshold: 1}}\n"
        );
    }
    let mut cluster = Cluster::start(&[("web.yaml", &manifests)]);
    cluster.wait_for_log(&[
        "readiness changed",
        "default/web-2",
        "ready=false",
        "refused",
    ]);
    let ready = eventually("readiness", || {
        let output = cluster.get(&["pods", "-o", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let of = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().unwrap().clone();
            let ready = conditions
                .iter()
                .find(|c| c["type"] == "Ready")
                .unwrap()
                .clone();
            ready["status"] == "True"
        };
        let ready: Vec<_> = list["items"].as_array().unwrap().iter().map(of).collect();
        if ready[0] && ready[1] {
            Ok(ready)
        } else {
            Err(ready)
        }
    });
    assert_eq!(ready, [true, true, false]);
}
