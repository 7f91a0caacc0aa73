//! What an update inherits from the stored Service, and what a change of type wipes.
//!
//! Source: `patchAllocatedValues`, `normalizeClusterIPs` and `dropTypeDependentFields` of the API server.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::predicates::{
    allocates_node_ports, cluster_ips, families, is_externally_accessible, is_load_balancer,
    may_have_node_ports, needs_cluster_ip, needs_health_check, spec_of,
};

/// Keeps what was allocated and is not mentioned: addresses, node ports by port name, the health-check port.
pub(super) fn carry_over(new: &mut ServiceSpec, old: &ServiceSpec) {
    if needs_cluster_ip(new) && needs_cluster_ip(old) {
        if new.cluster_ip.is_none() {
            new.cluster_ip.clone_from(&old.cluster_ip);
        }
        if new.cluster_ips.is_none() && new.cluster_ip == old.cluster_ip {
            new.cluster_ips.clone_from(&old.cluster_ips);
        }
    }
    if allocates_node_ports(new) && allocates_node_ports(old) {
        carry_over_node_ports(new, old);
    }
    if needs_health_check(new) && needs_health_check(old) && new.health_check_node_port.is_none() {
        new.health_check_node_port = old.health_check_node_port;
    }
}

fn carry_over_node_ports(new: &mut ServiceSpec, old: &ServiceSpec) {
    let moved: BTreeSet<_> = node_ports(new)
        .intersection(&node_ports(old))
        .copied()
        .collect();
    let by_name: HashMap<_, _> = old
        .ports
        .iter()
        .flatten()
        .filter_map(|port| Some((port.name.as_deref(), port.node_port?)))
        .collect();
    for port in new.ports.iter_mut().flatten() {
        if port.node_port.is_none() {
            port.node_port = by_name
                .get(&port.name.as_deref())
                .copied()
                .filter(|number| !moved.contains(number));
        }
    }
}

/// Makes `clusterIP` and `clusterIPs` agree where a client has written only one of them.
pub(super) fn sync_cluster_ips(new: &mut ServiceSpec, old: Option<&ServiceSpec>) {
    let Some(old) = old else {
        if new.cluster_ips.is_none()
            && let Some(ip) = &new.cluster_ip
        {
            new.cluster_ips = Some(vec![ip.clone()]);
        }
        return;
    };
    if new.cluster_ips.is_none() && new.cluster_ip == old.cluster_ip {
        new.cluster_ips.clone_from(&old.cluster_ips);
    }
    if new.cluster_ip != old.cluster_ip {
        let same_list = cluster_ips(new) == cluster_ips(old);
        match &new.cluster_ip {
            // Cleared by a client that does not know the list.
            None if same_list => new.cluster_ips = None,
            // Changed by one; or given where there was none.
            Some(ip) if same_list || new.cluster_ips.is_none() => {
                new.cluster_ips = Some(vec![ip.clone()]);
            }
            None | Some(_) => {}
        }
    }
}

/// Removes what no longer applies after a change of type. A field that the same request also changed stays, and fails
/// in validation.
pub(super) fn wipe_inapplicable(new: &mut Service, old: &Service) {
    let old_spec = spec_of(old);
    let spec = new.spec.get_or_insert_default();
    if needs_cluster_ip(old_spec) && !needs_cluster_ip(spec) {
        if spec.cluster_ip == old_spec.cluster_ip && cluster_ips(spec) == cluster_ips(old_spec) {
            spec.cluster_ip = None;
            spec.cluster_ips = None;
        }
        if families(spec) == families(old_spec) {
            spec.ip_families = None;
        }
        if spec.ip_family_policy == old_spec.ip_family_policy {
            spec.ip_family_policy = None;
        }
        if spec.internal_traffic_policy == old_spec.internal_traffic_policy {
            spec.internal_traffic_policy = None;
        }
    }
    if may_have_node_ports(old_spec)
        && !may_have_node_ports(spec)
        && node_ports(spec) == node_ports(old_spec)
    {
        for port in spec.ports.iter_mut().flatten() {
            port.node_port = None;
        }
    }
    if needs_health_check(old_spec)
        && !needs_health_check(spec)
        && spec.health_check_node_port == old_spec.health_check_node_port
    {
        spec.health_check_node_port = None;
    }
    if is_load_balancer(old_spec) && !is_load_balancer(spec) {
        if spec.allocate_load_balancer_node_ports == old_spec.allocate_load_balancer_node_ports {
            spec.allocate_load_balancer_node_ports = None;
        }
        if spec.load_balancer_class == old_spec.load_balancer_class {
            spec.load_balancer_class = None;
        }
        new.status = None;
    }
    let spec = new.spec.get_or_insert_default();
    if is_externally_accessible(old_spec)
        && !is_externally_accessible(spec)
        && spec.external_traffic_policy == old_spec.external_traffic_policy
    {
        spec.external_traffic_policy = None;
    }
}

/// The set of node ports a spec names.
pub(super) fn node_ports(spec: &ServiceSpec) -> BTreeSet<i32> {
    spec.ports
        .iter()
        .flatten()
        .filter_map(|port| port.node_port)
        .collect()
}
