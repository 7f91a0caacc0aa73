//! The node of a world with the program on it, and what it is given to serve.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use viaduct::capture::Mode;
use viaduct::model::Protocol;

use crate::backends::{Backend, PORT};
use crate::world::{Answer, Place, QUIET, Running, World, eventually, patience};

/// The protocols of the service.
pub(super) const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// Its cluster addresses, at port 80.
pub(super) const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
/// Its node port.
pub(super) const NODE_PORT: u16 = 30080;

/// The Service `default/web` and its slices, as a manifest.
pub(super) struct Web {
    pub(super) kind: &'static str,
    pub(super) spec: &'static str,
    pub(super) status: &'static str,
    pub(super) endpoints: &'static [&'static str],
}

impl Default for Web {
    fn default() -> Self {
        Self {
            kind: "NodePort",
            spec: "",
            status: "{}",
            endpoints: &["local", "remote"],
        }
    }
}

impl Web {
    pub(super) fn manifest(&self) -> String {
        let Self {
            kind, spec, status, ..
        } = self;
        let [v4, v6] = SERVICE;
        let mut text = format!(
            "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  type: {kind}
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: '{v4}'
  clusterIPs: ['{v4}', '{v6}']
  ports:
  - {{name: t, port: 80, protocol: TCP, nodePort: {NODE_PORT}}}
  - {{name: u, port: 80, protocol: UDP, nodePort: {NODE_PORT}}}
  {spec}
status: {status}
"
        );
        text += &slices("web", self.endpoints);
        text
    }
}

/// The slices of a Service, one per family.
pub(super) fn slices(service: &str, endpoints: &[&str]) -> String {
    let of = |(family, v6): (&str, bool)| {
        let endpoints: String = endpoints.iter().map(|name| endpoint(name, v6)).collect();
        let name = family.to_lowercase();
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {service}-{name}, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}
addressType: {family}
ports: [{{name: t, port: {PORT}, protocol: TCP}}, {{name: u, port: {PORT}, protocol: UDP}}]
endpoints: [{endpoints}]
"
        )
    };
    [("IPv4", false), ("IPv6", true)].map(of).concat()
}

fn endpoint(name: &str, v6: bool) -> String {
    let (place, node) = if name == "local" {
        (Place::Local, "n0")
    } else {
        (Place::Remote, "n1")
    };
    let ip = place.ip(v6);
    format!("{{addresses: ['{ip}'], nodeName: {node}, conditions: {{ready: true}}}}, ")
}

/// An `nft` on a kernel that has no NAT.
const WITHOUT_NAT: &str =
    "case $input in *\"type nat\"*) echo \"Error: Operation not supported\" >&2; exit 1;; esac";

/// An `nft` that may do nothing about IPv6 any more once it is told so.
const WITHOUT_IPV6_LATER: &str = "test -e $REAL.later && case \"$* $input\" in *\" ip6 \"*) \
    echo \"Error: Operation not permitted\" >&2; exit 1;; esac";

/// An `iptables-restore` on a kernel that has no mangle table.
const WITHOUT_MANGLE: &str =
    "case $input in *\"*mangle\"*) echo \"Operation not supported\" >&2; exit 1;; esac";

/// Any tool, without the capability that it takes to change this network: it has that of a user namespace of its own. (The
/// program itself may not take capabilities from others.)
const WITHOUT_NET_ADMIN: &str = "as=\"unshare --user\"";

/// A seccomp filter by which nobody opens a netlink socket of netfilter (`socket(AF_NETLINK, _, NETLINK_NETFILTER)`), which
/// is how one talks to nf_tables; then the program. Source: seccomp(2), `linux/filter.h`.
const WITHOUT_NETFILTER: &str = r#"
import ctypes, os, struct, sys
def step(code, right, wrong, value): return struct.pack("HBBI", code, right, wrong, value)
load, is_equal, answer = 0x20, 0x15, 0x06
call = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
steps = b"".join([
    step(load, 0, 0, 0), step(is_equal, 0, 5, call),
    step(load, 0, 0, 16), step(is_equal, 0, 3, 16),
    step(load, 0, 0, 32), step(is_equal, 0, 1, 12),
    step(answer, 0, 0, 0x00050001), step(answer, 0, 0, 0x7fff0000)])
text = ctypes.create_string_buffer(steps)
filter = struct.pack("HxxxxxxP", len(steps) // 8, ctypes.addressof(text))
prctl = ctypes.CDLL(None).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, filter, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"#;

/// The node of a world with the program on it, and the backends `local` and `remote`.
pub(super) struct Node {
    program: Option<Running>,
    second: Option<Running>,
    pub(super) mode: Mode,
    pub(super) flags: Vec<String>,
    /// In place of the mode's name.
    pub(super) capture: Option<&'static str>,
    /// Tools that the program finds unusable; `nat` = what nf_tables has of it, `ip6-later` = IPv6 in nf_tables from
    /// [`Node::break_ipv6`] on, `mangle` = that table of iptables, `powerless-TOOL` = `CAP_NET_ADMIN` for a tool, `netfilter` =
    /// netlink sockets of netfilter.
    pub(super) hidden: Vec<&'static str>,
    directory: TempDir,
    _backends: [Backend; 2],
    pub(super) world: Arc<World>,
    /// How often the program has been replaced by its like.
    handovers: u16,
}

impl Node {
    pub(super) fn new(mode: Mode) -> Self {
        let world = World::new();
        let backends = [(Place::Local, "local"), (Place::Remote, "remote")];
        let node = Self {
            program: None,
            second: None,
            mode,
            flags: Vec::new(),
            capture: None,
            hidden: Vec::new(),
            directory: tempfile::tempdir().unwrap(),
            _backends: backends.map(|(place, name)| Backend::new(&world, place, name)),
            world: Arc::new(world),
            handovers: 0,
        };
        fs::create_dir(node.manifests()).unwrap();
        node
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    pub(super) fn apply(&self, web: &Web) {
        self.apply_text(&web.manifest());
    }

    /// Applies documents in place of those before.
    pub(super) fn apply_text(&self, documents: &str) {
        // A file under its final name is always whole.
        let draft = self.manifests().join("web.tmp");
        fs::write(&draft, documents).unwrap();
        fs::rename(draft, self.manifests().join("web.yaml")).unwrap();
    }

    pub(super) fn start(&mut self) {
        let path = self.directory.path().join("log");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        self.start_logging_to(log.into());
    }

    /// Makes the place of the remote backend a second node, `n1`, with a program of its own and the same manifests.
    pub(super) fn start_second(&mut self) {
        let mut command = self.command("n1", "10.244.1.0/24,fd00:10:244:1::/64");
        self.second = Some(self.world.spawn_in(Place::Remote, &mut command));
    }

    /// With standard error going to a pipe that nobody holds the other end of.
    pub(super) fn start_unread(&mut self) {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        self.start_logging_to(writer.into());
    }

    fn start_logging_to(&mut self, log: OwnedFd) {
        let mut command = self.command("n0", "10.244.0.0/24,fd00:10:244::/64");
        command.stderr(Stdio::from(log));
        self.program = Some(self.world.spawn_in(Place::Node, &mut command));
    }

    fn command(&self, name: &str, pods: &str) -> Command {
        let directory = self.directory.path();
        let capture = self.capture.unwrap_or(self.mode.as_str());
        let mut command = self.program_with_tools_hidden();
        command
            .args(["run", "--hostname-override", name])
            .args(["--capture", capture])
            .args(["--iptables-sync-period", "500ms", "--drain-timeout", "3s"])
            .args([
                "--service-cluster-ip-range",
                "10.96.0.0/16,fd00:10:96::/112",
            ])
            .args(["--cluster-cidr", pods])
            .args(&self.flags)
            .arg("--manifests")
            .arg(self.manifests())
            .arg("--admin-socket")
            .arg(directory.join(self.admin_socket(name)))
            .args([
                "--healthz-bind-address",
                &format!("0.0.0.0:{}", self.health_port()),
            ])
            .arg("--data-dir")
            .arg(directory.join(format!("data-{name}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    // In a mount namespace of its own, where nothing can be executed in place of the hidden tools.
    fn program_with_tools_hidden(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_viaduct");
        if self.hidden.is_empty() {
            return Command::new(program);
        }
        // Several tools may be one program, which goes by the name that it is called by, or by its first argument.
        let hide = format!(
            "for hidden in {hidden}; do \
                case $hidden in \
                    nat) tool=nft lack='{WITHOUT_NAT}';; \
                    ip6-later) tool=nft lack='{WITHOUT_IPV6_LATER}';; \
                    mangle) tool=iptables-restore lack='{WITHOUT_MANGLE}';; \
                    powerless-*) tool=${{hidden#powerless-}} lack='{WITHOUT_NET_ADMIN}';; \
                    *) tool=$hidden lack=;; \
                esac; \
                place=$(command -v $tool) || continue; real={directory}/$tool; \
                if [ \"$lack\" ]; then \
                    cp $place $real.real; \
                    case $tool in *tables*) named='${{0##*/}}';; *) named=;; esac; \
                    printf '#!/bin/sh\nREAL=%s.real\ninput=$(cat)\n%s\nprintf \"%%s\\n\" \"$input\" | $as $REAL %s \"$@\"\n' \
                        $real \"$lack\" \"$named\" > $real; chmod +x $real; \
                else real=/dev/null; fi; \
                mount --bind $real $place || exit 9; \
            done; exec \"$@\"",
            hidden = self.hidden.join(" "),
            directory = self.directory.path().display(),
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &hide, "sh"]);
        if self.hidden.contains(&"netfilter") {
            command.args(["python3", "-c", WITHOUT_NETFILTER]);
        }
        command.arg(program);
        command
    }

    /// What `viaduct explain` says.
    pub(super) fn explain(&self, target: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
        command.args(["explain", target, "--admin-socket"]);
        command.arg(self.directory.path().join("n0.sock"));
        let output = self.world.in_ns(Place::Node, || command.output()).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// From now on `nft` does nothing about IPv6 any more; until it is mended.
    pub(super) fn break_ipv6(&self) {
        fs::write(self.directory.path().join("nft.real.later"), "").unwrap();
    }

    pub(super) fn mend_ipv6(&self) {
        fs::remove_file(self.directory.path().join("nft.real.later")).unwrap();
    }

    /// What it has said so far.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// As a crash would.
    pub(super) fn kill(&mut self) {
        drop(self.program.take());
    }

    /// Replaces it by its like, as an update does: the new process starts beside the old one, which ends once the new one
    /// is ready.
    pub(super) fn hand_over(&mut self) {
        let old = self.start_beside();
        let new = self.program.replace(old);
        assert!(self.end().success());
        self.program = new;
    }

    /// Starts its like beside it, which ends once it is ready; the one before stays.
    pub(super) fn try_successor(&mut self, end: Signal) {
        let old = self.start_beside();
        kill(self.pid(), end).unwrap();
        self.await_end();
        self.program = Some(old);
    }

    // Starts its like, and returns the one before when that is ready.
    fn start_beside(&mut self) -> Running {
        let old = self.program.take().expect("it was started");
        self.handovers += 1;
        self.start();
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.health_port());
        eventually(|| match self.http(Place::Node, to, "/readyz") {
            Ok(answer) if answer.starts_with("http/1.0 200") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        old
    }

    // Two processes cannot share one.
    fn admin_socket(&self, name: &str) -> String {
        match self.handovers {
            0 => format!("{name}.sock"),
            n => format!("{name}-{n}.sock"),
        }
    }

    fn health_port(&self) -> u16 {
        10256 + self.handovers
    }

    /// Asks it to end, and waits.
    pub(super) fn end(&mut self) -> ExitStatus {
        self.ask_to_end();
        self.await_end()
    }

    pub(super) fn ask_to_end(&self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
    }

    /// The process that runs.
    pub(super) fn pid(&self) -> Pid {
        let program = self.program.as_ref().expect("it was started");
        Pid::from_raw(i32::try_from(program.0.id()).unwrap())
    }

    pub(super) fn await_end(&mut self) -> ExitStatus {
        let mut program = self.program.take().expect("it was started");
        eventually(|| {
            program
                .0
                .try_wait()
                .unwrap()
                .ok_or_else(|| "it has not ended".to_owned())
        })
    }

    pub(super) fn ask(
        &self,
        from: Place,
        protocol: Protocol,
        to: SocketAddr,
        wait: Duration,
    ) -> Answer {
        match protocol {
            Protocol::Tcp => self.world.ask_tcp(from, to, wait),
            Protocol::Udp => self.world.ask_udp(from, to, wait),
        }
    }

    /// What the health-check node port tells: the status and the number of local endpoints.
    pub(super) fn health(&self, from: Place, to: SocketAddr) -> String {
        let answer = self.http(from, to, "/healthz");
        match answer {
            Ok(answer) => {
                let status = answer.split_whitespace().nth(1).unwrap_or_default();
                let weight = answer
                    .lines()
                    .find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "));
                format!("{status} {}", weight.unwrap_or_default())
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => "refused".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// An answer over HTTP, in lower case.
    pub(super) fn http(&self, from: Place, to: SocketAddr, path: &str) -> io::Result<String> {
        self.world.in_ns(from, || {
            let mut stream = TcpStream::connect_timeout(&to, patience())?;
            stream.set_read_timeout(Some(patience()))?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.to_lowercase())
        })
    }

    pub(super) fn await_health(&self, from: Place, to: SocketAddr, wanted: &str) {
        eventually(|| match self.health(from, to) {
            told if told == wanted => Ok(()),
            other => Err(format!("{from:?} at {to}: {other}, not {wanted}")),
        });
    }

    /// Waits until both protocols answer callers from outside.
    pub(super) fn await_served(&self, to: SocketAddr) {
        for protocol in BOTH {
            eventually(|| match self.ask(Place::Outside, protocol, to, QUIET) {
                Answer::Words(_) => Ok(()),
                other => Err(format!("{to}/{protocol}: {other:?}")),
            });
        }
    }

    /// Exactly these backends answer, all of them.
    pub(super) fn assert_backends(
        &self,
        from: Place,
        protocol: Protocol,
        to: SocketAddr,
        expected: &[&str],
    ) {
        let mut seen: Vec<String> = (0..4 * expected.len())
            .map(|_| match self.ask(from, protocol, to, patience()) {
                Answer::Words(words) => words,
                other => panic!("{from:?} to {to}/{protocol}: {other:?}"),
            })
            .collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen, expected, "{from:?} to {to}/{protocol}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.directory.path().join("log"));
            eprintln!("the program said:\n{}", log.unwrap_or_default());
        }
    }
}
