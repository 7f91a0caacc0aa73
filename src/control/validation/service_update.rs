//! What an update may not change. Source: `ValidateServiceUpdate`.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::service::judge_service;
use super::{each, names};
use crate::control::predicates::{
    cluster_ips, families, is_external_name, is_headless, is_load_balancer, needs_health_check,
    spec_of,
};
use crate::control::rejection::Cause;

const ONCE_SET: &str = "may not change once set";

/// Judges `new` as the successor of `old`.
pub(in crate::control) fn judge_service_update(new: &Service, old: &Service) -> Vec<Cause> {
    let (new_spec, old_spec) = (spec_of(new), spec_of(old));
    let mut wrong = Vec::new();
    if !is_external_name(new_spec) && !is_external_name(old_spec) {
        wrong.extend(judge_address_change(new_spec, old_spec));
        wrong.extend(judge_family_change(new_spec, old_spec));
    }
    wrong.extend(judge_class(new_spec, Some(old_spec)));
    if needs_health_check(new_spec)
        && needs_health_check(old_spec)
        && new_spec.health_check_node_port != old_spec.health_check_node_port
    {
        wrong.push(Cause::forbidden(
            "spec.healthCheckNodePort",
            "field is immutable",
        ));
    }
    wrong.extend(judge_service(new, Some(old)));
    wrong
}

/// `loadBalancerClass`: its form, where it may be, and that it never changes while the type stays.
pub(in crate::control) fn judge_class(new: &ServiceSpec, old: Option<&ServiceSpec>) -> Vec<Cause> {
    let field = "spec.loadBalancerClass";
    let class = &new.load_balancer_class;
    let mut wrong = Vec::new();
    if let Some(old) = old
        && is_load_balancer(old)
        && is_load_balancer(new)
        && old.load_balancer_class != *class
    {
        wrong.push(Cause::invalid(field, class, ONCE_SET));
    }
    if let Some(class) = class {
        if !is_load_balancer(new) {
            let detail = "may only be used when `type` is 'LoadBalancer'";
            wrong.push(Cause::forbidden(field, detail));
        } else if old.is_none() {
            wrong.extend(each(field, class, names::qualified_name(class)));
        }
    }
    wrong
}

// The primary stays; a secondary may come, and go with policy SingleStack, but not be replaced.
fn judge_address_change(new: &ServiceSpec, old: &ServiceSpec) -> Vec<Cause> {
    if is_headless(new) && is_headless(old) {
        return Vec::new();
    }
    let field = |i: usize| format!("spec.clusterIPs[{i}]");
    let (now, before) = (cluster_ips(new), cluster_ips(old));
    judge_list_change(now, before, field, "primary clusterIP can not be unset")
}

fn judge_family_change(new: &ServiceSpec, old: &ServiceSpec) -> Vec<Cause> {
    if is_headless(new) || is_headless(old) {
        return Vec::new();
    }
    // The API server names the first entry, whichever has changed.
    let field = |_| "spec.ipFamilies[0]".to_owned();
    let (now, before) = (families(new), families(old));
    judge_list_change(now, before, field, "primary ipFamily can not be unset")
}

fn judge_list_change(
    now: &[String],
    before: &[String],
    field: impl Fn(usize) -> String,
    unset: &str,
) -> Vec<Cause> {
    if now.is_empty() && !before.is_empty() {
        return vec![Cause::invalid(field(0), &now, unset)];
    }
    now.iter()
        .zip(before)
        .enumerate()
        .filter(|(_, (now, before))| now != before)
        .map(|(i, _)| Cause::invalid(field(i), &now, ONCE_SET))
        .collect()
}
