//! `viaduct run` on a cluster: the process, and what it is asked.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::eventually;

/// A `viaduct run` that captures nothing: what it would do shows in `get` and `explain`.
pub(super) struct Proxy {
    pub(super) child: Child,
    directory: tempfile::TempDir,
    log: Arc<Mutex<String>>,
}

impl Proxy {
    pub(super) fn start(words: &[&str]) -> Self {
        Self::over(tempfile::tempdir().unwrap(), words)
    }

    pub(super) fn over(directory: tempfile::TempDir, words: &[&str]) -> Self {
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

    pub(super) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(super) fn waits_for(&self, words: &str) {
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
    pub(super) fn address(&self, name: &str) -> SocketAddr {
        self.waits_for("viaduct is running");
        let log = self.log();
        let after = log.split(&format!("{name}=")).nth(1).unwrap();
        let text = after.trim_start_matches(|c: char| !c.is_ascii_digit());
        let end = text.find(|c: char| !c.is_ascii_digit() && !".:".contains(c));
        text[..end.unwrap()].parse().unwrap()
    }

    pub(super) fn ask(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_viaduct"))
            .args(words)
            .arg("--admin-socket")
            .arg(self.directory.path().join("admin.sock"))
            .output()
            .unwrap()
    }

    pub(super) fn items(&self, resource: &str) -> Vec<Value> {
        let output = self.ask(&["get", resource, "-A", "-o", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until `explain` says that much of a target.
    pub(super) fn explains(&self, target: &str, words: &[&str]) {
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

    pub(super) fn stop(mut self) -> tempfile::TempDir {
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
