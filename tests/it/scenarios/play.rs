//! Plays a script on a pipeline and collects where they differ. A failed expectation does not end the scenario.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use viaduct::capture::plan::Silence;
use viaduct::control::{Kind, Object, ObjectKey};
use viaduct::model::{Family, Frontend, ServiceName};
use viaduct::routing::{self, Verdict};
use viaduct::sources::manifests::Finding;

use super::manifests::{Read, json_of, merge, pod_patch, read, with_endpoint};
use super::pipeline::{NODE, Pipeline};
use super::script::{Action, Change, Mistake, Origin, Said, Script, Settings, Step, Verb};
use super::stage;
use super::stored::{contains, cut, shown_slice};

/// A difference between what a scenario expects and what came of it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) line: usize,
    what: String,
    expected: String,
    found: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}\n    expected  {}\n    found     {}",
            self.line, self.what, self.expected, self.found
        )
    }
}

/// Plays the scenario of that text; the differences, in the order of its lines.
pub(super) fn play(text: &str) -> Result<Vec<Failure>, Mistake> {
    let script = Script::parse(text)?;
    let (line, settings) = script
        .cluster
        .as_ref()
        .map(|(line, settings)| (*line, settings.clone()))
        .unwrap_or_default();
    let at = |line, message| Mistake { line, message };
    let cluster = stage::cluster(settings).map_err(|message| at(line, message))?;
    let pipeline =
        Pipeline::new(cluster, stage::usual_interfaces()).map_err(|message| at(line, message))?;
    let mut player = Player {
        script: &script,
        pipeline,
        failures: Vec::new(),
    };
    for step in &script.steps {
        player
            .step(step)
            .map_err(|message| at(step.line, message))?;
    }
    Ok(player.failures)
}

struct Player<'a> {
    script: &'a Script,
    pipeline: Pipeline,
    failures: Vec<Failure>,
}

/// What a change was told, and where.
struct Told {
    verb: Verb,
    field: String,
    message: String,
    shown: String,
}

impl Player<'_> {
    fn step(&mut self, step: &Step) -> Result<(), String> {
        match &step.action {
            Action::Node(settings) => self.set_node(step.line, settings.clone())?,
            Action::Change(change, said) => {
                let told = self.change(step.line, change)?;
                self.compare_told(step.line, said, told);
            }
            Action::Expect {
                frontend,
                origin,
                outcome,
            } => {
                let found = self.outcome(frontend, *origin);
                let what = format!("{frontend} from {origin}");
                self.compare(step.line, what, outcome, found);
            }
            Action::Conflict(expected) => {
                let shown = self.pipeline.conflicts().iter().map(|conflict| {
                    format!("{} {} {}", conflict.address, conflict.owner, conflict.loser)
                });
                let found: Vec<String> = shown.collect();
                if !found.contains(expected) {
                    let found = none_if_empty(&found.join(", "));
                    self.compare(step.line, "conflict".to_owned(), expected, found);
                }
            }
            Action::Slices(service, expected) => {
                let mut found = self.slices(service);
                found.sort();
                let found = none_if_empty(&found.join(" | "));
                let what = format!("slices of {service}");
                self.compare(step.line, what, &expected.join(" | "), found);
            }
            Action::Slice(service, expected) => {
                let slices = self.slice_objects(service);
                if !slices.iter().any(|slice| contains(slice, expected)) {
                    let shown = slices.iter().map(|slice| cut(slice, expected).to_string());
                    let found = none_if_empty(&shown.collect::<Vec<_>>().join(" | "));
                    let what = format!("a slice of {service}");
                    self.compare(step.line, what, &expected.to_string(), found);
                }
            }
            Action::Stored(key, expected) => {
                let found = self.pipeline.control().get(key).map(json_of);
                let same = match (expected, &found) {
                    (Some(expected), Some(found)) => contains(found, expected),
                    (None, None) => true,
                    (Some(_), None) | (None, Some(_)) => false,
                };
                if !same {
                    let absent = || "absent".to_owned();
                    let shown = |fields: &Value| fields.to_string();
                    let found = match (&found, expected) {
                        (Some(found), Some(expected)) => shown(&cut(found, expected)),
                        (Some(_), None) => "present".to_owned(),
                        (None, _) => absent(),
                    };
                    let expected = expected.as_ref().map_or_else(absent, shown);
                    self.compare(step.line, key.to_string(), &expected, found);
                }
            }
        }
        Ok(())
    }

    fn compare(&mut self, line: usize, what: String, expected: &str, found: String) {
        if expected != found {
            self.failures.push(Failure {
                line,
                what,
                expected: expected.to_owned(),
                found,
            });
        }
    }

    // The zone is said by the Node object, the rest by the interfaces and the flags.
    fn set_node(&mut self, line: usize, mut settings: Settings) -> Result<(), String> {
        let interfaces = stage::interfaces(self.pipeline.interfaces(), &mut settings)?;
        let zone = settings.remove("zone");
        stage::nothing_left(&settings)?;
        let addresses = interfaces.reachable();
        let addresses = addresses
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip}));
        let zone = zone.map(|zone| json!({"topology.kubernetes.io/zone": zone}));
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": NODE, "labels": zone},
            "status": {"addresses": addresses.collect::<Vec<_>>()},
        });
        self.pipeline.set_interfaces(interfaces);
        let told = self.write_edited(line, &[node]);
        self.compare_told(line, &[], told);
        Ok(())
    }

    fn change(&mut self, line: usize, change: &Change) -> Result<Vec<Told>, String> {
        match change {
            Change::Apply(names) => {
                let text = |name: &String| {
                    let manifest = &self.script.manifests[name];
                    (name.clone(), manifest.text.clone())
                };
                let files: Vec<(String, String)> = names.iter().map(text).collect();
                let files = files
                    .iter()
                    .map(|(name, text)| (name.as_str(), text.as_str()));
                let read = read(files);
                Ok(self.write(read, None))
            }
            Change::Delete(key) => {
                self.accepted(key)?;
                self.pipeline.change(Vec::new(), std::slice::from_ref(key));
                Ok(Vec::new())
            }
            Change::Merge(key, patch) => {
                let mut object = json_of(self.accepted(key)?);
                merge(&mut object, patch);
                Ok(self.write_edited(line, &[object]))
            }
            Change::Endpoint(ip, health) => {
                let slices = with_endpoint(self.pipeline.accepted(), *ip, *health);
                if slices.is_empty() {
                    return Err(format!("no slice of this scenario has {ip}"));
                }
                Ok(self.write_edited(line, &slices))
            }
            Change::Pod(key, health) => match pod_patch(*health) {
                Some(patch) => self.change(line, &Change::Merge(key.clone(), patch)),
                None => self.change(line, &Change::Delete(key.clone())),
            },
        }
    }

    fn accepted(&self, key: &ObjectKey) -> Result<&Object, String> {
        self.pipeline
            .accepted()
            .get(key)
            .ok_or_else(|| format!("no manifest of this scenario describes {key}"))
    }

    fn write_edited(&mut self, line: usize, objects: &[Value]) -> Vec<Told> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let text = list.to_string();
        self.write(read([("edited.json", text.as_str())]), Some(line))
    }

    // Lines are those of the scenario: `edited_at` for an edit, else the manifest's place in the file.
    fn write(&mut self, read: Read, edited_at: Option<usize>) -> Vec<Told> {
        let manifests = &self.script.manifests;
        let told = |verb, finding: Finding| {
            let name = finding.file.file_name().and_then(|name| name.to_str());
            let heading = name.and_then(|name| manifests.get(name));
            let within = usize::try_from(finding.line).unwrap();
            let line = edited_at.unwrap_or_else(|| heading.map_or(0, |m| m.line) + within);
            let object = finding
                .object
                .map_or_else(String::new, |key| format!("{key}: "));
            Told {
                verb,
                shown: format!(
                    "line {line}: {object}{}: {}",
                    finding.field, finding.message
                ),
                field: finding.field,
                message: finding.message,
            }
        };
        let mut found: Vec<Told> = Vec::new();
        found.extend(read.problems.into_iter().map(|f| told(Verb::Reject, f)));
        found.extend(read.warnings.into_iter().map(|f| told(Verb::Warn, f)));
        let objects = read.manifests.iter().map(|m| m.object.clone()).collect();
        for answer in self.pipeline.change(objects, &[]) {
            let manifest = read
                .manifests
                .iter()
                .find(|manifest| manifest.object.key() == answer.key);
            let origin = &manifest.expect("only what was read is answered").origin;
            let finding =
                |field: String, message| origin.finding(answer.key.clone(), field, "", message);
            let warnings = answer.warnings.into_iter();
            found
                .extend(warnings.map(|(field, message)| told(Verb::Warn, finding(field, message))));
            let Some(rejection) = answer.rejection else {
                continue;
            };
            if rejection.causes.is_empty() {
                found.push(told(
                    Verb::Reject,
                    finding(String::new(), rejection.message),
                ));
            }
            let causes = rejection.causes.into_iter();
            found.extend(causes.map(|c| told(Verb::Reject, finding(c.field, c.message))));
        }
        found
    }

    // Every rejection must be expected; a warning may be.
    fn compare_told(&mut self, line: usize, said: &[Said], mut told: Vec<Told>) {
        for said in said {
            let matches = |told: &Told| {
                told.verb == said.verb
                    && (told.field == said.field || (told.field.is_empty() && said.field == "-"))
                    && told.message.contains(&said.message)
            };
            if let Some(index) = told.iter().position(matches) {
                told.remove(index);
                continue;
            }
            let found: Vec<&str> = told
                .iter()
                .filter(|told| told.verb == said.verb)
                .map(|told| told.shown.as_str())
                .collect();
            let what = match said.verb {
                Verb::Reject => "reject",
                Verb::Warn => "warn",
            };
            let expected = format!("{}: …{}…", said.field, said.message);
            let found = none_if_empty(&found.join(", "));
            self.compare(said.line, what.to_owned(), &expected, found);
        }
        for told in told.into_iter().filter(|told| told.verb == Verb::Reject) {
            self.compare(line, "change".to_owned(), "accepted", told.shown);
        }
    }

    fn outcome(&self, frontend: &Frontend, origin: Origin) -> String {
        let table = self.pipeline.table();
        let Some(destination) = table.destination(frontend) else {
            return "unserved".to_owned();
        };
        let client = self.client(origin, Family::of(frontend.ip));
        let verdict = destination
            .route
            .verdict(destination.kind, table.node.origin(client));
        let dropped = self.is_dropped(frontend, client);
        let shown = match verdict {
            Verdict::Silent if !dropped && !frontend.ip.is_loopback() => {
                "silent, but the kernel has no rule for it".to_owned()
            }
            Verdict::Serve(_) | Verdict::Silent if dropped => "silent".to_owned(),
            Verdict::Silent => "silent".to_owned(),
            Verdict::Refuse if dropped => "refused, but the kernel drops it".to_owned(),
            Verdict::Refuse => "refused".to_owned(),
            Verdict::Serve(backends) => {
                let mut addrs: Vec<SocketAddr> = backends.iter().map(|b| b.addr).collect();
                addrs.sort_unstable();
                let shown: Vec<String> = addrs.iter().map(ToString::to_string).collect();
                shown.join(" ")
            }
        };
        let kind = destination.kind.as_str();
        format!("{kind} {} -> {shown}", destination.route.key)
    }

    /// Whether the planned rules give that client no answer: a policy's silence, or source ranges.
    fn is_dropped(&self, frontend: &Frontend, client: IpAddr) -> bool {
        let rules = self.pipeline.rules(Family::of(frontend.ip));
        let silenced = match rules.silenced().get(frontend) {
            Some(Silence::Everyone) => true,
            Some(Silence::Outside) => {
                self.pipeline.table().node.origin(client) == routing::Origin::Outside
            }
            None => false,
        };
        let ranges = rules.source_ranges.get(frontend);
        silenced || ranges.is_some_and(|list| !list.iter().any(|range| range.contains(&client)))
    }

    /// An address that is what the scenario says: the node's own, one of its Pods', or of another host.
    fn client(&self, origin: Origin, family: Family) -> IpAddr {
        let text = match (origin, family) {
            (Origin::At(ip), _) => return ip,
            (Origin::Node, _) => {
                let own = self.pipeline.interfaces().reachable();
                let of_family = own.into_iter().find(|ip| Family::of(*ip) == family);
                return of_family.expect("the node has an address of the family");
            }
            (Origin::Outside, Family::V4) => "198.51.100.7",
            (Origin::Outside, Family::V6) => "2001:db8:ffff::7",
            (Origin::Pod, Family::V4) => "10.1.0.200",
            (Origin::Pod, Family::V6) => "fd00:10:1::200",
        };
        text.parse().unwrap()
    }

    fn slices(&self, service: &ServiceName) -> Vec<String> {
        let slices = self.slice_objects(service);
        slices.iter().map(shown_slice).collect()
    }

    fn slice_objects(&self, service: &ServiceName) -> Vec<Value> {
        let objects = self.pipeline.control().list(Kind::EndpointSlice);
        let slices = objects.into_iter().map(json_of).filter(|slice| {
            slice["metadata"]["namespace"] == *service.namespace
                && slice["metadata"]["labels"]["kubernetes.io/service-name"] == *service.name
        });
        slices.collect()
    }
}

fn none_if_empty(text: &str) -> String {
    if text.is_empty() {
        "none".to_owned()
    } else {
        text.to_owned()
    }
}
