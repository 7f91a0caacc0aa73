//! Gives Services of type LoadBalancer an address from the configured range: the cloud's part.
//!
//! A class means another implementation, and a status that a file gives is left alone, an empty one too.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service};

use super::object::{Kind, Object, ObjectKey};
use super::plane::ControlPlane;
use super::predicates::{families, is_load_balancer, spec_of};
use super::store::ServiceId;
use super::validation::ips;
use crate::model::Family;

impl ControlPlane {
    /// Assigns, changes or takes back the load-balancer address of one Service.
    pub(super) fn sync_load_balancer(&mut self, id: &ServiceId, now: Timestamp) {
        let Some(pool) = &self.load_balancers else {
            return;
        };
        let family = Family::of(pool.range().addr());
        if self.status_is_given(id) {
            let owner = id.key(Kind::Service);
            let shown = self.store.service(id).map(ingress_ips);
            for ip in shown.unwrap_or_default() {
                self.prefer_load_balancer_ip(ip, &owner);
            }
            self.release_load_balancer(id);
            return;
        }
        let Some(service) = self
            .store
            .service(id)
            .filter(|service| wants_address(service, family))
            .cloned()
        else {
            self.release_load_balancer(id);
            return;
        };
        let held = self.assigned.get(id).copied();
        let shown = ingress_ips(&service);
        // Somebody else has written an address through the status path.
        if !shown.is_empty() && held.is_none_or(|ip| !shown.contains(&ip)) {
            self.release_load_balancer(id);
            return;
        }
        let asked = spec_of(&service)
            .load_balancer_ip
            .as_deref()
            .and_then(ips::parse_sloppily)
            .filter(|asked| Some(*asked) != held);
        let Some(pool) = &mut self.load_balancers else {
            return;
        };
        let owner = id.key(Kind::Service);
        let asked = asked.filter(|asked| pool.claim(*asked, &owner).is_ok());
        if let (Some(_), Some(old)) = (asked, held) {
            pool.release(old, &owner);
        }
        let chosen = asked
            .or(held)
            .or_else(|| pool.claim_any(&owner, &mut self.rng).ok());
        match chosen {
            Some(ip) => {
                self.assigned.insert(id.clone(), ip);
                self.show_address(service, ip, now);
            }
            None => {
                self.pending.insert(id.clone());
            }
        }
    }

    /// Takes back the address of a Service, if we gave it one.
    pub(super) fn release_load_balancer(&mut self, id: &ServiceId) {
        self.pending.remove(id);
        if let (Some(ip), Some(pool)) = (self.assigned.remove(id), &mut self.load_balancers) {
            pool.release(ip, &id.key(Kind::Service));
        }
    }

    // A list in the file counts even when it is empty; only `loadBalancer: {}` says nothing.
    fn status_is_given(&self, id: &ServiceId) -> bool {
        let file = self.manifests.get(&id.key(Kind::Service));
        file.and_then(Object::as_service)
            .and_then(|file| file.status.as_ref()?.load_balancer.as_ref())
            .is_some_and(|status| status.ingress.is_some())
    }

    fn show_address(&mut self, mut service: Service, ip: IpAddr, now: Timestamp) {
        let status = service.status.get_or_insert_default();
        status.load_balancer = Some(LoadBalancerStatus {
            ingress: Some(vec![LoadBalancerIngress {
                ip: Some(ip.to_string()),
                ip_mode: Some("VIP".to_owned()),
                ..LoadBalancerIngress::default()
            }]),
        });
        self.store.put(Object::Service(Box::new(service)), now);
    }

    /// Keeps an address that a Service shows or asks for from being given to others, while there are any left.
    pub(super) fn prefer_load_balancer_ip(&mut self, ip: IpAddr, owner: &ObjectKey) {
        if let Some(pool) = &mut self.load_balancers {
            pool.prefer(ip, owner);
        }
    }
}

fn wants_address(service: &Service, family: Family) -> bool {
    let spec = spec_of(service);
    is_load_balancer(spec)
        && spec.load_balancer_class.is_none()
        && families(spec).iter().any(|name| name == family.as_str())
}

/// The addresses that `status.loadBalancer` shows.
pub(super) fn ingress_ips(service: &Service) -> Vec<IpAddr> {
    super::validation::service::load_balancer_ingress(service)
        .iter()
        .filter_map(|entry| ips::parse_sloppily(entry.ip.as_deref()?))
        .collect()
}
