//! `viaduct check`: every finding with its place, errors told from warnings, and an exit status for scripts.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::cluster::{pod, service};

/// Runs `viaduct check` in a directory of its own that has these files.
fn check(files: &[(&str, &str)], words: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .arg("check")
        .args(words)
        .current_dir(directory.path())
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The files' findings and the exit status.
fn findings(files: &[(&str, &str)]) -> (Vec<Value>, Option<i32>) {
    let output = check(files, &["-f", ".", "-o", "json"]);
    let list = serde_json::from_slice(&output.stdout).unwrap_or_else(|why| {
        panic!("{why}: {} {}", out(&output), error(&output));
    });
    (list, output.status.code())
}

/// `Service default/NAME` with this spec.
fn with_spec(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n{spec}")
}

#[test]
fn good_manifests_leave_nothing_to_say() {
    let files = [
        ("web.yaml", service("web", 80)),
        ("a.yaml", pod("web", "a", true)),
    ];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let output = check(&files, &["-f", "."]);
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    assert_eq!(out(&output), "");
    assert_eq!(error(&output), ".: 2 objects, 0 errors, 0 warnings\n");
    assert_eq!(findings(&files), (Vec::new(), Some(0)));
}

#[test]
fn the_demo_is_good() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo");
    let output = check(&[], &["-f", demo]);
    assert_eq!(
        (output.status.code(), out(&output).as_str()),
        (Some(0), ""),
        "{}",
        error(&output)
    );
}

#[test]
fn every_stage_of_every_file_is_reported_at_its_line() {
    let bad = with_spec(
        "web",
        "  type: NodePort\n  clusterIP: 10.1.0.1\n  sessionAffinity: Sometimes\n  ports:\n  - port: 80\n    nodePort: 80\n",
    );
    let output = check(
        &[
            ("a.yaml", "kind: Service\n\tapiVersion: v1\n"),
            ("b.yaml", &with_spec("b", "  ports:\n  - prt: 80\n")),
            (
                "c.json",
                r#"{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "c"}, "spec": {"ports": 5}}"#,
            ),
            ("d.yaml", &bad),
        ],
        &["-f", "."],
    );
    assert_eq!(output.status.code(), Some(1));
    let text = out(&output);
    let starts = [
        "./a.yaml:1: ",
        "./b.yaml:6: Service default/b: spec.ports[0].prt: unknown field",
        "./c.json:1: Service default/c: spec.ports: expected a list, found the integer 5",
        "./d.yaml:6: Service default/web: spec.clusterIPs: Invalid value: [\"10.1.0.1\"]: ",
        "./d.yaml:7: Service default/web: spec.sessionAffinity: Unsupported value: \"Sometimes\"",
        "./d.yaml:10: Service default/web: spec.ports[0].nodePort: Invalid value: 80: ",
    ];
    for start in starts {
        assert!(
            text.lines().any(|line| line.starts_with(start)),
            "{start}\nis not in\n{text}"
        );
    }
    let mut places: Vec<(String, u32)> = Vec::new();
    for line in text.lines() {
        let mut parts = line.split(':');
        let file = parts.next().unwrap().to_owned();
        places.push((file, parts.next().unwrap().parse().unwrap()));
    }
    assert!(places.is_sorted(), "{text}");
    assert!(error(&output).ends_with("errors, 0 warnings\n"));
}

#[test]
fn a_finding_is_an_object_with_the_words_of_the_api_server() {
    let bad = with_spec("web", "  ports:\n  - port: 0\n    name: Web\n");
    let (list, status) = findings(&[("web.yaml", &bad)]);
    assert_eq!(status, Some(1));
    let expected = json!({
        "file": "./web.yaml", "line": 6, "object": "Service default/web", "field": "spec.ports[0].port",
        "reason": "FieldValueInvalid", "message": "Invalid value: 0: must be between 1 and 65535, inclusive",
    });
    assert!(list.contains(&expected), "{list:#?}");
    let keys: Vec<&String> = list[0].as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        ["field", "file", "line", "message", "object", "reason"]
    );
}

#[test]
fn two_services_that_ask_for_one_address_or_port_are_told_about() {
    let at = |ip: &str, port: u16| {
        format!(
            "  type: NodePort\n  clusterIP: {ip}\n  ports:\n  - port: 80\n    nodePort: {port}\n"
        )
    };
    let files = [
        ("a.yaml", with_spec("a", &at("10.96.0.7", 30007))),
        ("b.yaml", with_spec("b", &at("10.96.0.7", 30008))),
        ("c.yaml", with_spec("c", &at("10.96.0.8", 30007))),
        ("d.yaml", with_spec("a", &at("10.96.0.9", 30009))),
    ];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let (list, status) = findings(&files);
    assert_eq!(status, Some(1));
    let told: Vec<(&str, &str, u64)> = list
        .iter()
        .map(|f| {
            let text = |key: &str| f[key].as_str().unwrap();
            (text("file"), text("field"), f["line"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(
        told,
        [
            ("./b.yaml", "spec.clusterIPs", 6),
            ("./c.yaml", "spec.ports[0].nodePort", 9),
            ("./d.yaml", "metadata.name", 3),
        ],
        "{list:#?}"
    );
}

#[test]
fn an_object_without_a_name_is_told_so_and_not_that_it_is_there_twice() {
    let nameless = |metadata: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {metadata}\nspec:\n  ports:\n  - port: 80\n"
        )
    };
    let files = [
        ("a.yaml", nameless("{}")),
        ("b.yaml", nameless("{}")),
        ("c.yaml", nameless("{namespace: other, generateName: web-}")),
    ];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let (list, _) = findings(&files);
    assert_eq!(list.len(), 3, "{list:#?}");
    for finding in &list {
        assert_eq!(finding["field"], "metadata.name");
        assert_eq!(finding["reason"], "FieldValueRequired");
    }
    let said = |i: usize| list[i]["message"].as_str().unwrap();
    assert_eq!(said(0), "Required value: name or generateName is required");
    assert_eq!(said(0), said(1));
    assert!(said(2).starts_with("Required value: generateName cannot be used here"));
}

#[test]
fn a_range_that_is_wrong_is_found_at_its_line() {
    let bad = with_spec(
        "web",
        "  type: LoadBalancer\n  ports:\n  - port: 80\n  loadBalancerSourceRanges:\n  - 10.0.0.0/8\n  - nonsense\n",
    );
    let (list, _) = findings(&[("web.yaml", &bad)]);
    let (field, line) = (&list[0]["field"], &list[0]["line"]);
    assert_eq!(
        (field, line),
        (&"spec.LoadBalancerSourceRanges[1]".into(), &10.into())
    );
}

#[test]
fn warnings_are_marked_and_cost_nothing() {
    let files = [
        (
            "app.yaml",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n",
        ),
        (
            "web.yaml",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n    viaduct.dev/udp-idle-timeout: soon\nspec:\n  ports:\n  - port: 80\n",
        ),
    ];
    let output = check(&files, &["-f", "."]);
    assert_eq!(output.status.code(), Some(0), "{}", out(&output));
    let text = out(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("./app.yaml:2: warning: kind: Deployment web is ignored"));
    assert!(
        lines[1].starts_with("./web.yaml:6: warning: Service default/web: metadata.annotations")
    );
    assert!(error(&output).contains("0 errors, 2 warnings"));
    let (list, status) = findings(&files);
    assert_eq!(status, Some(0));
    assert!(list.iter().all(|finding| finding["reason"] == "Warning"));
}

#[test]
fn one_file_is_checked_without_its_neighbours() {
    let files = [("good.yaml", service("web", 80)), ("bad.yaml", "]".into())];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let status = |words: &[&str]| check(&files, words).status.code();
    assert_eq!(status(&["-f", "good.yaml"]), Some(0));
    assert_eq!(status(&["-f", "bad.yaml"]), Some(1));
    assert_eq!(status(&["-f", "."]), Some(1));
}

#[test]
fn the_ranges_decide_what_is_inside() {
    let manifest = with_spec(
        "web",
        "  type: NodePort\n  clusterIP: 10.1.0.9\n  ports:\n  - port: 80\n    nodePort: 20000\n",
    );
    let files = [("web.yaml", manifest.as_str())];
    let ranges = [
        "--service-cluster-ip-range=10.1.0.0/16",
        "--service-node-port-range=20000-20010",
    ];
    let status = |words: &[&str]| check(&files, &[&["-f", "."], words].concat()).status.code();
    assert_eq!(status(&ranges), Some(0));
    assert_eq!(status(&ranges[..1]), Some(1));
    assert_eq!(status(&ranges[1..]), Some(1));
}

#[test]
fn usage_errors_are_2_and_name_the_place() {
    let rows: [(&[&str], &str); 5] = [
        (&[], "--filename"),
        (&["-f", "nowhere"], "error: --filename: nowhere: "),
        (&["-f", ".", "-o", "xml"], "--output"),
        (
            &[
                "-f",
                ".",
                "--service-cluster-ip-range",
                "10.0.0.0/8,10.1.0.0/16",
            ],
            "error: --service-cluster-ip-range: two CIDRs must be of different families",
        ),
        (
            &["-f", ".", "--service-cluster-ip-range", "fd00::/8"],
            "error: --service-cluster-ip-range: the service range fd00::/8 is too large",
        ),
    ];
    for (words, expected) in rows {
        let output = check(&[], words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(error(&output).contains(expected), "{}", error(&output));
    }
}
