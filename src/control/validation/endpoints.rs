//! The rules of Endpoints objects. Source: `ValidateEndpoints`.

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints};

use super::metadata::judge_metadata;
use super::{each, ips, judge_app_protocol, judge_port_number, judge_protocol, names};
use crate::control::object::Kind;
use crate::control::rejection::Cause;

/// Judges `endpoints`; the spelling of addresses that `old` has is tolerated.
pub(in crate::control) fn judge_endpoints(
    endpoints: &Endpoints,
    old: Option<&Endpoints>,
    loopback_allowed: bool,
) -> Vec<Cause> {
    let mut wrong = judge_metadata(&endpoints.metadata, Kind::Endpoints);
    let stored: Vec<_> = old
        .and_then(|old| old.subsets.as_ref())
        .into_iter()
        .flatten()
        .flat_map(all_addresses)
        .map(|address| address.ip.clone())
        .collect();
    let judge_address = |address: &EndpointAddress, path: String| {
        judge_address(address, &path, &stored, loopback_allowed)
    };
    for (i, subset) in endpoints.subsets.iter().flatten().enumerate() {
        let path = format!("subsets[{i}]");
        let ready = subset.addresses.as_deref().unwrap_or_default();
        let not_ready = subset.not_ready_addresses.as_deref().unwrap_or_default();
        if ready.is_empty() && not_ready.is_empty() {
            let detail = "must specify `addresses` or `notReadyAddresses`";
            wrong.push(Cause::required(path.clone(), detail));
        }
        for (j, address) in ready.iter().enumerate() {
            wrong.extend(judge_address(address, format!("{path}.addresses[{j}]")));
        }
        for (j, address) in not_ready.iter().enumerate() {
            let path = format!("{path}.notReadyAddresses[{j}]");
            wrong.extend(judge_address(address, path));
        }
        let ports = subset.ports.as_deref().unwrap_or_default();
        for (j, port) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{j}]");
            wrong.extend(judge_port(port, &path, ports.len() > 1));
        }
    }
    wrong
}

/// Ready and not ready addresses of a subset.
pub(in crate::control) fn all_addresses(
    subset: &EndpointSubset,
) -> impl Iterator<Item = &EndpointAddress> {
    subset
        .addresses
        .iter()
        .chain(&subset.not_ready_addresses)
        .flatten()
}

fn judge_address(
    address: &EndpointAddress,
    path: &str,
    stored: &[String],
    loopback_allowed: bool,
) -> Vec<Cause> {
    let field = format!("{path}.ip");
    let mut wrong = ips::judge_ip(&field, &address.ip, stored);
    if let Some(hostname) = &address.hostname {
        let field = format!("{path}.hostname");
        wrong.extend(each(&field, hostname, names::dns_label(hostname)));
    }
    if let Some(node) = &address.node_name {
        let field = format!("{path}.nodeName");
        wrong.extend(each(&field, node, names::dns_subdomain(node)));
    }
    wrong.extend(ips::judge_endpoint_ip(
        &field,
        &address.ip,
        loopback_allowed,
    ));
    wrong
}

fn judge_port(port: &EndpointPort, path: &str, named: bool) -> Vec<Cause> {
    let field = |name: &str| format!("{path}.{name}");
    let mut wrong = Vec::new();
    match port.name.as_deref() {
        None if named => wrong.push(Cause::required(field("name"), "")),
        None => {}
        Some(name) => wrong.extend(each(&field("name"), name, names::dns_label(name))),
    }
    wrong.extend(judge_port_number(&field("port"), port.port));
    wrong.extend(judge_protocol(&field("protocol"), port.protocol.as_deref()));
    wrong.extend(judge_app_protocol(
        &field("appProtocol"),
        port.app_protocol.as_deref(),
    ));
    wrong
}
