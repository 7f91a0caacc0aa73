//! Who holds which cluster IP and node port, and how one write of a Service changes that.
//!
//! `cluster_ips` and `service_ports` say what a write claims. It claims into a `Draft`; a rejected one gives every claim back, an accepted one releases what the Service no
//! longer uses. Source: `alloc.go` of the API server; the choices of spec 4.1 differ from it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ServiceSpec;
use rand::rngs::StdRng;

use super::addresses::AddressPool;
use super::allocations::SavedService;
use super::node_ports::PortPool;
use super::object::ObjectKey;
use super::predicates::cluster_ips;
use super::rejection::{Cause, Rejection};
use super::updates::node_ports;
use super::validation::ips;
use crate::model::Family;

/// The pools of the cluster.
#[derive(Debug)]
pub(super) struct Ledger {
    /// One per family, the primary first.
    pub(super) addresses: Vec<AddressPool>,
    /// Node ports and health-check ports.
    pub(super) ports: PortPool,
    /// Node ports that Services had before a restart.
    pub(super) saved_ports: HashMap<ObjectKey, SavedService>,
    /// Where dynamic allocation starts.
    pub(super) rng: StdRng,
}

/// What one write has claimed so far, and what it will release once accepted.
#[derive(Debug)]
pub(super) struct Draft {
    /// The Service.
    pub(super) owner: ObjectKey,
    /// A dry run does not look whether an explicit address is free. The API server's does not either.
    pub(super) dry: bool,
    /// To be given back if the write is rejected.
    pub(super) claimed_ips: Vec<IpAddr>,
    /// To be given back if the write is rejected.
    pub(super) claimed_ports: Vec<u16>,
    /// To be given back if it is accepted.
    pub(super) obsolete_ips: Vec<IpAddr>,
    /// To be given back if it is accepted.
    pub(super) obsolete_ports: Vec<i32>,
}

/// A stage of a write that failed.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Fields are wrong.
    Fields {
        /// Which, and why.
        causes: Vec<Cause>,
        /// Whether a release elsewhere may cure it.
        retry: bool,
    },
    /// No field is to blame.
    Whole(Rejection),
}

impl Draft {
    /// A write of `owner` that has claimed nothing yet.
    pub(super) fn new(owner: ObjectKey, dry: bool) -> Self {
        Self {
            owner,
            dry,
            claimed_ips: Vec::new(),
            claimed_ports: Vec::new(),
            obsolete_ips: Vec::new(),
            obsolete_ports: Vec::new(),
        }
    }
}

impl Ledger {
    /// Pools with nothing allocated but the address of `default/kubernetes`.
    pub(super) fn new(
        cidrs: &[IpNet],
        node_ports: RangeInclusive<u16>,
        reserved_for: &ObjectKey,
        rng: StdRng,
    ) -> Self {
        let mut addresses: Vec<_> = cidrs.iter().map(|cidr| AddressPool::new(*cidr)).collect();
        if let Some(primary) = addresses.first_mut() {
            primary.reserve_first(reserved_for);
        }
        Self {
            addresses,
            ports: PortPool::new(node_ports),
            saved_ports: HashMap::new(),
            rng,
        }
    }

    /// The configured families, primary first.
    pub(super) fn families(&self) -> Vec<Family> {
        self.addresses
            .iter()
            .map(|pool| family_of(pool.range()))
            .collect()
    }

    /// The write was accepted: what it no longer uses is free.
    pub(super) fn commit(&mut self, draft: &Draft) {
        for ip in &draft.obsolete_ips {
            self.release_ip(*ip, &draft.owner);
        }
        for port in &draft.obsolete_ports {
            self.release_port(*port, &draft.owner);
        }
    }

    /// The write was rejected: what it claimed is free.
    pub(super) fn roll_back(&mut self, draft: &Draft) {
        for ip in &draft.claimed_ips {
            self.release_ip(*ip, &draft.owner);
        }
        for port in &draft.claimed_ports {
            self.release_port(i32::from(*port), &draft.owner);
        }
    }

    /// Takes back everything that the spec of a deleted Service names.
    pub(super) fn release_all(&mut self, spec: &ServiceSpec, owner: &ObjectKey) {
        for ip in cluster_ips(spec) {
            if let Some(ip) = ips::parse_sloppily(ip) {
                self.release_ip(ip, owner);
            }
        }
        for port in node_ports(spec)
            .into_iter()
            .chain(spec.health_check_node_port)
        {
            self.release_port(port, owner);
        }
    }

    /// Keeps what the Service had before a restart for it, as long as there is any other choice for others.
    pub(super) fn prefer(&mut self, owner: &ObjectKey, saved: &SavedService) {
        for ip in &saved.cluster_ips {
            self.prefer_ip(*ip, owner);
        }
        let node_ports = saved.node_ports.iter().map(|port| port.node_port);
        for port in node_ports.chain(saved.health_check_node_port) {
            self.ports.prefer(port, owner);
        }
        self.saved_ports.insert(owner.clone(), saved.clone());
    }

    /// The same for what a manifest asks for by number.
    pub(super) fn prefer_explicit(&mut self, owner: &ObjectKey, spec: &ServiceSpec) {
        let addresses = cluster_ips(spec).iter().chain(&spec.cluster_ip);
        for ip in addresses.filter_map(|ip| ips::parse_sloppily(ip)) {
            self.prefer_ip(ip, owner);
        }
        for port in node_ports(spec)
            .into_iter()
            .chain(spec.health_check_node_port)
        {
            if let Ok(port) = u16::try_from(port) {
                self.ports.prefer(port, owner);
            }
        }
    }

    /// The Service is gone, and with it what it had before.
    pub(super) fn forget_preferences(&mut self, owner: &ObjectKey) {
        for pool in &mut self.addresses {
            pool.forget_preferences(owner);
        }
        self.ports.forget_preferences(owner);
        self.saved_ports.remove(owner);
    }

    fn prefer_ip(&mut self, ip: IpAddr, owner: &ObjectKey) {
        for pool in &mut self.addresses {
            pool.prefer(ip, owner);
        }
    }

    fn release_ip(&mut self, ip: IpAddr, owner: &ObjectKey) {
        for pool in &mut self.addresses {
            pool.release(ip, owner);
        }
    }

    fn release_port(&mut self, port: i32, owner: &ObjectKey) {
        if let Ok(port) = u16::try_from(port) {
            self.ports.release(port, owner);
        }
    }
}

/// The family of a pool's range.
pub(super) fn family_of(range: IpNet) -> Family {
    Family::of(range.addr())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::control::predicates::{cluster_ips, may_have_node_ports, spec_of};
    use crate::control::updates::node_ports;
    use crate::control::validation::ips;
    use crate::control::{Config, ControlPlane, Kind, Object, ObjectKey, UnknownFields, decode};

    fn tiny() -> ControlPlane {
        ControlPlane::new(Config {
            service_cidrs: vec![
                "10.97.0.0/29".parse().unwrap(),
                "fd00::/125".parse().unwrap(),
            ],
            node_port_range: 30000..=30003,
            load_balancer_range: None,
            pod_cidr: None,
            allow_loopback_endpoints: false,
            own_node: None,
            max_endpoints_per_slice: 100,
            seed: 3,
        })
        .unwrap()
    }

    /// What is held must be exactly what the stored Services show.
    fn check(plane: &ControlPlane) -> Result<(), TestCaseError> {
        let mut shown_ips = BTreeMap::new();
        let mut shown_ports = BTreeMap::new();
        for object in plane.list(Kind::Service) {
            let spec = spec_of(object.as_service().unwrap());
            for ip in cluster_ips(spec)
                .iter()
                .filter_map(|ip| ips::parse_sloppily(ip))
            {
                prop_assert!(shown_ips.insert(ip, object.key()).is_none(), "{} twice", ip);
            }
            let ports = if may_have_node_ports(spec) {
                node_ports(spec)
            } else {
                Default::default()
            };
            for port in ports.into_iter().chain(spec.health_check_node_port) {
                let port = u16::try_from(port).unwrap();
                prop_assert!(
                    shown_ports.insert(port, object.key()).is_none(),
                    "{} twice",
                    port
                );
            }
        }
        let pools = plane.ledger.addresses.iter();
        let held: BTreeMap<_, _> = pools.flat_map(|pool| pool.held().clone()).collect();
        prop_assert_eq!(held, shown_ips);
        prop_assert_eq!(plane.ledger.ports.held(), &shown_ports);
        Ok(())
    }

    fn any_spec() -> impl Strategy<Value = Value> {
        let kinds = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
        let ips = ["10.97.0.2", "10.97.0.3", "10.1.0.1", "None", "fd00::2"];
        let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
        let port = (1i32..4, prop::option::of(29_999i32..30_004), any::<bool>());
        (
            prop::sample::select(kinds.to_vec()),
            prop::option::of(prop::sample::select(ips.to_vec())),
            prop::option::of(prop::sample::select(policies.to_vec())),
            prop::collection::vec(port, 0..3),
            (any::<bool>(), any::<bool>(), any::<bool>()),
            prop::option::of(30_000i32..30_004),
        )
            .prop_map(|(kind, ip, policy, ports, (local, allocate, bad), health)| {
                let ports: Vec<_> = ports
                    .into_iter()
                    .enumerate()
                    .map(|(i, (port, node_port, udp))| {
                        json!({"name": format!("p{i}"), "port": port, "nodePort": node_port, "protocol": if udp { "UDP" } else { "TCP" }})
                    })
                    .collect();
                let mut spec = json!({
                    "type": kind, "clusterIP": ip, "ipFamilyPolicy": policy, "ports": ports,
                    "sessionAffinity": if bad { "bad" } else { "None" },
                });
                match kind {
                    "ExternalName" => spec["externalName"] = json!("example.com"),
                    "LoadBalancer" => {
                        spec["allocateLoadBalancerNodePorts"] = json!(allocate);
                        if local {
                            spec["externalTrafficPolicy"] = json!("Local");
                            spec["healthCheckNodePort"] = json!(health);
                        }
                    }
                    _ => {}
                }
                spec
            })
    }

    fn service(name: &str, spec: &Value) -> Object {
        let document = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        decode(document, UnknownFields::Refuse).unwrap().0
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn what_is_held_is_what_is_stored(
            steps in prop::collection::vec((0usize..3, 0usize..6, any_spec()), 1..25),
        ) {
            let mut plane = tiny();
            let now = Timestamp::UNIX_EPOCH;
            for (who, verb, spec) in steps {
                let name = ["a", "b", "c"][who];
                let key = ObjectKey { kind: Kind::Service, namespace: "default".into(), name: name.into() };
                // Rejections are welcome: they must leave no trace.
                match verb {
                    0 => drop(plane.create(service(name, &spec), now)),
                    1 => drop(plane.update(service(name, &spec), now)),
                    2 => drop(plane.apply(service(name, &spec), now)),
                    3 => drop(plane.patch(&key, &json!({"spec": spec}), now)),
                    4 => drop(plane.dry_create(service(name, &spec), now)),
                    _ => plane.delete(&key, now),
                }
                check(&plane)?;
            }
        }
    }
}
