//! Cluster IPs of one Service: which are claimed, which released. Source: `allocClusterIPs` of the API server.

use k8s_openapi::api::core::v1::ServiceSpec;

use super::addresses::{AddressError, AddressPool};
use super::families::keeps_preferred_families;
use super::ledger::{Draft, Fault, Ledger, family_of};
use super::object::ObjectKey;
use super::predicates::{cluster_ips, families, is_headless, needs_cluster_ip};
use super::rejection::{Cause, Rejection};
use super::validation::ips;
use crate::model::Family;

impl Ledger {
    /// Completes `clusterIP` and `clusterIPs` of `new`.
    ///
    /// # Errors
    /// An address in use or out of range (the field is to blame), or none left (nobody is). `new` is then as before.
    pub(super) fn allocate_addresses(
        &mut self,
        new: &mut ServiceSpec,
        old: Option<&ServiceSpec>,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let old = old.filter(|old| needs_cluster_ip(old));
        let Some(old) = old else {
            if !needs_cluster_ip(new) || is_headless(new) {
                return Ok(());
            }
            return self.claim_addresses(new, 0, draft);
        };
        if keeps_preferred_families(new, old) || is_headless(old) {
            return Ok(());
        }
        if !needs_cluster_ip(new) {
            let held = cluster_ips(old).iter();
            draft
                .obsolete_ips
                .extend(held.filter_map(|ip| ips::parse_sloppily(ip)));
            return Ok(());
        }
        match (families(old).len(), families(new).len()) {
            (1, 2) => self.claim_addresses(new, 1, draft),
            (2, 1) => {
                let secondary = cluster_ips(old).get(1);
                draft
                    .obsolete_ips
                    .extend(secondary.and_then(|ip| ips::parse_sloppily(ip)));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Says what speaks against addresses that are asked for by number, where families could not be inferred.
    ///
    /// # Errors
    /// As `allocate_addresses`; nothing is claimed.
    pub(super) fn judge_addresses(
        &mut self,
        new: &ServiceSpec,
        old: Option<&ServiceSpec>,
        draft: &Draft,
    ) -> Result<(), Fault> {
        let held = old.map(cluster_ips).unwrap_or_default();
        let shown = cluster_ips(new);
        for text in shown.iter().filter(|text| !held.contains(text)) {
            let Some(ip) = ips::parse_sloppily(text) else {
                continue;
            };
            let same_family = |pool: &&mut AddressPool| family_of(pool.range()) == Family::of(ip);
            if let Some(pool) = self.addresses.iter_mut().find(same_family) {
                pool.claim(ip, &draft.owner)
                    .map_err(|error| refused_address(text, shown, error))?;
                pool.release(ip, &draft.owner);
            }
        }
        Ok(())
    }

    fn claim_addresses(
        &mut self,
        spec: &mut ServiceSpec,
        first: usize,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let wanted = families(spec).to_vec();
        let mut list = cluster_ips(spec).to_vec();
        list.resize(wanted.len().max(list.len()), String::new());
        for (i, family) in wanted.iter().enumerate().skip(first) {
            let shown = list.clone();
            let Some(pool) = self
                .addresses
                .iter_mut()
                .find(|pool| family_of(pool.range()).as_str() == family)
            else {
                continue;
            };
            if list[i].is_empty() {
                let ip = pool
                    .claim_any(&draft.owner, &mut self.rng)
                    .map_err(|error| no_address(&draft.owner, error))?;
                draft.claimed_ips.push(ip);
                list[i] = ip.to_string();
            } else if let Some(ip) = ips::parse_sloppily(&list[i]).filter(|_| !draft.dry) {
                pool.claim(ip, &draft.owner)
                    .map_err(|error| refused_address(&list[i], &shown, error))?;
                draft.claimed_ips.push(ip);
            }
        }
        spec.cluster_ip = list.first().cloned();
        spec.cluster_ips = Some(list);
        Ok(())
    }
}

fn no_address(owner: &ObjectKey, error: AddressError) -> Fault {
    let message = format!(
        "failed to allocate a serviceIP for Service \"{}\": {error}",
        owner.name
    );
    Fault::Whole(Rejection::internal(message).worth_retrying())
}

fn refused_address(ip: &str, shown: &[String], error: AddressError) -> Fault {
    let detail = format!("failed to allocate IP {ip}: {error}");
    Fault::Fields {
        causes: vec![Cause::invalid("spec.clusterIPs", &shown, &detail)],
        retry: error == AddressError::Taken,
    }
}
