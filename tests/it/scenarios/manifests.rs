//! Text and edits → objects, always through the directory source, so that what is refused is refused as users see it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};
use viaduct::control::{Kind, Object, ObjectKey};
use viaduct::sources::manifests::{Directory, Finding, Manifest, Update};

use super::script::Health;

/// What reading gave.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) manifests: Vec<Manifest>,
    pub(super) problems: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
}

/// Reads files, by name and text.
pub(super) fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Read {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let updates = Directory::new(directory.path().to_owned()).scan().unwrap();
    let mut read = Read::default();
    for update in updates {
        match update {
            Update::Applied(manifest) => read.manifests.push(*manifest),
            Update::Problem(finding) => read.problems.push(finding),
            Update::Warning(finding) => read.warnings.push(finding),
            Update::Removed(_) | Update::Healed(_) => {}
        }
    }
    read
}

/// An object as JSON.
pub(super) fn json_of(object: &Object) -> Value {
    let value = match object {
        Object::Namespace(object) => serde_json::to_value(object),
        Object::Node(object) => serde_json::to_value(object),
        Object::Service(object) => serde_json::to_value(object),
        Object::Pod(object) => serde_json::to_value(object),
        Object::EndpointSlice(object) => serde_json::to_value(object),
        Object::Endpoints(object) => serde_json::to_value(object),
    };
    value.unwrap()
}

/// A JSON merge patch. Source: RFC 7396.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(target) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name.as_str()).or_insert(Value::Null), value);
        }
    }
}

/// The slices among `accepted` that have an endpoint at `ip`, with it as it is now.
pub(super) fn with_endpoint(
    accepted: &BTreeMap<ObjectKey, Object>,
    ip: IpAddr,
    health: Health,
) -> Vec<Value> {
    let at_ip = |endpoint: &Value| {
        let addresses = endpoint["addresses"].as_array().into_iter().flatten();
        addresses
            .filter_map(|text| text.as_str()?.parse().ok())
            .any(|found: IpAddr| found == ip)
    };
    let slices = accepted
        .iter()
        .filter(|(key, _)| key.kind == Kind::EndpointSlice);
    let changed = slices.filter_map(|(_, object)| {
        let mut slice = json_of(object);
        let endpoints = slice["endpoints"].as_array_mut()?;
        if !endpoints.iter().any(at_ip) {
            return None;
        }
        match conditions(health) {
            Some(conditions) => {
                for endpoint in endpoints.iter_mut().filter(|endpoint| at_ip(endpoint)) {
                    endpoint["conditions"] = conditions.clone();
                }
            }
            None => endpoints.retain(|endpoint| !at_ip(endpoint)),
        }
        Some(slice)
    });
    changed.collect()
}

/// The merge patch that makes a Pod so; `None` if it has to be deleted.
pub(super) fn pod_patch(health: Health) -> Option<Value> {
    let conditions = conditions(health)?;
    let ready = if conditions["serving"] == true {
        "True"
    } else {
        "False"
    };
    let deleted = (conditions["terminating"] == true).then_some("2026-01-01T00:00:00Z");
    Some(json!({
        "metadata": {"deletionTimestamp": deleted},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }))
}

/// What an EndpointSlice says; `None` of one that is gone.
fn conditions(health: Health) -> Option<Value> {
    let [ready, serving, terminating] = match health {
        Health::Ready => [true, true, false],
        Health::Unready => [false, false, false],
        Health::Serving => [false, true, false],
        Health::Terminating => [false, true, true],
        Health::Stopped => [false, false, true],
        Health::Gone => return None,
    };
    Some(json!({"ready": ready, "serving": serving, "terminating": terminating}))
}
