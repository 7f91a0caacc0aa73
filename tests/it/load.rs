//! `viaduct load`: what it measures against a computed truth, and that its figures are those of the proxy.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use viaduct::workload::load::{Origins, Pace, Plan, Progress, Report, TcpWork, Work, run};

use crate::cluster::{Cluster, eventually, http_get, pod, service};

/// A server that sends every line back, but answers nothing between these times after its start.
fn stalling_server(from: Duration, until: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let start = Instant::now();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                let mut stream = stream;
                let mut line = Vec::new();
                while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    let now = start.elapsed();
                    if (from..until).contains(&now) {
                        thread::sleep(until - now);
                    }
                    if stream.write_all(&line).is_err() {
                        return;
                    }
                    line.clear();
                }
            });
        }
    });
    addr
}

fn lines_to(target: SocketAddr, pace: Pace, connections: usize, length: Duration) -> Plan {
    Plan {
        work: Work::Tcp(TcpWork {
            target,
            request_size: 32,
            response_size: None,
            keep: true,
        }),
        pace,
        connections: NonZeroUsize::new(connections).unwrap(),
        in_turn: 0,
        threads: NonZeroUsize::MIN,
        warm_up: Duration::ZERO,
        length,
        patience: Duration::from_secs(5),
        origins: Origins::default(),
    }
}

fn report(plan: Plan) -> Report {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let load = run(
        plan,
        Arc::new(Progress::default()),
        CancellationToken::new(),
    );
    runtime.block_on(load).unwrap()
}

// The stall lasts one second of two and a half; each request that is due in it waits for what is left of it: of all
// requests, a share of (1 s - x) / 2.5 s takes longer than x.
#[test]
fn a_stall_is_charged_to_every_request_that_was_due_in_it() {
    let ms = Duration::from_millis;
    let rate = Pace::Rate("1000".parse().unwrap());
    let server = stalling_server(ms(700), ms(1700));
    let open = report(lines_to(server, rate, 2000, ms(2500)));
    assert_eq!((open.sent, open.done, open.n_errors()), (2500, 2500, 0));
    for (figure, wanted) in [
        (open.latency.p90, 0.750),
        (open.latency.p99, 0.975),
        (open.latency.max, 1.000),
    ] {
        assert!(
            (figure - wanted).abs() < 0.06,
            "{figure} is not {wanted}: {open:?}"
        );
    }
    let server = stalling_server(ms(700), ms(1700));
    let closed = report(lines_to(server, Pace::Answers, 1, ms(2500)));
    assert!(
        closed.latency.p99 < 0.1,
        "one request alone met the stall: {closed:?}"
    );
    assert!((closed.latency.max - 1.0).abs() < 0.06, "{closed:?}");
}

#[test]
fn few_connections_do_not_slow_the_schedule_down() {
    let ms = Duration::from_millis;
    let rate = Pace::Rate("1000".parse().unwrap());
    let server = stalling_server(ms(300), ms(600));
    let report = report(lines_to(server, rate, 2, ms(1000)));
    assert_eq!((report.sent, report.done), (1000, 1000));
    assert!(
        report.latency.p90 > 0.15,
        "what waited is charged too: {report:?}"
    );
    assert!(report.lateness.p90 > 0.1, "and seen as ours: {report:?}");
}

#[test]
fn a_stop_reports_what_there_is_so_far() {
    let server = stalling_server(Duration::ZERO, Duration::ZERO);
    let rate = Pace::Rate("500".parse().unwrap());
    let plan = lines_to(server, rate, 10, Duration::from_secs(3600));
    let (stop, progress) = (CancellationToken::new(), Arc::new(Progress::default()));
    let seen = progress.clone();
    let stopper = stop.clone();
    let watcher = thread::spawn(move || {
        while seen.done() < 50 {
            thread::yield_now();
        }
        stopper.cancel();
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let report = runtime.block_on(run(plan, progress, stop)).unwrap();
    watcher.join().unwrap();
    assert!((50..500).contains(&report.done), "{report:?}");
    assert!(report.seconds < 60.0);
    assert!(report.rate > 10.0, "by the time that passed: {report:?}");
}

fn demo() -> Cluster {
    Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
        ("b.yaml", &pod("web", "b", true)),
    ])
}

fn json(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|why| panic!("{why}: {error}"))
}

fn short<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [
        words,
        &["--duration", "500ms", "--rate", "400", "-o", "json"],
    ]
    .concat()
}

#[test]
fn the_generator_and_the_proxy_count_the_same() {
    let cluster = demo();
    cluster.served_at("web");
    let output = cluster.load(&short(&["default/web", "--reconnect"]));
    let report = json(&output);
    assert_eq!(report["done"], 200, "{report}");
    assert_eq!(report["rate"], 400.0, "by the time that was asked for");
    assert_eq!(report["errors"], serde_json::json!({}));
    let of = |name: &str| {
        let backends = report["backends"].as_array().unwrap();
        let backend = backends.iter().find(|backend| backend["name"] == name);
        backend.unwrap()["done"].as_u64().unwrap()
    };
    assert_eq!((of("a"), of("b")), (100, 100), "round robin");
    for item in cluster.items("backends") {
        let name = item["pod"].as_str().unwrap();
        assert_eq!(item["flowsTotal"], of(name), "{item}");
    }
}

// The sum of a metric over all series whose labels have those words.
fn metric(cluster: &Cluster, name: &str, words: &[&str]) -> u64 {
    let (_, text) = http_get(cluster.address("Metrics"), "/metrics").unwrap();
    let of_it = |line: &&str| {
        line.starts_with(&format!("{name}{{")) && words.iter().all(|word| line.contains(word))
    };
    let values = text.lines().filter(of_it).map(|line| {
        let value = line.rsplit(' ').next().unwrap();
        value.parse::<u64>().unwrap()
    });
    values.sum()
}

#[test]
fn bytes_datagrams_and_the_flow_log_agree_to_the_last_request() {
    let udp_pod = pod("log", "c", true).replace(
        "containerPort: 8080",
        "containerPort: 8080\n      protocol: UDP",
    );
    let log =
        service("log", 8081).replace("targetPort: 8080", "protocol: UDP\n    targetPort: 8080");
    let mut cluster = Cluster::start_with(
        &[
            ("web.yaml", &service("web", 8080)),
            ("a.yaml", &pod("web", "a", true)),
            ("log.yaml", &log),
            ("c.yaml", &udp_pod),
        ],
        &["--log", "info,viaduct::flow=debug"],
    );
    cluster.served_at("web");
    for (target, service) in [("default/web", "web"), ("default/log", "log")] {
        let mut words = short(&[target]);
        if service == "web" {
            words.push("--reconnect");
        }
        let report = json(&cluster.load(&words));
        assert_eq!(
            (&report["done"], &report["sent"]),
            (&200.into(), &200.into())
        );
        assert_eq!(report["errors"], serde_json::json!({}));
        let of_service = format!("service=\"{service}\"");
        let bytes = |direction: &str| {
            let words = [of_service.as_str(), direction];
            metric(&cluster, "viaduct_service_bytes_total", &words)
        };
        // The answer may be at the client before it is counted.
        eventually("the same figures", || {
            let told = (&report["bytesSent"], &report["bytesReceived"]);
            let seen = (bytes("to_backend"), bytes("to_client"));
            if told == (&seen.0.into(), &seen.1.into()) {
                Ok(())
            } else {
                Err(format!("{service}: {told:?}, {seen:?}"))
            }
        });
        let faults = metric(&cluster, "viaduct_service_faults_total", &[&of_service]);
        assert_eq!(faults, 0);
        if service == "web" {
            let flows = metric(&cluster, "viaduct_service_flows_total", &[&of_service]);
            assert_eq!(flows, 200);
        }
    }
    assert_eq!(
        metric(&cluster, "viaduct_udp_datagrams_total", &["to_backend"]),
        200
    );
    for n in 0..200 {
        let line = cluster.wait_for_log(&["flow closed", "default/web", "finished"]);
        assert!(line.contains("bytes_to_backend=64"), "{n}: {line}");
    }
}

#[test]
fn every_protocol_is_answered() {
    let cluster = demo();
    let web = cluster.served_at("web").to_string();
    let url = format!("http://{web}/some/path?x=1");
    let dns = format!(
        "dns://{}/web.default.svc.cluster.local",
        cluster.address("DNS")
    );
    for words in [
        &[web.as_str()][..],
        &[url.as_str()],
        &[url.as_str(), "--reconnect", "--request-size", "1000"],
        &["default/web:8080", "-p", "http", "--threads", "2"],
        &[dns.as_str()],
        &[dns.as_str(), "--type", "AAAA"],
    ] {
        let output = cluster.load(&short(words));
        let report = json(&output);
        assert_eq!(report["done"], 200, "{words:?}: {report}");
        assert_eq!(output.status.code(), Some(0));
    }
    let bulk = cluster.load(&["default/web", "--bulk", "--duration", "300ms", "-o", "json"]);
    let report = json(&bulk);
    assert!(report["bytesSent"].as_u64().unwrap() > 100_000, "{report}");
    assert!(
        report["bytesReceived"].as_u64().unwrap() > 100_000,
        "{report}"
    );
}

#[test]
fn datagrams_are_answered_by_an_echo_of_our_own() {
    let mut echo = Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .args(["echo", "127.0.0.1:0", "--name", "me"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(echo.stdout.take().unwrap()).lines();
    let told: Vec<String> = lines.by_ref().take(2).map(Result::unwrap).collect();
    let udp = told.iter().find_map(|line| {
        let (_, at) = line.split_once(" answers at ")?;
        at.strip_suffix("/UDP")
    });
    let target = format!("udp://{}", udp.unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .args([
            "load", &target, "-c", "4", "-d", "300ms", "-q", "-o", "json",
        ])
        .args(["--request-size", "1200", "--expect", "errors=0,done>=4"])
        .output()
        .unwrap();
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["backends"][0]["name"], "me");
    assert_eq!(report["backends"][0]["done"], report["done"]);
    let sent = report["bytesSent"].as_u64().unwrap();
    assert_eq!(sent, 1200 * report["done"].as_u64().unwrap());
    echo.kill().unwrap();
    echo.wait().unwrap();
}

#[test]
fn connections_that_are_asked_for_take_turns_from_the_addresses_and_ports_asked_for() {
    let udp_pod = pod("log", "c", true).replace(
        "containerPort: 8080",
        "containerPort: 8080\n      protocol: UDP",
    );
    let log =
        service("log", 8081).replace("targetPort: 8080", "protocol: UDP\n    targetPort: 8080");
    let cluster = Cluster::start(&[("log.yaml", &log), ("c.yaml", &udp_pod)]);
    cluster.served_at("log");
    let flows = |words: &[&str]| {
        let report = json(&cluster.load(&short(words)));
        assert_eq!(
            (&report["done"], &report["errors"]),
            (&200.into(), &serde_json::json!({}))
        );
        let items = cluster.items("flows");
        let clients = items.iter().map(|item| {
            let sent = item["bytesToBackend"].as_u64().unwrap() / 64;
            let client: SocketAddr = item["client"].as_str().unwrap().parse().unwrap();
            (client, sent)
        });
        clients.collect::<Vec<_>>()
    };
    let of_ten = flows(&["default/log", "-c", "10", "--source", "127.0.0.2"]);
    assert_eq!(of_ten.len(), 10);
    assert!(
        of_ten
            .iter()
            .all(|(client, _)| client.ip().to_string() == "127.0.0.2")
    );
    assert!(
        of_ten.iter().all(|(_, sent)| (10..=30).contains(sent)),
        "{of_ten:?}"
    );
    // A port that was free a moment ago.
    let free = std::net::UdpSocket::bind("127.0.0.3:0").unwrap();
    let source = free.local_addr().unwrap();
    drop(free);
    let all = flows(&["default/log", "--source", &source.to_string()]);
    assert!(all.contains(&(source, 200)), "{all:?}");
}

#[test]
fn an_expectation_that_does_not_hold_is_the_exit_status() {
    let cluster = demo();
    cluster.served_at("web");
    let output = cluster.load(&short(&["default/web", "--expect", "errors=0,p50<1ns"]));
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.starts_with("error: --expect p50<1ns does not hold: "),
        "{error}"
    );
    assert!(!error.contains("errors=0"), "{error}");
}

#[test]
fn the_distribution_is_written_for_plotters() {
    let cluster = demo();
    let web = cluster.served_at("web").to_string();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let output = cluster.load(&short(&[&web, "--hgrm", path]));
    assert_eq!(output.status.code(), Some(0));
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains("Total count    =          200]"), "{text}");
}

/// A server that answers every line with another one.
fn lying_server(asked: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut answers = stream.try_clone().unwrap();
            let asked = asked.clone();
            thread::spawn(move || {
                for _line in BufReader::new(stream).lines().map_while(Result::ok) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    let _gone = answers.write_all(b"liar: something else\n");
                }
            });
        }
    });
    addr
}

#[test]
fn an_answer_that_is_not_the_one_is_an_error() {
    let asked = Arc::new(AtomicU64::new(0));
    let server = lying_server(asked.clone());
    let rate = Pace::Rate("100".parse().unwrap());
    let report = report(lines_to(server, rate, 10, Duration::from_millis(300)));
    assert_eq!(
        (report.done, report.errors["mismatch"]),
        (0, 30),
        "{report:?}"
    );
    assert_eq!(asked.load(Ordering::Relaxed), 30);
}

#[test]
fn bad_input_names_the_flag_and_the_remedy() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let refuses = closed.to_string();
    for (words, status, parts) in [
        (
            &["127.0.0.1:9", "--rate", "0"][..],
            2,
            &["--rate", "100..10000"][..],
        ),
        (
            &["127.0.0.1:9", "--connections", "10000000"],
            2,
            &["--connections", "ulimit"],
        ),
        (
            &["127.0.0.1:9", "--duration", "0s"],
            2,
            &["--duration", "more than 0"],
        ),
        (
            &["127.0.0.1:9", "--expect", "p98<1ms"],
            2,
            &["--expect", "p99.9"],
        ),
        (
            &["127.0.0.1:9", "--request-size", "0"],
            2,
            &["--request-size", "from 1"],
        ),
        (
            &["127.0.0.1:9", "--source", "::1"],
            2,
            &["--source", "family"],
        ),
        (
            &["127.0.0.1:9", "--source", "127.0.0.1:5-6", "-c", "3"],
            2,
            &["--connections", "2 ports"],
        ),
        (
            &["127.0.0.1:9", "--source", "127.0.0.1:6-5"],
            2,
            &["--source", "ADDR:FIRST-LAST"],
        ),
        (&["udp://127.0.0.1:9", "--bulk"], 2, &["--bulk", "tcp"]),
        (
            &["udp://127.0.0.1:9", "-p", "http"],
            2,
            &["--protocol", "udp:"],
        ),
        (&["dns://127.0.0.1"], 2, &["--name"]),
        (&["dns://127.0.0.1/a..b"], 2, &["--name", "a..b"]),
        (&["https://127.0.0.1/"], 2, &["https", "http"]),
        (&["nonsense"], 2, &["ADDR:PORT"]),
        (
            &["no-such-name.invalid:80"],
            1,
            &["no-such-name.invalid", "resolve"],
        ),
        (
            &[&refuses, "-d", "100ms"],
            1,
            &["refused", &refuses, "--protocol"],
        ),
        (
            &["default/web", "--admin-socket", "/nonexistent/s"],
            1,
            &["--admin-socket"],
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_viaduct"))
            .arg("load")
            .args(words)
            .arg("--quiet")
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{words:?}: {error}");
        for part in parts {
            assert!(error.contains(part), "{words:?}: no {part} in {error}");
        }
    }
}
