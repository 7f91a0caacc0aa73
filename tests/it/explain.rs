//! `viaduct explain`: the decision path of the running process, in words and as JSON, with an exit status for scripts.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually, pod, served_by, service};

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The explanation as JSON, and the exit status.
fn explained(cluster: &Cluster, target: &str) -> (Value, Option<i32>) {
    let output = cluster.explain(&[target, "-o", "json"]);
    let explanation = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|why| panic!("{why}: {}", error(&output)));
    (explanation, output.status.code())
}

/// The line of a table that begins with `start`, its words joined by single blanks.
fn row(text: &str, start: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no line begins with {start} in\n{text}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_service_that_works_says_who_serves_and_who_is_left_out() {
    let cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
        ("b.yaml", &pod("web", "b", false)),
    ]);
    let web = cluster.served_at("web");
    assert_eq!(served_by(web).unwrap(), "a");
    let output = cluster.explain(&["default/web"]);
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", error(&output));
    assert!(text.starts_with("default/web is served\n"), "{text}");
    assert!(
        text.contains("\ndefault/web  8080/TCP over IPv4, round-robin\n"),
        "{text}"
    );
    let (explanation, status) = explained(&cluster, "default/web:8080");
    assert_eq!((status, &explanation["served"]), (Some(0), &json!(true)));
    let port = &explanation["servicePorts"][0];
    let endpoints = port["endpoints"].as_array().unwrap();
    let of = |pod: &str| endpoints.iter().find(|e| e["pod"] == pod).unwrap();
    assert_eq!(
        (&of("a")["cluster"], &of("a")["local"]),
        (&json!("ready"), &json!("ready"))
    );
    assert_eq!(of("b")["cluster"], "not-ready");
    let frontend = &port["frontends"][0];
    assert_eq!(
        (&frontend["kind"], &frontend["address"]),
        (&json!("ClusterIP"), &json!(web.to_string()))
    );
    let flows = frontend["flows"].as_array().unwrap();
    let from: Vec<&str> = flows
        .iter()
        .map(|flow| flow["from"].as_str().unwrap())
        .collect();
    assert_eq!(from, ["outside", "pod", "node"]);
    for flow in flows {
        assert_eq!(flow["outcome"], "served");
        assert_eq!(flow["backends"], json!([of("a")["address"]]));
    }
    let a = of("a")["address"].as_str().unwrap();
    assert!(
        row(&text, &web.to_string()).contains(&format!("Cluster served {a} by endpoints")),
        "{text}"
    );
    assert!(row(&text, a).ends_with("kept: ready kept: ready"), "{text}");
    let b = of("b")["address"].as_str().unwrap();
    assert!(row(&text, b).ends_with("left out: not ready left out: not ready"));
    let (by_address, status) = explained(&cluster, &web.to_string());
    assert_eq!(status, Some(0));
    assert_eq!(&by_address["servicePorts"][0], port);
}

#[test]
fn it_changes_as_traffic_does() {
    let cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        ("a.yaml", &pod("web", "a", true)),
    ]);
    let web = cluster.served_at("web");
    cluster.write("a.yaml", &pod("web", "a", false));
    eventually("the explanation of a refusal", || {
        let (explanation, status) = explained(&cluster, "default/web");
        let flow = &explanation["servicePorts"][0]["frontends"][0]["flows"][2];
        if (status, &flow["outcome"]) == (Some(1), &json!("refused")) {
            Ok(())
        } else {
            Err(explanation)
        }
    });
    eventually("the refusal", || match TcpStream::connect(web) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => Err(other),
    });
    let output = cluster.explain(&["default/web"]);
    assert_eq!(output.status.code(), Some(1));
    let text = out(&output);
    assert!(text.starts_with("default/web is not served\n"), "{text}");
    assert!(
        row(&text, &web.to_string())
            .ends_with("refused - no endpoint is ready, nor serves while terminating"),
        "{text}"
    );
}

#[test]
fn a_local_policy_without_a_local_endpoint_is_no_answer() {
    let manifests = "apiVersion: v1\nkind: Service\nmetadata: {name: far}\nspec:\n  internalTrafficPolicy: Local\n  ports: [{port: 8080}]\n---\n\
        apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: far-1\n  labels: {kubernetes.io/service-name: far}\n\
        addressType: IPv4\nports: [{name: \"\", port: 8080}]\nendpoints:\n- addresses: [192.0.2.1]\n  nodeName: elsewhere\n";
    let cluster = Cluster::start(&[("far.yaml", manifests)]);
    let (explanation, status) = explained(&cluster, "default/far");
    assert_eq!((status, &explanation["served"]), (Some(1), &json!(false)));
    let port = &explanation["servicePorts"][0];
    for flow in port["frontends"][0]["flows"].as_array().unwrap() {
        assert_eq!(
            (&flow["policy"], &flow["outcome"]),
            (&json!("Local"), &json!("silent"))
        );
    }
    let endpoint = &port["endpoints"][0];
    assert_eq!(
        (&endpoint["cluster"], &endpoint["local"], &endpoint["node"]),
        (&json!("ready"), &json!("other-node"), &json!("elsewhere"))
    );
}

#[test]
fn what_is_not_known_is_said_to_be() {
    let cluster = Cluster::start(&[
        ("web.yaml", &service("web", 8080)),
        (
            "docs.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: docs}\nspec: {type: ExternalName, externalName: example.org}\n",
        ),
    ]);
    for (target, expected) in [
        ("default/nope", "error: there is no Service default/nope\n"),
        (
            "default/web:9",
            "error: the Service default/web has no port 9; its ports are 8080/TCP\n",
        ),
        (
            "192.0.2.1:80",
            "error: no Service is served at 192.0.2.1:80: 192.0.2.1 is the address of no Service\n",
        ),
    ] {
        for words in [&[target][..], &[target, "-o", "json"]] {
            let output = cluster.explain(words);
            assert_eq!(output.status.code(), Some(1), "{target}");
            assert_eq!(
                (out(&output).as_str(), error(&output).as_str()),
                ("", expected)
            );
        }
    }
    let output = cluster.explain(&["default/docs"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        out(&output),
        "default/docs is not served\n* an alias of example.org in DNS, and nothing is proxied\n"
    );
}

#[test]
fn a_usage_error_is_2_and_nobody_there_is_1() {
    let explain = |words: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_viaduct"))
            .arg("explain")
            .args(words)
            .output()
            .unwrap()
    };
    let output = explain(&["web"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        error(&output).contains("\"web\" is neither NAMESPACE/NAME[:PORT] nor IP:PORT"),
        "{}",
        error(&output)
    );
    let output = explain(&["default/web", "--admin-socket", "/nonexistent/admin.sock"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(error(&output).starts_with("error: no viaduct answers at /nonexistent/admin.sock"));
}

#[test]
fn annotations_about_connections_are_explained_with_their_use() {
    let annotated = service("web", 8080).replace(
        "{name: web}",
        "{name: web, annotations: {viaduct.dev/max-connections: '2', viaduct.dev/proxy-protocol: v2}}",
    );
    let cluster = Cluster::start(&[("web.yaml", &annotated), ("a.yaml", &pod("web", "a", true))]);
    let web = cluster.served_at("web");
    let connections = |expected: Value| {
        eventually("the count", || {
            let (explanation, _) = explained(&cluster, "default/web");
            let told = explanation["servicePorts"][0]["connections"].clone();
            if told == expected { Ok(()) } else { Err(told) }
        });
    };
    connections(json!({"active": 0, "max": 2, "refusedTotal": 0}));
    let open = [(); 2].map(|()| TcpStream::connect(web).unwrap());
    connections(json!({"active": 2, "max": 2, "refusedTotal": 0}));
    // Reset as soon as it is accepted, which may be before it has connected.
    let surplus = TcpStream::connect(web).and_then(|mut third| third.read(&mut [0; 1]));
    assert_eq!(surplus.unwrap_err().kind(), ErrorKind::ConnectionReset);
    connections(json!({"active": 2, "max": 2, "refusedTotal": 1}));
    let text = out(&cluster.explain(&["default/web"]));
    assert!(
        text.contains("* the Service has 2 of 2 connections, refused so far: 1\n"),
        "{text}"
    );
    assert!(text.contains("by the PROXY protocol v2\n"), "{text}");
    let table = out(&cluster.get(&["services", "-o", "wide"]));
    let row = row(&table, "web ");
    assert!(row.ends_with(" 2/2"), "{row}");
    drop(open);
    connections(json!({"active": 0, "max": 2, "refusedTotal": 1}));
}
