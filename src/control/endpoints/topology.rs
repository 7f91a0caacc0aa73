//! Proportional topology hints (`topology-mode: Auto`): every zone gets endpoints in proportion to its CPUs.
//!
//! All or nothing: with too little known, or too few endpoints, nobody is hinted. Source: KEP-2433, `topologycache`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForZone};

use super::hints::is_ready;
use super::select::zone_of;
use crate::control::validation::service::{OLD_TOPOLOGY, TOPOLOGY};

/// A zone may have a fifth more load than its fair share.
const OVERLOAD: f64 = 0.2;
/// Nodes of these roles do not run workloads.
const CONTROL_PLANE: [&str; 2] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
];

/// The share of each zone in the CPUs of all; `None` if a node says too little or there is only one zone.
pub(super) type ZoneShares = Option<BTreeMap<String, f64>>;

/// Whether the Service asks for it; the deprecated annotation wins if both are there.
pub(super) fn is_wanted(service: &Service) -> bool {
    let Some(annotations) = &service.metadata.annotations else {
        return false;
    };
    let mode = annotations
        .get(OLD_TOPOLOGY)
        .or_else(|| annotations.get(TOPOLOGY));
    matches!(mode.map(String::as_str), Some("Auto" | "auto"))
}

/// The shares that follow from the ready nodes which run workloads.
pub(super) fn zone_shares<'a>(nodes: impl Iterator<Item = &'a Node>) -> ZoneShares {
    let mut by_zone: BTreeMap<String, f64> = BTreeMap::new();
    for node in nodes.filter(|node| counts(node)) {
        let cpus = allocatable_cpus(node).filter(|cpus| *cpus > 0.0)?;
        *by_zone.entry(zone_of(node)?.to_owned()).or_default() += cpus;
    }
    if by_zone.len() < 2 {
        return None;
    }
    let total: f64 = by_zone.values().sum();
    for share in by_zone.values_mut() {
        *share /= total;
    }
    Some(by_zone)
}

/// Hints the ready endpoints of one family.
///
/// # Errors
/// Why not, in the words of the Event; the endpoints are then as before.
pub(super) fn hint_by_share(
    endpoints: &mut [&mut Endpoint],
    shares: &ZoneShares,
) -> Result<(), String> {
    let ready: Vec<_> = (0..endpoints.len())
        .filter(|i| is_ready(endpoints[*i]))
        .collect();
    let wanted = allocate(ready.len(), shares)?;
    let mut zones = Vec::with_capacity(ready.len());
    for i in &ready {
        match endpoints[*i].zone.as_deref() {
            Some(zone) if !zone.is_empty() => zones.push(zone.to_owned()),
            Some(_) | None => {
                return Err("One or more endpoints do not have a zone specified".to_owned());
            }
        }
    }
    redistribute(&mut zones, &wanted);
    for endpoint in endpoints.iter_mut() {
        endpoint.hints = None;
    }
    for (i, name) in ready.into_iter().zip(zones) {
        endpoints[i].hints = Some(EndpointHints {
            for_nodes: None,
            for_zones: Some(vec![ForZone { name }]),
        });
    }
    Ok(())
}

// How many endpoints each zone should have, fractions included.
fn allocate(count: usize, shares: &ZoneShares) -> Result<BTreeMap<String, f64>, String> {
    let Some(shares) = shares else {
        return Err("Insufficient Node information: allocatable CPU or zone not specified on one or more nodes".to_owned());
    };
    if shares.len() > count {
        return Err(format!(
            "Insufficient number of endpoints ({count} endpoints, {} zones)",
            shares.len()
        ));
    }
    let total = number(count);
    let mut wanted = BTreeMap::new();
    let mut needed = 0.0;
    for (zone, share) in shares {
        let fair = share * total;
        let least = (fair / (1.0 + OVERLOAD)).ceil();
        needed += least;
        wanted.insert(zone.clone(), fair.max(least));
    }
    if needed > total {
        return Err(format!(
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold ({count} endpoints, {} zones)",
            shares.len()
        ));
    }
    Ok(wanted)
}

// Everybody starts with its own zone; then the zone with most to spare gives to the one most in need, one by one.
fn redistribute(zones: &mut [String], wanted: &BTreeMap<String, f64>) {
    let mut surplus: BTreeMap<&String, f64> = BTreeMap::new();
    for (zone, wanted) in wanted {
        let own = zones.iter().filter(|own| *own == zone).count();
        surplus.insert(zone, number(own) - wanted);
    }
    let mut moves: Vec<(String, String)> = Vec::new();
    while let (Some((from, spare)), Some((to, need))) = (
        surplus
            .iter()
            .max_by(|a, b| a.1.total_cmp(b.1))
            .map(|(zone, n)| (*zone, *n)),
        surplus
            .iter()
            .min_by(|a, b| a.1.total_cmp(b.1))
            .map(|(zone, n)| (*zone, -*n)),
    ) {
        if spare < 0.5 || need < 0.5 || (spare < 1.0 && need < 1.0) {
            break;
        }
        moves.push((from.clone(), to.clone()));
        *surplus.entry(from).or_default() -= 1.0;
        *surplus.entry(to).or_default() += 1.0;
    }
    for (from, to) in moves {
        if let Some(zone) = zones.iter_mut().find(|zone| **zone == from) {
            *zone = to;
        }
    }
}

fn counts(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let reserved =
        labels.is_some_and(|labels| CONTROL_PLANE.iter().any(|role| labels.contains_key(*role)));
    let conditions = node
        .status
        .iter()
        .filter_map(|status| status.conditions.as_ref());
    let ready = conditions
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && !reserved
}

fn allocatable_cpus(node: &Node) -> Option<f64> {
    let allocatable = node.status.as_ref()?.allocatable.as_ref()?;
    parse_quantity(&allocatable.get("cpu")?.0)
}

// The suffixes that a number of CPUs can sensibly have.
fn parse_quantity(text: &str) -> Option<f64> {
    let scales = [
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
    ];
    for (suffix, scale) in scales {
        if let Some(digits) = text.strip_suffix(suffix) {
            return digits.parse::<f64>().ok().map(|number| number * scale);
        }
    }
    text.parse().ok()
}

// Counts are far below 2^32.
fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(pairs: &[(&str, f64)]) -> ZoneShares {
        Some(
            pairs
                .iter()
                .map(|(zone, share)| ((*zone).to_owned(), *share))
                .collect(),
        )
    }

    fn hinted(zones: &[&str], shares: &ZoneShares) -> Result<BTreeMap<String, usize>, String> {
        let mut endpoints: Vec<_> = zones
            .iter()
            .map(|zone| Endpoint {
                zone: Some((*zone).to_owned()),
                ..Endpoint::default()
            })
            .collect();
        hint_by_share(&mut endpoints.iter_mut().collect::<Vec<_>>(), shares)?;
        let mut counts = BTreeMap::new();
        for hints in endpoints.into_iter().filter_map(|endpoint| endpoint.hints) {
            for zone in hints.for_zones.unwrap() {
                *counts.entry(zone.name).or_default() += 1;
            }
        }
        Ok(counts)
    }

    #[test]
    fn surplus_endpoints_are_hinted_to_zones_in_need() {
        let halves = shares(&[("a", 0.5), ("b", 0.5)]);
        let counts = hinted(&["a", "b", "b", "b", "b", "b"], &halves).unwrap();
        assert_eq!((counts["a"], counts["b"]), (3, 3));
        let own = hinted(&["a", "a", "b", "b"], &halves).unwrap();
        assert_eq!((own["a"], own["b"]), (2, 2));
    }

    #[test]
    fn too_few_endpoints_or_too_uneven_zones_mean_no_hints() {
        let halves = shares(&[("a", 0.5), ("b", 0.5)]);
        assert!(
            hinted(&["a"], &halves)
                .unwrap_err()
                .contains("1 endpoints, 2 zones")
        );
        assert!(hinted(&["a", "b"], &halves).is_ok());
        // 3 endpoints for two halves: at least two each.
        assert!(
            hinted(&["a", "a", "b"], &halves)
                .unwrap_err()
                .contains("overload")
        );
        assert!(
            hinted(&["a"], &None)
                .unwrap_err()
                .contains("Node information")
        );
    }

    #[test]
    fn cpus_are_read_in_their_usual_spellings() {
        assert_eq!(parse_quantity("4"), Some(4.0));
        assert_eq!(parse_quantity("500m"), Some(0.5));
        assert_eq!(parse_quantity("1.5"), Some(1.5));
        assert_eq!(parse_quantity("many"), None);
    }
}
