//! What an API server answers with a Warning header: accepted, but probably not meant.
//!
//! Source: `GetWarningsForService` and its siblings.

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::endpoints::all_addresses;
use super::ips::{odd_cidr, odd_ip};
use super::service::{OLD_TOPOLOGY, TOPOLOGY, load_balancer_ingress};
use crate::control::object::{Kind, Object};
use crate::control::predicates::{cluster_ips, is_external_name, is_headless, spec_of};
use crate::control::rejection::Warning;

/// What is odd about `object`.
pub(in crate::control) fn warnings(object: &Object) -> Vec<Warning> {
    match object {
        Object::Service(service) => of_service(service),
        Object::EndpointSlice(slice) => of_slice(slice),
        Object::Endpoints(endpoints) => of_endpoints(endpoints),
        Object::Namespace(_) | Object::Node(_) | Object::Pod(_) => Vec::new(),
    }
}

/// What is odd about the status of a Service, which is written separately.
pub(in crate::control) fn of_status(service: &Service) -> Vec<Warning> {
    load_balancer_ingress(service)
        .iter()
        .enumerate()
        .filter_map(|(i, entry)| {
            let field = format!("status.loadBalancer.ingress[{i}]");
            odd_ip(&field, entry.ip.as_deref()?)
        })
        .collect()
}

fn of_service(service: &Service) -> Vec<Warning> {
    let spec = spec_of(service);
    let mut warnings = Vec::new();
    let annotations = service.metadata.annotations.as_ref();
    if annotations.is_some_and(|annotations| annotations.contains_key(OLD_TOPOLOGY)) {
        warnings.push(Warning::plain(format!(
            "annotation {OLD_TOPOLOGY} is deprecated, please use {TOPOLOGY} instead"
        )));
    }
    let external_ips = spec.external_ips.as_deref().unwrap_or_default();
    let headless = is_headless(spec);
    if headless {
        if spec.load_balancer_ip.is_some() {
            warnings.push(Warning::plain(
                "spec.loadBalancerIP is ignored for headless services",
            ));
        }
        if spec.session_affinity.as_deref() != Some("None") {
            warnings.push(Warning::plain(
                "spec.SessionAffinity is ignored for headless services",
            ));
        }
    } else {
        for (i, ip) in cluster_ips(spec).iter().enumerate() {
            warnings.extend(odd_ip(&format!("spec.clusterIPs[{i}]"), ip));
        }
    }
    for (i, ip) in external_ips.iter().enumerate() {
        warnings.extend(odd_ip(&format!("spec.externalIPs[{i}]"), ip));
    }
    if !external_ips.is_empty() {
        warnings.push(Warning::plain(if headless {
            "spec.externalIPs is ignored for headless services"
        } else if is_external_name(spec) {
            "spec.externalIPs is ignored when spec.type is \"ExternalName\""
        } else {
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
        }));
    }
    if let Some(ip) = &spec.load_balancer_ip {
        warnings.extend(odd_ip("spec.loadBalancerIP", ip));
    }
    for (i, range) in spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .enumerate()
    {
        let field = format!("spec.loadBalancerSourceRanges[{i}]");
        warnings.extend(odd_cidr(&field, range.trim()));
    }
    if spec.external_name.is_some() && !is_external_name(spec) {
        warnings.push(Warning::plain(
            "spec.externalName is ignored when spec.type is not \"ExternalName\"",
        ));
    }
    if spec.traffic_distribution.as_deref() == Some("PreferClose") {
        warnings.push(Warning::on(
            "spec.trafficDistribution",
            "\"PreferClose\" is deprecated; use \"PreferSameZone\"",
        ));
    }
    warnings
}

fn of_slice(slice: &EndpointSlice) -> Vec<Warning> {
    if slice.address_type == "FQDN" {
        return vec![Warning::on(
            "spec.addressType",
            "FQDN endpoints are deprecated",
        )];
    }
    let mut warnings = Vec::new();
    for (i, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        for (j, address) in endpoint.addresses.iter().enumerate() {
            let field = format!("endpoints[{i}].addresses[{j}]");
            warnings.extend(odd_ip(&field, address));
        }
    }
    warnings
}

/// What is odd about writing an object of that kind at all.
pub(in crate::control) fn of_kind(kind: Kind) -> Vec<Warning> {
    match kind {
        Kind::Endpoints => vec![Warning::plain(
            "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
        )],
        Kind::Namespace | Kind::Node | Kind::Service | Kind::Pod | Kind::EndpointSlice => {
            Vec::new()
        }
    }
}

fn of_endpoints(endpoints: &Endpoints) -> Vec<Warning> {
    let mut warnings = of_kind(Kind::Endpoints);
    for (i, subset) in endpoints.subsets.iter().flatten().enumerate() {
        let ready = subset.addresses.as_ref().map_or(0, Vec::len);
        for (j, address) in all_addresses(subset).enumerate() {
            let field = match j.checked_sub(ready) {
                None => format!("subsets[{i}].addresses[{j}].ip"),
                Some(j) => format!("subsets[{i}].notReadyAddresses[{j}].ip"),
            };
            warnings.extend(odd_ip(&field, &address.ip));
        }
    }
    warnings
}
