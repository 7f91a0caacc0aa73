//! Spoils recorded manifests at random: nothing that a file holds may panic, and a rejected file leaves no trace.

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::manifests::expand;
use super::{SERVICES, SLICES, cases};
use crate::control::{Config, ControlPlane, OwnNode, UnknownFields, decode};

/// Each manifest is spoilt this often.
const ROUNDS: usize = 4;

#[test]
fn spoilt_manifests_are_judged_and_unchanged_ones_change_nothing() {
    let mut rng = StdRng::seed_from_u64(11);
    let manifests = manifests();
    assert!(manifests.len() > 1000, "{} manifests", manifests.len());
    let mut accepted = 0;
    let mut rejected = 0;
    let now = Timestamp::from_second(1_700_000_000).unwrap();
    // A few hundred objects in one plane meet each other; one plane for all would only get slow.
    for some in manifests.chunks(100) {
        let mut plane = plane();
        for manifest in some
            .iter()
            .flat_map(|manifest| std::iter::repeat_n(manifest, ROUNDS))
        {
            let mut spoilt = manifest.clone();
            spoil(&mut spoilt, &mut rng);
            let Ok((object, _)) = decode(spoilt.clone(), UnknownFields::Warn) else {
                continue;
            };
            let before = plane.get(&object.key()).cloned();
            if plane.apply(object.clone(), now).is_err() {
                rejected += 1;
                assert_eq!(plane.get(&object.key()), before.as_ref(), "{spoilt}");
                continue;
            }
            accepted += 1;
            plane.reconcile(now);
            assert!(plane.apply(object, now).is_ok(), "{spoilt}");
            assert_eq!(plane.reconcile(now), [], "{spoilt}");
        }
    }
    assert!(
        accepted > 1000 && rejected > 1000,
        "{accepted} accepted, {rejected} rejected"
    );
}

fn plane() -> ControlPlane {
    ControlPlane::new(Config {
        service_cidrs: vec![
            "10.96.0.0/24".parse().unwrap(),
            "fd00::/120".parse().unwrap(),
        ],
        node_port_range: 30000..=30099,
        load_balancer_range: Some("10.98.0.0/29".parse().unwrap()),
        pod_cidr: Some("10.97.0.0/29".parse().unwrap()),
        allow_loopback_endpoints: true,
        own_node: Some(OwnNode {
            name: "n1".to_owned(),
            addresses: Vec::new(),
        }),
        max_endpoints_per_slice: 3,
        seed: 5,
    })
    .unwrap()
}

// Small ones of both files of cases.
fn manifests() -> Vec<Value> {
    let mut manifests = Vec::new();
    for case in cases(SERVICES) {
        for step in case["steps"].as_array().unwrap() {
            if step["do"] == "create" {
                manifests.push(expand(&step["manifest"], None));
            }
        }
    }
    for case in cases(SLICES) {
        for step in case["steps"].as_array().unwrap() {
            let created = step["do"].as_array().unwrap().iter();
            manifests.extend(created.map(|op| op["object"].clone()));
        }
    }
    manifests.retain(|manifest| manifest.is_object() && manifest.to_string().len() < 2000);
    manifests
}

// Replaces one value somewhere, or none.
fn spoil(value: &mut Value, rng: &mut StdRng) {
    let stop = rng.random_range(0..4) == 0;
    match value {
        Value::Object(map) if !stop && !map.is_empty() => {
            let at = rng.random_range(0..map.len());
            let (key, value) = map.iter_mut().nth(at).unwrap();
            if key != "kind" && key != "apiVersion" {
                spoil(value, rng);
            }
        }
        Value::Array(list) if !stop && !list.is_empty() => {
            let at = rng.random_range(0..list.len());
            spoil(&mut list[at], rng);
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            let spoilers = [
                json!(null),
                json!(-1),
                json!(0),
                json!(80),
                json!(30050),
                json!(65536),
                json!(true),
                json!(""),
                json!("x"),
                json!("None"),
                json!("Local"),
                json!("LoadBalancer"),
                json!("IPv6"),
                json!("10.96.0.9"),
                json!("::1"),
                json!("fd00::9"),
                json!("é"),
                json!("x".repeat(300)),
                json!([]),
                json!({}),
                json!(["IPv6", "IPv4"]),
                json!({"app": "web"}),
            ];
            *value = spoilers[rng.random_range(0..spoilers.len())].clone();
        }
    }
}
