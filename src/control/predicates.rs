//! Questions that several steps ask about one Service: what its type needs, whether it is headless.
//!
//! All take a spec that has been through `defaults`; an unknown type needs nothing.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

/// `clusterIP` of a Service without one.
pub(super) const HEADLESS: &str = "None";

/// The spec, which `defaults` has put there.
pub(super) fn spec_of(service: &Service) -> &ServiceSpec {
    static EMPTY: std::sync::LazyLock<ServiceSpec> = std::sync::LazyLock::new(ServiceSpec::default);
    service.spec.as_ref().unwrap_or(&EMPTY)
}

/// `spec.type`; empty if it is missing.
pub(super) fn type_of(spec: &ServiceSpec) -> &str {
    spec.type_.as_deref().unwrap_or_default()
}

/// `type: ExternalName`.
pub(super) fn is_external_name(spec: &ServiceSpec) -> bool {
    type_of(spec) == "ExternalName"
}

/// `type: LoadBalancer`.
pub(super) fn is_load_balancer(spec: &ServiceSpec) -> bool {
    type_of(spec) == "LoadBalancer"
}

/// The only entry of `clusterIPs` is `None`.
pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    matches!(cluster_ips(spec), [only] if only == HEADLESS)
}

/// `clusterIPs`.
pub(super) fn cluster_ips(spec: &ServiceSpec) -> &[String] {
    spec.cluster_ips.as_deref().unwrap_or_default()
}

/// `ipFamilies`.
pub(super) fn families(spec: &ServiceSpec) -> &[String] {
    spec.ip_families.as_deref().unwrap_or_default()
}

/// Whether anything is selected; an empty selector is none.
pub(super) fn has_selector(spec: &ServiceSpec) -> bool {
    spec.selector
        .as_ref()
        .is_some_and(|pairs| !pairs.is_empty())
}

/// A type that has cluster IPs (`None` counts as a value).
pub(super) fn needs_cluster_ip(spec: &ServiceSpec) -> bool {
    matches!(type_of(spec), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// A type whose ports may have node ports.
pub(super) fn may_have_node_ports(spec: &ServiceSpec) -> bool {
    matches!(type_of(spec), "NodePort" | "LoadBalancer")
}

/// A Service whose ports without a node port get one.
pub(super) fn allocates_node_ports(spec: &ServiceSpec) -> bool {
    match type_of(spec) {
        "NodePort" => true,
        "LoadBalancer" => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    }
}

/// Reachable from outside, so that `externalTrafficPolicy` means something.
pub(super) fn is_externally_accessible(spec: &ServiceSpec) -> bool {
    may_have_node_ports(spec)
        || (type_of(spec) == "ClusterIP"
            && spec
                .external_ips
                .as_ref()
                .is_some_and(|ips| !ips.is_empty()))
}

/// A Service whose health-check node port answers for local endpoints.
pub(super) fn needs_health_check(spec: &ServiceSpec) -> bool {
    is_load_balancer(spec) && spec.external_traffic_policy.as_deref() == Some("Local")
}
