//! Faults as the clients people use meet them: curl, dig and a UDP client in Python, with the proxy's own figures beside
//! theirs. A tool that is not installed is skipped, and said so.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, eventually, pod, service, udp_ask};
use crate::faults::{fault, injected};

fn is_missing(tool: &str) -> bool {
    let found = Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let missing = found.is_err();
    if missing {
        eprintln!("SKIPPED: {tool} is not installed");
    }
    missing
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

struct Curled {
    status: Option<i32>,
    code: String,
    took: Duration,
}

fn curl(address: SocketAddr, words: &[&str]) -> Curled {
    let output = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code} %{time_total}"])
        .args(words)
        .arg(format!("http://{address}/"))
        .output()
        .unwrap();
    let told = text(&output);
    let (code, took) = told.split_once(' ').unwrap();
    Curled {
        status: output.status.code(),
        code: code.to_owned(),
        took: Duration::from_secs_f64(took.parse().unwrap()),
    }
}

/// Exit status of curl for a body that ends early, what breaks off, or so soon that it was never open, and time that is up.
const PARTIAL: i32 = 18;
const BROKEN_OFF: i32 = 56;
const NEVER_OPEN: i32 = 7;
const TIME_IS_UP: i32 = 28;

#[test]
fn curl_meets_every_fault_of_connections_and_nobody_beside() {
    if is_missing("curl") {
        return;
    }
    let cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
        ("beside.yaml", &service("beside", 8080)),
        ("c.yaml", &pod("beside", "c", true)),
    ]);
    let (web, beside) = (cluster.served_at("web"), cluster.served_at("beside"));
    let curled = curl(web, &[]);
    assert_eq!((curled.status, curled.code.as_str()), (Some(0), "200"));
    let mut body = tempfile::NamedTempFile::new().unwrap();
    body.write_all(&[b'x'; 1_000_000]).unwrap();
    let body = format!("@{}", body.path().display());
    let ms = Duration::from_millis;
    for (target, faults, kind, words, statuses, at_least) in [
        (
            "default/web",
            "delay=300ms",
            "delay",
            &[][..],
            &[0][..],
            ms(300),
        ),
        ("default/web", "stall=3s/1h", "delay", &[], &[0], ms(100)),
        (
            "default/web",
            "rate=2MB/s",
            "rate",
            &["--data-binary", &body],
            &[0],
            ms(300),
        ),
        (
            "default/web",
            "reset=100%",
            "reset",
            &[],
            &[BROKEN_OFF, NEVER_OPEN],
            ms(0),
        ),
        (
            "default/web@a",
            "refuse",
            "refuse",
            &[],
            &[BROKEN_OFF, NEVER_OPEN],
            ms(0),
        ),
        (
            "default/web:8080",
            "cut=100%",
            "cut",
            &[],
            &[BROKEN_OFF, PARTIAL],
            ms(0),
        ),
        (
            "default/web",
            "blackhole",
            "blackhole",
            &["--max-time", "0.3"],
            // By curl's own clock, which may wake it a moment early.
            &[TIME_IS_UP],
            ms(250),
        ),
        ("pod/default/a", "delay=300ms", "delay", &[], &[0], ms(300)),
        (
            "pod/default/a",
            "reset=100%",
            "reset",
            &[],
            &[BROKEN_OFF, NEVER_OPEN],
            ms(0),
        ),
        (
            "pod/default/a",
            "cut=100%",
            "cut",
            &[],
            &[BROKEN_OFF, PARTIAL],
            ms(0),
        ),
        (
            "pod/default/a",
            "blackhole",
            "blackhole",
            &["--max-time", "0.3"],
            // By curl's own clock, which may wake it a moment early.
            &[TIME_IS_UP],
            ms(250),
        ),
    ] {
        let before = injected(&cluster, kind);
        fault(&cluster, target, faults);
        // For as long as this fault is on, the Service beside it is asked as well.
        let curled = curl(web, words);
        let neighbour = curl(beside, &[]);
        fault(&cluster, target, "off");
        let said = curled.status.unwrap();
        assert!(
            statuses.contains(&said),
            "{target} {faults}: exit status {said}"
        );
        assert!(
            curled.took >= at_least,
            "{target} {faults}: {:?}",
            curled.took
        );
        assert!(
            injected(&cluster, kind) > before,
            "{target} {faults} is not counted"
        );
        assert_eq!(
            (neighbour.status, neighbour.code.as_str()),
            (Some(0), "200")
        );
        // A backend that failed is held back for a second; there is no other.
        eventually("it is well again", || match curl(web, &[]).status {
            Some(0) => Ok(()),
            other => Err(other),
        });
    }
    fault(&cluster, "pod/default/a", "error=100%");
    assert_eq!(curl(web, &[]).code, "500");
    assert_eq!(injected(&cluster, "error"), 1);
    fault(&cluster, "pod/default/a", "refuse");
    eventually("nobody listens", || match curl(web, &[]).status {
        Some(0) => Err(0),
        _broken => Ok(()),
    });
    fault(&cluster, "pod/default/a", "off");
    eventually("it listens", || match curl(web, &[]).status {
        Some(0) => Ok(()),
        other => Err(other),
    });
    let failed = |pod: &str| {
        let items = cluster.items("backends");
        let of_pod = items.iter().find(|item| item["pod"] == pod).unwrap();
        of_pod["failuresTotal"].as_u64().unwrap()
    };
    assert!(failed("a") > 0, "what refused is blamed");
    assert_eq!(failed("c"), 0);
}

#[test]
fn a_service_beside_a_broken_one_is_as_fast_as_before() {
    let cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
        ("beside.yaml", &service("beside", 8080)),
        ("c.yaml", &pod("beside", "c", true)),
    ]);
    let (web, beside) = (cluster.served_at("web"), cluster.served_at("beside"));
    let load = |target: SocketAddr| {
        let output = Command::new(env!("CARGO_BIN_EXE_viaduct"))
            .args(["load", &target.to_string(), "-p", "tcp", "--reconnect"])
            .args(["--rate", "200", "-d", "500ms", "-q", "-o", "json"])
            .output()
            .unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    fault(
        &cluster,
        "default/web",
        "delay=1s±500ms; rate=1kB/s; reset=30%; seed=3",
    );
    let (broken, beside) = std::thread::scope(|scope| {
        let broken = scope.spawn(|| load(web));
        let beside = load(beside);
        (broken.join().unwrap(), beside)
    });
    assert_eq!(
        (&beside["done"], &beside["errors"]),
        (&100.into(), &serde_json::json!({}))
    );
    let p99 = |report: &Value| report["latency"]["p99"].as_f64().unwrap();
    assert!(p99(&beside) < 0.4, "less than the least delay: {beside}");
    assert!(
        broken["latency"]["p50"].as_f64().unwrap() >= 0.5,
        "{broken}"
    );
    let resets = broken["errors"]["reset"].as_u64().unwrap();
    assert_eq!(resets, injected(&cluster, "reset"));
    assert_eq!(resets + broken["done"].as_u64().unwrap(), 100, "{broken}");
}

// A Service in front of the cluster's own DNS server.
fn resolver(dns: SocketAddr) -> String {
    let ports = |number: &str, port: u16| {
        format!(
            "  - {{name: udp, {number}: {port}, protocol: UDP}}\n  - {{name: tcp, {number}: {port}, protocol: TCP}}\n"
        )
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: resolver}}\nspec:\n  ports:\n{}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: resolver-1\n  labels: {{kubernetes.io/service-name: resolver}}\naddressType: IPv4\nports:\n{}endpoints:\n- addresses: [{}]\n",
        ports("port", 8053),
        ports("port", dns.port()).replace("  - ", "- "),
        dns.ip(),
    )
}

#[test]
fn dig_meets_every_fault_of_datagrams() {
    if is_missing("dig") {
        return;
    }
    let cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
    ]);
    cluster.write("resolver.yaml", &resolver(cluster.address("DNS")));
    let at = cluster.served_at("resolver");
    let dig = |words: &[&str]| {
        let output = Command::new("dig")
            .arg(format!("@{}", at.ip()))
            .args(["-p", &at.port().to_string(), "+tries=1", "+time=1"])
            .args(words)
            .arg("web.default.svc.cluster.local")
            .output()
            .unwrap();
        (output.status.code(), text(&output))
    };
    let well = |words: &[&str]| {
        let (status, said) = dig(words);
        if status == Some(0) && said.contains("status: NOERROR") {
            Ok(said)
        } else {
            Err(said)
        }
    };
    eventually("an answer", || well(&[]));
    let query_time = |said: &str| {
        let line = said
            .lines()
            .find(|line| line.contains("Query time"))
            .unwrap();
        let number = line.split_whitespace().nth(3).unwrap();
        number.parse::<u64>().unwrap()
    };
    fault(&cluster, "default/resolver:udp", "delay=200ms");
    let took = query_time(&well(&[]).unwrap());
    // Of whole milliseconds, counted from the arrival of the batch.
    assert!(took >= 195, "{took} ms");
    assert!(injected(&cluster, "delay") >= 1);
    fault(&cluster, "default/resolver:udp", "duplicate=100%");
    well(&[]).unwrap();
    assert_eq!(injected(&cluster, "duplicate"), 1);
    for (faults, kind) in [("loss=100%", "loss"), ("blackhole", "blackhole")] {
        fault(&cluster, "default/resolver:udp", faults);
        let (status, said) = dig(&[]);
        assert_eq!(status, Some(9), "no reply: {said}");
        assert_eq!(injected(&cluster, kind), 1);
        well(&["+tcp"]).unwrap_or_else(|said| panic!("the port beside it: {said}"));
    }
    fault(&cluster, "default/resolver:udp", "off");
    fault(&cluster, "default/resolver:tcp", "reset=100%");
    let (status, said) = dig(&["+tcp"]);
    assert!(status == Some(9) && said.contains("reset"), "{said}");
    assert_eq!(injected(&cluster, "reset"), 1);
    well(&[]).unwrap();
}

const UDP_CLIENT: &str = r#"
import socket, sys, time
host, port, n, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((host, port))
began = time.monotonic()
for i in range(n):
    s.send(b"%06d" % i + b"x" * (size - 6))
s.settimeout(1)
answers = 0
longest = 0
last = began
try:
    while True:
        answer = s.recv(65535)
        answers += 1
        longest = max(longest, len(answer))
        last = time.monotonic()
except socket.timeout:
    pass
except ConnectionRefusedError:
    print("refused", 0, 0); sys.exit()
print(answers, longest, last - began)
"#;

#[test]
fn a_python_client_counts_what_is_lost_doubled_cut_and_held_back() {
    if is_missing("python3") {
        return;
    }
    let log = service("log", 8080).replace("port: 8080\n", "protocol: UDP\n    port: 8080\n");
    let udp_pod = pod("log", "a", true).replace(
        "containerPort: 8080",
        "containerPort: 8080\n      protocol: UDP",
    );
    let cluster = Cluster::start(&[("log.yaml", &log), ("a.yaml", &udp_pod)]);
    let at = cluster.served_at("log");
    eventually("an answer", || udp_ask(at, b"hello"));
    let ask = |n: u64, size: u64| {
        let output = Command::new("python3")
            .args(["-c", UDP_CLIENT, &at.ip().to_string()])
            .args([u64::from(at.port()), n, size].map(|word| word.to_string()))
            .output()
            .unwrap();
        let said = text(&output);
        let mut words = said.split_whitespace();
        let answers = words.next().unwrap().to_owned();
        let longest: u64 = words.next().unwrap().parse().unwrap();
        let took: f64 = words.next().unwrap().parse().unwrap();
        (answers, longest, took)
    };
    let count = |n: u64| n.to_string();
    assert_eq!(ask(50, 100).0, count(50));
    // The Pod's name and two more are before what comes back.
    for target in ["default/log", "pod/default/a"] {
        fault(&cluster, target, "loss=40%; duplicate=30%; seed=4");
        let before = (injected(&cluster, "loss"), injected(&cluster, "duplicate"));
        let (answers, ..) = ask(50, 100);
        let lost = injected(&cluster, "loss") - before.0;
        let doubled = injected(&cluster, "duplicate") - before.1;
        assert!(lost > 5 && doubled > 2, "{target}: {lost}, {doubled}");
        assert_eq!(answers, count(50 - lost + doubled), "{target}");
        fault(&cluster, target, "cut=100%");
        let (answers, longest, _) = ask(3, 100);
        assert_eq!(answers, count(3));
        let half = if target.starts_with("pod") {
            103 / 2
        } else {
            50 + 3
        };
        assert_eq!(longest, half, "{target}");
        fault(&cluster, target, "rate=100kB/s");
        let (answers, _, took) = ask(30, 1000);
        assert_eq!(answers, count(30), "{target}");
        assert!(took >= 0.27, "{target}: 30 kB at 100 kB/s in {took} s");
        fault(&cluster, target, "refuse");
        eventually("nothing comes back", || match ask(1, 100).0.as_str() {
            "0" | "refused" => Ok(()),
            other => Err(other.to_owned()),
        });
        fault(&cluster, target, "off");
        eventually("an answer", || match ask(1, 100).0.as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        });
    }
}
