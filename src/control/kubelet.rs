//! The kubelet's part for Pods of files: a node, an address if the Pod is simulated, and a Ready condition.
//!
//! A Pod in a file stands for something that already runs. What the file says of status always wins; what is to be
//! probed goes out from here, is run elsewhere, and comes back as reports.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodIP};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::object::{Object, ObjectKey};
use super::plane::ControlPlane;
use super::probe_state::Readiness;
use super::probe_targets::{
    PodProbes, ProbeChange, ProbeTarget, is_probed, is_running, lasting_containers,
};
use super::rejection::Rejection;
use super::store::whole_seconds;
use super::validation::ips;

/// The annotation that makes Viaduct itself answer on a Pod's ports.
const SIMULATE: &str = "viaduct.dev/simulate";
const READY: &str = "Ready";

impl ControlPlane {
    /// Takes what probes have found out about a container; the next `reconcile` acts on it. Says whether it is news: not
    /// if the container has restarted since, or its Pod has gone.
    pub fn report_probe(&mut self, target: &ProbeTarget, readiness: Readiness) -> bool {
        let Some(probes) = self.probes.get_mut(&target.pod) else {
            return false;
        };
        let news = probes.report(&target.container, target.id, readiness);
        if news {
            self.probed.insert(target.pod.clone());
        }
        news
    }

    /// What has changed in what is to be probed since the last call, in order.
    pub fn take_probe_changes(&mut self) -> Vec<ProbeChange> {
        std::mem::take(&mut self.probe_changes)
    }

    /// Writes what probes have reported into the Pods.
    pub(super) fn take_probe_results(&mut self, now: Timestamp) {
        for key in std::mem::take(&mut self.probed) {
            if let (Some(Object::Pod(stored)), Some(Object::Pod(file)), Some(probes)) = (
                self.store.get(&key),
                self.manifests.get(&key),
                self.probes.get(&key),
            ) {
                let mut pod = stored.clone();
                set_ready_condition(&mut pod, file, probes, now);
                self.store.put(Object::Pod(pod), now);
            }
        }
    }

    /// Completes a Pod that `file` describes. Returns what is to be probed once it is stored.
    pub(super) fn run_pod(
        &mut self,
        pod: &mut Pod,
        file: &Pod,
        key: &ObjectKey,
        now: Timestamp,
    ) -> Result<PodProbes, Rejection> {
        if let Some(own) = &self.config.own_node {
            let spec = pod.spec.get_or_insert_default();
            spec.node_name.take_if(|name| name.is_empty());
            spec.node_name.get_or_insert_with(|| own.name.clone());
        }
        self.claim_pod_address(pod, key)?;
        let status = pod.status.get_or_insert_default();
        status.phase.take_if(|phase| phase.is_empty());
        status.phase.get_or_insert_with(|| "Running".to_owned());
        let mut probes = PodProbes::default();
        if condition(file, READY).is_none() {
            let mut next_id = || {
                self.last_probe += 1;
                self.last_probe
            };
            probes = PodProbes::of(pod, file, self.probes.get(key), &mut next_id);
        }
        set_ready_condition(pod, file, &probes, now);
        Ok(probes)
    }

    /// The Pod is stored: from now on it is probed like this.
    pub(super) fn probe_pod(&mut self, key: &ObjectKey, probes: PodProbes) {
        let before = self.probes.remove(key).unwrap_or_default();
        self.probe_changes
            .extend(probes.changes_since(&before, key));
        if !probes.is_empty() {
            self.probes.insert(key.clone(), probes);
        }
    }

    fn claim_pod_address(&mut self, pod: &mut Pod, key: &ObjectKey) -> Result<(), Rejection> {
        let Some(pool) = &mut self.pod_addresses else {
            return Ok(());
        };
        let given = pod_ips(pod);
        if !given.is_empty() {
            // Several Pods may show one address (host network); it only must not be given to another.
            for ip in given {
                let _taken = pool.claim(ip, key);
            }
            return Ok(());
        }
        if !is_simulated(pod) {
            return Ok(());
        }
        let ip = pool.claim_any(key, &mut self.rng).map_err(|error| {
            let message = format!(
                "failed to allocate an address for Pod \"{}\": {error}",
                key.name
            );
            Rejection::internal(message).worth_retrying()
        })?;
        let status = pod.status.get_or_insert_default();
        status.pod_ip = Some(ip.to_string());
        status.pod_ips = Some(vec![PodIP { ip: ip.to_string() }]);
        Ok(())
    }

    /// Frees the addresses that `gone` has and `stays`, its successor or the one it could not replace, has not.
    pub(super) fn release_pod_addresses(
        &mut self,
        key: &ObjectKey,
        gone: &Pod,
        stays: Option<&Pod>,
    ) {
        let kept = stays.map(pod_ips).unwrap_or_default();
        if let Some(pool) = &mut self.pod_addresses {
            for ip in pod_ips(gone) {
                if !kept.contains(&ip) {
                    pool.release(ip, key);
                }
            }
        }
    }

    /// Frees all that a Pod held that is gone.
    pub(super) fn forget_pod(&mut self, key: &ObjectKey, pod: &Pod) {
        self.probe_pod(key, PodProbes::default());
        self.release_pod_addresses(key, pod, None);
        if let Some(pool) = &mut self.pod_addresses {
            pool.forget_preferences(key);
        }
    }

    /// The address of a Pod, if it is out of the range of simulated Pods.
    pub(super) fn given_pod_address(&self, key: &ObjectKey, pod: &Pod) -> Option<IpAddr> {
        let pool = self.pod_addresses.as_ref()?;
        pod_ips(pod)
            .into_iter()
            .find(|ip| pool.is_held_by(*ip, key))
    }
}

fn pod_ips(pod: &Pod) -> Vec<IpAddr> {
    let listed = pod
        .status
        .iter()
        .filter_map(|status| status.pod_ips.as_ref());
    let entries = listed.flatten();
    entries
        .filter_map(|entry| ips::parse_sloppily(&entry.ip))
        .collect()
}

fn is_simulated(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|annotations| annotations.get(SIMULATE))
        .is_some_and(|what| what.starts_with("echo"))
}

// Ready as the kubelet would say it of a Pod, and why not.
fn set_ready_condition(pod: &mut Pod, file: &Pod, probes: &PodProbes, now: Timestamp) {
    if condition(file, READY).is_some() {
        return;
    }
    let unready = why_not_ready(pod, probes);
    let word = if unready.is_none() { "True" } else { "False" };
    let conditions = pod
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    let index = conditions
        .iter()
        .position(|condition| condition.type_ == READY)
        .unwrap_or_else(|| {
            conditions.push(PodCondition {
                type_: READY.to_owned(),
                ..PodCondition::default()
            });
            conditions.len() - 1
        });
    let condition = &mut conditions[index];
    if condition.status != word {
        word.clone_into(&mut condition.status);
        condition.last_transition_time = Some(Time(whole_seconds(now)));
    }
    let (reason, message) = unready.unzip();
    condition.reason = reason;
    condition.message = message.flatten();
}

// Reason and message in the kubelet's words. Source: `GeneratePodReadyCondition`.
fn why_not_ready(pod: &Pod, probes: &PodProbes) -> Option<(String, Option<String>)> {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    match phase {
        Some("Succeeded") => return Some(("PodCompleted".to_owned(), None)),
        Some("Failed") => return Some(("PodFailed".to_owned(), None)),
        Some(_) | None => {}
    }
    let is_ready = |container: &Container| {
        let runs = phase == Some("Running") && is_running(pod, &container.name);
        runs && (!is_probed(container) || probes.is_ready(&container.name))
    };
    let unready: Vec<_> = lasting_containers(pod)
        .filter(|container| !is_ready(container))
        .map(|container| container.name.as_str())
        .collect();
    if phase != Some("Running") || !unready.is_empty() {
        let message = format!("containers with unready status: [{}]", unready.join(" "));
        return Some(("ContainersNotReady".to_owned(), Some(message)));
    }
    let closed: Vec<_> = closed_gates(pod).collect();
    (!closed.is_empty()).then(|| ("ReadinessGatesNotReady".to_owned(), Some(closed.join(", "))))
}

fn closed_gates(pod: &Pod) -> impl Iterator<Item = String> {
    let gates = pod
        .spec
        .iter()
        .filter_map(|spec| spec.readiness_gates.as_ref());
    gates.flatten().filter_map(|gate| {
        let kind = &gate.condition_type;
        match condition(pod, kind) {
            None => Some(format!(
                "corresponding condition of pod readiness gate {kind:?} does not exist."
            )),
            Some(condition) if condition.status == "True" => None,
            Some(condition) => Some(format!(
                "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                condition.status
            )),
        }
    })
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}
