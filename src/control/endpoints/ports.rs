//! Which ports a Pod offers for a Service: numbers as given, names looked up in its containers.
//!
//! Source: `FindPort` of Kubernetes; sidecars are init containers with `restartPolicy: Always` (KEP-753).

use k8s_openapi::api::core::v1::{Container, Pod, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The ports of `pod` for `spec`, in canonical order. A name that the Pod does not have is left out.
pub(super) fn ports_of_pod(spec: &ServiceSpec, pod: &Pod) -> Vec<EndpointPort> {
    let mut ports: Vec<_> = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(find_port(pod, port)?),
                protocol: port.protocol.clone(),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    sort_ports(&mut ports);
    ports
}

/// Puts ports into the order in which lists of ports are compared.
pub(super) fn sort_ports(ports: &mut [EndpointPort]) {
    ports.sort_by(|a, b| {
        (&a.name, a.port, &a.protocol, &a.app_protocol).cmp(&(
            &b.name,
            b.port,
            &b.protocol,
            &b.app_protocol,
        ))
    });
}

/// The number that `port.targetPort` means for `pod`.
pub(super) fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match port.target_port.as_ref()? {
        IntOrString::Int(number) => return Some(*number),
        IntOrString::String(name) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .find_map(|container| port_of_container(container, name, port.protocol.as_deref()))
}

fn port_of_container(container: &Container, name: &str, protocol: Option<&str>) -> Option<i32> {
    container
        .ports
        .iter()
        .flatten()
        .find(|port| port.name.as_deref() == Some(name) && port.protocol.as_deref() == protocol)
        .map(|port| port.container_port)
}
