//! `viaduct get`: tables for people, lists for programs, errors that say what to do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::cluster::{Cluster, eventually, pod, served_by, service, udp_ask};

fn text(output: &std::process::Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn start() -> Cluster {
    Cluster::start(&[
        ("web.yaml", &service("web", 80)),
        ("a.yaml", &pod("web", "a", true)),
        ("b.yaml", &pod("web", "b", false)),
    ])
}

#[test]
fn services_are_objects_as_kubernetes_spells_them() {
    let cluster = start();
    let items = cluster.items("services");
    assert_eq!(items.len(), 1);
    let spec = &items[0]["spec"];
    assert_eq!(
        (&items[0]["apiVersion"], &items[0]["kind"]),
        (&"v1".into(), &"Service".into())
    );
    assert_eq!(items[0]["metadata"]["namespace"], "default");
    assert_eq!(
        (&spec["type"], &spec["sessionAffinity"]),
        (&"ClusterIP".into(), &"None".into()),
        "defaulted"
    );
    assert!(
        spec["clusterIP"].as_str().unwrap().starts_with("127.96."),
        "allocated: {spec}"
    );
    assert_eq!(spec["clusterIPs"][0], spec["clusterIP"]);
    assert_eq!(spec["ports"][0]["targetPort"], 8080);
}

#[test]
fn the_services_table_counts_what_may_serve_and_names_every_ingress() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: lb}\nspec:\n  type: LoadBalancer\n  externalIPs: [192.0.2.9]\n  ports:\n  - {name: http, port: 80, targetPort: 8080}\nstatus:\n  loadBalancer:\n    ingress:\n    - {ip: 192.0.2.1}\n    - {ip: 192.0.2.2, ipMode: Proxy}\n    - {hostname: lb.example}\n";
    let slice = |name: &str, family: &str, port: &str, endpoints: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  labels: {{kubernetes.io/service-name: lb}}\naddressType: {family}\nports: [{{name: {port}, port: 8080, protocol: TCP}}]\nendpoints:\n{endpoints}"
        )
    };
    let used = "- {addresses: [10.0.0.1]}\n- {addresses: [10.0.0.2], conditions: {ready: false}}\n";
    let cluster = Cluster::start(&[
        ("lb.yaml", service),
        ("used.yaml", &slice("lb-a", "IPv4", "http", used)),
        (
            "family.yaml",
            &slice("lb-b", "IPv6", "http", "- {addresses: ['fd00::1']}\n"),
        ),
        (
            "port.yaml",
            &slice("lb-c", "IPv4", "other", "- {addresses: [10.0.0.3]}\n"),
        ),
    ]);
    let row = eventually("the endpoints", || {
        let table = text(&cluster.get(&["services"]));
        let row = table.lines().nth(1).unwrap_or_default().to_owned();
        if row.contains("1/2") {
            Ok(row)
        } else {
            Err(table)
        }
    });
    assert!(
        row.contains("192.0.2.1,192.0.2.2,lb.example,192.0.2.9"),
        "{row}"
    );
}

#[test]
fn yaml_says_the_same_as_json() {
    let cluster = start();
    let yaml = text(&cluster.get(&["services", "-o", "yaml"]));
    let list: Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(list["kind"], "List");
    assert_eq!(list["items"], Value::from(cluster.items("services")));
}

#[test]
fn slices_say_who_is_ready() {
    let cluster = start();
    let items = eventually("both endpoints", || {
        let items = cluster.items("endpointslices");
        let n = items
            .first()
            .and_then(|slice| slice["endpoints"].as_array())
            .map_or(0, Vec::len);
        if n == 2 { Ok(items) } else { Err(items) }
    });
    assert_eq!(
        items[0]["metadata"]["labels"]["kubernetes.io/service-name"],
        "web"
    );
    let endpoints = items[0]["endpoints"].as_array().unwrap();
    let ready = |pod: &str| {
        endpoints
            .iter()
            .find(|e| e["targetRef"]["name"] == pod)
            .unwrap()["conditions"]["ready"]
            .clone()
    };
    assert_eq!((ready("a"), ready("b")), (true.into(), false.into()));
}

#[test]
fn backends_count_what_they_served() {
    let cluster = start();
    let web = cluster.served_at("web");
    for _ in 0..3 {
        assert_eq!(served_by(web).unwrap(), "a");
    }
    eventually("three flows that have ended", || {
        let rows = cluster.items("backends");
        assert_eq!(rows.len(), 1, "only ready ones are backends");
        assert_eq!(rows[0]["kind"], "Backend");
        assert_eq!(rows[0]["pod"], "a");
        let p99 = rows[0]["connectP99Seconds"].as_f64().unwrap();
        assert!(p99 > 0.0 && p99 < 4.0, "{p99}");
        let answers = rows[0]["bytesToClient"].as_u64().unwrap();
        assert!(answers > 3 * 20, "three heads and bodies: {answers}");
        let figures = (
            rows[0]["flowsTotal"].clone(),
            rows[0]["activeFlows"].clone(),
        );
        if figures == (3.into(), 0.into()) {
            Ok(())
        } else {
            Err(figures)
        }
    });
    let table = text(&cluster.get(&["backends", "web", "-o", "wide"]));
    let headings: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        headings,
        [
            "SERVICE",
            "PORT",
            "PROTOCOL",
            "BACKEND",
            "POD",
            "ACTIVE",
            "TOTAL",
            "FAILED",
            "CONNECT-P99",
            "STATE",
            "TO-BACKEND",
            "TO-CLIENT",
            "NODE",
            "ALGORITHM",
            "FAULTS"
        ]
    );
    assert!(table.contains("round-robin"), "{table}");
}

#[test]
fn flows_are_shown_while_they_last() {
    let log =
        service("log", 8081).replace("targetPort: 8080", "protocol: UDP\n    targetPort: 8080");
    let udp_pod = pod("log", "c", true).replace(
        "containerPort: 8080",
        "containerPort: 8080\n      protocol: UDP",
    );
    let cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
        ("log.yaml", &log),
        ("c.yaml", &udp_pod),
    ]);
    let (web, log) = (cluster.served_at("web"), cluster.served_at("log"));
    eventually("an answer", || udp_ask(log, b"hello"));
    let mut stream = TcpStream::connect(web).unwrap();
    let client = stream.local_addr().unwrap().to_string();
    stream.write_all(b"hello\n").unwrap();
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"a: hello\n");

    let items = eventually("both flows", || {
        let items = cluster.items("flows");
        if items.len() == 2 {
            Ok(items)
        } else {
            Err(items)
        }
    });
    let [datagrams, connection] = &items[..] else {
        unreachable!("two of them");
    };
    assert_eq!(
        (
            &connection["kind"],
            &connection["service"],
            &connection["pod"]
        ),
        (&"Flow".into(), &"web".into(), &"a".into())
    );
    assert_eq!(connection["client"], client);
    assert_eq!(connection["port"]["port"], 8080);
    assert_eq!(
        (&connection["bytesToBackend"], &connection["bytesToClient"]),
        (&6.into(), &9.into())
    );
    assert_eq!(
        (
            &datagrams["port"]["protocol"],
            &datagrams["bytesToBackend"],
            &datagrams["bytesToClient"]
        ),
        (&"UDP".into(), &5.into(), &8.into())
    );
    let table = text(&cluster.get(&["flows", "web"]));
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 2, "of that Service alone: {table}");
    assert!(rows[1].contains(&client), "{table}");
    assert_eq!(text(&cluster.get(&["flows", "-n", "elsewhere"])), "");
    drop(stream);
    eventually("the end of one", || match cluster.items("flows").len() {
        1 => Ok(()),
        n => Err(n),
    });
}

#[test]
fn a_watch_of_backends_says_how_fast_flows_come() {
    let cluster = start();
    let web = cluster.served_at("web");
    let mut watch = cluster.watch(&["backends"]);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    let headings = next();
    let rate = headings.split_whitespace().position(|word| word == "RATE");
    let rate = rate.unwrap_or_else(|| panic!("no RATE in {headings}"));
    let cell = |row: String| row.split_whitespace().nth(rate).unwrap().to_owned();
    assert_eq!(cell(next()), "-", "nothing to compare with yet");
    assert_eq!(cell(next()), "0/s");
    for _ in 0..5 {
        served_by(web).unwrap();
    }
    let told = cell(next());
    let n: u32 = told.strip_suffix("/s").unwrap().parse().unwrap();
    assert!(n > 0, "{told}");
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn namespaces_are_kept_apart() {
    let other = service("web", 80).replace("{name: web}", "{name: web, namespace: other}");
    let cluster = Cluster::start(&[("web.yaml", &service("web", 80)), ("other.yaml", &other)]);
    assert_eq!(text(&cluster.get(&["svc"])).lines().count(), 2);
    let all = text(&cluster.get(&["svc", "-A"]));
    assert!(all.starts_with("NAMESPACE"), "{all}");
    assert_eq!(all.lines().count(), 3);
    assert_eq!(text(&cluster.get(&["svc", "-n", "nowhere"])), "");
}

#[test]
fn what_is_not_there_is_an_error_that_says_so() {
    let cluster = start();
    let missing = cluster.get(&["services", "nothing"]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&missing.stderr),
        "error: services \"nothing\" not found\n"
    );
    let unknown = cluster.get(&["deployments"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("known are services, endpointslices")
    );
    let nobody = std::process::Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .args([
            "get",
            "services",
            "--admin-socket",
            "/nonexistent/admin.sock",
        ])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&nobody.stderr)
            .contains("no viaduct answers at /nonexistent/admin.sock")
    );
}

#[test]
fn a_watch_tells_what_changes_until_the_process_ends() {
    let cluster = start();
    cluster.served_at("web");
    let mut watch = cluster.watch(&["pods"]);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || {
        let line = lines.next().unwrap().unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(next().starts_with("NAME READY"));
    assert!(next().starts_with("a True"));
    assert!(next().starts_with("b False"));
    cluster.write("b.yaml", &pod("web", "b", true));
    assert!(next().starts_with("b True"));
    cluster.remove("b.yaml");
    assert_eq!(next(), "default b gone");
    cluster.stop(nix::sys::signal::Signal::SIGTERM);
    let status = eventually("the end", || {
        watch.try_wait().unwrap().ok_or("still running")
    });
    assert_eq!(status.code(), Some(1));
}
