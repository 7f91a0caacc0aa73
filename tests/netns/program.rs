//! The whole program on the node of a world: `viaduct run --manifests DIR --capture MODE`, both families at once.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use viaduct::capture::Mode;
use viaduct::model::Protocol;

use crate::backends::{Backend, PORT};
use crate::rig::all_rules;
use crate::trials::Trials;
use crate::world::{Answer, Place, QUIET, Running, World, ask_again, eventually, patience};

type Case = (&'static str, fn(Node));

const CASES: &[Case] = &[
    (
        "everybody_reaches_every_backend",
        everybody_reaches_every_backend,
    ),
    (
        "no_endpoints_is_refused_and_a_first_one_serves",
        no_endpoints_is_refused_and_a_first_one_serves,
    ),
    (
        "local_policies_keep_outsiders_waiting",
        local_policies_keep_outsiders_waiting,
    ),
    (
        "source_ranges_guard_the_load_balancer_address",
        source_ranges_guard_the_load_balancer_address,
    ),
    (
        "the_health_check_node_port_tells_each_family_apart",
        the_health_check_node_port_tells_each_family_apart,
    ),
    (
        "health_checks_and_node_ports_answer_where_they_are_told_to",
        health_checks_and_node_ports_answer_where_they_are_told_to,
    ),
    (
        "a_deleted_service_leaves_nothing_behind",
        a_deleted_service_leaves_nothing_behind,
    ),
    (
        "a_udp_client_keeps_its_port_through_everything",
        a_udp_client_keeps_its_port_through_everything,
    ),
    (
        "an_orderly_end_removes_every_rule",
        an_orderly_end_removes_every_rule,
    ),
    (
        "a_crash_is_cleaned_up_by_the_next_start",
        a_crash_is_cleaned_up_by_the_next_start,
    ),
    (
        "cleanup_removes_what_a_crash_left",
        cleanup_removes_what_a_crash_left,
    ),
    (
        "rules_come_back_within_the_sync_period",
        rules_come_back_within_the_sync_period,
    ),
    (
        "starting_in_the_other_mode_takes_over",
        starting_in_the_other_mode_takes_over,
    ),
];

const CALLERS: [Place; 3] = [Place::Pod, Place::Outside, Place::Node];
const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
const BALANCER: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];
const NODE_PORT: u16 = 30080;
const HEALTH_PORT: u16 = 30081;

/// Adds every case for every mode that writes rules.
pub(crate) fn add_to(trials: &mut Trials) {
    for mode in [Mode::Nftables, Mode::Iptables] {
        for (name, case) in CASES {
            let name = format!("program::{name}");
            trials.add(mode, &name, &["nft", "iptables"], move || {
                case(Node::new(mode))
            });
        }
    }
}

fn everybody_reaches_every_backend(mut node: Node) {
    node.apply(&Web::default());
    node.start();
    for ip in SERVICE.map(|ip| ip.parse::<IpAddr>().unwrap()) {
        node.await_served(SocketAddr::new(ip, 80));
        for (from, protocol) in everybody() {
            node.assert_backends(
                from,
                protocol,
                SocketAddr::new(ip, 80),
                &["local", "remote"],
            );
            let node_port = SocketAddr::new(Place::Node.ip(ip.is_ipv6()), NODE_PORT);
            node.assert_backends(from, protocol, node_port, &["local", "remote"]);
        }
    }
    let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), NODE_PORT);
    for protocol in BOTH {
        node.assert_backends(Place::Node, protocol, loopback, &["local", "remote"]);
    }
}

fn no_endpoints_is_refused_and_a_first_one_serves(mut node: Node) {
    node.apply(&Web {
        endpoints: &[],
        ..Web::default()
    });
    node.start();
    let targets = targets();
    for to in targets {
        eventually(|| match node.ask(Place::Pod, Protocol::Tcp, to, QUIET) {
            Answer::Refused => Ok(()),
            other => Err(format!("{to}: {other:?}")),
        });
        for (from, protocol) in everybody() {
            assert_eq!(
                node.ask(from, protocol, to, patience()),
                Answer::Refused,
                "{from:?} to {to}/{protocol}"
            );
        }
    }
    let clients: Vec<_> = targets
        .map(|to| node.world.udp_client(Place::Outside, to))
        .into();
    for client in &clients {
        assert_eq!(ask_again(client, patience()), Answer::Refused);
    }
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    for to in targets {
        node.await_served(to);
    }
    for client in &clients {
        assert_eq!(ask_again(client, patience()).words(), "local");
    }
}

fn local_policies_keep_outsiders_waiting(mut node: Node) {
    let web = Web {
        spec: "externalTrafficPolicy: Local",
        endpoints: &["remote"],
        ..Web::default()
    };
    node.apply(&web);
    node.start();
    let to = SocketAddr::new(Place::Node.ip(false), NODE_PORT);
    eventually(|| match node.ask(Place::Pod, Protocol::Tcp, to, QUIET) {
        Answer::Words(_) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    for protocol in BOTH {
        assert_eq!(
            node.ask(Place::Outside, protocol, to, QUIET),
            Answer::Silence,
            "{protocol}"
        );
        node.assert_backends(Place::Pod, protocol, to, &["remote"]);
        node.assert_backends(Place::Node, protocol, to, &["remote"]);
    }
    let waiting = node.world.udp_client(Place::Outside, to);
    assert_eq!(ask_again(&waiting, QUIET), Answer::Silence);
    node.apply(&Web {
        endpoints: &["local", "remote"],
        ..web
    });
    node.await_served(to);
    node.assert_backends(Place::Outside, Protocol::Tcp, to, &["local"]);
    assert_eq!(ask_again(&waiting, patience()).words(), "local");
}

fn source_ranges_guard_the_load_balancer_address(mut node: Node) {
    node.apply(&Web {
        kind: "LoadBalancer",
        spec: "loadBalancerSourceRanges: [192.0.2.0/25, 2001:db8::/80]",
        status: "{loadBalancer: {ingress: [{ip: 203.0.113.7}, {ip: '2001:db8:7::7'}]}}",
        ..Web::default()
    });
    node.start();
    for (balancer, service) in BALANCER.into_iter().zip(SERVICE) {
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 80);
        node.await_served(at(balancer));
        for protocol in BOTH {
            node.assert_backends(Place::Outside, protocol, at(balancer), &["local", "remote"]);
            node.assert_backends(Place::Pod, protocol, at(service), &["local", "remote"]);
            assert_eq!(
                node.ask(Place::Pod, protocol, at(balancer), QUIET),
                Answer::Silence,
                "{balancer}"
            );
        }
    }
}

fn the_health_check_node_port_tells_each_family_apart(mut node: Node) {
    let web = || Web {
        kind: "LoadBalancer",
        spec: "externalTrafficPolicy: Local\n  healthCheckNodePort: 30081",
        ..Web::default()
    };
    node.apply(&web());
    let [v4, v6] = [false, true].map(|v6| SocketAddr::new(Place::Node.ip(v6), HEALTH_PORT));
    let hog = node
        .world
        .in_ns(Place::Node, || TcpListener::bind(v4).unwrap());
    node.start();
    node.await_health(Place::Outside, v6, "200 1");
    node.await_served(SocketAddr::new(SERVICE[0].parse().unwrap(), 80));
    drop(hog);
    for to in [v4, v6] {
        for from in CALLERS {
            node.await_health(from, to, "200 1");
        }
    }
    node.apply(&Web {
        endpoints: &["remote"],
        ..web()
    });
    for to in [v4, v6] {
        node.await_health(Place::Outside, to, "503 0");
    }
    node.apply(&Web {
        spec: "externalTrafficPolicy: Cluster",
        ..web()
    });
    for to in [v4, v6] {
        node.await_health(Place::Outside, to, "refused");
    }
}

fn health_checks_and_node_ports_answer_where_they_are_told_to(mut node: Node) {
    let second = Place::Pod.gateway(false);
    let range = format!("{second}/32,127.0.0.0/8,fd00:10:244::/64");
    node.flags = vec![
        format!("--nodeport-addresses={range}"),
        "--iptables-localhost-nodeports=false".to_owned(),
        "--masquerade-all".to_owned(),
    ];
    node.apply(&Web {
        kind: "LoadBalancer",
        spec: "externalTrafficPolicy: Local\n  healthCheckNodePort: 30081",
        ..Web::default()
    });
    node.start();
    let at = |ip: IpAddr, port| SocketAddr::new(ip, port);
    node.await_health(Place::Outside, at(second, HEALTH_PORT), "200 1");
    let second_v6 = at(Place::Pod.gateway(true), HEALTH_PORT);
    node.await_health(Place::Outside, second_v6, "200 1");
    node.await_served(at(second, NODE_PORT));
    let first = Place::Node.ip(false);
    assert_eq!(
        node.health(Place::Outside, at(first, HEALTH_PORT)),
        "refused"
    );
    let localhost = Ipv4Addr::LOCALHOST.into();
    node.await_health(Place::Node, at(localhost, HEALTH_PORT), "200 1");
    for (from, ip) in [(Place::Outside, first), (Place::Node, localhost)] {
        let answer = node.ask(from, Protocol::Tcp, at(ip, NODE_PORT), patience());
        assert_eq!(answer, Answer::Refused, "{ip}");
    }
}

fn a_deleted_service_leaves_nothing_behind(mut node: Node) {
    node.apply(&Web::default());
    node.start();
    for to in targets() {
        node.await_served(to);
    }
    fs::remove_file(node.manifests().join("web.yaml")).unwrap();
    for (to, gone) in targets().into_iter().zip([
        Answer::Silence,
        Answer::Refused,
        Answer::Silence,
        Answer::Refused,
    ]) {
        eventually(
            || match node.ask(Place::Outside, Protocol::Tcp, to, QUIET) {
                answer if answer == gone => Ok(()),
                other => Err(format!("{to}: {other:?}")),
            },
        );
    }
}

fn a_udp_client_keeps_its_port_through_everything(mut node: Node) {
    let targets = targets();
    let clients: Vec<_> = [Place::Pod, Place::Outside]
        .into_iter()
        .flat_map(|from| targets.map(|to| (from, to)))
        .map(|(from, to)| node.world.udp_client(from, to))
        .collect();
    let all = |name: &str| {
        for client in &clients {
            eventually(|| match ask_again(client, QUIET) {
                Answer::Words(words) if words == name => Ok(()),
                other => Err(format!("{client:?}: {other:?}, not {name}")),
            });
        }
    };
    for client in &clients {
        client.send(b"before anybody captures").unwrap();
    }
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    node.start();
    all("local");
    node.apply(&Web {
        endpoints: &["remote"],
        ..Web::default()
    });
    all("remote");
    node.kill();
    node.start();
    all("remote");
    fs::remove_file(node.manifests().join("web.yaml")).unwrap();
    eventually(|| match ask_again(&clients[0], QUIET) {
        Answer::Silence => Ok(()),
        other => Err(format!("{other:?}")),
    });
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    all("local");
    assert!(node.end().success());
    node.start();
    all("local");
}

fn an_orderly_end_removes_every_rule(mut node: Node) {
    let before = all_rules(&node.world);
    node.apply(&Web::default());
    node.start();
    node.await_served(targets()[0]);
    assert_ne!(all_rules(&node.world), before);
    assert!(node.end().success());
    assert_eq!(all_rules(&node.world), before);
}

fn a_crash_is_cleaned_up_by_the_next_start(mut node: Node) {
    let before = all_rules(&node.world);
    node.apply(&Web::default());
    node.start();
    node.await_served(targets()[0]);
    node.kill();
    assert_ne!(all_rules(&node.world), before, "a crash leaves its rules");
    node.start();
    for to in targets() {
        node.await_served(to);
        node.assert_backends(Place::Outside, Protocol::Udp, to, &["local", "remote"]);
    }
    assert!(node.end().success());
    assert_eq!(all_rules(&node.world), before);
}

fn cleanup_removes_what_a_crash_left(mut node: Node) {
    let before = all_rules(&node.world);
    node.apply(&Web::default());
    node.start();
    node.await_served(targets()[0]);
    node.kill();
    for _ in 0..2 {
        let mut cleanup = Command::new(env!("CARGO_BIN_EXE_viaduct"));
        node.world.output_in(Place::Node, cleanup.arg("cleanup"));
        assert_eq!(all_rules(&node.world), before);
    }
}

fn rules_come_back_within_the_sync_period(mut node: Node) {
    node.apply(&Web::default());
    node.start();
    for to in targets() {
        node.await_served(to);
    }
    let whole = all_rules(&node.world);
    node.world.shell(Place::Node, "nft flush ruleset");
    for to in targets() {
        node.await_served(to);
    }
    eventually(|| match all_rules(&node.world) {
        now if now == whole => Ok(()),
        other => Err(other),
    });
}

fn starting_in_the_other_mode_takes_over(mut node: Node) {
    node.apply(&Web::default());
    node.start();
    node.await_served(targets()[0]);
    node.kill();
    node.mode = if node.mode == Mode::Nftables {
        Mode::Iptables
    } else {
        Mode::Nftables
    };
    node.start();
    for to in targets() {
        node.await_served(to);
        node.assert_backends(Place::Outside, Protocol::Udp, to, &["local", "remote"]);
    }
    assert!(node.end().success());
    let left = all_rules(&node.world).to_lowercase();
    assert!(!left.contains("viaduct"), "{left}");
}

fn everybody() -> impl Iterator<Item = (Place, Protocol)> {
    CALLERS
        .into_iter()
        .flat_map(|from| BOTH.map(|protocol| (from, protocol)))
}

// The cluster address and the node port, in both families.
fn targets() -> [SocketAddr; 4] {
    let cluster = SERVICE.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80));
    let node = [false, true].map(|v6| SocketAddr::new(Place::Node.ip(v6), NODE_PORT));
    [cluster[0], node[0], cluster[1], node[1]]
}

/// The Service `default/web` and its slices, as a manifest.
struct Web {
    kind: &'static str,
    spec: &'static str,
    status: &'static str,
    endpoints: &'static [&'static str],
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
    fn manifest(&self) -> String {
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
        for (family, v6) in [("IPv4", false), ("IPv6", true)] {
            let endpoints: String = self
                .endpoints
                .iter()
                .map(|name| endpoint(name, v6))
                .collect();
            let name = family.to_lowercase();
            text += &format!(
                "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-{name}, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: {family}
ports: [{{name: t, port: {PORT}, protocol: TCP}}, {{name: u, port: {PORT}, protocol: UDP}}]
endpoints: [{endpoints}]
"
            );
        }
        text
    }
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

/// The node of a world with the program on it, and the backends `local` and `remote`.
struct Node {
    program: Option<Running>,
    mode: Mode,
    flags: Vec<String>,
    directory: TempDir,
    _backends: [Backend; 2],
    world: World,
}

impl Node {
    fn new(mode: Mode) -> Self {
        let world = World::new();
        let backends = [(Place::Local, "local"), (Place::Remote, "remote")];
        let node = Self {
            program: None,
            mode,
            flags: Vec::new(),
            directory: tempfile::tempdir().unwrap(),
            _backends: backends.map(|(place, name)| Backend::new(&world, place, name)),
            world,
        };
        fs::create_dir(node.manifests()).unwrap();
        node
    }

    fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    fn apply(&self, web: &Web) {
        // A file under its final name is always whole.
        let draft = self.manifests().join("web.tmp");
        fs::write(&draft, web.manifest()).unwrap();
        fs::rename(draft, self.manifests().join("web.yaml")).unwrap();
    }

    fn start(&mut self) {
        let directory = self.directory.path();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(directory.join("log"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
        command
            .args([
                "run",
                "--hostname-override",
                "n0",
                "--iptables-sync-period",
                "500ms",
                "--drain-timeout",
                "1s",
            ])
            .args([
                "--service-cluster-ip-range",
                "10.96.0.0/16,fd00:10:96::/112",
            ])
            .args(["--cluster-cidr", "10.244.0.0/24,fd00:10:244::/64"])
            .args(["--capture", self.mode.as_str()])
            .args(&self.flags)
            .arg("--manifests")
            .arg(self.manifests())
            .arg("--admin-socket")
            .arg(directory.join("admin.sock"))
            .arg("--data-dir")
            .arg(directory.join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.program = Some(self.world.spawn_in(Place::Node, &mut command));
    }

    /// As a crash would.
    fn kill(&mut self) {
        drop(self.program.take());
    }

    /// Asks it to end, and waits.
    fn end(&mut self) -> ExitStatus {
        let mut program = self.program.take().expect("it was started");
        let pid = Pid::from_raw(i32::try_from(program.0.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        eventually(|| {
            program
                .0
                .try_wait()
                .unwrap()
                .ok_or_else(|| "it has not ended".to_owned())
        })
    }

    fn ask(&self, from: Place, protocol: Protocol, to: SocketAddr, wait: Duration) -> Answer {
        match protocol {
            Protocol::Tcp => self.world.ask_tcp(from, to, wait),
            Protocol::Udp => self.world.ask_udp(from, to, wait),
        }
    }

    /// What the health-check node port tells: the status and the number of local endpoints.
    fn health(&self, from: Place, to: SocketAddr) -> String {
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&to, patience())?;
            stream.set_read_timeout(Some(patience()))?;
            stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.to_lowercase())
        };
        let answer: io::Result<String> = self.world.in_ns(from, ask);
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

    fn await_health(&self, from: Place, to: SocketAddr, wanted: &str) {
        eventually(|| match self.health(from, to) {
            told if told == wanted => Ok(()),
            other => Err(format!("{from:?} at {to}: {other}, not {wanted}")),
        });
    }

    /// Waits until both protocols answer callers from outside.
    fn await_served(&self, to: SocketAddr) {
        for protocol in BOTH {
            eventually(|| match self.ask(Place::Outside, protocol, to, QUIET) {
                Answer::Words(_) => Ok(()),
                other => Err(format!("{to}/{protocol}: {other:?}")),
            });
        }
    }

    /// Exactly these backends answer, all of them.
    fn assert_backends(&self, from: Place, protocol: Protocol, to: SocketAddr, expected: &[&str]) {
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
