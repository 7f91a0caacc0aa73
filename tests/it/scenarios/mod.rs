//! The scenarios of `tests/scenarios/`: Kubernetes YAML, steps, and what every address must do after each.
//!
//! ```text
//!  *.scn ─► script ─► play ─► manifests (directory source) ─► pipeline (control, convert, routing, capture plan)
//! ```

mod manifests;
mod pipeline;
mod play;
mod rows;
mod script;
mod stage;
mod stored;
mod words;

use std::path::Path;

use play::play;

#[test]
fn every_scenario_holds() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let entries = std::fs::read_dir(directory).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "scn"))
        .collect();
    files.sort();
    assert!(files.len() > 30, "only {} scenarios", files.len());
    let reports: Vec<String> = files.iter().flat_map(|file| report(file)).collect();
    assert!(reports.is_empty(), "\n{}", reports.join("\n"));
}

fn report(file: &Path) -> Vec<String> {
    let name = file.file_name().unwrap().to_string_lossy();
    let text = std::fs::read_to_string(file).unwrap();
    failures_of(&text)
        .into_iter()
        .map(|failure| format!("tests/scenarios/{name}:{failure}"))
        .collect()
}

/// `LINE: …` of every failure, or of the mistake that keeps the scenario from being played.
fn failures_of(text: &str) -> Vec<String> {
    match play(text) {
        Ok(failures) => failures.iter().map(ToString::to_string).collect(),
        Err(mistake) => vec![format!("{}: {}", mistake.line, mistake.message)],
    }
}

/// A Service with two endpoints below `steps`: 14 lines of steps leave the heading at line 15.
fn with_web(steps: &str) -> String {
    let padding = "\n".repeat(14_usize.checked_sub(steps.lines().count()).unwrap());
    let steps = steps.trim_end();
    format!(
        "{steps}\n{padding}-- web.yaml --
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{clusterIP: 10.96.0.10, ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-a, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: \"\", port: 8080}}]
endpoints: [{{addresses: [10.1.0.5]}}, {{addresses: [10.1.0.4]}}]
"
    )
}

#[track_caller]
fn assert_fails(steps: &str, expected: &[&str]) {
    assert_eq!(failures_of(&with_web(steps)), expected);
}

#[test]
fn a_wrong_expectation_names_its_line_and_both_sides() {
    assert_fails(
        "apply web.yaml\nexpect 10.96.0.10:80/TCP ClusterIP default/web -> 10.1.0.5:8080 10.1.0.4:8080",
        &[],
    );
    assert_fails(
        "# A comment.\napply web.yaml\nexpect 10.96.0.10:80/TCP from pod ClusterIP default/web\n  -> 10.1.0.4:8080",
        &["3: 10.96.0.10:80/TCP from pod
    expected  ClusterIP default/web -> 10.1.0.4:8080
    found     ClusterIP default/web -> 10.1.0.4:8080 10.1.0.5:8080"],
    );
    assert_fails(
        "apply web.yaml\nexpect 10.96.0.10:80/UDP -> refused\nexpect 10.96.0.10:80/TCP -> unserved",
        &[
            "2: 10.96.0.10:80/UDP from outside\n    expected  refused\n    found     unserved",
            "3: 10.96.0.10:80/TCP from outside
    expected  unserved
    found     ClusterIP default/web -> 10.1.0.4:8080 10.1.0.5:8080",
        ],
    );
}

#[test]
fn a_wrong_word_about_objects_is_a_failure() {
    assert_fails(
        "apply web.yaml
slices default/web -> IPv4 8080/TCP 10.1.0.4
slices default/none -> IPv4 no-ports no-endpoints
stored Service default/web {spec: {type: NodePort, clusterIP: 10.96.0.10, externalName: null}}
stored Service default/web absent
stored Pod default/web {}
conflict 10.96.0.10:80/TCP default/web default/other",
        &[
            "2: slices of default/web
    expected  IPv4 8080/TCP 10.1.0.4
    found     IPv4 8080/TCP 10.1.0.4 10.1.0.5",
            "3: slices of default/none\n    expected  IPv4 no-ports no-endpoints\n    found     none",
            "4: Service default/web
    expected  {\"spec\":{\"clusterIP\":\"10.96.0.10\",\"externalName\":null,\"type\":\"NodePort\"}}
    found     {\"spec\":{\"clusterIP\":\"10.96.0.10\",\"externalName\":null,\"type\":\"ClusterIP\"}}",
            "5: Service default/web\n    expected  absent\n    found     present",
            "6: Pod default/web\n    expected  {}\n    found     absent",
            "7: conflict\n    expected  10.96.0.10:80/TCP default/web default/other\n    found     none",
        ],
    );
}

#[test]
fn rejections_are_failures_unless_they_are_expected() {
    let web = "apply web.yaml\nexpect 10.96.0.10:80/TCP ClusterIP default/web -> 10.1.0.4:8080 10.1.0.5:8080\n";
    assert_fails(
        &format!("{web}patch Service default/web {{spec: {{sessionAffinity: Surprise}}}}\n"),
        &["3: change
    expected  accepted
    found     line 3: Service default/web: spec.sessionAffinity: Unsupported value: \"Surprise\": supported values: \
\"ClientIP\", \"None\""],
    );
    assert_fails(
        &format!(
            "{web}patch Service default/web {{spec: {{sessionAffinity: Surprise}}}}\nreject spec.sessionAffinity Unsupported value\n"
        ),
        &[],
    );
    assert_fails(
        &format!(
            "{web}patch Service default/web {{spec: {{type: NodePort}}}}\nreject spec.type no\nwarn spec.type no\n"
        ),
        &[
            "4: reject\n    expected  spec.type: …no…\n    found     none",
            "5: warn\n    expected  spec.type: …no…\n    found     none",
        ],
    );
}

#[test]
fn what_the_directory_source_refuses_is_told_with_the_line_of_the_scenario() {
    let steps = "apply web.yaml\nexpect 10.96.0.10:80/TCP -> unserved\n";
    let text = with_web(steps).replace("clusterIP: 10", "clutserIP: 10");
    let [failure] = failures_of(&text).try_into().unwrap();
    assert_eq!(
        failure,
        "1: change
    expected  accepted
    found     line 19: Service default/web: spec.clutserIP: unknown field \"spec.clutserIP\""
    );
}

#[test]
fn mistakes_in_a_scenario_are_told_and_never_passed_over() {
    let apply = "apply web.yaml\n";
    for (steps, expected) in [
        ("apply web.yaml", "1: the scenario expects nothing"),
        (
            "expect 10.96.0.10:80/TCP -> unserved",
            "15: web.yaml is never applied",
        ),
        ("appyl web.yaml", "1: there is no step `appyl`"),
        ("apply shop.yaml", "1: there is no `-- shop.yaml --` below"),
        ("reject spec.type no", "1: only a change is answered"),
        (
            "expect 10.96.0.10:80 -> unserved",
            "1: 10.96.0.10:80 is no ADDRESS:PORT/PROTOCOL",
        ),
        ("expect 10.96.0.10:80/TCP unserved", "1: `->` is missing"),
        (
            "expect 10.96.0.10:80/TCP ClusterIP default/web ->",
            "1: backends, `refused`, `silent` or `unserved` are missing",
        ),
        (
            "expect 10.96.0.10:80/TCP from mars -> unserved",
            "1: mars is neither outside, pod, node nor an address",
        ),
        (
            "patch endpoint 10.1.0.4 tired",
            "1: tired is none of ready, unready, serving, terminating, stopped, gone",
        ),
        (
            "delete Deployment default/web",
            "1: Deployment is no kind that is read",
        ),
        ("delete Service web", "1: \"web\" does not name a Service"),
        (
            "node zones=za\nstored Node n1 {}",
            "1: there is no setting zones",
        ),
        (
            "stored Node n1 {}\ncluster service-cidrs=10.96.0.0/16",
            "2: `cluster` comes first, and once",
        ),
        (
            "patch endpoint 10.1.0.9 ready\nstored Node n1 {}",
            "1: no slice of this scenario has 10.1.0.9",
        ),
        (
            "delete Service default/web\nstored Node n1 {}",
            "1: no manifest of this scenario describes Service default/web",
        ),
    ] {
        let needs_apply = expected.starts_with("1: no ") || expected.contains("setting");
        let text = if needs_apply {
            with_web(&format!("{steps}\n{apply}"))
        } else {
            with_web(steps)
        };
        assert_eq!(failures_of(&text), [expected], "{steps}");
    }
}
