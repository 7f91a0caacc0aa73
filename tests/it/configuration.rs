//! The configuration of a running process: what is taken over in place, what restarts it, and what it refuses.

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A `viaduct run` that captures nothing, under a configuration file.
struct Running {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    root: tempfile::TempDir,
}

const OURS: &str = "apiVersion: viaduct.dev/v1alpha1\nkind: ViaductConfiguration\n";

const KUBE_PROXYS: &str =
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

impl Running {
    fn start(config: &str, flags: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("config.yaml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_viaduct"))
            .args(["run", "--capture", "none", "--manifests"])
            .arg(root.path())
            .args(["--metrics-bind-address", "127.0.0.1:0"])
            .args(["--healthz-bind-address", "127.0.0.1:0"])
            .arg("--config")
            .arg(root.path().join("config.yaml"))
            .arg("--admin-socket")
            .arg(root.path().join("admin.sock"))
            .arg("--data-dir")
            .arg(root.path().join("data"))
            .args(flags)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut this = Self { child, log, root };
        this.wait_for("viaduct is running");
        this
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("config.yaml")
    }

    fn write(&self, config: &str) {
        let fresh = self.root.path().join("fresh");
        std::fs::write(&fresh, config).unwrap();
        std::fs::rename(fresh, self.path()).unwrap();
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(id), signal).unwrap();
    }

    /// The next line of the log with these words; the log ends with the process.
    fn wait_for(&mut self, words: &str) -> String {
        let mut seen = Vec::new();
        for line in self.log.by_ref() {
            let line = line.unwrap();
            if line.contains(words) {
                return line;
            }
            seen.push(line);
        }
        panic!("no line with {words:?}: {seen:#?}");
    }

    fn end(mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already, if the test came to its end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn oom_score(process: u32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{process}/oom_score_adj"));
    text.unwrap().trim().to_owned()
}

#[test]
fn a_change_is_taken_over_in_place_or_restarts_the_process_under_its_id() {
    let mut running = Running::start(OURS, &[]);
    running.write(&format!("{OURS}oomScoreAdj: 7\ndrainTimeout: 1s\n"));
    let line = running.wait_for("configuration taken over");
    assert!(
        line.contains("drainTimeout") && line.contains("oomScoreAdj"),
        "{line}"
    );
    assert_eq!(oom_score(running.child.id()), "7");

    running.write(&format!("{OURS}oomScoreAdj: much\n"));
    let line = running.wait_for("the last good one runs on");
    assert!(line.contains("config.yaml"), "{line}");

    running.write(&format!(
        "{OURS}oomScoreAdj: 8\nlbAlgorithm: least-connection\n"
    ));
    let line = running.wait_for("restarting");
    assert!(
        line.contains("lbAlgorithm") && !line.contains("oomScoreAdj"),
        "{line}"
    );
    running.wait_for("viaduct is running");
    assert_eq!(oom_score(running.child.id()), "8");
    running.end();
}

#[test]
fn hangup_reads_at_once_and_nothing_new_changes_nothing() {
    let mut running = Running::start(OURS, &[]);
    running.signal(Signal::SIGHUP);
    running.wait_for("nothing has changed");
    running.end();
}

#[test]
fn kube_proxys_file_is_taken_with_one_warning_for_each_kind_of_surplus() {
    let config = format!(
        "{KUBE_PROXYS}oomScoreAdj: 6\nfeatureGates: {{A: true}}\nipvs: {{scheduler: rr}}\ncolour: red\n"
    );
    let mut running = Running::start(
        &config,
        &["--v=2", "--logtostderr=true", "--oom-score-adj=9"],
    );
    assert_eq!(oom_score(running.child.id()), "6", "the file wins");
    running.signal(Signal::SIGHUP);
    let line = running.wait_for("leniently");
    assert!(line.contains("colour") && line.contains("line 6"), "{line}");
    let line = running.wait_for("without a meaning here");
    for name in ["featureGates", "ipvs", "--logtostderr"] {
        assert!(line.contains(name), "{line}");
    }
    running.end();
}

fn viaduct(words: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
    command.args(words).output().unwrap()
}

#[test]
fn what_would_be_used_is_written_in_the_form_that_is_read() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (first, second) = (text(&path("first")), text(&path("second")));
    let written = viaduct(&["run", "--drain-timeout=9s", "--write-config-to", &first]);
    assert!(written.status.success(), "{written:?}");
    let first_text = std::fs::read_to_string(&first).unwrap();
    assert!(first_text.contains("drainTimeout: 9s"), "{first_text}");
    let written = viaduct(&["run", "--config", &first, "--write-config-to", &second]);
    assert!(written.status.success(), "{written:?}");
    assert_eq!(std::fs::read_to_string(&second).unwrap(), first_text);
    let printed = viaduct(&["run", "--config", &first, "--write-config-to", "-"]);
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), first_text);
}
