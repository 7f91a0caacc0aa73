//! A `viaduct run` that serves the names of `tests/data/dns.yaml` and nothing else, and what asks it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use hickory_proto::rr::RecordType;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{eventually, patience};

const OBJECTS: &str = include_str!("../data/dns.yaml");

/// The running process.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    root: Option<tempfile::TempDir>,
}

/// The command, with its files under `root`.
pub(crate) fn command(root: &Path, listen: &str) -> Command {
    let manifests = root.join("manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    // Another process may be serving them: a file that is written again is empty for a moment.
    let objects = manifests.join("dns.yaml");
    if !objects.exists() {
        std::fs::write(objects, OBJECTS).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
    command
        .args(["run", "--capture", "none", "--dns-listen", listen])
        .args([
            "--service-cluster-ip-range",
            "10.96.0.0/16,fd00:10:96::/112",
        ])
        // Nobody is there, so whatever is forwarded fails.
        .args(["--dns-upstream", "127.0.0.1:9"])
        .args(["--healthz-bind-address", "", "--metrics-bind-address", ""])
        .arg("--manifests")
        .arg(&manifests)
        .arg("--admin-socket")
        .arg(root.join(format!("admin-{}.sock", rand::random::<u64>())))
        .arg("--data-dir")
        .arg(root.join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Server {
    /// Starts it at a port of its own, and waits until it knows every name.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut server = Self::run(command(root.path(), "127.0.0.1:0").args(flags));
        server.root = Some(root);
        // The table of the complete state follows its announcement.
        eventually("the names of the manifests", || {
            let reply = server.udp(&question("web.ns.svc.cluster.local.", RecordType::A));
            let missing = server.udp(&question("gone.ns.svc.cluster.local.", RecordType::A));
            let codes = [reply[3] & 0x0F, missing[3] & 0x0F];
            if codes == [0, 3] { Ok(()) } else { Err(codes) }
        });
        server
    }

    /// Runs the command, and waits until it listens and has told its initial state.
    pub(crate) fn run(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut address, mut complete) = (None, false);
        while address.is_none() || !complete {
            let line = lines.next().expect("it ended").unwrap();
            if let Some((_, rest)) = line.split_once("DNS listening address=") {
                address = rest.trim().parse().ok();
            }
            complete |= line.contains("initial state is complete");
        }
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            address: address.expect("it says where it listens"),
            root: None,
        }
    }

    /// Where its files are, if they are its own.
    pub(crate) fn root(&self) -> &Path {
        self.root.as_ref().expect("files of its own").path()
    }

    /// Ends it in order.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        let id = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(id), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }

    pub(crate) fn udp(&self, message: &[u8]) -> Vec<u8> {
        ask_udp(self.address, message).unwrap()
    }

    pub(crate) fn tcp(&self, message: &[u8]) -> Vec<u8> {
        ask_tcp(self.address, message).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Sends one datagram from a port of its own; the reply to it.
pub(crate) fn ask_udp(server: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(patience()))?;
    socket.connect(server)?;
    socket.send(message)?;
    let mut buffer = vec![0; 4096];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Asks over a connection of its own.
pub(crate) fn ask_tcp(server: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(patience()))?;
    let length = u16::try_from(message.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes()[..], message].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

/// Id 7, RD; the name spelled as it is given.
pub(crate) fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(u16::from(kind).to_be_bytes());
    message.extend([0, 1]);
    message
}
