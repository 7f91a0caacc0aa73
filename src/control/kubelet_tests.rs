//! The kubelet's part through the control plane: what is probed, what reports come to, when everything begins anew.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::probe_targets::Handler;
use super::{
    Config, ControlPlane, HttpGet, Kind, Object, ObjectKey, OwnNode, ProbeChange, ProbeTarget,
    Readiness, UnknownFields, decode,
};

fn plane() -> ControlPlane {
    let mut plane = ControlPlane::new(Config {
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        node_port_range: 30000..=32767,
        load_balancer_range: None,
        pod_cidr: Some("10.97.0.0/16".parse().unwrap()),
        allow_loopback_endpoints: true,
        own_node: Some(OwnNode {
            name: "me".to_owned(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
        }),
        max_endpoints_per_slice: 100,
        seed: 1,
    })
    .unwrap();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    plane.apply(decoded(service), now()).unwrap();
    plane
}

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn decoded(manifest: Value) -> Object {
    decode(manifest, UnknownFields::Refuse).unwrap().0
}

/// A Pod with one container, `c`, that is probed over TCP, and whatever `more` says instead.
fn pod(more: Value) -> Object {
    let mut manifest = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"tcpSocket": {"port": "http"}}}]},
        "status": {"podIP": "10.1.0.4"},
    });
    merge(&mut manifest, more);
    decoded(manifest)
}

fn merge(into: &mut Value, more: Value) {
    if let Value::Object(fields) = more {
        for (key, value) in fields {
            merge(&mut into[key], value);
        }
    } else {
        *into = more;
    }
}

fn key() -> ObjectKey {
    pod(json!({})).key()
}

/// Applies a Pod and returns what is started by it, after what is stopped.
fn apply(plane: &mut ControlPlane, object: Object) -> (Vec<ProbeTarget>, usize) {
    plane.apply(object, now()).unwrap();
    started(plane)
}

fn started(plane: &mut ControlPlane) -> (Vec<ProbeTarget>, usize) {
    let (mut targets, mut stopped) = (Vec::new(), 0);
    for change in plane.take_probe_changes() {
        match change {
            ProbeChange::Start(target) => targets.push(*target),
            ProbeChange::Stop(_) => stopped += 1,
            ProbeChange::Terminate(_) => panic!("nothing terminates here"),
        }
    }
    (targets, stopped)
}

/// The conditions of the only endpoint: ready, serving, terminating.
fn endpoint(plane: &mut ControlPlane) -> [bool; 3] {
    plane.reconcile(now());
    let slice = plane.list(Kind::EndpointSlice)[0].to_json().unwrap();
    let conditions = &slice["endpoints"][0]["conditions"];
    ["ready", "serving", "terminating"].map(|name| conditions[name].as_bool().unwrap())
}

fn ready_condition(plane: &mut ControlPlane) -> Value {
    plane.reconcile(now());
    let pod = plane.get(&key()).unwrap().to_json().unwrap();
    let conditions = pod["status"]["conditions"].as_array().unwrap().clone();
    conditions
        .into_iter()
        .find(|c| c["type"] == "Ready")
        .unwrap()
}

const READY: [bool; 3] = [true, true, false];
const NOT_READY: [bool; 3] = [false, false, false];

#[test]
fn a_pod_is_not_ready_until_its_probe_says_so() {
    let mut plane = plane();
    let (targets, _) = apply(&mut plane, pod(json!({})));
    assert_eq!(targets.len(), 1);
    let condition = ready_condition(&mut plane);
    assert_eq!(condition["status"], "False");
    assert_eq!(condition["reason"], "ContainersNotReady");
    assert_eq!(condition["message"], "containers with unready status: [c]");
    assert!(plane.report_probe(&targets[0], Readiness::Ready));
    assert_eq!(endpoint(&mut plane), READY);
    assert_eq!(ready_condition(&mut plane)["reason"], Value::Null);
    assert!(
        !plane.report_probe(&targets[0], Readiness::Ready),
        "no news"
    );
    assert!(plane.report_probe(&targets[0], Readiness::NotReady));
    assert_eq!(endpoint(&mut plane), NOT_READY);
}

#[test]
fn reports_that_change_nothing_leave_the_slice_alone() {
    let mut plane = plane();
    let (targets, _) = apply(&mut plane, pod(json!({})));
    plane.report_probe(&targets[0], Readiness::Ready);
    plane.reconcile(now());
    plane.report_probe(&targets[0], Readiness::Ready);
    assert_eq!(plane.reconcile(now()), []);
}

#[test]
fn a_ready_condition_in_the_file_wins_and_nothing_is_probed() {
    let mut plane = plane();
    for status in ["True", "False"] {
        let says = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        assert_eq!(apply(&mut plane, pod(says)).0, []);
        let ready = status == "True";
        assert_eq!(endpoint(&mut plane), [ready, ready, false]);
    }
    // Taken out of the file, the probe decides; put back, it ends.
    let (targets, _) = apply(&mut plane, pod(json!({})));
    assert_eq!(targets.len(), 1);
    assert_eq!(endpoint(&mut plane), NOT_READY);
    let says = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(apply(&mut plane, pod(says)), (vec![], 1));
    assert!(!plane.report_probe(&targets[0], Readiness::NotReady));
    assert_eq!(endpoint(&mut plane), READY);
}

#[test]
fn every_container_and_sidecar_must_be_ready() {
    let mut plane = plane();
    let probe = json!({"tcpSocket": {"port": 80}});
    let spec = json!({"spec": {
        "initContainers": [
            {"name": "once", "readinessProbe": probe},
            {"name": "side", "restartPolicy": "Always", "readinessProbe": probe}],
        "containers": [
            {"name": "a", "readinessProbe": probe},
            {"name": "b", "startupProbe": probe},
            {"name": "plain", "livenessProbe": probe}]}});
    let (targets, _) = apply(&mut plane, pod(spec));
    let names: Vec<_> = targets.iter().map(|t| &*t.container).collect();
    assert_eq!(names, ["a", "b", "side"]);
    assert_eq!(
        ready_condition(&mut plane)["message"],
        "containers with unready status: [side a b]"
    );
    for target in &targets {
        assert_eq!(endpoint(&mut plane), NOT_READY);
        plane.report_probe(target, Readiness::Ready);
    }
    assert_eq!(endpoint(&mut plane), READY);
}

#[test]
fn readiness_gates_must_be_true_as_well() {
    let mut plane = plane();
    let gate = |status: &str| {
        json!({"spec": {"readinessGates": [{"conditionType": "a/b"}]},
            "status": {"conditions": [{"type": "a/b", "status": status}]}})
    };
    let (targets, _) = apply(&mut plane, pod(gate("False")));
    plane.report_probe(&targets[0], Readiness::Ready);
    let condition = ready_condition(&mut plane);
    assert_eq!(condition["reason"], "ReadinessGatesNotReady");
    assert_eq!(endpoint(&mut plane), NOT_READY);
    assert_eq!(
        apply(&mut plane, pod(gate("True"))),
        (vec![], 0),
        "the probe goes on as it was"
    );
    assert_eq!(endpoint(&mut plane), READY);
}

#[test]
fn what_does_not_concern_the_container_keeps_what_it_has() {
    let mut plane = plane();
    let (targets, _) = apply(&mut plane, pod(json!({})));
    plane.report_probe(&targets[0], Readiness::Ready);
    let labelled = json!({"metadata": {"labels": {"more": "yes"}}});
    assert_eq!(apply(&mut plane, pod(labelled)), (vec![], 0));
    assert_eq!(endpoint(&mut plane), READY);
}

#[test]
fn a_restarted_container_begins_anew() {
    for restarted in [
        json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 1}]}}),
        json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "containerID": "b"}]}}),
        json!({"metadata": {"uid": "another"}}),
        json!({"status": {"podIP": "10.1.0.5"}}),
        json!({"spec": {"containers": [{"name": "c", "readinessProbe": {"tcpSocket": {"port": 81}}}]}}),
    ] {
        let mut plane = plane();
        let (before, _) = apply(&mut plane, pod(json!({})));
        plane.report_probe(&before[0], Readiness::Ready);
        assert_eq!(endpoint(&mut plane), READY);
        let (after, stopped) = apply(&mut plane, pod(restarted.clone()));
        assert_eq!((after.len(), stopped), (1, 1), "{restarted}");
        assert_eq!(endpoint(&mut plane), NOT_READY);
        assert!(
            !plane.report_probe(&before[0], Readiness::NotReady),
            "what is late counts no more"
        );
        assert!(plane.report_probe(&after[0], Readiness::Ready));
        assert_eq!(endpoint(&mut plane), READY);
    }
}

#[test]
fn what_does_not_run_is_neither_ready_nor_probed() {
    for state in [
        json!({"waiting": {}}),
        json!({"terminated": {"exitCode": 1}}),
    ] {
        let mut plane = plane();
        let statuses = |state: &Value| {
            json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": state}]}})
        };
        assert_eq!(apply(&mut plane, pod(statuses(&state))), (vec![], 0));
        assert_eq!(endpoint(&mut plane), NOT_READY);
        let running = json!({"running": {"startedAt": "2023-11-14T22:13:10Z"}});
        let (targets, _) = apply(&mut plane, pod(statuses(&running)));
        let since = targets[0].plan.running_since.unwrap();
        assert_eq!(since.as_second(), 1_699_999_990);
    }
    let mut plane = plane();
    let pending = json!({"status": {"phase": "Pending"}});
    assert_eq!(apply(&mut plane, pod(pending)), (vec![], 0));
    assert_eq!(
        ready_condition(&mut plane)["message"],
        "containers with unready status: [c]"
    );
    let over = json!({"status": {"phase": "Succeeded"}});
    assert_eq!(apply(&mut plane, pod(over)), (vec![], 0));
    assert_eq!(ready_condition(&mut plane)["reason"], "PodCompleted");
}

#[test]
fn a_terminating_pod_is_probed_on_and_serves_as_long_as_its_probe_says() {
    let mut plane = plane();
    let (targets, _) = apply(&mut plane, pod(json!({})));
    plane.report_probe(&targets[0], Readiness::Ready);
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    plane.apply(pod(deleted.clone()), now()).unwrap();
    assert_eq!(
        plane.take_probe_changes(),
        [ProbeChange::Terminate(targets[0].id)]
    );
    assert_eq!(endpoint(&mut plane), [false, true, true]);
    plane.report_probe(&targets[0], Readiness::NotReady);
    assert_eq!(endpoint(&mut plane), [false, false, true]);
    // Told once, and again to whoever starts with it.
    let mut labelled = deleted;
    labelled["metadata"]["labels"] = json!({"more": "yes"});
    assert_eq!(apply(&mut plane, pod(labelled.clone())), (vec![], 0));
    labelled["status"] = json!({"podIP": "10.1.0.9"});
    let (again, _) = apply(&mut plane, pod(labelled));
    assert!(again[0].terminating);
}

#[test]
fn a_pod_that_goes_takes_its_probes_with_it() {
    let mut plane = plane();
    let (targets, _) = apply(&mut plane, pod(json!({})));
    plane.delete(&key(), now());
    assert_eq!(
        plane.take_probe_changes(),
        [ProbeChange::Stop(targets[0].id)]
    );
    assert!(!plane.report_probe(&targets[0], Readiness::Ready));
    let (again, _) = apply(&mut plane, pod(json!({})));
    assert_ne!(again[0].id, targets[0].id);
    assert_eq!(endpoint(&mut plane), NOT_READY);
}

#[test]
fn a_refused_edit_leaves_the_probes_as_they_were() {
    let mut plane = plane();
    let (targets, _) = apply(&mut plane, pod(json!({})));
    let bad = json!({"spec": {"containers": [{"name": "c", "readinessProbe": {}}]}});
    plane.apply(pod(bad), now()).unwrap_err();
    assert_eq!(plane.take_probe_changes(), []);
    assert!(plane.report_probe(&targets[0], Readiness::Ready));
    assert_eq!(endpoint(&mut plane), READY);
}

#[test]
fn handlers_are_resolved_against_the_container() {
    let handler = |probe: Value| {
        let mut plane = plane();
        let spec = json!({"spec": {"containers": [{"name": "c", "readinessProbe": probe,
            "ports": [{"name": "http", "containerPort": 8080}]}]}});
        let (mut targets, _) = apply(&mut plane, pod(spec));
        let plan = targets.remove(0).plan;
        plan.readiness.unwrap().handler
    };
    let http = |host: &str, port, path: &str| HttpGet {
        tls: false,
        host: host.to_owned(),
        port,
        path: path.to_owned(),
        headers: Vec::new(),
    };
    assert_eq!(
        handler(json!({"httpGet": {"port": "http"}})),
        Handler::HttpGet(http("10.1.0.4", 8080, "/"))
    );
    let headers = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]);
    assert_eq!(
        handler(
            json!({"httpGet": {"port": 1, "host": "h", "path": "/x", "scheme": "HTTPS", "httpHeaders": headers}})
        ),
        Handler::HttpGet(HttpGet {
            tls: true,
            headers: vec![
                ("A".to_owned(), "1".to_owned()),
                ("A".to_owned(), "2".to_owned())
            ],
            ..http("h", 1, "/x")
        })
    );
    let tcp = |host: &str, port| Handler::TcpSocket {
        host: host.to_owned(),
        port,
    };
    assert_eq!(
        handler(json!({"tcpSocket": {"port": 65535}})),
        tcp("10.1.0.4", 65535)
    );
    assert_eq!(
        handler(json!({"tcpSocket": {"port": "http", "host": "::1"}})),
        tcp("::1", 8080)
    );
    assert_eq!(
        handler(json!({"tcpSocket": {"port": "metrics"}})),
        Handler::Unusable("the container has no port named \"metrics\"".to_owned())
    );
    assert_eq!(
        handler(json!({"exec": {"command": ["a", "b"]}})),
        Handler::Exec(vec!["a".to_owned(), "b".to_owned()])
    );
    assert_eq!(
        handler(json!({"grpc": {"port": 9, "service": "s"}})),
        Handler::Grpc {
            ip: "10.1.0.4".parse().unwrap(),
            port: 9,
            service: "s".to_owned()
        }
    );
}

#[test]
fn times_are_defaulted_and_bounded_below() {
    let timing = |probe: Value| {
        let mut plane = plane();
        let mut whole = json!({"tcpSocket": {"port": 1}});
        merge(&mut whole, probe);
        let spec = json!({"spec": {"containers": [{"name": "c", "readinessProbe": whole}]}});
        let plan = apply(&mut plane, pod(spec)).0.remove(0).plan;
        let spec = plan.readiness.unwrap();
        let t = spec.timing;
        (
            [t.initial_delay, t.period, spec.timeout].map(|span| span.as_secs()),
            [t.success_threshold, t.failure_threshold],
        )
    };
    assert_eq!(timing(json!({})), ([0, 10, 1], [1, 3]));
    assert_eq!(
        timing(
            json!({"initialDelaySeconds": 5, "periodSeconds": 2, "timeoutSeconds": 3, "successThreshold": 4, "failureThreshold": 6})
        ),
        ([5, 2, 3], [4, 6])
    );
}

#[test]
fn bad_handlers_are_refused_at_their_field() {
    let fields = |container: Value| {
        let mut container = container;
        container["name"] = json!("c");
        let rejection = plane()
            .apply(pod(json!({"spec": {"containers": [container]}})), now())
            .unwrap_err();
        let causes = rejection.causes.into_iter();
        causes.map(|cause| cause.field).collect::<Vec<_>>()
    };
    let prefix = "spec.containers[0].readinessProbe";
    for (probe, field) in [
        (json!({"exec": {"command": []}}), "exec.command"),
        (json!({"tcpSocket": {"port": 0}}), "tcpSocket.port"),
        (json!({"tcpSocket": {"port": "-a"}}), "tcpSocket.port"),
        (json!({"grpc": {"port": 65536}}), "grpc.port"),
        (
            json!({"httpGet": {"port": 80, "scheme": "http"}}),
            "httpGet.scheme",
        ),
        (
            json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "a b", "value": ""}]}}),
            "httpGet.httpHeaders[0].name",
        ),
    ] {
        let found = fields(json!({"readinessProbe": probe}));
        assert_eq!(found, [format!("{prefix}.{field}")]);
    }
    let twice = json!({"tcpSocket": {"port": 80}, "successThreshold": 2});
    assert_eq!(
        fields(json!({"startupProbe": twice})),
        ["spec.containers[0].startupProbe.successThreshold"]
    );
}
