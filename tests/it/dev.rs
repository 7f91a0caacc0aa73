//! `viaduct dev`: the README's first command, and everything that changes while it runs.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::cluster::{Cluster, eventually, http_get, pod, served_by, service, udp_ask};

fn demo() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo");
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                std::fs::read_to_string(entry.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

fn start_demo() -> Cluster {
    let files = demo();
    // The demo's fixed node port is outside the range that keeps parallel tests apart.
    let files: Vec<(String, String)> = files
        .into_iter()
        .map(|(name, text)| (name, text.replace("    nodePort: 30080\n", "")))
        .collect();
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    Cluster::start(&files)
}

#[test]
fn the_demo_prints_its_services_and_commands_that_work() {
    let cluster = start_demo();
    let greeting = cluster.greeting().to_owned();
    for (service, kind) in [
        ("api", "ClusterIP"),
        ("api-least", "ClusterIP"),
        ("chat", "ClusterIP"),
        ("database", "ClusterIP"),
        ("docs", "ExternalName"),
        ("shop", "NodePort"),
        ("web", "ClusterIP"),
    ] {
        let row = greeting
            .lines()
            .find(|line| line.split_whitespace().nth(1) == Some(service))
            .expect(service);
        assert_eq!(row.split_whitespace().nth(2), Some(kind), "{row}");
    }
    let web = greeting
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some("web"))
        .unwrap();
    assert!(web.contains("3/3"), "{web}");

    let commands: Vec<&str> = greeting
        .lines()
        .skip_while(|line| *line != "Try:")
        .skip(1)
        .take(3)
        .map(str::trim)
        .collect();
    let run = |command: &str| {
        let output = Command::new("bash").args(["-c", command]).output().unwrap();
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let answers: BTreeSet<String> = (0..3)
        .map(|_| run(commands[0]).lines().last().unwrap().to_owned())
        .collect();
    assert_eq!(
        answers,
        ["web-0", "web-1", "web-2"].map(str::to_owned).into(),
        "successive calls go round all Pods"
    );
    let web_ip = cluster.served_at("web").ip().to_string();
    assert_eq!(
        run(commands[1])
            .split_whitespace()
            .collect::<Vec<_>>()
            .join("."),
        web_ip
    );
    assert_eq!(run(commands[2]), "chat-0: hello\n");
    assert!(cluster.stop(Signal::SIGINT).success());
}

#[test]
fn a_pod_that_is_added_unready_or_removed_takes_effect_at_once() {
    let cluster = Cluster::start(&[
        ("svc.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
    ]);
    let web = cluster.served_at("web");
    let serving = |expected: &[&str]| {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        eventually("these Pods, and no others", || {
            let seen: BTreeSet<String> = (0..4)
                .map(|_| served_by(web).unwrap_or_else(|error| error.to_string()))
                .collect();
            if seen == expected { Ok(()) } else { Err(seen) }
        });
    };
    serving(&["a"]);
    cluster.write("b.yaml", &pod("web", "b", true));
    serving(&["a", "b"]);
    cluster.write("a.yaml", &pod("web", "a", false));
    serving(&["b"]);
    cluster.write("a.yaml", &pod("web", "a", true));
    serving(&["a", "b"]);
    cluster.remove("b.yaml");
    serving(&["a"]);
}

#[test]
fn a_service_without_ready_endpoints_refuses_and_serves_when_one_comes() {
    let udp = "apiVersion: v1\nkind: Service\nmetadata: {name: log}\nspec:\n  selector: {app: web}\n  ports:\n  - {port: 8080, protocol: UDP}\n";
    let udp_pod = pod("web", "a", true).replace(
        "    - containerPort: 8080\n",
        "    - containerPort: 8080\n    - {containerPort: 8080, protocol: UDP}\n",
    );
    let cluster = Cluster::start(&[("web.yaml", &service("web", 8080)), ("log.yaml", udp)]);
    let (web, log) = (cluster.served_at("web"), cluster.served_at("log"));
    let refused = || {
        let tcp = served_by(web).map_err(|error| error.kind());
        let udp = udp_ask(log, b"x").map_err(|error| error.kind());
        let both = (
            Err(ErrorKind::ConnectionRefused),
            Err(ErrorKind::ConnectionRefused),
        );
        if (tcp.clone(), udp.clone()) == both {
            Ok(())
        } else {
            Err((tcp, udp))
        }
    };
    refused().unwrap();
    cluster.write("a.yaml", &udp_pod);
    eventually("both serve", || {
        match (served_by(web), udp_ask(log, b"x")) {
            (Ok(name), Ok(reply)) if name == "a" && reply == b"a: x" => Ok(()),
            other => Err(other),
        }
    });
    cluster.write("a.yaml", &udp_pod.replace("\"True\"", "\"False\""));
    eventually("both refuse again", refused);
}

#[test]
fn services_come_and_go_and_others_never_notice() {
    let cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
    ]);
    let web = cluster.served_at("web");
    assert_eq!(served_by(web).unwrap(), "a");
    cluster.write(
        "second.yaml",
        &service("second", 8080).replace("{app: second}", "{app: web}"),
    );
    let second = cluster.served_at("second");
    eventually("the second serves", || {
        served_by(second).and_then(|name| {
            if name == "a" {
                Ok(())
            } else {
                Err(ErrorKind::Other.into())
            }
        })
    });
    cluster.remove("second.yaml");
    eventually("the second is gone", || match served_by(second) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => Err(other),
    });
    assert_eq!(served_by(web).unwrap(), "a");
}

#[test]
fn a_mistake_is_reported_with_its_place_and_mending_it_heals() {
    let mut cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
    ]);
    let web = cluster.served_at("web");
    cluster.write(
        "web.yaml",
        &service("web", 8080).replace("port: 8080", "port: 99999"),
    );
    let line = cluster.wait_for_log(&["web.yaml:7", "spec.ports[0].port"]);
    assert!(line.contains("default/web"), "{line}");
    assert_eq!(served_by(web).unwrap(), "a", "the last good state goes on");

    cluster.write(
        "web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  prots: []\n",
    );
    cluster.wait_for_log(&["web.yaml:5", "spec.prots"]);
    assert_eq!(served_by(web).unwrap(), "a");

    cluster.write(
        "web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: [\n",
    );
    cluster.wait_for_log(&["web.yaml:"]);
    cluster.write("b.yaml", &pod("web", "b", true));
    eventually("everything else keeps working", || {
        let name = served_by(web).unwrap();
        if name == "b" { Ok(()) } else { Err(name) }
    });

    cluster.write("web.yaml", &service("web", 9090));
    eventually("the mended file holds", || {
        let output = cluster.get(&["services", "web"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("9090/TCP") {
            Ok(())
        } else {
            Err(text)
        }
    });
}

#[test]
fn addresses_survive_a_restart() {
    let cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
    ]);
    let allocated = |cluster: &Cluster| {
        let spec = cluster.items("services")[0]["spec"]["clusterIP"].clone();
        let pod = cluster.items("pods")[0]["status"]["podIP"].clone();
        assert!(spec.is_string() && pod.is_string(), "{spec} {pod}");
        (spec, pod)
    };
    let before = allocated(&cluster);
    let cluster = cluster.restart();
    assert_eq!(allocated(&cluster), before);
}

#[test]
fn health_and_metrics_answer() {
    let cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
    ]);
    let health = cluster.address("Health");
    for path in ["/healthz", "/livez", "/readyz"] {
        let (status, body) = http_get(health, path).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
    }
    let (_, body) = http_get(health, "/healthz").unwrap();
    let body: serde_json::Value =
        serde_json::from_str(&body[body.find('{').unwrap()..=body.rfind('}').unwrap()]).unwrap();
    assert_eq!(
        (&body["healthy"], &body["nodeEligible"]),
        (&true.into(), &true.into()),
        "{body}"
    );
    served_by(cluster.served_at("web")).unwrap();
    let metrics = cluster.address("Metrics");
    let (status, text) = http_get(metrics, "/metrics").unwrap();
    assert_eq!(status, 200);
    assert!(text.contains("viaduct_build_info{"), "{text}");
    assert_eq!(
        http_get(metrics, "/proxyMode").unwrap(),
        (200, "loopback".to_owned())
    );
}
