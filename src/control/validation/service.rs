//! The rules of one Service by itself. Source: `ValidateService`.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{
    LoadBalancerIngress, Service, ServicePort, ServiceSpec, SessionAffinityConfig,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::metadata::judge_metadata;
use super::service_families::judge_cluster_ips;
use super::service_update::judge_class;
use super::{each, ips, judge_app_protocol, judge_port_number, judge_protocol, metadata, names};
use crate::control::object::Kind;
use crate::control::predicates::{
    cluster_ips, families, is_external_name, is_externally_accessible, is_headless,
    is_load_balancer, needs_health_check, spec_of, type_of,
};
use crate::control::rejection::Cause;

/// The deprecated spelling of the topology annotation.
pub(in crate::control) const OLD_TOPOLOGY: &str = "service.kubernetes.io/topology-aware-hints";
/// The topology annotation.
pub(in crate::control) const TOPOLOGY: &str = "service.kubernetes.io/topology-mode";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const AFFINITIES: [&str; 2] = ["ClientIP", "None"];
const POLICIES: [&str; 2] = ["Cluster", "Local"];
const DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];
const IP_MODES: [&str; 2] = ["Proxy", "VIP"];
/// One day, in seconds.
const MAX_AFFINITY: i32 = 86_400;
/// The kubelet's own port, which load balancers of some clouds must not open.
const KUBELET_PORT: i32 = 10_250;
const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";

/// Judges `service`; bad addresses that `old`, the stored one, has too are tolerated.
pub(in crate::control) fn judge_service(service: &Service, old: Option<&Service>) -> Vec<Cause> {
    let spec = spec_of(service);
    let old_spec = old.map(spec_of);
    let mut wrong = judge_metadata(&service.metadata, Kind::Service);
    wrong.extend(judge_topology_annotations(service));
    wrong.extend(judge_type(spec));
    wrong.extend(judge_ports(spec));
    if let Some(selector) = &spec.selector {
        wrong.extend(metadata::judge_labels(selector, "spec.selector"));
    }
    wrong.extend(judge_affinity(spec));
    let tolerated = old_spec.map(cluster_ips).unwrap_or_default();
    wrong.extend(judge_cluster_ips(spec, tolerated));
    wrong.extend(judge_external_ips(spec, old_spec));
    wrong.extend(judge_source_ranges(service, old));
    if spec.allocate_load_balancer_node_ports.is_some() && !is_load_balancer(spec) {
        wrong.push(Cause::forbidden(
            "spec.allocateLoadBalancerNodePorts",
            ONLY_LOAD_BALANCER,
        ));
    }
    wrong.extend(judge_class(spec, None));
    wrong.extend(judge_external_policy(spec));
    if let Some(policy) = spec.internal_traffic_policy.as_deref()
        && !POLICIES.contains(&policy)
    {
        let field = "spec.internalTrafficPolicy";
        wrong.push(Cause::not_supported(field, policy, &POLICIES));
    }
    if let Some(wish) = spec.traffic_distribution.as_deref()
        && !DISTRIBUTIONS.contains(&wish)
    {
        let field = "spec.trafficDistribution";
        wrong.push(Cause::not_supported(field, wish, &DISTRIBUTIONS));
    }
    wrong
}

/// Judges `status.loadBalancer`. Source: `ValidateLoadBalancerStatus`.
pub(in crate::control) fn judge_status(service: &Service, old: Option<&Service>) -> Vec<Cause> {
    let ingress = load_balancer_ingress(service);
    if !is_load_balancer(spec_of(service)) && !ingress.is_empty() {
        return vec![Cause::forbidden(
            "status.loadBalancer.ingress",
            "may only be used when `spec.type` is 'LoadBalancer'",
        )];
    }
    let stored: Vec<_> = old
        .map(load_balancer_ingress)
        .unwrap_or_default()
        .iter()
        .filter_map(|entry| entry.ip.clone())
        .collect();
    let mut wrong = Vec::new();
    for (i, entry) in ingress.iter().enumerate() {
        let field = |name: &str| format!("status.loadBalancer.ingress[{i}].{name}");
        if let Some(ip) = &entry.ip {
            wrong.extend(ips::judge_ip(&field("ip"), ip, &stored));
        }
        match (&entry.ip, entry.ip_mode.as_deref()) {
            (None, Some(_)) => wrong.push(Cause::forbidden(
                field("ipMode"),
                "may not be specified when `ip` is not set",
            )),
            (Some(_), None) => wrong.push(Cause::required(
                field("ipMode"),
                "must be specified when `ip` is set",
            )),
            (Some(_), Some(mode)) if !IP_MODES.contains(&mode) => {
                wrong.push(Cause::not_supported(field("ipMode"), mode, &IP_MODES));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if let Some(hostname) = &entry.hostname {
            let field = field("hostname");
            wrong.extend(each(&field, hostname, names::dns_subdomain(hostname)));
            if ips::parse_sloppily(hostname).is_some() {
                let detail = "must be a DNS name, not an IP address";
                wrong.push(Cause::invalid(field, hostname, detail));
            }
        }
    }
    wrong
}

/// `status.loadBalancer.ingress`.
pub(in crate::control) fn load_balancer_ingress(service: &Service) -> &[LoadBalancerIngress] {
    service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|status| status.ingress.as_deref())
        .unwrap_or_default()
}

fn judge_topology_annotations(service: &Service) -> Option<Cause> {
    let annotations = service.metadata.annotations.as_ref()?;
    let (old, new) = (annotations.get(OLD_TOPOLOGY)?, annotations.get(TOPOLOGY)?);
    (old != new).then(|| {
        Cause::invalid(
            format!("metadata.annotations[{TOPOLOGY}]"),
            new,
            &format!("must match annotations[{OLD_TOPOLOGY}] when both are specified"),
        )
    })
}

fn judge_type(spec: &ServiceSpec) -> Vec<Cause> {
    let mut wrong = Vec::new();
    let kind = type_of(spec);
    if !TYPES.contains(&kind) {
        wrong.push(Cause::not_supported("spec.type", kind, &TYPES));
    }
    if matches!(kind, "NodePort" | "LoadBalancer") && is_headless(spec) {
        let detail = format!("may not be set to 'None' for {kind} services");
        wrong.push(Cause::invalid("spec.clusterIPs[0]", &"None", &detail));
    }
    if is_external_name(spec) {
        let unset = "may not be set for ExternalName services";
        if spec.cluster_ip.is_some() || spec.cluster_ips.is_some() {
            wrong.push(Cause::forbidden("spec.clusterIPs", unset));
        }
        if !families(spec).is_empty() {
            wrong.push(Cause::forbidden("spec.ipFamilies", unset));
        }
        if spec.ip_family_policy.is_some() {
            wrong.push(Cause::forbidden("spec.ipFamilyPolicy", unset));
        }
        // One trailing dot marks the name as absolute.
        let written = spec.external_name.as_deref().unwrap_or_default();
        let name = written.strip_suffix('.').unwrap_or(written);
        if name.is_empty() {
            wrong.push(Cause::required("spec.externalName", ""));
        } else {
            wrong.extend(each("spec.externalName", name, names::dns_subdomain(name)));
        }
    }
    wrong
}

fn judge_ports(spec: &ServiceSpec) -> Vec<Cause> {
    let mut wrong = Vec::new();
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !is_headless(spec) && !is_external_name(spec) {
        wrong.push(Cause::required("spec.ports", ""));
    }
    let mut port_names = HashSet::new();
    let mut node_ports = HashSet::new();
    let mut numbers = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        wrong.extend(judge_port(spec, port, &path, ports.len() > 1));
        if let Some(name) = port.name.as_deref()
            && !port_names.insert(name)
        {
            wrong.push(Cause::duplicate(format!("{path}.name"), &name));
        }
        if let Some(node_port) = port.node_port {
            let field = format!("{path}.nodePort");
            if type_of(spec) == "ClusterIP" {
                let detail = "may not be used when `type` is 'ClusterIP'";
                wrong.push(Cause::forbidden(field.clone(), detail));
            }
            if !node_ports.insert((&port.protocol, node_port)) {
                wrong.push(Cause::duplicate(field, &node_port));
            }
        }
        if !numbers.insert((&port.protocol, port.port)) {
            // Go prints the whole key, with what it leaves empty.
            let key = json!({"Name": "", "Protocol": port.protocol, "AppProtocol": null, "Port": port.port, "TargetPort": 0, "NodePort": 0});
            wrong.push(Cause::duplicate(path, &InGoOrder(&key)));
        }
    }
    wrong
}

// serde_json sorts the keys of a map; Go prints a struct in the order of its fields.
struct InGoOrder<'a>(&'a serde_json::Value);

impl serde::Serialize for InGoOrder<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let order = [
            "Name",
            "Protocol",
            "AppProtocol",
            "Port",
            "TargetPort",
            "NodePort",
        ];
        serializer.collect_map(order.iter().map(|key| (key, &self.0[*key])))
    }
}

fn judge_port(spec: &ServiceSpec, port: &ServicePort, path: &str, named: bool) -> Vec<Cause> {
    let mut wrong = Vec::new();
    let field = |name: &str| format!("{path}.{name}");
    match port.name.as_deref() {
        None if named => wrong.push(Cause::required(field("name"), "")),
        None => {}
        Some(name) => wrong.extend(each(&field("name"), name, names::dns_label(name))),
    }
    wrong.extend(judge_port_number(&field("port"), port.port));
    wrong.extend(judge_protocol(&field("protocol"), port.protocol.as_deref()));
    match &port.target_port {
        Some(IntOrString::Int(number)) => {
            wrong.extend(judge_port_number(&field("targetPort"), *number));
        }
        Some(IntOrString::String(name)) => {
            wrong.extend(each(&field("targetPort"), name, names::port_name(name)));
        }
        None => {}
    }
    wrong.extend(judge_app_protocol(
        &field("appProtocol"),
        port.app_protocol.as_deref(),
    ));
    if is_load_balancer(spec) && port.port == KUBELET_PORT {
        let detail = "may not expose port 10250 externally since it is used by kubelet";
        wrong.push(Cause::invalid(path, &port.port, detail));
    }
    wrong
}

fn judge_affinity(spec: &ServiceSpec) -> Vec<Cause> {
    let mut wrong = Vec::new();
    let affinity = spec.session_affinity.as_deref().unwrap_or_default();
    if !AFFINITIES.contains(&affinity) {
        let field = "spec.sessionAffinity";
        wrong.push(Cause::not_supported(field, affinity, &AFFINITIES));
    }
    if affinity == "ClientIP" {
        let timeout = affinity_timeout(spec.session_affinity_config.as_ref()).unwrap_or_default();
        if !(1..=MAX_AFFINITY).contains(&timeout) {
            wrong.push(Cause::invalid(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                &timeout,
                &format!("must be greater than 0 and less than {MAX_AFFINITY}"),
            ));
        }
    }
    wrong
}

fn affinity_timeout(config: Option<&SessionAffinityConfig>) -> Option<i32> {
    config?.client_ip.as_ref()?.timeout_seconds
}

fn judge_external_ips(spec: &ServiceSpec, old: Option<&ServiceSpec>) -> Vec<Cause> {
    let stored = old.and_then(|old| old.external_ips.as_deref());
    let mut wrong = Vec::new();
    for (i, ip) in spec.external_ips.iter().flatten().enumerate() {
        let field = format!("spec.externalIPs[{i}]");
        let faults = ips::judge_ip(&field, ip, stored.unwrap_or_default());
        if faults.is_empty() {
            wrong.extend(ips::judge_endpoint_ip(&field, ip, false));
        }
        wrong.extend(faults);
    }
    wrong
}

fn judge_source_ranges(service: &Service, old: Option<&Service>) -> Vec<Cause> {
    let spec = spec_of(service);
    let mut wrong = Vec::new();
    // The surrounding blanks are a legacy of the annotation.
    if let Some(ranges) = &spec.load_balancer_source_ranges {
        let field = "spec.LoadBalancerSourceRanges";
        if !is_load_balancer(spec) {
            wrong.push(Cause::forbidden(field, ONLY_LOAD_BALANCER));
        }
        let stored: Vec<_> = old
            .and_then(|old| spec_of(old).load_balancer_source_ranges.as_ref())
            .into_iter()
            .flatten()
            .map(|range| range.trim().to_owned())
            .collect();
        for (i, range) in ranges.iter().enumerate() {
            let field = format!("{field}[{i}]");
            wrong.extend(ips::judge_cidr(&field, range.trim(), &stored));
        }
    } else if let Some(ranges) = annotated_ranges(service) {
        let field = format!("metadata.annotations[{SOURCE_RANGES}]");
        if !is_load_balancer(spec) {
            wrong.push(Cause::forbidden(field.clone(), ONLY_LOAD_BALANCER));
        }
        let stored = old.and_then(annotated_ranges).unwrap_or_default();
        for range in &ranges {
            wrong.extend(ips::judge_cidr(&field, range, &stored));
        }
    }
    wrong
}

// `None` without the annotation, empty if it holds only blanks.
fn annotated_ranges(service: &Service) -> Option<Vec<String>> {
    let list = service.metadata.annotations.as_ref()?.get(SOURCE_RANGES)?;
    if list.trim().is_empty() {
        return Some(Vec::new());
    }
    let ranges = list.split(',').map(|range| range.trim().to_owned());
    Some(ranges.collect())
}

fn judge_external_policy(spec: &ServiceSpec) -> Vec<Cause> {
    let mut wrong = Vec::new();
    let field = "spec.externalTrafficPolicy";
    match spec.external_traffic_policy.as_deref() {
        Some(policy) if !is_externally_accessible(spec) => {
            let detail = "may only be set for externally-accessible services";
            wrong.push(Cause::invalid(field, &policy, detail));
        }
        Some(policy) if !POLICIES.contains(&policy) => {
            wrong.push(Cause::not_supported(field, policy, &POLICIES));
        }
        Some(_) => {}
        None if is_externally_accessible(spec) => wrong.push(Cause::required(field, "")),
        None => {}
    }
    let field = "spec.healthCheckNodePort";
    match spec.health_check_node_port {
        Some(port) if !needs_health_check(spec) => {
            let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            wrong.push(Cause::invalid(field, &port, detail));
        }
        Some(port) => wrong.extend(judge_port_number(field, port)),
        None if needs_health_check(spec) => wrong.push(Cause::required(field, "")),
        None => {}
    }
    wrong
}
