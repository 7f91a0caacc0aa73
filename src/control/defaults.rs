//! What a manifest leaves out and the API server fills in before it looks at anything else.
//!
//! Fields that depend on the cluster (families, addresses, ports) are not set here; see `families` and `allocate`.
//! Source: `SetDefaults_Service` and its siblings; empty strings, lists and zeros are unset, as Go's `omitempty` has it.

use k8s_openapi::api::core::v1::LoadBalancerStatus;
use k8s_openapi::api::core::v1::{
    ClientIPConfig, Container, Endpoints, Pod, PodIP, Probe, Service, ServicePort, ServiceStatus,
    SessionAffinityConfig,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::object::Object;
use super::predicates::{is_external_name, is_externally_accessible, is_load_balancer};

/// Three hours, in seconds.
const AFFINITY_TIMEOUT: i32 = 10_800;

/// Fills in what `object` leaves out.
pub(super) fn set_defaults(object: &mut Object) {
    match object {
        Object::Service(service) => default_service(service),
        Object::Pod(pod) => default_pod(pod),
        Object::EndpointSlice(slice) => default_slice(slice),
        Object::Endpoints(endpoints) => default_endpoints(endpoints),
        Object::Namespace(_) | Object::Node(_) => {}
    }
}

fn default_service(service: &mut Service) {
    let spec = service.spec.get_or_insert_default();
    for text in [
        &mut spec.type_,
        &mut spec.session_affinity,
        &mut spec.external_traffic_policy,
        &mut spec.cluster_ip,
        &mut spec.external_name,
        &mut spec.load_balancer_ip,
    ] {
        unset_empty(text);
    }
    for list in [
        &mut spec.cluster_ips,
        &mut spec.ip_families,
        &mut spec.external_ips,
        &mut spec.load_balancer_source_ranges,
    ] {
        list.take_if(|entries| entries.is_empty());
    }
    spec.ports.take_if(|ports| ports.is_empty());
    spec.selector.take_if(|pairs| pairs.is_empty());
    spec.health_check_node_port.take_if(|port| *port == 0);
    spec.publish_not_ready_addresses
        .take_if(|publish| !*publish);

    spec.type_.get_or_insert_with(|| "ClusterIP".to_owned());
    let affinity = spec
        .session_affinity
        .get_or_insert_with(|| "None".to_owned());
    match affinity.as_str() {
        "None" => spec.session_affinity_config = None,
        "ClientIP" => default_affinity(&mut spec.session_affinity_config),
        _ => {}
    }
    for port in spec.ports.iter_mut().flatten() {
        default_service_port(port);
    }
    if is_externally_accessible(spec) {
        spec.external_traffic_policy
            .get_or_insert_with(|| "Cluster".to_owned());
    }
    if is_external_name(spec) {
        // A good value is dropped; a bad one stays, to be reported.
        spec.internal_traffic_policy
            .take_if(|policy| matches!(policy.as_str(), "Cluster" | "Local"));
    } else {
        spec.internal_traffic_policy
            .get_or_insert_with(|| "Cluster".to_owned());
    }
    let status = service.status.get_or_insert_default();
    if is_load_balancer(spec) {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
        default_load_balancer_status(status);
    }
}

fn default_affinity(config: &mut Option<SessionAffinityConfig>) {
    config
        .get_or_insert_with(SessionAffinityConfig::default)
        .client_ip
        .get_or_insert_with(ClientIPConfig::default)
        .timeout_seconds
        .get_or_insert(AFFINITY_TIMEOUT);
}

fn default_service_port(port: &mut ServicePort) {
    unset_empty(&mut port.name);
    unset_empty(&mut port.protocol);
    port.node_port.take_if(|number| *number == 0);
    port.protocol.get_or_insert_with(|| "TCP".to_owned());
    let unset = match &port.target_port {
        None | Some(IntOrString::Int(0)) => true,
        Some(IntOrString::Int(_)) => false,
        Some(IntOrString::String(name)) => name.is_empty(),
    };
    if unset {
        port.target_port = Some(IntOrString::Int(port.port));
    }
}

// An address without `ipMode` is a virtual one.
fn default_load_balancer_status(status: &mut ServiceStatus) {
    let ingress = status
        .load_balancer
        .get_or_insert_with(LoadBalancerStatus::default)
        .ingress
        .iter_mut()
        .flatten();
    for entry in ingress {
        unset_empty(&mut entry.ip);
        unset_empty(&mut entry.hostname);
        if entry.ip.is_some() {
            entry.ip_mode.get_or_insert_with(|| "VIP".to_owned());
        }
    }
}

fn default_slice(slice: &mut EndpointSlice) {
    slice.endpoints.take_if(|endpoints| endpoints.is_empty());
    slice.ports.take_if(|ports| ports.is_empty());
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.conditions.get_or_insert_default();
        // A field of v1beta1 that v1 can only read.
        endpoint.deprecated_topology = None;
    }
    for port in slice.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
    }
}

fn default_endpoints(endpoints: &mut Endpoints) {
    endpoints.subsets.take_if(|subsets| subsets.is_empty());
    for subset in endpoints.subsets.iter_mut().flatten() {
        subset.addresses.take_if(|list| list.is_empty());
        subset.not_ready_addresses.take_if(|list| list.is_empty());
        subset.ports.take_if(|list| list.is_empty());
        for port in subset.ports.iter_mut().flatten() {
            unset_empty(&mut port.name);
            unset_empty(&mut port.protocol);
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
        for address in subset
            .addresses
            .iter_mut()
            .chain(&mut subset.not_ready_addresses)
            .flatten()
        {
            unset_empty(&mut address.hostname);
        }
    }
}

/// Fills in what a Pod leaves out.
pub(super) fn default_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            default_container(container);
        }
    }
    // The single address and the list say the same; where they differ, the single one counts.
    if let Some(status) = &mut pod.status {
        unset_empty(&mut status.pod_ip);
        let first = status.pod_ips.iter().flatten().next();
        match (&status.pod_ip, first) {
            (Some(ip), first) if first.is_none_or(|entry| entry.ip != *ip) => {
                status.pod_ips = Some(vec![PodIP { ip: ip.clone() }]);
            }
            (None, Some(first)) => status.pod_ip = Some(first.ip.clone()),
            (Some(_) | None, _) => {}
        }
    }
}

fn default_container(container: &mut Container) {
    for port in container.ports.iter_mut().flatten() {
        unset_empty(&mut port.protocol);
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
    }
    for probe in [
        &mut container.readiness_probe,
        &mut container.startup_probe,
        &mut container.liveness_probe,
    ]
    .into_iter()
    .flatten()
    {
        default_probe(probe);
    }
}

fn default_probe(probe: &mut Probe) {
    for (field, default) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        field.take_if(|value| *value == 0);
        field.get_or_insert(default);
    }
    if let Some(http) = &mut probe.http_get {
        unset_empty(&mut http.path);
        unset_empty(&mut http.scheme);
        http.path.get_or_insert_with(|| "/".to_owned());
        http.scheme.get_or_insert_with(|| "HTTP".to_owned());
    }
}

fn unset_empty(text: &mut Option<String>) {
    text.take_if(|text| text.is_empty());
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn defaulted(spec: Value) -> Value {
        let manifest = json!({"metadata": {"name": "a"}, "spec": spec});
        let mut object = Object::Service(serde_json::from_value(manifest).unwrap());
        set_defaults(&mut object);
        let Object::Service(service) = object else {
            unreachable!("a Service stays one")
        };
        serde_json::to_value(service.spec).unwrap()
    }

    #[test]
    fn a_minimal_service_gets_type_affinity_policy_and_target_port() {
        assert_eq!(
            defaulted(json!({"ports": [{"port": 80}]})),
            json!({
                "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            })
        );
    }

    #[test]
    fn affinity_none_drops_its_config_and_client_ip_completes_it() {
        let config = json!({"clientIP": {"timeoutSeconds": 5}});
        let none = defaulted(json!({"sessionAffinityConfig": config}));
        assert_eq!(none.get("sessionAffinityConfig"), None);
        let client = defaulted(json!({"sessionAffinity": "ClientIP"}));
        assert_eq!(
            client["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"],
            10_800
        );
    }

    #[test]
    fn the_external_policy_is_set_only_where_something_external_exists() {
        let policy = |spec| defaulted(spec).get("externalTrafficPolicy").cloned();
        assert_eq!(policy(json!({})), None);
        assert_eq!(policy(json!({"type": "NodePort"})), Some(json!("Cluster")));
        assert_eq!(
            policy(json!({"externalIPs": ["192.0.2.1"]})),
            Some(json!("Cluster"))
        );
        let external_name = json!({"type": "ExternalName", "externalIPs": ["192.0.2.1"]});
        assert_eq!(policy(external_name), None);
    }
}
