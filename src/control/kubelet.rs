//! The kubelet's part for Pods of files: a node, an address if the Pod is simulated, and a Ready condition.
//!
//! A Pod in a file stands for something that already runs. What the file says of status always wins; probes are run
//! elsewhere and only reported here.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodIP};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::object::{Object, ObjectKey};
use super::plane::ControlPlane;
use super::rejection::Rejection;
use super::store::whole_seconds;
use super::validation::ips;

/// The annotation that makes Viaduct itself answer on a Pod's ports.
const SIMULATE: &str = "viaduct.dev/simulate";
const READY: &str = "Ready";

impl ControlPlane {
    /// Reports what a Pod's readiness probe has come to; the next `reconcile` acts on it. Ignored where the file has a
    /// Ready condition.
    pub fn set_probe_ready(&mut self, pod: &ObjectKey, ready: bool) {
        if self.store.get(pod).is_some() && self.probes.insert(pod.clone(), ready) != Some(ready) {
            self.probed.insert(pod.clone());
        }
    }

    /// Writes what probes have reported into the Pods.
    pub(super) fn take_probe_results(&mut self, now: Timestamp) {
        for key in std::mem::take(&mut self.probed) {
            if let (Some(Object::Pod(stored)), Some(Object::Pod(file))) =
                (self.store.get(&key), self.manifests.get(&key))
            {
                let mut pod = stored.clone();
                set_ready_condition(&mut pod, file, self.probes.get(&key).copied(), now);
                self.store.put(Object::Pod(pod), now);
            }
        }
    }

    /// Completes a Pod that `file` describes.
    pub(super) fn run_pod(
        &mut self,
        pod: &mut Pod,
        file: &Pod,
        key: &ObjectKey,
        now: Timestamp,
    ) -> Result<(), Rejection> {
        if let Some(own) = &self.config.own_node {
            let spec = pod.spec.get_or_insert_default();
            spec.node_name.take_if(|name| name.is_empty());
            spec.node_name.get_or_insert_with(|| own.name.clone());
        }
        self.claim_pod_address(pod, key)?;
        let status = pod.status.get_or_insert_default();
        status.phase.take_if(|phase| phase.is_empty());
        status.phase.get_or_insert_with(|| "Running".to_owned());
        let probed = self.probes.get(key).copied();
        set_ready_condition(pod, file, probed, now);
        Ok(())
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
        self.probes.remove(key);
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

// Ready as the kubelet would say it of a Pod whose containers all run.
fn set_ready_condition(pod: &mut Pod, file: &Pod, probed: Option<bool>, now: Timestamp) {
    if condition(file, READY).is_some() {
        return;
    }
    let running = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        == Some("Running");
    let containers_ready = !has_readiness_probe(pod) || probed == Some(true);
    let ready = running && containers_ready && gates_are_open(pod);
    let word = if ready { "True" } else { "False" };
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
}

fn gates_are_open(pod: &Pod) -> bool {
    let gates = pod
        .spec
        .iter()
        .filter_map(|spec| spec.readiness_gates.as_ref());
    gates.flatten().all(|gate| {
        condition(pod, &gate.condition_type).is_some_and(|condition| condition.status == "True")
    })
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

// Sidecars count like containers.
fn has_readiness_probe(pod: &Pod) -> bool {
    let probed = |container: &Container| container.readiness_probe.is_some();
    pod.spec.as_ref().is_some_and(|spec| {
        let mut sidecars = spec
            .init_containers
            .iter()
            .flatten()
            .filter(|container| container.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().any(probed) || sidecars.any(probed)
    })
}
