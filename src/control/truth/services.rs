//! The API server's cases: Services, and slices and Endpoints that users write.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::manifests::expand;
use super::matcher::Symbols;
use super::{SERVICES, cases, report};
use crate::control::{
    Config, ControlPlane, Kind, Object, ObjectKey, Rejection, UnknownFields, Warning, Written,
    decode,
};

/// Cases that do not apply to us.
const EXCUSED: [(&str, &str); 0] = [];

#[test]
fn services_behave_as_recorded() {
    let cases = cases(SERVICES);
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
    let mut run = Run::new(case["cluster"].as_str().unwrap());
    for (n, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        run.step(step)
            .map_err(|why| format!("step {n} ({}): {why}", step["do"]))?;
    }
    Ok(())
}

/// One case under way.
struct Run {
    plane: ControlPlane,
    symbols: Symbols,
    now: Timestamp,
}

/// What a step came to, in the form of the recorded outcomes.
type Outcome = Result<(u16, Vec<Warning>, Option<Object>), Rejection>;

impl Run {
    fn new(cluster: &str) -> Self {
        let (cidrs, ports): (&[&str], _) = match cluster {
            "dual" => (&["10.96.0.0/16", "fd00:10:96::/112"], 30000..=32767),
            "single" => (&["10.96.0.0/24"], 30000..=32767),
            "dual6" => (&["fd00:97::/64", "10.97.0.0/28"], 30000..=32767),
            "tiny" => (&["10.97.0.0/29"], 30000..=30003),
            "band" => (&["10.98.0.0/27"], 30000..=30128),
            other => panic!("unknown cluster {other}"),
        };
        let mut plane = ControlPlane::new(Config {
            service_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            node_port_range: ports,
            load_balancer_range: None,
            pod_cidr: None,
            allow_loopback_endpoints: false,
            own_node: None,
            max_endpoints_per_slice: 100,
            seed: 7,
        })
        .unwrap();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "h1-other"}});
        let (namespace, _) = decode(namespace, UnknownFields::Refuse).unwrap();
        plane.create(namespace, now).unwrap();
        Self {
            plane,
            symbols: Symbols::default(),
            now,
        }
    }

    fn step(&mut self, step: &Value) -> Result<(), String> {
        self.now += SignedDuration::from_secs(1);
        let manifest = &step["manifest"];
        let expected = &step["outcome"];
        match step["do"].as_str().unwrap() {
            "bulk" | "race" => return self.bulk(step),
            "bands" => return self.bands(step),
            _ => {}
        }
        let manifest = self.symbols.substitute(&expand(manifest, None));
        let strict = step["query"] == "fieldValidation=Strict";
        let outcome = self.run(step["do"].as_str().unwrap(), manifest, strict);
        self.plane.reconcile(self.now);
        self.check(expected, outcome)
    }

    fn run(&mut self, verb: &str, manifest: Value, strict: bool) -> Outcome {
        let unknown = if strict {
            UnknownFields::Refuse
        } else {
            UnknownFields::Warn
        };
        let now = self.now;
        match verb {
            "create" | "dry-create" | "store" | "update" | "reapply" => {
                let mut manifest = manifest;
                if verb == "reapply" {
                    let (object, _) = decode(manifest.clone(), unknown)?;
                    let stored = self.plane.get(&object.key()).unwrap();
                    let version = stored.metadata().resource_version.clone();
                    manifest["metadata"]["resourceVersion"] = json!(version);
                }
                let (object, mut warnings) = decode(manifest, unknown)?;
                let key = object.key();
                let (code, more) = match verb {
                    "create" => (201, self.plane.create(object, now)?),
                    "dry-create" => {
                        let (object, more) = self.plane.dry_create(object, now)?;
                        warnings.extend(more);
                        return Ok((201, warnings, Some(object)));
                    }
                    "store" => (201, self.plane.create_as_of_old(object, now)?),
                    _ => match self.plane.update(object, now)? {
                        (Written::Created, warnings) => (201, warnings),
                        (Written::Updated, warnings) => (200, warnings),
                    },
                };
                warnings.extend(more);
                Ok((code, warnings, self.plane.get(&key).cloned()))
            }
            "patch" => {
                let key = key_of(&manifest);
                let warnings = self.plane.patch(&key, &manifest["patch"], now)?;
                Ok((200, warnings, self.plane.get(&key).cloned()))
            }
            "patch-status" => {
                let key = key_of(&manifest);
                let warnings = self.plane.patch_status(&key, &manifest["patch"], now)?;
                Ok((200, warnings, self.plane.get(&key).cloned()))
            }
            "get" => Ok((200, Vec::new(), self.plane.get(&key_of(&manifest)).cloned())),
            "delete" => {
                self.plane.delete(&key_of(&manifest), now);
                Ok((200, Vec::new(), None))
            }
            "dry-delete" => Ok((200, Vec::new(), None)),
            other => panic!("unknown verb {other}"),
        }
    }

    fn check(&mut self, expected: &Value, outcome: Outcome) -> Result<(), String> {
        match outcome {
            Ok((code, warnings, object)) => {
                let mut actual = json!({"result": "accepted", "code": code});
                if !warnings.is_empty() {
                    actual["warnings"] = texts(&warnings);
                }
                if let Some(object) = object {
                    show(&mut actual, &object);
                }
                let mut expected = expected.clone();
                if let Some(warnings) = expected["warnings"].as_array() {
                    expected["warnings"] = sorted(warnings.iter().cloned());
                }
                self.symbols.compare("", &expected, &actual)
            }
            Err(rejection) => self.check_rejection(expected, &rejection),
        }
    }

    fn check_rejection(&mut self, expected: &Value, rejection: &Rejection) -> Result<(), String> {
        let mut expected = self.symbols.substitute(expected);
        let mut actual = json!({
            "result": "rejected", "code": rejection.code, "reason": rejection.reason,
            "message": rejection.message,
        });
        if rejection.reason.is_empty() {
            actual["reason"].take();
        }
        if !rejection.warnings.is_empty() {
            actual["warnings"] = texts(&rejection.warnings);
        }
        let fields = expected.as_object_mut().unwrap();
        if let Some(causes) = fields.get_mut("causes") {
            let mut ours: Vec<_> = rejection.causes.iter().map(cause_json).collect();
            let theirs = causes.as_array_mut().unwrap();
            for list in [&mut ours, theirs] {
                list.sort_by_key(ToString::to_string);
            }
            actual["causes"] = json!(ours);
            // Only the causes joined, in an order that means nothing.
            fields.remove("message");
            actual.as_object_mut().unwrap().remove("message");
        } else if !rejection.causes.is_empty() {
            return Err(format!("expected {expected}, have {rejection:?}"));
        } else if expected["message"]
            .as_str()
            .is_some_and(|text| text.contains(": json: "))
        {
            // The words of Go's decoder.
            expected.as_object_mut().unwrap().remove("message");
            actual.as_object_mut().unwrap().remove("message");
        }
        self.symbols.compare("", &expected, &actual)
    }

    fn bulk(&mut self, step: &Value) -> Result<(), String> {
        let expected = &step["outcome"];
        let count = usize::try_from(step["count"].as_u64().unwrap()).unwrap();
        let split = step["split"]
            .as_str()
            .map(|ip| ip.parse::<std::net::Ipv4Addr>().unwrap());
        let mut first_rejection = None;
        let mut addresses = Vec::new();
        let mut rejected = 0;
        for i in 1..=count {
            match self.run("create", expand(&step["manifest"], Some(i)), false) {
                Ok((_, _, object)) => addresses.push(cluster_ip(&object.unwrap())),
                Err(rejection) => {
                    rejected += 1;
                    first_rejection.get_or_insert(rejection);
                }
            }
        }
        let accepted = addresses.len();
        let mut actual = json!({"result": "bulk", "accepted": accepted, "rejected": rejected});
        if let Some(split) = split {
            let above = addresses.iter().filter(|ip| **ip >= split).count();
            actual["at_or_above_split"] = json!(above);
            actual["below_split"] = json!(accepted - above);
            actual["all_above_come_first"] =
                json!(addresses[..above].iter().all(|ip| *ip >= split));
        }
        let mut expected = expected.clone();
        let recorded = expected.as_object_mut().unwrap().remove("first_rejection");
        self.symbols.compare("", &expected, &actual)?;
        match (recorded, first_rejection) {
            (Some(recorded), Some(rejection)) => self.check_rejection(&recorded, &rejection),
            (None, None) => Ok(()),
            (recorded, first) => Err(format!("expected {recorded:?}, have {first:?}")),
        }
    }

    fn bands(&mut self, step: &Value) -> Result<(), String> {
        let split = step["manifest"]["split"].as_i64().unwrap();
        for (name, expected) in step["outcome"]["services"].as_object().unwrap() {
            let key = key_of(&json!({"name": name}));
            let ports: Vec<_> = self.plane.get(&key).unwrap().to_json().unwrap()["spec"]["ports"]
                .as_array()
                .unwrap()
                .iter()
                .map(|port| port["nodePort"].as_i64().unwrap())
                .collect();
            let above = ports.iter().filter(|port| **port >= split).count();
            let actual = json!({
                "at_or_above_split": above,
                "below_split": ports.len() - above,
                "distinct": ports.iter().collect::<BTreeSet<_>>().len(),
            });
            self.symbols.compare(name, expected, &actual)?;
        }
        Ok(())
    }
}

fn cluster_ip(service: &Object) -> std::net::Ipv4Addr {
    let service = service.to_json().unwrap();
    service["spec"]["clusterIP"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

fn cause_json(cause: &crate::control::Cause) -> Value {
    let mut json = json!({"message": cause.message});
    if !cause.field.is_empty() {
        json["field"] = json!(cause.field);
    }
    if !cause.reason.is_empty() {
        json["reason"] = json!(cause.reason);
    }
    json
}

fn texts(warnings: &[Warning]) -> Value {
    sorted(warnings.iter().map(|warning| json!(warning.to_string())))
}

// Their order means nothing, and the real server says each once.
fn sorted(values: impl Iterator<Item = Value>) -> Value {
    let by_text: BTreeMap<_, _> = values.map(|value| (value.to_string(), value)).collect();
    by_text.into_values().collect()
}

fn key_of(manifest: &Value) -> ObjectKey {
    let text = |field: &str, default| manifest[field].as_str().unwrap_or(default).to_owned();
    ObjectKey {
        kind: Kind::Service,
        namespace: text("namespace", "default").into(),
        name: text("name", "").into(),
    }
}

// A Service as spec and status, others whole; of metadata only what is recorded.
fn show(outcome: &mut Value, object: &Object) {
    let mut json = object.to_json().unwrap();
    let fields = json.as_object_mut().unwrap();
    let metadata = fields.remove("metadata").unwrap();
    fields.remove("kind");
    fields.remove("apiVersion");
    if object.kind() == Kind::Service {
        outcome["spec"] = fields["spec"].take();
        outcome["status"] = fields["status"].take();
    } else {
        outcome["object"] = json;
    }
    for key in ["labels", "annotations", "generation"] {
        if !metadata[key].is_null() {
            outcome["metadata"][key] = metadata[key].clone();
        }
    }
}
