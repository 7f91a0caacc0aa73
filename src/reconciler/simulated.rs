//! Which Pods are simulated, and what `workload` must know of them. Pure.

use crate::control::Object;
use crate::faults::{Faults, ParseFaultsError};
use crate::model::Protocol;
use crate::sources::convert::Note;
use crate::workload::SimulatedPod;

/// The annotation that makes Viaduct serve a Pod's ports itself.
const SIMULATE: &str = "viaduct.dev/simulate";

/// Whether the object is a simulated Pod.
pub(super) fn is_simulated(object: &Object) -> bool {
    object.as_pod().is_some_and(|pod| {
        let annotations = pod.metadata.annotations.as_ref();
        annotations.is_some_and(|map| map.contains_key(SIMULATE))
    })
}

/// What is wrong with the faults that a simulated Pod asks for. It is simulated without any then.
pub(super) fn fault_note(object: &Object) -> Option<Note> {
    let error = faults(object).err()?;
    let field = format!("metadata.annotations[{SIMULATE}]");
    Some(Note::new(
        field,
        format!("{error}; the Pod answers without faults"),
    ))
}

fn faults(object: &Object) -> Result<Faults, ParseFaultsError> {
    let annotations = object
        .as_pod()
        .and_then(|pod| pod.metadata.annotations.as_ref());
    match annotations.and_then(|map| map.get(SIMULATE)) {
        Some(text) => Faults::parse_simulation(text),
        None => Ok(Faults::default()),
    }
}

/// A simulated Pod that has an address and is not over.
pub(super) fn simulated_pod(object: &Object) -> Option<SimulatedPod> {
    if !is_simulated(object) {
        return None;
    }
    let pod = object.as_pod()?;
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let containers = &pod.spec.as_ref()?.containers;
    let ports = containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => Protocol::Tcp,
                Some("UDP") => Protocol::Udp,
                Some(_) => return None,
            };
            Some((u16::try_from(port.container_port).ok()?, protocol))
        });
    Some(SimulatedPod {
        namespace: pod
            .metadata
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        name: pod.metadata.name.clone()?,
        ip: status.pod_ip.as_deref()?.parse().ok()?,
        ports: ports.collect(),
        faults: faults(object).unwrap_or_default(),
    })
}
