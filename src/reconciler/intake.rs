//! Intake: the updates of the manifest directory, in the order in which the control plane should see them.
//!
//! Owns the control plane, which manifest every object came from, and the documents that were refused because
//! something is taken: those wait here until something is released. What is wrong comes out as remarks; nothing here
//! logs or prints, so that `viaduct check` finds what the running process finds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::control::{
    Allocations, Change, ControlPlane, ControllerEvent, Object, ObjectKey, ProbeChange, Readiness,
    Rejection, Saved, Severity,
};
use crate::sources::convert::Note;
use crate::sources::manifests::{Manifest, Origin, Update};
use crate::sources::prober::ProbeReport;

use super::remark::Remark;

/// The control plane with its manifests.
pub(super) struct Intake {
    control: ControlPlane,
    origins: HashMap<ObjectKey, Origin>,
    waiting: BTreeMap<ObjectKey, Pending>,
    refused: BTreeSet<ObjectKey>,
    /// In `dev`, cluster IPs outside this range are replaced by one inside.
    replace_outside: Option<IpNet>,
}

// A manifest on its way to the control plane.
struct Pending {
    manifest: Manifest,
    /// The cluster IP that was taken out of it.
    replaced: Option<String>,
    /// A refusal has been told already.
    reported: bool,
}

impl Intake {
    /// Nothing has come in yet; `kept` is what an earlier run had allocated.
    pub(super) fn new(
        mut control: ControlPlane,
        kept: Option<Allocations>,
        replace_outside: Option<IpNet>,
    ) -> Self {
        if let Some(allocations) = kept {
            control.restore(allocations);
        }
        Self {
            control,
            origins: HashMap::new(),
            waiting: BTreeMap::new(),
            refused: BTreeSet::new(),
            replace_outside,
        }
    }

    /// Takes a batch of updates through the control plane: what changed by them, and what there is to tell.
    pub(super) fn take(
        &mut self,
        updates: Vec<Update>,
        now: Timestamp,
    ) -> (Vec<Change>, Vec<Remark>) {
        let mut remarks = Vec::new();
        let mut pending = Vec::new();
        for update in updates {
            match update {
                Update::Applied(manifest) => pending.push(self.adapt(*manifest)),
                Update::Removed(key) => self.remove(&key, now),
                Update::Problem(finding) => remarks.push(Remark::Problem(finding)),
                Update::Warning(finding) => remarks.push(Remark::Warning(finding)),
                Update::Healed(file) => remarks.push(Remark::Healed(file)),
            }
        }
        for pending in &pending {
            self.control.announce(&pending.manifest.object);
        }
        pending.sort_by_key(|pending| self.rank(&pending.manifest.object));
        for pending in pending {
            self.apply(pending, now, &mut remarks);
        }
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            self.apply(waiting, now, &mut remarks);
        }
        let (changes, heard) = self.reconcile(now);
        remarks.extend(heard);
        (changes, remarks)
    }

    /// Takes what probes have found out: what changed by it, and what there is to tell.
    pub(super) fn hear(
        &mut self,
        reports: Vec<ProbeReport>,
        now: Timestamp,
    ) -> (Vec<Change>, Vec<Remark>) {
        let mut remarks = Vec::new();
        for report in reports {
            let target = &report.target;
            let news = self.control.report_probe(target, report.readiness);
            let ready = match report.readiness {
                Readiness::Ready => true,
                Readiness::NotReady => false,
                Readiness::Undecided => continue,
            };
            if news {
                remarks.push(Remark::Probed {
                    pod: target.pod.clone(),
                    container: target.container.clone(),
                    ready,
                    reason: report.reason,
                });
            }
        }
        let (changes, heard) = self.reconcile(now);
        remarks.extend(heard);
        (changes, remarks)
    }

    /// What has changed in what is to be probed since the last call.
    pub(super) fn take_probe_changes(&mut self) -> Vec<ProbeChange> {
        self.control.take_probe_changes()
    }

    fn reconcile(&mut self, now: Timestamp) -> (Vec<Change>, Vec<Remark>) {
        let changes = self.control.reconcile(now);
        let events = self.control.take_events();
        let heard = events.into_iter().filter_map(|event| self.heard(event));
        (changes, heard.collect())
    }

    /// What an object holds at this moment, see [`ControlPlane::allocation_of`].
    pub(super) fn allocation_of(&self, key: &ObjectKey) -> Option<Saved> {
        self.control.allocation_of(key)
    }

    /// A remark about a field of an object, at its place if a manifest describes it.
    pub(super) fn remark(&self, key: &ObjectKey, note: &Note) -> Remark {
        match self.origins.get(key) {
            Some(origin) => {
                Remark::Warning(origin.warning(key.clone(), &note.field, &note.message))
            }
            None => Remark::Derived(key.clone(), note.clone()),
        }
    }

    fn apply(&mut self, pending: Pending, now: Timestamp, remarks: &mut Vec<Remark>) {
        let manifest = &pending.manifest;
        let key = manifest.object.key();
        let warn = |field: &str, message: &str| {
            Remark::Warning(manifest.origin.warning(key.clone(), field, message))
        };
        self.waiting.remove(&key);
        match self.control.apply(manifest.object.clone(), now) {
            Ok(warnings) => {
                remarks.extend(warnings.iter().map(|w| warn(&w.field, &w.message)));
                if let Some(given) = &pending.replaced {
                    let message = self.replacement(&key, given);
                    remarks.push(warn("spec.clusterIP", &message));
                }
                if self.refused.remove(&key) {
                    remarks.push(Remark::Accepted(key.clone()));
                }
                self.origins.insert(key, pending.manifest.origin);
            }
            Err(rejection) => {
                if !pending.reported {
                    remarks.extend(problems(manifest, &key, &rejection));
                    let odd = rejection.warnings.iter();
                    remarks.extend(odd.map(|w| warn(&w.field, &w.message)));
                }
                self.refused.insert(key.clone());
                if rejection.retry {
                    let reported = true;
                    self.waiting.insert(
                        key,
                        Pending {
                            reported,
                            ..pending
                        },
                    );
                }
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey, now: Timestamp) {
        self.waiting.remove(key);
        self.refused.remove(key);
        self.origins.remove(key);
        self.control.delete(key, now);
    }

    // Loopback can serve only its own addresses: in `dev` a cluster IP outside the range is taken out.
    fn adapt(&self, mut manifest: Manifest) -> Pending {
        let mut replaced = None;
        if let (Some(range), Object::Service(service)) =
            (self.replace_outside, &mut manifest.object)
            && let Some(spec) = &mut service.spec
        {
            let first = spec
                .cluster_ips
                .as_ref()
                .and_then(|list| list.first().cloned());
            let given = spec.cluster_ip.clone().or(first);
            let ip = given
                .as_deref()
                .and_then(|text| text.parse::<IpAddr>().ok());
            if ip.is_some_and(|ip| !range.contains(&ip)) {
                spec.cluster_ip = None;
                spec.cluster_ips = None;
                replaced = given;
            }
        }
        Pending {
            manifest,
            replaced,
            reported: false,
        }
    }

    fn replacement(&self, key: &ObjectKey, given: &str) -> String {
        let stored = self.control.get(key).and_then(Object::as_service);
        let served = stored
            .and_then(|service| service.spec.as_ref()?.cluster_ip.clone())
            .unwrap_or_default();
        let range = self
            .replace_outside
            .map(|range| range.to_string())
            .unwrap_or_default();
        format!("{given} is outside {range}; served at {served} instead")
    }

    // What others refer to comes first; of two Services the one that was accepted earlier, in an earlier run too.
    fn rank(&self, object: &Object) -> (u8, Timestamp) {
        let kind = match object {
            Object::Namespace(_) => 0,
            Object::Node(_) => 1,
            Object::Service(_) => 2,
            Object::Pod(_) => 3,
            Object::EndpointSlice(_) | Object::Endpoints(_) => 4,
        };
        let accepted = self.control.accepted_at(&object.key());
        (kind, accepted.unwrap_or(Timestamp::MAX))
    }

    fn heard(&self, event: ControllerEvent) -> Option<Remark> {
        let ControllerEvent {
            object,
            severity,
            message,
            reason: _,
        } = event;
        let field = String::new();
        match severity {
            Severity::Normal => None,
            Severity::Warning => Some(self.remark(&object, &Note { field, message })),
        }
    }
}

// Every stage of the API server that found something, a problem per field.
fn problems(manifest: &Manifest, key: &ObjectKey, rejection: &Rejection) -> Vec<Remark> {
    let problem = |field: &str, reason: &str, message: &str| {
        Remark::Problem(manifest.origin.finding(key.clone(), field, reason, message))
    };
    if rejection.causes.is_empty() {
        return vec![problem("", rejection.reason, &rejection.message)];
    }
    let causes = rejection.causes.iter();
    causes
        .map(|cause| problem(&cause.field, cause.reason, &cause.message))
        .collect()
}
