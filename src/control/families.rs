//! Which IP families a Service gets, from what it says and what the cluster has.
//!
//! The table of results is long, the rule is short: infer from addresses, then complete to what the policy wants.
//! Source: KEP-563 and `initIPFamilyFields` of the API server.

use k8s_openapi::api::core::v1::ServiceSpec;

use super::predicates::{HEADLESS, cluster_ips, families, has_selector, is_external_name, type_of};
use super::rejection::Cause;
use super::validation::{ips, judge_cluster_ips};
use crate::model::Family;

const POLICY: &str = "spec.ipFamilyPolicy";

/// Completes `ipFamilyPolicy` and `ipFamilies` of `new`; `configured` are the cluster's families, primary first, and
/// `tolerated` addresses may be spelled badly.
///
/// # Errors
/// The causes, of the first of three steps that has any: syntax and agreement; policy against what is given; policy
/// and families against the cluster.
pub(super) fn infer_families(
    new: &mut ServiceSpec,
    old: Option<&ServiceSpec>,
    configured: &[Family],
    tolerated: &[String],
) -> Result<(), Vec<Cause>> {
    if is_external_name(new) || old.is_some_and(|old| keeps_preferred_families(new, old)) {
        return Ok(());
    }
    let headless_alone = new.cluster_ip.as_deref() == Some(HEADLESS) && !has_selector(new);
    let policy = new
        .ip_family_policy
        .get_or_insert_with(|| {
            old.and_then(|old| old.ip_family_policy.clone())
                .unwrap_or_else(|| {
                    if headless_alone {
                        "RequireDualStack"
                    } else {
                        "SingleStack"
                    }
                    .to_owned()
                })
        })
        .clone();
    let single = policy == "SingleStack";

    fail_on(judge_cluster_ips(new, tolerated))?;
    let mut wrong = Vec::new();
    if let Some(old) = old {
        wrong.extend(release_secondary(new, old, &policy));
    }
    if single && cluster_ips(new).len() == 2 {
        wrong.push(Cause::invalid(POLICY, &policy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"));
    }
    if single && families(new).len() == 2 {
        wrong.push(Cause::invalid(POLICY, &policy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"));
    }
    wrong.extend(follow_addresses(new, configured));
    fail_on(wrong)?;

    if !headless_alone {
        fail_on(judge_against_cluster(new, &policy, configured))?;
    }
    // A headless Service without selector is completed even where the cluster has one family: its endpoints are
    // somebody else's.
    let both = headless_alone || configured.len() == 2;
    let list = new.ip_families.get_or_insert_default();
    if list.is_empty() {
        list.extend(configured.first().map(|family| family.as_str().to_owned()));
    }
    if let [only] = list.as_slice()
        && !single
        && both
    {
        let other = if only == "IPv4" { "IPv6" } else { "IPv4" };
        list.push(other.to_owned());
    }
    Ok(())
}

/// An update that leaves a PreferDualStack Service as stored neither adds nor removes an address, even when the
/// cluster has gained or lost a family.
pub(super) fn keeps_preferred_families(new: &ServiceSpec, old: &ServiceSpec) -> bool {
    let prefers = |spec: &ServiceSpec| spec.ip_family_policy.as_deref() == Some("PreferDualStack");
    type_of(new) == type_of(old)
        && prefers(new)
        && prefers(old)
        && cluster_ips(new) == cluster_ips(old)
        && families(new) == families(old)
}

// SingleStack with otherwise unchanged lists is a clear wish to drop the secondary; a cut list without it is a mistake.
fn release_secondary(new: &mut ServiceSpec, old: &ServiceSpec, policy: &str) -> Vec<Cause> {
    if policy == "SingleStack" {
        if cluster_ips(new) == cluster_ips(old)
            && let Some(ips) = &mut new.cluster_ips
        {
            ips.truncate(1);
        }
        if families(new) == families(old)
            && let Some(list) = &mut new.ip_families
        {
            list.truncate(1);
        }
        return Vec::new();
    }
    let reduced = |new: usize, old: usize| new != 0 && new < old;
    let mut wrong = Vec::new();
    if reduced(cluster_ips(new).len(), cluster_ips(old).len()) {
        let detail = "must be 'SingleStack' to release the secondary cluster IP";
        wrong.push(Cause::invalid(POLICY, &policy, detail));
    }
    if reduced(families(new).len(), families(old).len()) {
        let detail = "must be 'SingleStack' to release the secondary IP family";
        wrong.push(Cause::invalid(POLICY, &policy, detail));
    }
    wrong
}

// Appends the families of given addresses that `ipFamilies` does not reach.
fn follow_addresses(spec: &mut ServiceSpec, configured: &[Family]) -> Vec<Cause> {
    let mut wrong = Vec::new();
    let addresses = spec.cluster_ips.clone().unwrap_or_default();
    let list = spec.ip_families.get_or_insert_default();
    for (i, address) in addresses.iter().enumerate() {
        if address == HEADLESS {
            break;
        }
        if i < list.len() {
            continue;
        }
        let family = if ips::is_ipv6_text(address) {
            Family::V6
        } else {
            Family::V4
        };
        if configured.contains(&family) {
            list.push(family.as_str().to_owned());
        } else {
            let detail = format!("{family} is not configured on this cluster");
            let field = format!("spec.clusterIPs[{i}]");
            wrong.push(Cause::invalid(field, &addresses, &detail));
        }
    }
    wrong
}

fn judge_against_cluster(spec: &ServiceSpec, policy: &str, configured: &[Family]) -> Vec<Cause> {
    let mut wrong = Vec::new();
    if policy == "RequireDualStack" && configured.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        wrong.push(Cause::invalid(POLICY, &policy, detail));
    }
    for (i, family) in families(spec).iter().enumerate() {
        if !configured.iter().any(|known| known.as_str() == family) {
            let field = format!("spec.ipFamilies[{i}]");
            wrong.push(Cause::invalid(
                field,
                family,
                "not configured on this cluster",
            ));
        }
    }
    wrong
}

fn fail_on(wrong: Vec<Cause>) -> Result<(), Vec<Cause>> {
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::control::updates::sync_cluster_ips;

    // Families in short, or `ERR`.
    fn inferred(spec: Value, configured: &[Family]) -> String {
        let mut spec: ServiceSpec = serde_json::from_value(spec).unwrap();
        spec.type_ = Some("ClusterIP".to_owned());
        sync_cluster_ips(&mut spec, None);
        if infer_families(&mut spec, None, configured, &[]).is_err() {
            return "ERR".to_owned();
        }
        let policy = spec.ip_family_policy.clone().unwrap();
        let short = policy.strip_suffix("Stack").unwrap().replace("Dual", "");
        let list = families(&spec).join(",").replace("IP", "");
        format!("{short} {list}")
    }

    #[test]
    fn the_documented_table() {
        let v4 = "10.96.0.7";
        let v6 = "fd00::7";
        let none = json!({"clusterIP": "None"});
        let with = |base: &Value, more: Value| {
            let mut spec = base.clone();
            for (key, value) in more.as_object().unwrap() {
                spec[key] = value.clone();
            }
            spec
        };
        let prefer = json!({"ipFamilyPolicy": "PreferDualStack"});
        let require = json!({"ipFamilyPolicy": "RequireDualStack"});
        let single = json!({"ipFamilyPolicy": "SingleStack"});
        let f6 = json!({"ipFamilies": ["IPv6"]});
        let f64 = json!({"ipFamilies": ["IPv6", "IPv4"]});
        let ip = |ip: &str| json!({"clusterIP": ip});
        let ips = |a: &str, b: &str| json!({"clusterIP": a, "clusterIPs": [a, b]});
        let table = [
            (json!({}), "Single v4", "Single v4"),
            (f6.clone(), "ERR", "Single v6"),
            (f64.clone(), "ERR", "ERR"),
            (prefer.clone(), "Prefer v4", "Prefer v4,v6"),
            (with(&prefer, f6.clone()), "ERR", "Prefer v6,v4"),
            (with(&prefer, f64.clone()), "ERR", "Prefer v6,v4"),
            (require.clone(), "ERR", "Require v4,v6"),
            (with(&require, f6.clone()), "ERR", "Require v6,v4"),
            (with(&single, f64.clone()), "ERR", "ERR"),
            (ip(v4), "Single v4", "Single v4"),
            (ip(v6), "ERR", "Single v6"),
            (with(&ip(v6), json!({"ipFamilies": ["IPv4"]})), "ERR", "ERR"),
            (with(&ip(v4), prefer.clone()), "Prefer v4", "Prefer v4,v6"),
            (with(&with(&ip(v4), require), f64), "ERR", "ERR"),
            (ips(v4, v6), "ERR", "ERR"),
            (with(&ips(v4, v6), single.clone()), "ERR", "ERR"),
            (with(&ips(v6, v4), prefer), "ERR", "Prefer v6,v4"),
            (
                with(&none, json!({"selector": {"a": "b"}})),
                "Single v4",
                "Single v4",
            ),
            (none.clone(), "Require v4,v6", "Require v4,v6"),
            (with(&none, single.clone()), "Single v4", "Single v4"),
            (
                with(&with(&none, single), f6.clone()),
                "Single v6",
                "Single v6",
            ),
            (with(&none, f6), "Require v6,v4", "Require v6,v4"),
        ];
        for (spec, on_single, on_dual) in table {
            assert_eq!(inferred(spec.clone(), &[Family::V4]), on_single, "{spec}");
            assert_eq!(inferred(spec.clone(), &Family::BOTH), on_dual, "{spec}");
        }
    }
}
