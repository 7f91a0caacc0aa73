//! What must survive a restart, so that the same name gets the same address again.
//!
//! Saved choices are preferences: a manifest that asks for an address or port by number has it.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use serde::{Deserialize, Serialize};

use super::load_balancers::ingress_ips;
use super::object::{Kind, Object, ObjectKey};
use super::plane::ControlPlane;
use super::predicates::{cluster_ips, spec_of};
use super::store::ServiceId;
use super::validation::ips;

/// All choices of a control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocations {
    /// Of Services, by namespace and name.
    #[serde(default)]
    pub services: Vec<SavedService>,
    /// Of simulated Pods, by namespace and name.
    #[serde(default)]
    pub pods: Vec<SavedPod>,
}

/// What one object holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saved {
    /// A Service.
    Service(SavedService),
    /// A simulated Pod.
    Pod(SavedPod),
}

impl Extend<Saved> for Allocations {
    fn extend<T: IntoIterator<Item = Saved>>(&mut self, more: T) {
        for saved in more {
            match saved {
                Saved::Service(service) => self.services.push(service),
                Saved::Pod(pod) => self.pods.push(pod),
            }
        }
    }
}

/// What one Service holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedService {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// When it was first accepted, in microseconds since 1970.
    pub accepted_us: i64,
    /// Its cluster IPs.
    #[serde(default)]
    pub cluster_ips: Vec<IpAddr>,
    /// Its node ports.
    #[serde(default)]
    pub node_ports: Vec<SavedPort>,
    /// Its health-check node port.
    #[serde(default)]
    pub health_check_node_port: Option<u16>,
    /// The load-balancer address we gave it.
    #[serde(default)]
    pub load_balancer_ip: Option<IpAddr>,
}

/// A node port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPort {
    /// `port`.
    pub port: i32,
    /// `protocol`.
    pub protocol: String,
    /// `nodePort`.
    pub node_port: u16,
}

/// The address of a simulated Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPod {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The address.
    pub ip: IpAddr,
}

impl ControlPlane {
    /// Everything allocated at this moment.
    pub fn allocations(&self) -> Allocations {
        let mut all = Allocations::default();
        for kind in [Kind::Service, Kind::Pod] {
            for (key, _) in self.store.entries(kind) {
                all.extend(self.allocation_of(key));
            }
        }
        all
    }

    /// What one object holds; `None` if it is not there, or holds nothing that we chose.
    pub fn allocation_of(&self, key: &ObjectKey) -> Option<Saved> {
        match self.store.get(key)? {
            Object::Service(service) => Some(Saved::Service(self.saved_service(key, service))),
            Object::Pod(pod) => Some(Saved::Pod(SavedPod {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                ip: self.given_pod_address(key, pod)?,
            })),
            Object::Namespace(_)
            | Object::Node(_)
            | Object::EndpointSlice(_)
            | Object::Endpoints(_) => None,
        }
    }

    fn saved_service(&self, key: &ObjectKey, service: &Service) -> SavedService {
        let spec = spec_of(service);
        let id = ServiceId::of(key);
        let node_ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(SavedPort {
                port: port.port,
                protocol: port.protocol.clone().unwrap_or_default(),
                node_port: u16::try_from(port.node_port?).ok()?,
            })
        });
        let addresses = cluster_ips(spec).iter();
        SavedService {
            accepted_us: self
                .accepted
                .get(&id)
                .map_or(0, |time| time.as_microsecond()),
            cluster_ips: addresses.filter_map(|ip| ips::parse_sloppily(ip)).collect(),
            node_ports: node_ports.collect(),
            health_check_node_port: spec
                .health_check_node_port
                .and_then(|port| u16::try_from(port).ok()),
            load_balancer_ip: self.assigned.get(&id).copied(),
            namespace: id.namespace.to_string(),
            name: id.name.to_string(),
        }
    }

    /// Takes over what an earlier run had allocated; to be called before the first object is applied.
    ///
    /// Nothing is reserved: others get a saved address or port only when they ask for it, or when nothing else is left.
    pub fn restore(&mut self, saved: Allocations) {
        for service in saved.services {
            let key = ObjectKey {
                kind: Kind::Service,
                namespace: service.namespace.as_str().into(),
                name: service.name.as_str().into(),
            };
            if let Ok(accepted) = Timestamp::from_microsecond(service.accepted_us) {
                self.accepted.insert(ServiceId::of(&key), accepted);
            }
            if let Some(ip) = service.load_balancer_ip {
                self.prefer_load_balancer_ip(ip, &key);
            }
            self.ledger.prefer(&key, &service);
        }
        for pod in saved.pods {
            let key = ObjectKey {
                kind: Kind::Pod,
                namespace: pod.namespace.into(),
                name: pod.name.into(),
            };
            if let Some(pool) = &mut self.pod_addresses {
                pool.prefer(pod.ip, &key);
            }
        }
    }

    /// Announces a manifest that will be applied: addresses and ports that it asks for by number are not given to
    /// others in the meantime, and beat restored ones. For the start, when all files are known before the first is
    /// applied.
    pub fn announce(&mut self, object: &Object) {
        let key = object.key();
        match object {
            Object::Service(service) => {
                self.ledger.prefer_explicit(&key, spec_of(service));
                for ip in ingress_ips(service) {
                    self.prefer_load_balancer_ip(ip, &key);
                }
                let asked = spec_of(service).load_balancer_ip.as_deref();
                if let Some(ip) = asked.and_then(ips::parse_sloppily) {
                    self.prefer_load_balancer_ip(ip, &key);
                }
            }
            Object::Pod(pod) => {
                let Some(pool) = &mut self.pod_addresses else {
                    return;
                };
                let status = pod.status.as_ref();
                let listed = status.and_then(|status| status.pod_ips.as_ref());
                let texts = listed.into_iter().flatten().map(|entry| &entry.ip);
                for text in texts.chain(status.and_then(|status| status.pod_ip.as_ref())) {
                    if let Some(ip) = ips::parse_sloppily(text) {
                        pool.prefer(ip, &key);
                    }
                }
            }
            Object::Namespace(_)
            | Object::Node(_)
            | Object::EndpointSlice(_)
            | Object::Endpoints(_) => {}
        }
    }
}
