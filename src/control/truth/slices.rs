//! The controllers' cases: slices, mirroring and Endpoints.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::matcher::Symbols;
use super::{SLICES, cases, report};
use crate::control::{
    Config, ControlPlane, Grace, Kind, ObjectKey, Rejection, Severity, UnknownFields, decode,
};

/// Cases that do not apply to us.
const EXCUSED: [(&str, &str); 0] = [];

const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

#[test]
fn slices_behave_as_recorded() {
    let cases = cases(SLICES);
    let mut failures = Vec::new();
    for case in &cases {
        if let Err(why) = play(case) {
            failures.push((case["id"].as_str().unwrap().to_owned(), why));
        }
    }
    report(cases.len(), failures, &EXCUSED);
}

/// Plays one case; the first step that comes out differently, and how.
pub(super) fn play(case: &Value) -> Result<(), String> {
    let mut run = Run::new(case["flags"].clone());
    for (n, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        run.step(step).map_err(|why| format!("step {n}: {why}"))?;
    }
    Ok(())
}

/// One case under way.
struct Run {
    plane: ControlPlane,
    now: Timestamp,
    flags: Value,
    /// Names of slices that the case itself has made.
    literal_names: BTreeSet<String>,
    /// uid and version of every slice after the last step.
    before: BTreeMap<String, String>,
    said: BTreeSet<String>,
}

impl Run {
    fn new(flags: Value) -> Self {
        let cidrs = ["10.96.0.0/16", "fd00:10:96::/112"];
        let mut plane = ControlPlane::new(Config {
            service_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            node_port_range: 30000..=32767,
            load_balancer_range: None,
            pod_cidr: None,
            allow_loopback_endpoints: false,
            own_node: None,
            max_endpoints_per_slice: 100,
            seed: 7,
        })
        .unwrap();
        // Later than every time in the manifests.
        let now = Timestamp::from_second(1_780_000_000).unwrap();
        let other = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}});
        let (other, _) = decode(other, UnknownFields::Refuse).unwrap();
        plane.create(other, now).unwrap();
        Self {
            plane,
            now,
            flags,
            literal_names: BTreeSet::new(),
            before: BTreeMap::new(),
            said: BTreeSet::new(),
        }
    }

    fn step(&mut self, step: &Value) -> Result<(), String> {
        let mut rejected = Vec::new();
        for op in step["do"].as_array().unwrap() {
            self.now += SignedDuration::from_secs(1);
            if let Err(rejection) = self.run(op) {
                let target = if op["object"].is_object() {
                    &op["object"]
                } else {
                    op
                };
                let nested = &target["metadata"]["name"];
                let name = if nested.is_null() {
                    &target["name"]
                } else {
                    nested
                };
                rejected.push(json!({
                    "op": op["op"], "kind": target["kind"], "name": name,
                    "code": rejection.code, "message": rejection.message,
                }));
            }
        }
        self.plane.reconcile(self.now);
        let mut actual = self.outcome(&rejected);
        let mut expected = step["outcome"].clone();
        for side in [&mut actual, &mut expected] {
            // The order of ports and subsets means nothing, and is recorded in another one.
            for object in side["endpoints"].as_array_mut().into_iter().flatten() {
                let Some(subsets) = object["subsets"].as_array_mut() else {
                    continue;
                };
                for ports in subsets
                    .iter_mut()
                    .filter_map(|subset| subset["ports"].as_array_mut())
                {
                    ports.sort_by_key(ToString::to_string);
                }
                subsets.sort_by_key(ToString::to_string);
            }
            for list in ["slices", "endpoints", "rejected", "events"] {
                if let Some(list) = side[list].as_array_mut() {
                    list.sort_by_key(ToString::to_string);
                }
            }
        }
        self.remember();
        Symbols::default().compare("", &expected, &actual)
    }

    fn run(&mut self, op: &Value) -> Result<(), Rejection> {
        match op["op"].as_str().unwrap() {
            "create" => self.create(&op["object"]),
            "create-many" => {
                let start = op["start"].as_u64().unwrap();
                let count = op["count"].as_u64().unwrap();
                for i in start..start + count {
                    let texts = [
                        ("{i}", i.to_string()),
                        ("{hi}", (i / 200).to_string()),
                        ("{lo}", (i % 200 + 1).to_string()),
                    ];
                    self.create(&replace(&op["object"], &texts))?;
                }
                Ok(())
            }
            "patch" if op["subresource"] == "status" => self
                .plane
                .patch_status(&key_of(op), &op["patch"], self.now)
                .map(drop),
            "patch" => self
                .plane
                .patch(&key_of(op), &op["patch"], self.now)
                .map(drop),
            "delete" => self.delete(op),
            "delete-slices" => {
                for key in self.slices_of(op) {
                    self.plane.delete(&key, self.now);
                }
                Ok(())
            }
            "patch-slice" => {
                for key in self.slices_of(op) {
                    if op["type"] == "merge" {
                        self.plane.patch(&key, &op["patch"], self.now)?;
                    } else {
                        let mut slice = self.plane.get(&key).unwrap().to_json().unwrap();
                        json_patch(&mut slice, &op["patch"]);
                        let (object, _) = decode(slice, UnknownFields::Refuse)?;
                        self.plane.update(object, self.now)?;
                    }
                }
                Ok(())
            }
            other => panic!("unknown operation {other}"),
        }
    }

    // With the status, which takes a second write.
    fn create(&mut self, object: &Value) -> Result<(), Rejection> {
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("default");
        let mut texts = vec![("${ns}", namespace.to_owned())];
        for kind in [Kind::Service, Kind::Pod, Kind::Endpoints] {
            for object in self.plane.list(kind) {
                let metadata = object.metadata();
                let name = metadata.name.clone().unwrap();
                let uid = metadata.uid.clone().unwrap();
                texts.push((format!("${{uid:{kind}/{name}}}").leak(), uid));
            }
        }
        let needs_texts = object.to_string().contains("${");
        let manifest = if needs_texts {
            replace(object, &texts)
        } else {
            object.clone()
        };
        let status = manifest["status"].clone();
        let (object, _) = decode(manifest, UnknownFields::Refuse)?;
        let key = object.key();
        self.plane.create(object, self.now)?;
        if !status.is_null() {
            let patch = json!({"status": status});
            self.plane.patch_status(&key, &patch, self.now)?;
        }
        if key.kind == Kind::EndpointSlice {
            self.literal_names.insert(key.name.to_string());
        }
        Ok(())
    }

    fn delete(&mut self, op: &Value) -> Result<(), Rejection> {
        let key = key_of(op);
        if key.kind != Kind::Pod {
            self.plane.delete(&key, self.now);
            return Ok(());
        }
        let pod = self.plane.get(&key).unwrap().to_json().unwrap();
        let bound = pod["spec"]["nodeName"].is_string();
        let grace = if op["force"] == true || !bound {
            Grace::Force
        } else {
            Grace::Wait
        };
        self.plane.delete_pod(&key, grace, self.now)
    }

    fn slices_of(&self, op: &Value) -> Vec<ObjectKey> {
        let of_service = |labels: &BTreeMap<String, String>| {
            labels.get("kubernetes.io/service-name").map(String::as_str) == op["service"].as_str()
        };
        self.plane
            .list(Kind::EndpointSlice)
            .into_iter()
            .filter(|slice| slice.metadata().labels.as_ref().is_some_and(of_service))
            .map(crate::control::Object::key)
            .collect()
    }

    fn json_of(&self, kind: Kind) -> Vec<Value> {
        let objects = self.plane.list(kind).into_iter();
        objects.map(|object| object.to_json().unwrap()).collect()
    }

    fn remember(&mut self) {
        self.before = self
            .json_of(Kind::EndpointSlice)
            .iter()
            .map(|slice| {
                let text = |field: &str| slice["metadata"][field].as_str().unwrap().to_owned();
                (text("uid"), text("resourceVersion"))
            })
            .collect();
    }

    fn outcome(&mut self, rejected: &[Value]) -> Value {
        let slices = self.json_of(Kind::EndpointSlice);
        let uids: BTreeSet<_> = slices
            .iter()
            .map(|slice| slice["metadata"]["uid"].as_str().unwrap())
            .collect();
        let deleted = self
            .before
            .keys()
            .filter(|uid| !uids.contains(uid.as_str()))
            .count();
        let shown: Vec<_> = slices.iter().map(|slice| self.show_slice(slice)).collect();
        let endpoints = self.json_of(Kind::Endpoints);
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|one| self.show_endpoints(one))
            .collect();
        let mut outcome =
            json!({"slices": shown, "slices_deleted": deleted, "endpoints": endpoints});
        if !rejected.is_empty() {
            outcome["rejected"] = json!(rejected);
        }
        let events = self.new_events();
        if !events.is_empty() {
            outcome["events"] = json!(events);
        }
        if !self.flags["compact"].is_null() {
            outcome["totals"] = self.totals(&slices);
        }
        outcome
    }

    fn new_events(&mut self) -> Vec<Value> {
        let events = self.plane.take_events().into_iter().map(|event| {
            json!({
                "kind": event.object.kind.as_str(), "name": &*event.object.name,
                "message": event.message, "reason": event.reason,
                "type": match event.severity {
                    Severity::Normal => "Normal",
                    Severity::Warning => "Warning",
                },
            })
        });
        let events: Vec<_> = events.collect();
        events
            .into_iter()
            .filter(|event| self.said.insert(event.to_string()))
            .collect()
    }

    fn show_slice(&self, slice: &Value) -> Value {
        let metadata = &slice["metadata"];
        let name = metadata["name"].as_str().unwrap();
        let mut shown = json!({
            "addressType": slice["addressType"],
            "labels": or_empty(&metadata["labels"]),
            "owners": without(&metadata["ownerReferences"], &["uid"]),
            "ports": sorted_by(&slice["ports"], "name"),
        });
        if metadata["namespace"] != "default" {
            shown["namespace"] = metadata["namespace"].clone();
        }
        let total_only = self.flags["compact"] == "total";
        if !total_only {
            shown["name"] = json!(if self.literal_names.contains(name) {
                name.to_owned()
            } else {
                let base = &name[..name.len() - 5];
                let owner = metadata["ownerReferences"][0]["name"].as_str().unwrap();
                assert!(format!("{owner}-").starts_with(base), "{name} of {owner}");
                format!("{base}*")
            });
            shown["annotations"] = self.show_annotations(
                metadata,
                metadata["labels"]["kubernetes.io/service-name"].as_str(),
            );
            let uid = metadata["uid"].as_str().unwrap();
            shown["change"] = json!(match self.before.get(uid) {
                None => "created",
                Some(version) if metadata["resourceVersion"] == json!(version) => "unchanged",
                Some(_) => "updated",
            });
        }
        let mut endpoints = without_in(
            &slice["endpoints"],
            "targetRef",
            &["uid", "resourceVersion"],
        );
        endpoints.sort_by_key(|endpoint| endpoint["addresses"].to_string() + &endpoint.to_string());
        if self.flags["hint_counts"] == true {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            let mut across = 0;
            for endpoint in &mut endpoints {
                let hints = endpoint.as_object_mut().unwrap().remove("hints");
                for zone in hints
                    .iter()
                    .flat_map(|hints| hints["forZones"].as_array().unwrap())
                {
                    *counts
                        .entry(zone["name"].as_str().unwrap().to_owned())
                        .or_default() += 1;
                    across += usize::from(zone["name"] != endpoint["zone"]);
                }
            }
            shown["hint_counts"] = json!(counts);
            shown["hints_across_zones"] = json!(across);
        }
        if self.flags["compact"].is_null() {
            shown["endpoints"] = json!(endpoints);
        } else if !total_only {
            shown["endpoint_count"] = json!(endpoints.len());
        }
        shown
    }

    fn show_endpoints(&self, object: &Value) -> Value {
        let metadata = &object["metadata"];
        let compact = !self.flags["compact"].is_null();
        let subsets = object["subsets"].as_array().cloned().unwrap_or_default();
        let subsets: Vec<_> = subsets
            .iter()
            .map(|subset| {
                let mut shown = Map::new();
                for list in ["addresses", "notReadyAddresses"] {
                    let mut addresses =
                        without_in(&subset[list], "targetRef", &["uid", "resourceVersion"]);
                    addresses
                        .sort_by_key(|address| address["ip"].to_string() + &address.to_string());
                    if !addresses.is_empty() {
                        let value = if compact {
                            json!(addresses.len())
                        } else {
                            json!(addresses)
                        };
                        shown.insert(list.to_owned(), value);
                    }
                }
                if !subset["ports"].is_null() {
                    shown.insert("ports".to_owned(), subset["ports"].clone());
                }
                Value::Object(shown)
            })
            .collect();
        let mut shown = json!({
            "name": metadata["name"], "subsets": subsets,
            "labels": or_empty(&metadata["labels"]),
            "annotations": self.show_annotations(metadata, metadata["name"].as_str()),
        });
        if metadata["namespace"] != "default" {
            shown["namespace"] = metadata["namespace"].clone();
        }
        shown
    }

    fn show_annotations(&self, metadata: &Value, service: Option<&str>) -> Value {
        let mut annotations = or_empty(&metadata["annotations"]);
        let key = ObjectKey {
            kind: Kind::Service,
            namespace: metadata["namespace"].as_str().unwrap().into(),
            name: service.unwrap_or_default().into(),
        };
        if let Some(service) = self.plane.get(&key) {
            let created = service.to_json().unwrap()["metadata"]["creationTimestamp"].clone();
            if annotations[TRIGGER_TIME] == created {
                annotations[TRIGGER_TIME] = json!("<service created>");
            }
        }
        if annotations[TRIGGER_TIME].is_null() {
            annotations.as_object_mut().unwrap().remove(TRIGGER_TIME);
        }
        annotations
    }

    fn totals(&self, slices: &[Value]) -> Value {
        let mut totals: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
        for slice in slices {
            let service = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str();
            let key = format!(
                "{}/{}",
                service.unwrap_or_default(),
                slice["addressType"].as_str().unwrap()
            );
            totals.entry(key).or_default().push(slice);
        }
        let mut shown = Map::new();
        for (key, slices) in totals {
            let list = |slice: &Value| slice["endpoints"].as_array().cloned().unwrap_or_default();
            let endpoints: Vec<_> = slices.iter().flat_map(|slice| list(slice)).collect();
            let distinct: BTreeSet<_> = endpoints
                .iter()
                .map(|e| e["addresses"].to_string())
                .collect();
            let ready = endpoints
                .iter()
                .filter(|e| e["conditions"]["ready"] == true)
                .count();
            let mut total = json!({
                "endpoints": endpoints.len(), "distinct_addresses": distinct.len(), "ready": ready,
            });
            if self.flags["compact"] == true {
                let mut sizes: Vec<_> = slices.iter().map(|slice| list(slice).len()).collect();
                sizes.sort_by_key(|size| std::cmp::Reverse(*size));
                total["sizes"] = json!(sizes);
            }
            shown.insert(key, total);
        }
        Value::Object(shown)
    }
}

fn or_empty(value: &Value) -> Value {
    if value.is_null() {
        json!({})
    } else {
        value.clone()
    }
}

fn key_of(op: &Value) -> ObjectKey {
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| op["kind"] == kind.as_str())
        .unwrap();
    ObjectKey {
        kind,
        namespace: if kind.is_namespaced() { "default" } else { "" }.into(),
        name: op["name"].as_str().unwrap().into(),
    }
}

fn replace(value: &Value, texts: &[(&str, String)]) -> Value {
    let mut json = value.to_string();
    for (from, to) in texts {
        json = json.replace(from, to);
    }
    serde_json::from_str(&json).unwrap()
}

fn without(list: &Value, fields: &[&str]) -> Value {
    let mut list = list.as_array().cloned().unwrap_or_default();
    for item in &mut list {
        for field in fields {
            item.as_object_mut().unwrap().remove(*field);
        }
    }
    json!(list)
}

fn without_in(list: &Value, inner: &str, fields: &[&str]) -> Vec<Value> {
    let mut list = list.as_array().cloned().unwrap_or_default();
    for item in &mut list {
        if let Some(inner) = item.get_mut(inner).and_then(Value::as_object_mut) {
            for field in fields {
                inner.remove(*field);
            }
        }
    }
    list
}

fn sorted_by(list: &Value, field: &str) -> Value {
    let Some(list) = list.as_array() else {
        return Value::Null;
    };
    let mut list = list.clone();
    list.sort_by_key(|item| item[field].to_string() + &item.to_string());
    json!(list)
}

// The three operations that the cases use (RFC 6902).
fn json_patch(target: &mut Value, patch: &Value) {
    for op in patch.as_array().unwrap() {
        let path = op["path"].as_str().unwrap();
        let (parent, last) = path.rsplit_once('/').unwrap();
        let parent = target.pointer_mut(parent).unwrap();
        match (op["op"].as_str().unwrap(), parent) {
            ("add", Value::Array(list)) if last == "-" => list.push(op["value"].clone()),
            ("add" | "replace", Value::Object(map)) => {
                map.insert(last.to_owned(), op["value"].clone());
            }
            ("replace", Value::Array(list)) => {
                list[last.parse::<usize>().unwrap()] = op["value"].clone();
            }
            (other, _) => panic!("unknown operation {other} at {path}"),
        }
    }
}
