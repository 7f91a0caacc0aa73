//! A scenario's text → its steps and its manifests. Every error names the line; nothing is run here.
//!
//! The format is described in `tests/scenarios/README.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use viaduct::control::ObjectKey;
use viaduct::model::{Frontend, ServiceName};

use super::words::{
    arrow, frontend_of, key, normal, service_name, settings, whole_key, word, yaml,
};

/// One scenario, parsed.
#[derive(Debug)]
pub(super) struct Script {
    /// How the cluster is set up, if the scenario says so, with the line.
    pub(super) cluster: Option<(usize, Settings)>,
    pub(super) steps: Vec<Step>,
    pub(super) manifests: BTreeMap<String, Manifest>,
}

/// `name=value` words, by name.
pub(super) type Settings = BTreeMap<String, String>;

#[derive(Debug)]
pub(super) struct Step {
    pub(super) line: usize,
    pub(super) action: Action,
}

/// A block of YAML below the steps.
#[derive(Debug)]
pub(super) struct Manifest {
    /// The line of its heading, so that its own line 1 is the next.
    pub(super) line: usize,
    pub(super) text: String,
}

#[derive(Debug)]
pub(super) enum Action {
    /// What is known of the node beside its object.
    Node(Settings),
    /// Objects are written; what follows from each is said in the lines below it.
    Change(Change, Vec<Said>),
    /// What becomes of a flow to an address, as text with the backends sorted.
    Expect {
        frontend: Frontend,
        origin: Origin,
        outcome: String,
    },
    /// An address that the last change left in dispute: address, owner, who waits.
    Conflict(String),
    /// The slices of a Service, as text, sorted.
    Slices(ServiceName, Vec<String>),
    /// Fields that some slice of a Service has: generated ones have names that nobody knows.
    Slice(ServiceName, Value),
    /// Fields of a stored object; `None` = there is no such object.
    Stored(ObjectKey, Option<Value>),
}

#[derive(Debug)]
pub(super) enum Change {
    /// Manifests by name, in one batch.
    Apply(Vec<String>),
    Delete(ObjectKey),
    /// A JSON merge patch on what the manifest said last.
    Merge(ObjectKey, Value),
    /// Endpoints at that address in slices that the scenario wrote.
    Endpoint(IpAddr, Health),
    Pod(ObjectKey, Health),
}

/// How a Pod or an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Ready,
    Unready,
    /// Serves although it is not ready: what a slice says of one that a publisher holds back.
    Serving,
    /// On its way out and still serving.
    Terminating,
    /// On its way out and no longer serving.
    Stopped,
    Gone,
}

/// Something that a change is expected to be told.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) line: usize,
    pub(super) verb: Verb,
    pub(super) field: String,
    pub(super) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Reject,
    Warn,
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Outside,
    Pod,
    Node,
    At(IpAddr),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside => f.write_str("outside"),
            Self::Pod => f.write_str("pod"),
            Self::Node => f.write_str("node"),
            Self::At(ip) => ip.fmt(f),
        }
    }
}

/// What is wrong with the text of a scenario.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) line: usize,
    pub(super) message: String,
}

impl Script {
    pub(super) fn parse(text: &str) -> Result<Self, Mistake> {
        let (steps, manifests) = split(text)?;
        let mut script = Self {
            cluster: None,
            steps: Vec::new(),
            manifests,
        };
        for (line, text) in steps {
            script
                .read_step(line, &text)
                .map_err(|message| Mistake { line, message })?;
        }
        script.check()?;
        Ok(script)
    }

    fn read_step(&mut self, line: usize, text: &str) -> Result<(), String> {
        let (verb, rest) = word(text);
        let action = match verb {
            "cluster" if self.cluster.is_none() && self.steps.is_empty() => {
                self.cluster = Some((line, settings(rest)?));
                return Ok(());
            }
            "cluster" => return Err("`cluster` comes first, and once".to_owned()),
            "reject" | "warn" => {
                let verb = if verb == "warn" {
                    Verb::Warn
                } else {
                    Verb::Reject
                };
                return self.read_said(line, verb, rest);
            }
            "node" => Action::Node(settings(rest)?),
            "apply" => {
                let names: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
                for name in &names {
                    if !self.manifests.contains_key(name) {
                        return Err(format!("there is no `-- {name} --` below"));
                    }
                }
                Action::Change(Change::Apply(names), Vec::new())
            }
            "delete" => Action::Change(Change::Delete(whole_key(rest)?), Vec::new()),
            "patch" => Action::Change(patch(rest)?, Vec::new()),
            "expect" => expect(rest)?,
            "conflict" => Action::Conflict(normal(rest)),
            "slices" => {
                let (name, shown) = arrow(rest)?;
                let mut slices: Vec<String> = shown.split('|').map(normal).collect();
                slices.sort();
                Action::Slices(service_name(name)?, slices)
            }
            "slice" => {
                let (name, fields) = word(rest);
                Action::Slice(service_name(name)?, yaml(fields)?)
            }
            "stored" => {
                let (key, fields) = key(rest)?;
                let fields = if fields == "absent" {
                    None
                } else {
                    Some(yaml(fields)?)
                };
                Action::Stored(key, fields)
            }
            other => return Err(format!("there is no step `{other}`")),
        };
        self.steps.push(Step { line, action });
        Ok(())
    }

    fn read_said(&mut self, line: usize, verb: Verb, rest: &str) -> Result<(), String> {
        let Some(Step {
            action: Action::Change(_, said),
            ..
        }) = self.steps.last_mut()
        else {
            return Err("only a change is answered".to_owned());
        };
        let (field, message) = word(rest);
        if message.is_empty() {
            return Err("a field and a part of the message are needed".to_owned());
        }
        said.push(Said {
            line,
            verb,
            field: field.to_owned(),
            message: message.to_owned(),
        });
        Ok(())
    }

    // A scenario that asserts nothing, or a manifest that nobody reads, is an oversight.
    fn check(&self) -> Result<(), Mistake> {
        let asserts = |step: &Step| match &step.action {
            Action::Node(_) => false,
            Action::Change(_, said) => !said.is_empty(),
            Action::Expect { .. }
            | Action::Conflict(_)
            | Action::Slices(..)
            | Action::Slice(..)
            | Action::Stored(..) => true,
        };
        if !self.steps.iter().any(asserts) {
            let message = "the scenario expects nothing".to_owned();
            return Err(Mistake { line: 1, message });
        }
        let applied: BTreeSet<&String> = self
            .steps
            .iter()
            .flat_map(|step| match &step.action {
                Action::Change(Change::Apply(names), _) => names.as_slice(),
                Action::Change(..)
                | Action::Node(_)
                | Action::Expect { .. }
                | Action::Conflict(_)
                | Action::Slices(..)
                | Action::Slice(..)
                | Action::Stored(..) => &[],
            })
            .collect();
        let unused = self
            .manifests
            .iter()
            .find(|(name, _)| !applied.contains(name));
        match unused {
            Some((name, manifest)) => Err(Mistake {
                line: manifest.line,
                message: format!("{name} is never applied"),
            }),
            None => Ok(()),
        }
    }
}

/// The steps with their lines, continuations joined, and the blocks below them.
type Parts = (Vec<(usize, String)>, BTreeMap<String, Manifest>);

fn split(text: &str) -> Result<Parts, Mistake> {
    let mut steps: Vec<(usize, String)> = Vec::new();
    let mut manifests: BTreeMap<String, Manifest> = BTreeMap::new();
    let mut current: Option<String> = None;
    for (line, text) in (1..).zip(text.lines()) {
        let heading = text
            .strip_prefix("-- ")
            .and_then(|rest| rest.strip_suffix(" --"));
        if let Some(name) = heading {
            let manifest = Manifest {
                line,
                text: String::new(),
            };
            if manifests.insert(name.to_owned(), manifest).is_some() {
                let message = format!("a second {name}");
                return Err(Mistake { line, message });
            }
            current = Some(name.to_owned());
        } else if let Some(manifest) = current.as_ref().and_then(|name| manifests.get_mut(name)) {
            manifest.text.push_str(text);
            manifest.text.push('\n');
        } else if text.trim().is_empty() || text.trim_start().starts_with('#') {
        } else if let (true, Some((_, step))) = (text.starts_with(' '), steps.last_mut()) {
            step.push(' ');
            step.push_str(text.trim());
        } else {
            steps.push((line, text.trim().to_owned()));
        }
    }
    Ok((steps, manifests))
}

fn patch(rest: &str) -> Result<Change, String> {
    let (kind, after) = word(rest);
    match kind {
        "endpoint" => {
            let (ip, how) = word(after);
            let ip = ip.parse().map_err(|_| format!("{ip} is no address"))?;
            Ok(Change::Endpoint(ip, health(how)?))
        }
        "pod" => {
            let (name, how) = word(after);
            let (key, _) = key(&format!("Pod {name}"))?;
            let health = health(how)?;
            if health == Health::Serving {
                return Err("a Pod that serves is ready or terminating".to_owned());
            }
            Ok(Change::Pod(key, health))
        }
        _ => {
            let (key, fields) = key(rest)?;
            Ok(Change::Merge(key, yaml(fields)?))
        }
    }
}

fn health(text: &str) -> Result<Health, String> {
    match text {
        "ready" => Ok(Health::Ready),
        "unready" => Ok(Health::Unready),
        "serving" => Ok(Health::Serving),
        "terminating" => Ok(Health::Terminating),
        "stopped" => Ok(Health::Stopped),
        "gone" => Ok(Health::Gone),
        other => Err(format!(
            "{other} is none of ready, unready, serving, terminating, stopped, gone"
        )),
    }
}

fn expect(rest: &str) -> Result<Action, String> {
    let (frontend, mut rest) = word(rest);
    let mut origin = Origin::Outside;
    if let ("from", after) = word(rest) {
        let (who, after) = word(after);
        origin = match who {
            "outside" => Origin::Outside,
            "pod" => Origin::Pod,
            "node" => Origin::Node,
            ip => Origin::At(
                ip.parse()
                    .map_err(|_| format!("{ip} is neither outside, pod, node nor an address"))?,
            ),
        };
        rest = after;
    }
    let (owner, answer) = arrow(rest)?;
    let mut backends: Vec<&str> = answer.split_whitespace().collect();
    if backends.is_empty() {
        return Err("backends, `refused`, `silent` or `unserved` are missing".to_owned());
    }
    backends.sort_by_key(|text| text.parse::<SocketAddr>().ok());
    let shown = backends.join(" ");
    let outcome = match normal(owner) {
        owner if owner.is_empty() => shown,
        owner => format!("{owner} -> {shown}"),
    };
    Ok(Action::Expect {
        frontend: frontend_of(frontend)?,
        origin,
        outcome,
    })
}
