//! When the oldest change that a slice reflects happened: the annotation that measures propagation.
//!
//! First the creation of the Service; then the earliest change of readiness that was not seen before. Source:
//! `TriggerTimeTracker`.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};

use super::select::ready_condition;
use crate::control::store::ServiceId;

/// The annotation.
pub(super) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What was last seen, per Service. Bounded by the Services and their Pods.
#[derive(Debug, Default)]
pub(in crate::control) struct TriggerTimes {
    seen: BTreeMap<ServiceId, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

impl TriggerTimes {
    /// The trigger time of what is written now; `None` if nothing that counts has changed.
    pub(super) fn compute(
        &mut self,
        id: &ServiceId,
        service: &Service,
        pods: &[&Pod],
    ) -> Option<Timestamp> {
        let created = service
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0);
        let known = self.seen.contains_key(id);
        let seen = self.seen.entry(id.clone()).or_default();
        let mut earliest: Option<Timestamp> = None;
        let mut consider = |time: Timestamp| {
            earliest = Some(earliest.map_or(time, |other| other.min(time)));
        };
        let mut now_seen = HashMap::with_capacity(pods.len());
        for pod in pods {
            let changed =
                ready_condition(pod).and_then(|ready| ready.last_transition_time.as_ref());
            if let (Some(name), Some(time)) = (&pod.metadata.name, changed) {
                if seen.pods.get(name).is_none_or(|last| time.0 > *last) {
                    consider(time.0);
                }
                now_seen.insert(name.clone(), time.0);
            }
        }
        if created > seen.service {
            created.into_iter().for_each(&mut consider);
        }
        seen.pods = now_seen;
        seen.service = created;
        if known { earliest } else { created }
    }

    /// The Service is gone; one of its name starts anew.
    pub(super) fn forget(&mut self, id: &ServiceId) {
        self.seen.remove(id);
    }
}
