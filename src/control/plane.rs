//! The control plane itself: all of its state, and the loop that brings everything up to date.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Namespace, Node, NodeAddress, NodeCondition, NodeStatus, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::addresses::AddressPool;
use super::config::{Config, ConfigError};
use super::endpoints::{ControllerEvent, Controllers, EndpointsObject};
use super::ledger::Ledger;
use super::object::{Kind, Object, ObjectKey};
use super::predicates::spec_of;
use super::probe_targets::{PodProbes, ProbeChange};
use super::store::{Change, ServiceId, Store};
use super::write::{Intent, Writer};

/// The namespaces that every cluster has.
const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// An API server and its controllers over one set of objects. Owns them, their addresses and their ports.
#[derive(Debug)]
pub struct ControlPlane {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) ledger: Ledger,
    pub(super) controllers: Controllers,
    pub(super) load_balancers: Option<AddressPool>,
    /// Load-balancer addresses that we gave.
    pub(super) assigned: BTreeMap<ServiceId, IpAddr>,
    /// Services that would take a load-balancer address if there were one.
    pub(super) pending: BTreeSet<ServiceId>,
    pub(super) pod_addresses: Option<AddressPool>,
    /// What manifest files last said and was accepted: the base of the next three-way apply.
    pub(super) manifests: HashMap<ObjectKey, Object>,
    /// What is probed, and what probes have found out, of the Pods that have any.
    pub(super) probes: HashMap<ObjectKey, PodProbes>,
    /// Changes of it since they were last taken; bounded by what one batch of manifests holds.
    pub(super) probe_changes: Vec<ProbeChange>,
    /// The number given out last.
    pub(super) last_probe: u64,
    /// Pods whose probe has said something new.
    pub(super) probed: BTreeSet<ObjectKey>,
    /// When each Service was first accepted, over restarts too.
    pub(super) accepted: BTreeMap<ServiceId, Timestamp>,
    pub(super) rng: StdRng,
}

impl ControlPlane {
    /// An empty cluster.
    ///
    /// # Errors
    /// The configuration is one that no cluster can have.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.check()?;
        let mut seeds = StdRng::seed_from_u64(config.seed);
        let kubernetes = ObjectKey {
            kind: Kind::Service,
            namespace: "default".into(),
            name: "kubernetes".into(),
        };
        let ledger = Ledger::new(
            &config.service_cidrs,
            config.node_port_range.clone(),
            &kubernetes,
            StdRng::from_rng(&mut seeds),
        );
        let mut plane = Self {
            store: Store::new(StdRng::from_rng(&mut seeds)),
            ledger,
            controllers: Controllers::new(config.max_endpoints_per_slice),
            load_balancers: config
                .load_balancer_range
                .map(AddressPool::of_single_addresses),
            assigned: BTreeMap::new(),
            pending: BTreeSet::new(),
            pod_addresses: config.pod_cidr.map(AddressPool::of_single_addresses),
            manifests: HashMap::new(),
            probes: HashMap::new(),
            probe_changes: Vec::new(),
            last_probe: 0,
            probed: BTreeSet::new(),
            accepted: BTreeMap::new(),
            rng: seeds,
            config,
        };
        for name in NAMESPACES {
            plane.supply_namespace(name, Timestamp::UNIX_EPOCH);
        }
        plane.supply_own_node(Timestamp::UNIX_EPOCH);
        Ok(plane)
    }

    /// Removes an object, as the deletion of its file does; nothing happens if there is none.
    ///
    /// What we made of it goes with it, and its addresses and ports are free; what other files say stays.
    pub fn delete(&mut self, key: &ObjectKey, now: Timestamp) {
        self.manifests.remove(key);
        let Some(removed) = self.store.remove(key) else {
            return;
        };
        match &removed {
            Object::Service(service) => self.clean_up_service(key, service, now),
            Object::Pod(pod) => self.forget_pod(key, pod),
            Object::Node(_) => self.supply_own_node(now),
            Object::Namespace(_) => {
                let in_use = Kind::ALL.iter().any(|kind| {
                    self.store
                        .entries(*kind)
                        .any(|(other, _)| other.namespace == key.name)
                });
                if in_use || NAMESPACES.contains(&&*key.name) {
                    self.supply_namespace(&key.name, now);
                }
            }
            Object::EndpointSlice(_) | Object::Endpoints(_) => {}
        }
        self.collect_garbage(removed.metadata());
    }

    /// Runs the controllers until nothing changes. Returns every object that changed since the last call, in the order
    /// in which the changes were made.
    pub fn reconcile(&mut self, now: Timestamp) -> Vec<Change> {
        self.take_probe_results(now);
        while let Some(id) = self.store.next_dirty() {
            self.sync_load_balancer(&id, now);
            if self.controllers.sync(&mut self.store, &id, now) == EndpointsObject::GivenUp {
                self.hand_back_endpoints(&id, now);
            }
            self.controllers.sync_mirrored(&mut self.store, &id, now);
            self.store.settle(&id);
        }
        for id in std::mem::take(&mut self.pending) {
            self.sync_load_balancer(&id, now);
            self.store.settle(&id);
        }
        self.store.take_log()
    }

    /// What the controllers have said about objects since the last call, at most a thousand remarks.
    pub fn take_events(&mut self) -> Vec<ControllerEvent> {
        self.controllers.events.take()
    }

    /// All objects of a kind, by namespace and name.
    pub fn list(&self, kind: Kind) -> Vec<&Object> {
        self.store.list(kind).collect()
    }

    /// The object of that key, as stored: defaulted, with what was allocated.
    pub fn get(&self, key: &ObjectKey) -> Option<&Object> {
        self.store.get(key)
    }

    /// When the Service was first accepted, restarts included; of two that claim one external address the older has it.
    pub fn accepted_at(&self, key: &ObjectKey) -> Option<Timestamp> {
        self.accepted.get(&ServiceId::of(key)).copied()
    }

    pub(super) fn supply_namespace(&mut self, name: &str, now: Timestamp) {
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some([("kubernetes.io/metadata.name".to_owned(), name.to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        self.store.put(Object::Namespace(Box::new(namespace)), now);
    }

    pub(super) fn namespace_exists(&self, name: &str) -> bool {
        let key = ObjectKey {
            kind: Kind::Namespace,
            namespace: "".into(),
            name: name.into(),
        };
        self.store.get(&key).is_some()
    }

    fn supply_own_node(&mut self, now: Timestamp) {
        let Some(own) = &self.config.own_node else {
            return;
        };
        let addresses = own.addresses.iter().map(|ip| NodeAddress {
            address: ip.to_string(),
            type_: "InternalIP".to_owned(),
        });
        let node = Node {
            metadata: ObjectMeta {
                name: Some(own.name.clone()),
                labels: Some([("kubernetes.io/hostname".to_owned(), own.name.clone())].into()),
                ..ObjectMeta::default()
            },
            status: Some(NodeStatus {
                addresses: Some(addresses.collect()),
                conditions: Some(vec![NodeCondition {
                    type_: "Ready".to_owned(),
                    status: "True".to_owned(),
                    ..NodeCondition::default()
                }]),
                ..NodeStatus::default()
            }),
            ..Node::default()
        };
        let object = Object::Node(Box::new(node));
        if self.store.get(&object.key()).is_none() {
            self.store.put(object, now);
        }
    }

    fn clean_up_service(&mut self, key: &ObjectKey, service: &Service, now: Timestamp) {
        let id = ServiceId::of(key);
        self.ledger.release_all(spec_of(service), key);
        self.ledger.forget_preferences(key);
        self.accepted.remove(&id);
        self.release_load_balancer(&id);
        // Endpoints go with the Service whoever wrote them, unless a file does.
        let held_by_file = self.manifests.contains_key(&id.key(Kind::Endpoints));
        let given_up = self.controllers.service_deleted(&id) == EndpointsObject::GivenUp;
        if given_up || !held_by_file {
            self.hand_back_endpoints(&id, now);
        }
    }

    // A file that the controller has overwritten counts again; without one the object goes.
    fn hand_back_endpoints(&mut self, id: &ServiceId, now: Timestamp) {
        let key = id.key(Kind::Endpoints);
        if let Some(removed) = self.store.remove(&key) {
            self.collect_garbage(removed.metadata());
        }
        if let Some(file) = self.manifests.get(&key).cloned() {
            // It was accepted before, and nothing that could speak against it has changed.
            let _accepted = self.write(file, Writer::File, Intent::Put, now);
        }
    }

    // Slices go with the object that owns them, unless a file holds them.
    fn collect_garbage(&mut self, owner: &ObjectMeta) {
        for key in self
            .store
            .slices_owned_by(owner.uid.as_deref().unwrap_or_default())
        {
            if !self.manifests.contains_key(&key) {
                self.store.remove(&key);
            }
        }
    }

    /// The namespace of the object, as the key spells it.
    pub(super) fn namespace_of(key: &ObjectKey) -> Option<Arc<str>> {
        key.kind.is_namespaced().then(|| key.namespace.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::control::{OwnNode, UnknownFields, decode};

    fn plane() -> ControlPlane {
        ControlPlane::new(Config {
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            node_port_range: 30000..=32767,
            load_balancer_range: None,
            pod_cidr: None,
            allow_loopback_endpoints: true,
            own_node: Some(OwnNode {
                name: "me".to_owned(),
                addresses: vec!["192.0.2.1".parse().unwrap()],
            }),
            max_endpoints_per_slice: 100,
            seed: 1,
        })
        .unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn object(kind: Kind, body: Value) -> Object {
        let mut document = json!({"apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": {"name": "web"}});
        for (key, value) in body.as_object().unwrap() {
            document[key] = value.clone();
        }
        decode(document, UnknownFields::Refuse).unwrap().0
    }

    fn web() -> Object {
        object(
            Kind::Service,
            json!({"spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
        )
    }

    fn hand_written() -> Object {
        let subsets = json!([{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 1}]}]);
        object(Kind::Endpoints, json!({"subsets": subsets}))
    }

    fn addresses(plane: &ControlPlane) -> Value {
        let key = hand_written().key();
        plane.get(&key).map_or(Value::Null, |object| {
            object.to_json().unwrap()["subsets"].clone()
        })
    }

    #[test]
    fn what_we_made_of_a_service_goes_with_it_and_what_a_file_says_stays() {
        let mut plane = plane();
        plane.apply(web(), now()).unwrap();
        plane.apply(hand_written(), now()).unwrap();
        plane.reconcile(now());
        assert_eq!(plane.list(Kind::EndpointSlice).len(), 1);
        // The controller's own: no Pods, no subsets.
        assert_eq!(addresses(&plane), Value::Null);
        plane.delete(&web().key(), now());
        plane.reconcile(now());
        assert_eq!(plane.list(Kind::EndpointSlice).len(), 0);
        assert_eq!(addresses(&plane)[0]["addresses"][0]["ip"], "127.0.0.1");
        plane.delete(&hand_written().key(), now());
        plane.apply(web(), now()).unwrap();
        plane.reconcile(now());
        plane.delete(&web().key(), now());
        plane.reconcile(now());
        assert_eq!(plane.list(Kind::Endpoints).len(), 0);
    }

    #[test]
    fn endpoints_of_a_file_are_mirrored_once_the_selector_is_gone() {
        let mut plane = plane();
        plane.apply(hand_written(), now()).unwrap();
        plane.apply(web(), now()).unwrap();
        plane.reconcile(now());
        let without = object(Kind::Service, json!({"spec": {"ports": [{"port": 80}]}}));
        plane.apply(without, now()).unwrap();
        plane.reconcile(now());
        let slices = plane.list(Kind::EndpointSlice);
        let slice = slices[0].to_json().unwrap();
        assert_eq!(slices.len(), 1);
        assert_eq!(slice["endpoints"][0]["addresses"][0], "127.0.0.1");
        assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Endpoints");
    }

    #[test]
    fn slices_that_the_controller_gives_up_or_loses_are_made_anew() {
        let mut plane = plane();
        plane.apply(web(), now()).unwrap();
        plane.reconcile(now());
        let first = plane.list(Kind::EndpointSlice)[0].key();
        let manager = "endpointslice.kubernetes.io/managed-by";
        let patch = json!({"metadata": {"labels": {manager: "me"}}});
        plane.patch(&first, &patch, now()).unwrap();
        plane.reconcile(now());
        assert_eq!(plane.list(Kind::EndpointSlice).len(), 2);
        let second = plane
            .list(Kind::EndpointSlice)
            .into_iter()
            .map(Object::key)
            .find(|key| *key != first)
            .unwrap();
        let patch = json!({"metadata": {"ownerReferences": null}});
        plane.patch(&second, &patch, now()).unwrap();
        plane.reconcile(now());
        assert_eq!(plane.get(&second), None);
        assert_eq!(plane.list(Kind::EndpointSlice).len(), 2);
    }

    #[test]
    fn a_slice_of_the_controller_that_somebody_deletes_is_made_again() {
        let mut plane = plane();
        plane.apply(web(), now()).unwrap();
        plane.reconcile(now());
        let first = plane.list(Kind::EndpointSlice)[0].key();
        plane.delete(&first, now());
        plane.reconcile(now());
        let again = plane.list(Kind::EndpointSlice);
        assert_eq!(again.len(), 1);
        assert_ne!(again[0].key(), first);
    }

    #[test]
    fn our_node_is_supplied_unless_a_file_gives_it() {
        let mut plane = plane();
        let address = |plane: &ControlPlane| {
            let nodes = plane.list(Kind::Node);
            assert_eq!(nodes.len(), 1);
            nodes[0].to_json().unwrap()["status"]["addresses"][0]["address"].clone()
        };
        assert_eq!(address(&plane), "192.0.2.1");
        let status = json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]});
        let ours = object(
            Kind::Node,
            json!({"metadata": {"name": "me"}, "status": status}),
        );
        plane.apply(ours.clone(), now()).unwrap();
        assert_eq!(address(&plane), "192.0.2.9");
        plane.delete(&ours.key(), now());
        assert_eq!(address(&plane), "192.0.2.1");
    }

    #[test]
    fn the_same_seed_and_calls_give_the_same_state() {
        let run = || {
            let mut plane = plane();
            plane.apply(web(), now()).unwrap();
            plane.reconcile(now())
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn the_address_of_the_api_server_is_for_its_own_service_only() {
        let mut plane = plane();
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 443}]});
        let stranger = object(Kind::Service, json!({"spec": spec}));
        assert_eq!(plane.apply(stranger, now()).unwrap_err().code, 422);
        let kubernetes = object(
            Kind::Service,
            json!({"metadata": {"name": "kubernetes"}, "spec": {"ports": [{"port": 443}]}}),
        );
        plane.apply(kubernetes.clone(), now()).unwrap();
        let stored = plane.get(&kubernetes.key()).unwrap().to_json().unwrap();
        assert_eq!(stored["spec"]["clusterIP"], "10.96.0.1");
    }
}
