//! `viaduct run` on a cluster: what it serves, shows and answers, through the binary.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::listener::{node, service, slice};
use crate::api_server::ApiServer;
use crate::cluster::{eventually, http_get, udp_ask};

/// A `viaduct run` that captures nothing: what it would do shows in `get` and `explain`.
struct Proxy {
    child: Child,
    directory: tempfile::TempDir,
    log: Arc<Mutex<String>>,
}

impl Proxy {
    fn start(words: &[&str]) -> Self {
        Self::over(tempfile::tempdir().unwrap(), words)
    }

    fn over(directory: tempfile::TempDir, words: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_viaduct"))
            .args(["run", "--capture", "none", "--hostname-override", "here"])
            .args(["--healthz-bind-address", "127.0.0.1:0"])
            .args(["--metrics-bind-address", "127.0.0.1:0"])
            .arg("--admin-socket")
            .arg(directory.path().join("admin.sock"))
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args(words)
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, stderr) = (Arc::clone(&log), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *lines.lock().unwrap() += &(line + "\n");
            }
        });
        Self {
            child,
            directory,
            log,
        }
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn waits_for(&self, words: &str) {
        eventually(words, || {
            let log = self.log();
            if log.contains(words) {
                Ok(())
            } else {
                Err(log)
            }
        });
    }

    /// The address that follows `name=` in the line that says that it runs.
    fn address(&self, name: &str) -> SocketAddr {
        self.waits_for("viaduct is running");
        let log = self.log();
        let after = log.split(&format!("{name}=")).nth(1).unwrap();
        let text = after.trim_start_matches(|c: char| !c.is_ascii_digit());
        let end = text.find(|c: char| !c.is_ascii_digit() && !".:".contains(c));
        text[..end.unwrap()].parse().unwrap()
    }

    fn ask(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_viaduct"))
            .args(words)
            .arg("--admin-socket")
            .arg(self.directory.path().join("admin.sock"))
            .output()
            .unwrap()
    }

    fn items(&self, resource: &str) -> Vec<Value> {
        let output = self.ask(&["get", resource, "-A", "-o", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until `explain` says that much of a target.
    fn explains(&self, target: &str, words: &[&str]) {
        eventually(target, || {
            let output = self.ask(&["explain", target]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if words.iter().all(|word| text.contains(word)) {
                Ok(())
            } else {
                Err((text, String::from_utf8_lossy(&output.stderr).into_owned()))
            }
        });
    }

    fn stop(mut self) -> tempfile::TempDir {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        let status = eventually("the end", || {
            self.child.try_wait().unwrap().ok_or("still running")
        });
        assert!(status.success(), "{status}: {}", self.log());
        std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // After an orderly end both are errors, and nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn server() -> ApiServer {
    let server = ApiServer::start();
    server.apply(service("web", "10.96.0.10"));
    server.apply(slice("web", &["10.1.0.1", "127.0.0.1"], 8080));
    server.apply(node("z1"));
    server
}

#[test]
fn a_cluster_is_served_as_its_api_server_says() {
    let server = server();
    let proxy = Proxy::start(&["--master", &server.url()]);
    proxy.explains("10.96.0.10:80", &["default/web", "10.1.0.1:8080"]);
    let [web] = &proxy.items("services")[..] else {
        panic!("{:?}", proxy.items("services"))
    };
    assert_eq!(web["spec"]["clusterIP"], "10.96.0.10");
    assert_eq!(web["apiVersion"], "v1");
    // A loopback endpoint of an API server would be a way into whatever listens on the node for itself.
    assert!(proxy.log().contains("127.0.0.1 is a loopback address"));
    let backends = proxy.items("backends");
    assert_eq!(backends.len(), 1, "{backends:?}");

    server.apply(slice("web", &["10.1.0.2"], 8080));
    proxy.explains("default/web", &["10.1.0.2:8080"]);
    server.delete("services", "default", "web");
    eventually("the Service gone", || {
        let items = proxy.items("services");
        items.is_empty().then_some(()).ok_or(items)
    });
    proxy.stop();
}

#[test]
fn names_come_from_the_cluster_and_health_from_its_node() {
    let server = server();
    server.apply(service("db", "None"));
    server.apply(slice("db", &["10.1.0.7"], 5432));
    let words = [
        "--master",
        &server.url(),
        "--dns-listen",
        "127.0.0.1:0",
        "--dns-pods",
        "disabled",
    ];
    let proxy = Proxy::start(&words);
    let dns = proxy.address("dns");
    // A query for the A record of db.default.svc.cluster.local.
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["db", "default", "svc", "cluster", "local"] {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    eventually("the address of a headless Service", || {
        let answer = udp_ask(dns, &query).unwrap_or_default();
        if answer.ends_with(&[10, 1, 0, 7]) {
            Ok(())
        } else {
            Err(answer)
        }
    });
    let healthz = proxy.address("healthz");
    let health = || http_get(healthz, "/healthz").unwrap();
    eventually("an eligible node", || match health() {
        (200, _) => Ok(()),
        other => Err(other),
    });
    let mut leaving = node("z1");
    leaving["spec"] = serde_json::json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]});
    server.apply(leaving);
    eventually("a node that leaves", || match health() {
        (503, _) => Ok(()),
        other => Err(other),
    });
    server.apply(node("z1"));
    eventually("a node that stays", || match health() {
        (200, _) => Ok(()),
        other => Err(other),
    });
    server.delete("nodes", "", "here");
    eventually("a node that is gone", || match health() {
        (503, _) => Ok(()),
        other => Err(other),
    });
}

#[test]
fn nothing_is_ready_before_services_and_slices_are_known() {
    let mut server = server();
    server.stop();
    let proxy = Proxy::start(&["--master", &server.url()]);
    proxy.waits_for("API server is out of touch");
    let healthz = proxy.address("healthz");
    let (status, body) = http_get(healthz, "/readyz").unwrap();
    assert_eq!(status, 503);
    assert!(body.contains("initial state"), "{body}");
    server.restart();
    eventually("readiness", || {
        match http_get(healthz, "/readyz").unwrap() {
            (200, _) => Ok(()),
            other => Err(other),
        }
    });
    proxy.explains("default/web", &["10.1.0.1:8080"]);
}
