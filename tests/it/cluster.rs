//! A `viaduct dev` for one test: its own directory, address ranges and sockets; ended by its process id.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long anything may take before a test gives up; `VIADUCT_TEST_PATIENCE` in seconds stretches it.
pub(crate) fn patience() -> Duration {
    let seconds = std::env::var("VIADUCT_TEST_PATIENCE")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// Asks again until `probe` answers, for as long as patience lasts; then fails with what it said last.
pub(crate) fn eventually<T, E: std::fmt::Debug>(
    what: &str,
    mut probe: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + patience();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if Instant::now() > deadline => panic!("{what} did not happen: {last:?}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

static NEXT: AtomicU8 = AtomicU8::new(1);

pub(crate) struct Cluster {
    child: Child,
    third: u8,
    root: tempfile::TempDir,
    greeting: String,
    log: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Cluster {
    /// Starts with these manifests, and waits for the greeting.
    pub(crate) fn start(manifests: &[(&str, &str)]) -> Self {
        Self::start_with(manifests, &[])
    }

    /// The same with more flags, which a restart does not repeat.
    pub(crate) fn start_with(manifests: &[(&str, &str)], flags: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("manifests");
        std::fs::create_dir(&directory).unwrap();
        for (name, text) in manifests {
            std::fs::write(directory.join(name), text).unwrap();
        }
        // A third octet of its own, so that clusters of parallel tests do not meet.
        Self::spawn(root, NEXT.fetch_add(1, Ordering::Relaxed), flags)
    }

    fn spawn(root: tempfile::TempDir, third: u8, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_viaduct"))
            .arg("dev")
            .arg(root.path().join("manifests"))
            .args([
                "--service-cluster-ip-range",
                &format!("127.96.{third}.0/24"),
            ])
            .args(["--pod-cidr", &format!("127.97.{third}.0/24")])
            .args(["--load-balancer-ip-range", &format!("127.98.{third}.0/24")])
            .args([
                "--service-node-port-range",
                &format!(
                    "{}-{}",
                    20000 + u16::from(third) * 50,
                    20049 + u16::from(third) * 50
                ),
            ])
            .args([
                "--dns-listen",
                "127.0.0.1:0",
                "--healthz-bind-address",
                "127.0.0.1:0",
            ])
            .args([
                "--metrics-bind-address",
                "127.0.0.1:0",
                "--drain-timeout",
                "2s",
            ])
            // Not a flag, so that a test may give one.
            .env("VIADUCT_LOG", "info")
            .arg("--admin-socket")
            .arg(root.path().join("admin.sock"))
            .arg("--data-dir")
            .arg(root.path().join("data"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = follow(child.stderr.take().unwrap());
        let out = follow(child.stdout.take().unwrap());
        let mut greeting = String::new();
        let deadline = Instant::now() + patience();
        while !greeting.contains("Ctrl-C") {
            match out.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => greeting.push_str(&(line + "\n")),
                Err(_) => panic!(
                    "no greeting; got {greeting:?}, log {:?}",
                    log.try_iter().collect::<Vec<_>>()
                ),
            }
        }
        Self {
            child,
            third,
            root,
            greeting,
            log,
            seen: Vec::new(),
        }
    }

    /// Ends it in order and starts it again over the same files and data.
    pub(crate) fn restart(self) -> Self {
        let third = self.third;
        let (status, root) = self.end(Signal::SIGTERM);
        assert!(status.success(), "{status}");
        Self::spawn(root, third, &[])
    }

    pub(crate) fn greeting(&self) -> &str {
        &self.greeting
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.root.path().join("manifests")
    }

    /// Replaces a manifest by rename, as careful editors do.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let fresh = self.directory().join(format!("{name}.tmp"));
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, self.directory().join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.directory().join(name)).unwrap();
    }

    /// Waits for a log line that contains all of `words`.
    pub(crate) fn wait_for_log(&mut self, words: &[&str]) -> String {
        let deadline = Instant::now() + patience();
        loop {
            match self
                .log
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if words.iter().all(|word| line.contains(word)) {
                        return line;
                    }
                }
                Err(_) => panic!("no log line with {words:?}; got {:#?}", self.seen),
            }
        }
    }

    /// An address that the greeting names, such as `DNS`.
    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        let line = self
            .greeting
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap();
        let text = line
            .trim_start_matches(name)
            .trim()
            .trim_start_matches("http://");
        text.split('/').next().unwrap().parse().unwrap()
    }

    /// Runs `viaduct get`.
    pub(crate) fn get(&self, words: &[&str]) -> std::process::Output {
        self.ask("get", words)
    }

    /// Begins `viaduct get --watch`.
    pub(crate) fn watch(&self, words: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_viaduct"))
            .args(["get", "--watch"])
            .args(words)
            .arg("--admin-socket")
            .arg(self.root.path().join("admin.sock"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Runs `viaduct explain`.
    pub(crate) fn explain(&self, words: &[&str]) -> std::process::Output {
        self.ask("explain", words)
    }

    /// Runs `viaduct fault`.
    pub(crate) fn fault(&self, words: &[&str]) -> std::process::Output {
        self.ask("fault", words)
    }

    /// Runs `viaduct load`, without its progress line.
    pub(crate) fn load(&self, words: &[&str]) -> std::process::Output {
        self.ask("load", &[words, &["--quiet"]].concat())
    }

    fn ask(&self, command: &str, words: &[&str]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_viaduct"))
            .arg(command)
            .args(words)
            .arg("--admin-socket")
            .arg(self.root.path().join("admin.sock"))
            .output()
            .unwrap()
    }

    /// The items of `viaduct get RESOURCE -A -o json`.
    pub(crate) fn items(&self, resource: &str) -> Vec<Value> {
        let output = self.get(&[resource, "-A", "-o", "json"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Where a Service port is served, as the table shows it.
    pub(crate) fn served_at(&self, service: &str) -> SocketAddr {
        eventually("the Service in the table", || {
            let output = self.get(&["services", service]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let row: Vec<String> = text
                .lines()
                .nth(1)
                .ok_or(text.clone())?
                .split_whitespace()
                .map(str::to_owned)
                .collect();
            let port = row
                .get(4)
                .ok_or(text.clone())?
                .split(',')
                .next()
                .unwrap()
                .split('/')
                .next()
                .unwrap()
                .to_owned();
            let port = port
                .rsplit('→')
                .next()
                .unwrap()
                .split(':')
                .next()
                .unwrap()
                .to_owned();
            format!("{}:{port}", row[2]).parse().map_err(|_| text)
        })
    }

    fn end(mut self, signal: Signal) -> (ExitStatus, tempfile::TempDir) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
        let status = eventually("the end", || {
            self.child.try_wait().unwrap().ok_or("still running")
        });
        let root = std::mem::replace(&mut self.root, tempfile::tempdir().unwrap());
        (status, root)
    }

    /// Sends `signal` and waits for the end.
    pub(crate) fn stop(self, signal: Signal) -> ExitStatus {
        self.end(signal).0
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // After an orderly end both are errors, and nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (lines, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The body of `GET path`, with the status.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, patience())?;
    stream.set_read_timeout(Some(patience()))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    Ok((status, body.to_owned()))
}

/// Which Pod answers an HTTP request.
pub(crate) fn served_by(address: SocketAddr) -> std::io::Result<String> {
    http_get(address, "/").map(|(_, body)| body.trim().to_owned())
}

/// What comes back for one datagram.
pub(crate) fn udp_ask(address: SocketAddr, datagram: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send(datagram)?;
    let mut buffer = vec![0; 65_536];
    let n = socket.recv(&mut buffer)?;
    buffer.truncate(n);
    Ok(buffer)
}

/// A Service over Pods labelled `app: NAME`.
pub(crate) fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports:\n  - port: {port}\n    targetPort: 8080\n"
    )
}

/// A simulated Pod labelled `app: APP`, with a `Ready` condition.
pub(crate) fn pod(app: &str, name: &str, ready: bool) -> String {
    let status = if ready { "True" } else { "False" };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {app}}}\n  annotations: {{viaduct.dev/simulate: echo}}\nspec:\n  containers:\n  - name: main\n    image: example.com/{app}\n    ports:\n    - containerPort: 8080\nstatus:\n  conditions:\n  - {{type: Ready, status: \"{status}\"}}\n"
    )
}
