//! Topology hints that `trafficDistribution` asks for. Source: KEP-3015 (PreferSameZone, PreferSameNode), KEP-4444.

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone};

/// Hints `endpoint` as the Service wishes; an endpoint that is not ready has none.
pub(super) fn hint_by_distribution(endpoint: &mut Endpoint, wish: Option<&str>) {
    let by_node = match wish {
        Some("PreferClose" | "PreferSameZone") => false,
        Some("PreferSameNode") => true,
        Some(_) | None => {
            endpoint.hints = None;
            return;
        }
    };
    if !is_ready(endpoint) {
        endpoint.hints = None;
        return;
    }
    let for_zones = endpoint.zone.clone().map(|name| vec![ForZone { name }]);
    let for_nodes = endpoint
        .node_name
        .clone()
        .filter(|_| by_node)
        .map(|name| vec![ForNode { name }]);
    let any = for_zones.is_some() || for_nodes.is_some();
    endpoint.hints = any.then_some(EndpointHints {
        for_nodes,
        for_zones,
    });
}

/// What a slice says of readiness; unset is ready.
pub(super) fn is_ready(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.and_then(|conditions| conditions.ready) != Some(false)
}
