//! `viaduct run` on a cluster: what it serves, shows and answers, through the binary.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::listener::{node, service, slice};
use super::proxy::Proxy;
use crate::api_server::{ApiServer, Fault};
use crate::cluster::{eventually, http_get, udp_ask};

fn server() -> ApiServer {
    let server = ApiServer::start();
    server.apply(service("web", "10.96.0.10"));
    server.apply(slice("web", &["10.1.0.1", "127.0.0.1"], 8080));
    server.apply(node("z1"));
    server
}

#[test]
fn a_cluster_is_served_as_its_api_server_says() {
    let server = server();
    let proxy = Proxy::start(&["--master", &server.url()]);
    proxy.explains("10.96.0.10:80", &["default/web", "10.1.0.1:8080"]);
    let [web] = &proxy.items("services")[..] else {
        panic!("{:?}", proxy.items("services"))
    };
    assert_eq!(web["spec"]["clusterIP"], "10.96.0.10");
    assert_eq!(web["apiVersion"], "v1");
    // A loopback endpoint of an API server would be a way into whatever listens on the node for itself.
    assert!(proxy.log().contains("127.0.0.1 is a loopback address"));
    let backends = proxy.items("backends");
    assert_eq!(backends.len(), 1, "{backends:?}");

    server.apply(slice("web", &["10.1.0.2"], 8080));
    proxy.explains("default/web", &["10.1.0.2:8080"]);
    server.delete("services", "default", "web");
    eventually("the Service gone", || {
        let items = proxy.items("services");
        items.is_empty().then_some(()).ok_or(items)
    });
    proxy.stop();
}

#[test]
fn names_come_from_the_cluster_and_health_from_its_node() {
    let server = server();
    server.apply(service("db", "None"));
    server.apply(slice("db", &["10.1.0.7"], 5432));
    let words = [
        "--master",
        &server.url(),
        "--dns-listen",
        "127.0.0.1:0",
        "--dns-pods",
        "disabled",
    ];
    let proxy = Proxy::start(&words);
    let dns = proxy.address("dns");
    // A query for the A record of db.default.svc.cluster.local.
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["db", "default", "svc", "cluster", "local"] {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    eventually("the address of a headless Service", || {
        let answer = udp_ask(dns, &query).unwrap_or_default();
        if answer.ends_with(&[10, 1, 0, 7]) {
            Ok(())
        } else {
            Err(answer)
        }
    });
    let healthz = proxy.address("healthz");
    let health = || http_get(healthz, "/healthz").unwrap();
    eventually("an eligible node", || match health() {
        (200, _) => Ok(()),
        other => Err(other),
    });
    let mut leaving = node("z1");
    leaving["spec"] = serde_json::json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]});
    server.apply(leaving);
    eventually("a node that leaves", || match health() {
        (503, _) => Ok(()),
        other => Err(other),
    });
    server.apply(node("z1"));
    eventually("a node that stays", || match health() {
        (200, _) => Ok(()),
        other => Err(other),
    });
    server.delete("nodes", "", "here");
    eventually("a node that is gone", || match health() {
        (503, _) => Ok(()),
        other => Err(other),
    });
}

#[test]
fn another_zone_of_the_node_is_another_choice_of_endpoints() {
    let server = server();
    let mut hinted = slice("web", &["10.1.0.1", "10.1.0.2"], 8080);
    for (index, zone) in ["z1", "z2"].into_iter().enumerate() {
        hinted["endpoints"][index]["hints"] = serde_json::json!({"forZones": [{"name": zone}]});
    }
    server.apply(hinted);
    let proxy = Proxy::start(&["--master", &server.url()]);
    let used = |wanted: &str| {
        eventually(wanted, || {
            let backends = proxy.items("backends");
            let addresses: Vec<String> = backends.iter().map(ToString::to_string).collect();
            match &addresses[..] {
                [one] if one.contains(wanted) => Ok(()),
                other => Err(other.to_vec()),
            }
        });
    };
    used("10.1.0.1:8080");
    server.apply(node("z2"));
    used("10.1.0.2:8080");
}

#[test]
fn a_server_that_says_nothing_is_not_waited_for_when_there_is_a_kept_state() {
    let server = server();
    let url = server.url();
    let first = Proxy::start(&["--master", &url]);
    first.explains("default/web", &["10.1.0.1:8080"]);
    let directory = first.stop();
    server.set_fault(Fault::Silence);
    let second = Proxy::over(directory, &["--master", &url]);
    second.waits_for("serving the kept state");
    second.explains("10.96.0.10:80", &["10.1.0.1:8080"]);
}

#[test]
fn the_server_is_asked_as_often_as_the_settings_say() {
    let server = server();
    let url = server.url();
    let begun = Instant::now();
    let slow = ["--master", &url, "--kube-api-qps=5", "--kube-api-burst=1"];
    let proxy = Proxy::start(&slow);
    // A list and a watch of each of three kinds: one at once, and each of the others a fifth of a second later.
    let asked = |n: usize| {
        eventually("requests", || match server.asked().len() {
            enough if enough >= n => Ok(()),
            other => Err(other),
        });
    };
    asked(6);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    proxy.stop();

    let before = server.asked().len();
    let begun = Instant::now();
    let unbounded = ["--master", &url, "--kube-api-qps=-1", "--kube-api-burst=1"];
    let _proxy = Proxy::start(&unbounded);
    asked(before + 1);
    let first = begun.elapsed();
    asked(before + 6);
    let patience = Duration::from_secs(1);
    assert!(begun.elapsed() - first < patience, "{:?}", begun.elapsed());
}

#[test]
fn nothing_is_ready_before_services_and_slices_are_known() {
    let mut server = server();
    server.stop();
    let proxy = Proxy::start(&["--master", &server.url()]);
    proxy.waits_for("API server is out of touch");
    let healthz = proxy.address("healthz");
    let (status, body) = http_get(healthz, "/readyz").unwrap();
    assert_eq!(status, 503);
    assert!(body.contains("initial state"), "{body}");
    server.restart();
    eventually("readiness", || {
        match http_get(healthz, "/readyz").unwrap() {
            (200, _) => Ok(()),
            other => Err(other),
        }
    });
    proxy.explains("default/web", &["10.1.0.1:8080"]);
}

#[test]
fn a_start_without_an_api_server_serves_the_last_state_and_says_how_old_it_is() {
    let mut server = server();
    let url = server.url();
    let first = Proxy::start(&["--master", &url]);
    first.explains("default/web", &["10.1.0.1:8080"]);
    eventually("readiness", || {
        match http_get(first.address("healthz"), "/readyz").unwrap() {
            (200, body) if !body.contains("apiServerOutOfTouch") => Ok(()),
            other => Err(other),
        }
    });
    let directory = first.stop();
    server.stop();

    // As if it had been an hour ago.
    let file = directory.path().join("data/cluster.json");
    let kept = std::fs::read_to_string(&file).unwrap();
    let saved = kept.split("\"saved\":\"").nth(1).unwrap();
    let saved = saved.split('"').next().unwrap();
    let earlier = saved.parse::<jiff::Timestamp>().unwrap() - jiff::SignedDuration::from_hours(1);
    std::fs::write(&file, kept.replace(saved, &earlier.to_string())).unwrap();

    let second = Proxy::over(directory, &["--master", &url]);
    second.waits_for("serving the kept state");
    second.explains("10.96.0.10:80", &["10.1.0.1:8080"]);
    let output = second.ask(&["get", "services"]);
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        warning.starts_with("warning: API server out of touch for 36"),
        "{warning}"
    );
    let (status, body) = http_get(second.address("healthz"), "/readyz").unwrap();
    let told: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(told["apiServerOutOfTouch"]["seconds"].as_u64().unwrap() >= 3600);
    let (_, metrics) = http_get(second.address("metrics"), "/metrics").unwrap();
    assert!(
        metrics.contains("viaduct_api_out_of_touch_seconds 36"),
        "{metrics}"
    );

    // What vanished meanwhile goes with the first list.
    server.apply(service("api", "10.96.0.11"));
    server.delete("services", "default", "web");
    server.restart();
    eventually("the state of today", || {
        let names: Vec<Value> = second.items("services");
        let names: Vec<&str> = names
            .iter()
            .filter_map(|item| item["metadata"]["name"].as_str())
            .collect();
        if names == ["api"] {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    });
    eventually("no warning", || {
        let output = second.ask(&["get", "services"]);
        if output.stderr.is_empty() {
            Ok(())
        } else {
            Err(output)
        }
    });
}

#[test]
fn users_are_told_by_events_what_they_can_mend_and_only_once() {
    let server = server();
    let mut object = service("slow", "10.96.0.11");
    object["metadata"]["uid"] = "the-uid".into();
    object["metadata"]["annotations"] = json!({"viaduct.dev/retries": "often"});
    server.apply(object.clone());
    let proxy = Proxy::start(&["--master", &server.url()]);
    let told = |reason: &str| {
        let of = |event: &Value| event["reason"] == reason;
        let events = server.posted().into_iter().filter(of);
        events.collect::<Vec<_>>()
    };
    let one = |reason: &str| {
        eventually(reason, || match &told(reason)[..] {
            [event] => Ok(event.clone()),
            other => Err(format!("{other:?}: {}", proxy.log())),
        })
    };
    let starting = one("Starting");
    assert_eq!(starting["type"], "Normal");
    assert_eq!(starting["metadata"]["namespace"], "default");
    assert_eq!(starting["reportingInstance"], "viaduct-here");
    assert_eq!(
        starting["regarding"],
        json!({"apiVersion": "v1", "kind": "Node", "name": "here", "uid": "here"})
    );
    let bad = one("InvalidAnnotation");
    assert_eq!(bad["type"], "Warning");
    let note = bad["note"].as_str().unwrap();
    assert!(
        note.starts_with("metadata.annotations[viaduct.dev/retries]: "),
        "{note}"
    );
    assert_eq!(bad["regarding"]["name"], "slow");
    assert_eq!(bad["regarding"]["uid"], "the-uid");
    assert_eq!(bad["metadata"]["namespace"], bad["regarding"]["namespace"]);

    // Another change with the same fault is no news; another fault is, and comes after it in the queue.
    object["spec"]["ports"][0]["port"] = 81.into();
    server.apply(object.clone());
    object["metadata"]["annotations"] = json!({"viaduct.dev/slow-start": "soon"});
    server.apply(object);
    eventually("the second fault", || {
        match told("InvalidAnnotation").len() {
            2 => Ok(()),
            other => Err(other),
        }
    });
    assert_eq!(told("Starting").len(), 1);
}

#[test]
fn a_server_that_takes_no_events_is_no_matter() {
    let server = server();
    server.refuse_events(403);
    let proxy = Proxy::start(&["--master", &server.url()]);
    proxy.waits_for("Event is not posted");
    proxy.explains("10.96.0.10:80", &["10.1.0.1:8080"]);
    let output = proxy.ask(&["get", "services", "-A"]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("out of touch"));
}
