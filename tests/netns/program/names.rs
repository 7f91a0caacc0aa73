//! DNS for the programs of a Pod: their own resolvers, with the search list and `ndots:5` that the kubelet gives them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::node::Node;
use crate::world::{Place, eventually};

/// The cluster IP of the DNS Service, which no interface has but for us.
const SERVER: &str = "10.96.0.53";

const CROWD: usize = 100;

const RESOLV_CONF: &str = "search ns.svc.cluster.local svc.cluster.local cluster.local
nameserver 10.96.0.53
options ndots:5
";

fn manifest() -> String {
    let mut text = include_str!("../../data/dns.yaml").to_owned();
    text += "---
apiVersion: v1
kind: Service
metadata: {name: crowd, namespace: ns}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: crowd-1, namespace: ns, labels: {kubernetes.io/service-name: crowd}}
addressType: IPv4
ports: [{name: http, port: 80, protocol: TCP}]
endpoints:
";
    for number in 1..=CROWD {
        text += &format!("- {{addresses: [10.1.9.{number}]}}\n");
    }
    text
}

fn serve(node: &mut Node) {
    node.apply_text(&manifest());
    node.flags = [
        "--dns-listen",
        "10.96.0.53:53",
        "--dns-upstream",
        "127.0.0.1:9",
    ]
    .map(str::to_owned)
    .into();
    node.start();
    eventually(|| {
        let log = node.log();
        if log.contains("DNS listening") && log.contains("initial state is complete") {
            Ok(())
        } else {
            Err(log)
        }
    });
}

// A command in the Pod's network whose `/etc/resolv.conf` is the kubelet's.
fn in_pod(resolv_conf: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"")
        .arg("sh")
        .arg(resolv_conf)
        .args(words);
    command
}

fn lines(text: &str) -> BTreeSet<&str> {
    text.lines().filter(|line| !line.is_empty()).collect()
}

pub(super) fn resolvers_of_a_pod_find_what_they_look_for(mut node: Node) {
    serve(&mut node);
    let resolv_conf = node.manifests().with_file_name("resolv.conf");
    fs::write(&resolv_conf, RESOLV_CONF).unwrap();
    let ask = |words: &[&str]| {
        node.world
            .output_in(Place::Pod, &mut in_pod(&resolv_conf, words))
    };
    // The C library: A and AAAA from one socket at once, search list, case, and TCP for what does not fit.
    eventually(|| {
        let text = node.world.in_ns(Place::Pod, || {
            in_pod(&resolv_conf, &["getent", "ahostsv4", "web"]).output()
        });
        let text = String::from_utf8(text.unwrap().stdout).unwrap();
        if text.starts_with("10.96.0.10 ") {
            Ok(())
        } else {
            Err(text)
        }
    });
    for (name, address) in [
        ("WeB", "10.96.0.10"),
        ("web.ns", "10.96.0.10"),
        ("Web.nS.Svc", "10.96.0.10"),
        ("web.ns.svc.cluster.local", "10.96.0.10"),
        ("web.ns.svc.cluster.local.", "10.96.0.10"),
        ("alias", "10.96.0.10"),
        ("db-0.db", "10.1.0.1"),
    ] {
        let found = ask(&["getent", "ahosts", name]);
        assert!(found.contains(&format!("{address} ")), "{name}: {found}");
    }
    let crowd = ask(&["getent", "ahostsv4", "crowd"]);
    let found: BTreeSet<&str> = crowd
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(found.len(), CROWD, "{crowd}");
    // An address of one Service only: of several names the C library shows whichever comes first.
    let host = ask(&["getent", "hosts", "10.1.9.1"]);
    assert!(
        host.contains("10-1-9-1.crowd.ns.svc.cluster.local"),
        "{host}"
    );
    // A tool of its own.
    let short = ask(&["dig", "+short", "+search", "wEb"]);
    assert_eq!(short.trim(), "10.96.0.10");
    let short = ask(&["dig", "+short", "crowd.ns.svc.cluster.local"]);
    assert_eq!(lines(&short).len(), CROWD, "{short}");
    let cut = ask(&["dig", "+ignore", "+noedns", "crowd.ns.svc.cluster.local"]);
    assert!(cut.contains("flags: qr aa tc rd ra"), "{cut}");
    let ports = ask(&["dig", "+short", "SRV", "_sql._tcp.db.ns.svc.cluster.local"]);
    assert_eq!(lines(&ports).len(), 3, "{ports}");
    let program = "import socket; print(len({a[4][0] for a in socket.getaddrinfo('crowd', 80, socket.AF_INET)}))";
    assert_eq!(ask(&["python3", "-c", program]).trim(), "100");
    let missing = ask(&["sh", "-c", "getent ahosts nothing || echo $?"]);
    assert_eq!(missing.trim(), "2");
}

/// Prints the IPv4 addresses of its argument, a line each, or nothing.
const MUSL_CLIENT: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
int main(int n, char **words) {
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found = 0;
    char text[INET_ADDRSTRLEN];
    if (n != 2 || getaddrinfo(words[1], "80", &hints, &found)) return 2;
    for (; found; found = found->ai_next)
        puts(inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text));
}
"#;

/// Addresses that musl has room for, however many there are.
const MUSL_MOST: usize = 48;

// The other C library: it knows no TCP before 1.2.4, stops its search at everything but NXDOMAIN, and asks for both
// families of one socket.
pub(super) fn a_pod_with_musl_finds_what_it_looks_for(mut node: Node) {
    let directory = node.manifests();
    let place = |name| directory.with_file_name(name);
    fs::write(place("client.c"), MUSL_CLIENT).unwrap();
    let mut compiler = Command::new("musl-gcc");
    compiler.arg("-static").arg(place("client.c"));
    compiler.arg("-o").arg(place("client"));
    assert!(compiler.status().unwrap().success());
    serve(&mut node);
    fs::write(place("resolv.conf"), RESOLV_CONF).unwrap();
    let client = place("client");
    let ask = |name: &str| {
        let words = [client.to_str().unwrap(), name];
        let mut command = in_pod(&place("resolv.conf"), &words);
        let output = node.world.in_ns(Place::Pod, || command.output()).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for (name, address) in [
        ("web", "10.96.0.10"),
        ("WeB.ns", "10.96.0.10"),
        ("web.ns.svc", "10.96.0.10"),
        ("web.ns.svc.cluster.local", "10.96.0.10"),
        ("alias", "10.96.0.10"),
        ("db-0.db", "10.1.0.1"),
    ] {
        eventually(|| match ask(name).trim() {
            found if found == address => Ok(()),
            other => Err(format!("{name}: {other}")),
        });
    }
    assert_eq!(ask("nothing"), "");
    // What fits into 512 octets behind the header and the question, or what comes over TCP.
    let question = "crowd.ns.svc.cluster.local".len() + 2 + 4;
    let fit = (512 - 12 - question) / 16;
    let found = lines(&ask("crowd")).len();
    assert!(found == fit || found == MUSL_MOST, "{found} of {CROWD}");
}

pub(super) fn doctor_asks_from_inside_a_pod(mut node: Node) {
    serve(&mut node);
    let resolv_conf = node.manifests().with_file_name("resolv.conf");
    fs::write(&resolv_conf, RESOLV_CONF).unwrap();
    let socket = node.manifests().with_file_name("n0.sock");
    let doctor = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
        command.arg("doctor").arg("--admin-socket").arg(&socket);
        let output = node.world.in_ns(Place::Node, || command.output()).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // Pods of other trials may be looked at, too; only this one asks from here.
    let mut sleeper = in_pod(&resolv_conf, &["sh", "-c", "echo here; exec sleep 60"]);
    let mut pod = node
        .world
        .spawn_in(Place::Pod, sleeper.stdout(Stdio::piped()));
    let mut begun = [0];
    std::io::Read::read_exact(pod.0.stdout.as_mut().unwrap(), &mut begun).unwrap();
    let about = format!("resolver {SERVER} of Pod with process {}", pod.0.id());
    let text = doctor();
    let row = text.lines().find(|line| line.starts_with(&about));
    let row = row.unwrap_or_else(|| panic!("no line begins with {about} in\n{text}"));
    assert!(
        row.contains(" ok ") && row.ends_with("reaches this viaduct"),
        "{row}"
    );
    // Somebody else's answers do not pass for ours: the Pod asks where nobody is.
    fs::write(&resolv_conf, RESOLV_CONF.replace(SERVER, "10.96.0.54")).unwrap();
    let text = doctor();
    let about = about.replace(SERVER, "10.96.0.54");
    let row = text.lines().find(|line| line.starts_with(&about));
    let row = row.unwrap_or_else(|| panic!("no line begins with {about} in\n{text}"));
    assert!(
        row.contains(" conflict ") && row.contains("no answer"),
        "{row}"
    );
}
