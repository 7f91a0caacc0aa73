//! The rules of EndpointSlices that users write. Source: `ValidateEndpointSlice`.

use std::collections::HashSet;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointPort, EndpointSlice};

use super::metadata::judge_metadata;
use super::{each, ips, judge_app_protocol, judge_protocol, names};
use crate::control::object::Kind;
use crate::control::rejection::Cause;

const ADDRESS_TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_HINTS: usize = 8;

/// Judges `slice`. Addresses that `old` has too are tolerated as long as none of its endpoints changes.
pub(in crate::control) fn judge_slice(
    slice: &EndpointSlice,
    old: Option<&EndpointSlice>,
    loopback_allowed: bool,
) -> Vec<Cause> {
    let mut wrong = judge_metadata(&slice.metadata, Kind::EndpointSlice);
    let kind = slice.address_type.as_str();
    if kind.is_empty() {
        wrong.push(Cause::required("addressType", ""));
    } else if !ADDRESS_TYPES.contains(&kind) {
        wrong.push(Cause::not_supported("addressType", kind, &ADDRESS_TYPES));
    }
    if let Some(old) = old
        && old.address_type != slice.address_type
    {
        let detail = "field is immutable";
        wrong.push(Cause::invalid("addressType", &kind, detail));
    }
    wrong.extend(judge_ports(slice.ports.as_deref().unwrap_or_default()));

    let endpoints = slice.endpoints.as_deref().unwrap_or_default();
    if endpoints.len() > MAX_ENDPOINTS {
        wrong.push(Cause::too_many("endpoints", endpoints.len(), MAX_ENDPOINTS));
        return wrong;
    }
    let unchanged = old.is_some_and(|old| old.endpoints == slice.endpoints);
    let addresses = AddressRule {
        kind,
        tolerant: unchanged,
        loopback_allowed,
    };
    for (i, endpoint) in endpoints.iter().enumerate() {
        let path = format!("endpoints[{i}]");
        wrong.extend(addresses.judge(endpoint, &path));
        wrong.extend(judge_endpoint(endpoint, &path));
    }
    wrong
}

fn judge_ports(ports: &[EndpointPort]) -> Vec<Cause> {
    if ports.len() > MAX_PORTS {
        return vec![Cause::too_many("ports", ports.len(), MAX_PORTS)];
    }
    let mut wrong = Vec::new();
    let mut seen = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("ports[{i}].{name}");
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            wrong.extend(each(&field("name"), name, names::dns_label(name)));
        }
        if !seen.insert(name) {
            wrong.push(Cause::duplicate(field("name"), &name));
        }
        wrong.extend(judge_protocol(&field("protocol"), port.protocol.as_deref()));
        wrong.extend(judge_app_protocol(
            &field("appProtocol"),
            port.app_protocol.as_deref(),
        ));
    }
    wrong
}

/// What the addresses of one slice must be.
struct AddressRule<'a> {
    kind: &'a str,
    tolerant: bool,
    loopback_allowed: bool,
}

impl AddressRule<'_> {
    fn judge(&self, endpoint: &Endpoint, path: &str) -> Vec<Cause> {
        let list = format!("{path}.addresses");
        let mut wrong = Vec::new();
        match endpoint.addresses.len() {
            0 => wrong.push(Cause::required(
                list.clone(),
                "must contain at least 1 address",
            )),
            count if count > MAX_ADDRESSES => {
                wrong.push(Cause::too_many(list.clone(), count, MAX_ADDRESSES));
            }
            _ => {}
        }
        for (i, address) in endpoint.addresses.iter().enumerate() {
            let field = format!("{list}[{i}]");
            match self.kind {
                "IPv4" | "IPv6" => wrong.extend(self.judge_ip(&list, &field, address)),
                "FQDN" => wrong.extend(judge_fqdn(&field, address)),
                _ => {}
            }
        }
        wrong
    }

    fn judge_ip(&self, list: &str, field: &str, address: &str) -> Vec<Cause> {
        let mut wrong = if self.tolerant {
            ips::judge_ip(field, address, std::slice::from_ref(&address.to_owned()))
        } else {
            ips::judge_strict_ip(field, address)
        };
        if wrong.is_empty() {
            if ips::is_ipv6_text(address) != (self.kind == "IPv6") {
                let detail = format!("must be an {} address", self.kind);
                wrong.push(Cause::invalid(list, &address, &detail));
            }
            wrong.extend(ips::judge_endpoint_ip(
                field,
                address,
                self.loopback_allowed,
            ));
        }
        wrong
    }
}

fn judge_fqdn(field: &str, name: &str) -> Vec<Cause> {
    if name.is_empty() {
        return vec![Cause::required(field, "")];
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    // One cause at most, of the whole or of the first bad label.
    let faults = names::dns_subdomain(name);
    if !faults.is_empty() {
        return vec![Cause::invalid(field, &name, &faults.join(","))];
    }
    if !name.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        return vec![Cause::invalid(field, &name, detail)];
    }
    let labels = name
        .split('.')
        .map(|label| (label, names::dns_label(label)));
    labels
        .filter(|(_, faults)| !faults.is_empty())
        .map(|(label, faults)| Cause::invalid(field, &label, &faults.join(",")))
        .take(1)
        .collect()
}

fn judge_endpoint(endpoint: &Endpoint, path: &str) -> Vec<Cause> {
    let mut wrong = Vec::new();
    if let Some(node) = &endpoint.node_name {
        let field = format!("{path}.nodeName");
        wrong.extend(each(&field, node, names::dns_subdomain(node)));
    }
    if let Some(hostname) = &endpoint.hostname {
        let field = format!("{path}.hostname");
        wrong.extend(each(&field, hostname, names::dns_label(hostname)));
    }
    if let Some(hints) = &endpoint.hints {
        wrong.extend(judge_hints(hints, &format!("{path}.hints")));
    }
    wrong
}

fn judge_hints(hints: &EndpointHints, path: &str) -> Vec<Cause> {
    let zones: Vec<_> = hints
        .for_zones
        .iter()
        .flatten()
        .map(|hint| &hint.name)
        .collect();
    let nodes: Vec<_> = hints
        .for_nodes
        .iter()
        .flatten()
        .map(|hint| &hint.name)
        .collect();
    let mut wrong = Vec::new();
    let mut judge = |list: &str, hinted: &[&String], shape: fn(&str) -> Vec<String>| {
        let path = format!("{path}.{list}");
        if hinted.len() > MAX_HINTS {
            wrong.push(Cause::too_many(path, hinted.len(), MAX_HINTS));
            return;
        }
        let mut seen = HashSet::new();
        for (i, name) in hinted.iter().enumerate() {
            let field = format!("{path}[{i}].name");
            if !seen.insert(*name) {
                wrong.push(Cause::duplicate(field.clone(), name));
            }
            wrong.extend(each(&field, name, shape(name)));
        }
    };
    judge("forZones", &zones, names::label_value);
    judge("forNodes", &nodes, names::dns_subdomain);
    wrong
}
