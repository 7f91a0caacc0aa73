//! `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`: each by itself, and whether they agree.
//!
//! Source: `ValidateServiceClusterIPsRelatedFields`.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::ServiceSpec;

use super::ips;
use crate::control::predicates::{HEADLESS, cluster_ips, families, is_external_name, is_headless};
use crate::control::rejection::Cause;

const FIELD: &str = "spec.clusterIPs";
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const FAMILY_POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];

/// Judges the linked fields; bad addresses among `tolerated` pass.
pub(in crate::control) fn judge_cluster_ips(
    spec: &ServiceSpec,
    tolerated: &[String],
) -> Vec<Cause> {
    if is_external_name(spec) {
        return Vec::new();
    }
    let mut wrong: Vec<_> = judge_agreement(spec).into_iter().collect();
    wrong.extend(judge_families(spec));
    let (bad_ips, faults) = judge_each_ip(spec, tolerated);
    wrong.extend(faults);
    // A bad entry would only be reported again in other words.
    if bad_ips {
        return wrong;
    }
    let ips = cluster_ips(spec);
    if ips.len() > 1 && !has_both_families(ips) {
        let detail = "may specify no more than one IP for each IP family";
        wrong.push(Cause::invalid(FIELD, &ips, detail));
    }
    if wrong.is_empty() && !is_headless(spec) {
        wrong.extend(judge_families_of_ips(spec));
    }
    wrong
}

fn judge_agreement(spec: &ServiceSpec) -> Option<Cause> {
    let ips = cluster_ips(spec);
    match (spec.cluster_ip.as_deref(), ips.first()) {
        (Some(_), None) => Some(Cause::required(FIELD, "")),
        (Some(one), Some(first)) if one != first => Some(Cause::invalid(
            FIELD,
            &ips,
            "first value must match `clusterIP`",
        )),
        (None, Some(_)) => Some(Cause::invalid(
            FIELD,
            &ips,
            "must be empty when `clusterIP` is not specified",
        )),
        (Some(_), Some(_)) | (None, None) => None,
    }
}

fn judge_families(spec: &ServiceSpec) -> Vec<Cause> {
    let mut wrong = Vec::new();
    let mut seen = HashSet::new();
    for (i, family) in families(spec).iter().enumerate() {
        let field = format!("spec.ipFamilies[{i}]");
        if !FAMILIES.contains(&family.as_str()) {
            wrong.push(Cause::not_supported(field.clone(), family, &FAMILIES));
        }
        if !seen.insert(family) {
            wrong.push(Cause::duplicate(field, family));
        }
    }
    if let Some(policy) = spec.ip_family_policy.as_deref()
        && !FAMILY_POLICIES.contains(&policy)
    {
        let field = "spec.ipFamilyPolicy";
        wrong.push(Cause::not_supported(field, policy, &FAMILY_POLICIES));
    }
    wrong
}

fn judge_each_ip(spec: &ServiceSpec, tolerated: &[String]) -> (bool, Vec<Cause>) {
    let ips = cluster_ips(spec);
    let mut wrong = Vec::new();
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && ip == HEADLESS {
            if ips.len() > 1 {
                let detail = "'None' must be the first and only value";
                wrong.push(Cause::invalid(FIELD, &ips, detail));
            }
            continue;
        }
        wrong.extend(ips::judge_ip(&format!("{FIELD}[{i}]"), ip, tolerated));
    }
    let bad = !wrong.is_empty();
    if ips.len() > 2 {
        wrong.push(Cause::invalid(FIELD, &ips, "may only hold up to 2 values"));
    }
    (bad, wrong)
}

fn has_both_families(ips: &[String]) -> bool {
    ips.iter().any(|ip| ips::is_ipv6_text(ip)) && ips.iter().any(|ip| !ips::is_ipv6_text(ip))
}

fn judge_families_of_ips(spec: &ServiceSpec) -> Vec<Cause> {
    let mut wrong = Vec::new();
    for (i, (ip, family)) in cluster_ips(spec).iter().zip(families(spec)).enumerate() {
        if ips::is_ipv6_text(ip) != (family == "IPv6") {
            let field = format!("{FIELD}[{i}]");
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            wrong.push(Cause::invalid(field, ip, &detail));
        }
    }
    wrong
}
