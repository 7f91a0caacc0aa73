//! `viaduct fault`: what it breaks is seen by real clients and by the proxy's own figures, and nothing beside it is.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, eventually, http_get, patience, pod, served_by, service, udp_ask};

fn start() -> Cluster {
    Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
        ("b.yaml", &pod("web", "b", true)),
        ("beside.yaml", &service("beside", 8080)),
        ("c.yaml", &pod("beside", "c", true)),
    ])
}

pub(crate) fn fault(cluster: &Cluster, target: &str, faults: &str) {
    let output = cluster.fault(&[target, faults]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
}

fn refusal(cluster: &Cluster, words: &[&str]) -> String {
    let output = cluster.fault(words);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

pub(crate) fn injected(cluster: &Cluster, kind: &str) -> u64 {
    let (_, text) = http_get(cluster.address("Metrics"), "/metrics").unwrap();
    let name = format!("viaduct_faults_injected_total{{kind=\"{kind}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |value| value.parse().unwrap())
}

fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let before = Instant::now();
    (what(), before.elapsed())
}

#[test]
fn a_delayed_service_is_late_is_shown_and_leaves_others_alone() {
    let cluster = start();
    let (web, beside) = (cluster.served_at("web"), cluster.served_at("beside"));
    fault(&cluster, "default/web", "delay=200ms");
    let ms = Duration::from_millis;
    for _ in 0..2 {
        let (answer, took) = timed(|| served_by(web).unwrap());
        assert!(
            ["a", "b"].contains(&answer.as_str()) && took >= ms(200),
            "{took:?}"
        );
    }
    // The best of some: this machine may be busy, a delay would be in all of them.
    let best = (0..5).map(|_| timed(|| served_by(beside).unwrap()).1).min();
    assert!(best < Some(ms(200)), "{best:?}");
    assert_eq!(injected(&cluster, "delay"), 2);

    let says = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
    let on = says(cluster.fault(&[]));
    assert_eq!(
        on.lines().nth(1).unwrap(),
        "service/default/web   delay=200ms"
    );
    let explained = says(cluster.explain(&["default/web"]));
    let remark = "* faults on purpose at service/default/web: delay=200ms\n";
    assert!(explained.contains(remark), "{explained}");
    assert!(!says(cluster.explain(&["default/beside"])).contains("on purpose"));
    let wide = says(cluster.get(&["backends", "-o", "wide"]));
    assert_eq!(wide.matches("delay=200ms").count(), 2, "{wide}");

    fault(&cluster, "default/web", "off");
    assert_eq!(says(cluster.fault(&[])), "");
    served_by(web).unwrap();
    assert_eq!(injected(&cluster, "delay"), 2);
}

#[test]
fn a_refusing_backend_is_made_good_by_another_and_blamed() {
    let cluster = start();
    let web = cluster.served_at("web");
    fault(&cluster, "default/web@a", "refuse");
    for _ in 0..4 {
        assert_eq!(served_by(web).unwrap(), "b");
    }
    let failed = |pod: &str| {
        let items = cluster.items("backends");
        let item = items.iter().find(|item| item["pod"] == pod).unwrap();
        item["failuresTotal"].as_u64().unwrap()
    };
    assert_eq!(failed("a"), injected(&cluster, "refuse"));
    assert!(failed("a") >= 1 && failed("b") == 0);
}

#[test]
fn resets_cuts_and_black_holes_look_like_the_real_thing() {
    let cluster = start();
    let (web, beside) = (cluster.served_at("web"), cluster.served_at("beside"));
    fault(&cluster, "default/web:8080", "reset=100%");
    let error = served_by(web).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(injected(&cluster, "reset"), 1);

    fault(&cluster, "default/web:8080", "cut=100%");
    let mut stream = TcpStream::connect(web).unwrap();
    stream.write_all(b"hello\n").unwrap();
    let mut answer = Vec::new();
    let error = stream.read_to_end(&mut answer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(answer.len(), "a: hello\n".len() / 2);
    assert_eq!(injected(&cluster, "cut"), 1);

    fault(&cluster, "default/web:8080", "blackhole");
    let mut stream = TcpStream::connect(web).unwrap();
    stream.write_all(b"hello\n").unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(injected(&cluster, "blackhole"), 1);
    assert_eq!(served_by(beside).unwrap(), "c");
    fault(&cluster, "default/web:8080", "off");
    served_by(web).unwrap();
}

#[test]
fn a_rate_holds_bulk_back() {
    let cluster = start();
    let web = cluster.served_at("web");
    let echo = |n: usize| {
        let mut stream = TcpStream::connect(web).unwrap();
        let mut reader = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            stream.write_all(&vec![b'x'; n]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).unwrap();
        sender.join().unwrap();
        assert_eq!(answer.len(), n + "a: ".len());
    };
    fault(&cluster, "default/web", "rate=4MB/s");
    let ((), took) = timed(|| echo(2_000_000));
    assert!(
        took >= Duration::from_millis(300),
        "{took:?} for half a second's bytes"
    );
    assert_eq!(injected(&cluster, "rate"), 1);
}

const LOG: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: log}\nspec:\n  selector: {app: log}\n  ports:\n  - {port: 8080, protocol: UDP}\n";

fn start_udp() -> (Cluster, SocketAddr) {
    let pod = pod("log", "a", true).replace(
        "containerPort: 8080",
        "containerPort: 8080\n      protocol: UDP",
    );
    let cluster = Cluster::start(&[("log.yaml", LOG), ("a.yaml", &pod)]);
    let log = cluster.served_at("log");
    eventually("an answer", || udp_ask(log, b"x"));
    (cluster, log)
}

#[test]
fn datagrams_are_lost_late_or_doubled_on_the_way() {
    let (cluster, log) = start_udp();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(log).unwrap();
    let answer = |within: Duration| {
        client.set_read_timeout(Some(within)).unwrap();
        let mut buffer = [0; 64];
        let n = client.recv(&mut buffer)?;
        Ok::<_, std::io::Error>(String::from_utf8(buffer[..n].to_vec()).unwrap())
    };
    let soon = patience();
    let never = Duration::from_millis(100);
    client.send(b"well").unwrap();
    assert_eq!(answer(soon).unwrap(), "a: well");

    // The flow is older than the faults and outlives them.
    fault(&cluster, "default/log", "duplicate=100%");
    client.send(b"twice").unwrap();
    assert_eq!(
        [answer(soon).unwrap(), answer(soon).unwrap()],
        ["a: twice"; 2]
    );
    fault(&cluster, "default/log", "loss=100%");
    client.send(b"lost").unwrap();
    assert!(answer(never).is_err());
    fault(&cluster, "default/log", "delay=150ms");
    let (late, took) = timed(|| {
        client.send(b"late").unwrap();
        answer(soon).unwrap()
    });
    assert!(
        late == "a: late" && took >= Duration::from_millis(150),
        "{late} after {took:?}"
    );
    fault(&cluster, "default/log", "blackhole");
    client.send(b"gone").unwrap();
    assert!(answer(never).is_err());
    fault(&cluster, "default/log", "off");
    client.send(b"again").unwrap();
    assert_eq!(answer(soon).unwrap(), "a: again");
    for (kind, n) in [
        ("duplicate", 1),
        ("loss", 1),
        ("delay", 1),
        ("blackhole", 1),
    ] {
        assert_eq!(injected(&cluster, kind), n, "{kind}");
    }
}

#[test]
fn a_simulated_pod_fails_by_annotation_and_at_run_time() {
    let faulty = pod("web", "a", true).replace("simulate: echo", "simulate: 'echo; error=100%'");
    let odd = pod("web", "b", true).replace("simulate: echo", "simulate: 'echo; latency=5ms'");
    let mut cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &faulty),
        ("b.yaml", &odd),
    ]);
    let line = cluster.wait_for_log(&["unknown fault", "b.yaml", "answers without faults"]);
    assert!(line.contains("viaduct.dev/simulate"), "{line}");
    let web = cluster.served_at("web");
    let answers = || {
        let mut both: Vec<_> = (0..2).map(|_| http_get(web, "/").unwrap()).collect();
        both.sort();
        both.into_iter()
            .map(|(status, pod)| (status, pod.trim().to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(answers(), [(200, "b".to_owned()), (500, "a".to_owned())]);
    cluster.write("a.yaml", &pod("web", "a", true));
    eventually("it is well", || match answers() {
        both if both.iter().all(|(status, _)| *status == 200) => Ok(()),
        both => Err(both),
    });
    fault(&cluster, "default/b", "refuse");
    let explained = cluster.explain(&["default/web"]).stdout;
    let explained = String::from_utf8(explained).unwrap();
    assert!(
        explained.contains("on purpose at pod/default/b: refuse"),
        "{explained}"
    );
    eventually("only the other answers", || match answers() {
        both if both.iter().all(|(_, pod)| pod == "a") => Ok(()),
        both => Err(both),
    });
    fault(&cluster, "pod/default/b", "off");
    eventually("both answer", || match answers() {
        both if both[0].1 != both[1].1 => Ok(()),
        both => Err(both),
    });
}

#[test]
fn readiness_flaps_for_the_prober_alone() {
    let flapping = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {app: web}\n  annotations: {viaduct.dev/simulate: 'echo; flap=1500ms'}\nspec:\n  containers:\n  - name: main\n    image: example.com/web\n    ports:\n    - containerPort: 8080\n    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1, failureThreshold: 1}\n";
    let cluster = Cluster::start(&[("web.yaml", &service("web", 8080)), ("a.yaml", flapping)]);
    let ready = |wanted: &str| {
        eventually("its readiness turns", || {
            let items = cluster.items("endpointslices");
            let ready = items
                .first()
                .map(|s| s["endpoints"][0]["conditions"]["ready"].to_string());
            if ready.as_deref() == Some(wanted) {
                Ok(())
            } else {
                Err(ready)
            }
        });
    };
    ready("true");
    ready("false");
    ready("true");
}

#[test]
fn what_cannot_be_is_said_and_a_restart_forgets() {
    let cluster = start();
    cluster.served_at("web");
    for (words, expected) in [
        (
            &["default/nobody", "refuse"][..],
            "neither a Service nor a simulated Pod",
        ),
        (&["default/web:81", "refuse"], "no port or backend of it"),
        (
            &["default/web@10.0.0.1", "refuse"],
            "no port or backend of it",
        ),
        (&["pod/default/web", "refuse"], "no simulated Pod"),
        (
            &["default/web", "latency=1s"],
            "unknown fault \"latency\"; known are delay=",
        ),
        (
            &["default/web", "reset=200%"],
            "reset: \"200%\" is no percentage",
        ),
        (&["default/web", "error=1%"], "error is for simulated Pods"),
        (&["default/web", "flap=1s"], "flap is for simulated Pods"),
        (
            &["default/web", "loss=1%"],
            "loss is for datagrams, and nothing there is UDP",
        ),
        (
            &["default/a", "duplicate=1%"],
            "duplicate is for datagrams, and nothing there is UDP",
        ),
        (&["default/web", "off"], "has no faults"),
        (&["web", "refuse"], "is no target"),
        (&["default/web"], "required arguments"),
    ] {
        let error = refusal(&cluster, words);
        assert!(error.contains(expected), "{words:?}: {error}");
    }
    fault(&cluster, "default/web", "refuse");
    let web = cluster.served_at("web");
    assert!(served_by(web).is_err());
    let cluster = cluster.restart();
    let web = cluster.served_at("web");
    eventually("it answers", || served_by(web));
    assert!(cluster.fault(&[]).stdout.is_empty());
}
