//! Cluster: what an API server says goes into the store as it is. No control plane of ours is behind it.
//!
//! Owns the store of that mode. An object that says nothing new is passed over, so that a list that is read again
//! costs nothing downstream.

use std::collections::HashSet;

use crate::control::{Change, Kind, ObjectKey, Objects};
use crate::model::NodeName;
use crate::sources::convert::Note;
use crate::sources::kube::Update;

use super::remark::Remark;
use super::store::{LoopbackEndpoints, Outcome, Store};

/// The store behind an API server.
pub(super) struct Cluster {
    store: Store,
    synced: bool,
}

impl Cluster {
    /// Nothing is known yet.
    pub(super) fn new(node_name: NodeName) -> Self {
        Self {
            store: Store::new(node_name, LoopbackEndpoints::Refused),
            synced: false,
        }
    }

    /// The stored objects.
    pub(super) fn objects(&self) -> &Objects {
        self.store.objects()
    }

    /// Takes a batch of updates.
    pub(super) fn take(&mut self, updates: Vec<Update>) -> Outcome {
        let mut outcome = Outcome::default();
        for update in updates {
            match update {
                Update::Applied(object) => {
                    let known = self.store.objects().get(&object.key());
                    if known.is_none_or(|known| **known != object) {
                        self.change(Change::Applied(object), &mut outcome);
                    }
                }
                Update::Deleted(key) => self.change(Change::Deleted(key), &mut outcome),
                Update::Listed(kind, keys) => self.remove_others(kind, &keys, &mut outcome),
                Update::Synced => self.synced = true,
            }
        }
        outcome.synced = self.synced;
        outcome
    }

    // What vanished while nobody was watching.
    fn remove_others(&mut self, kind: Kind, keys: &HashSet<ObjectKey>, outcome: &mut Outcome) {
        let known = self.store.objects().list(kind);
        let vanished: Vec<ObjectKey> = known
            .into_iter()
            .map(|object| object.key())
            .filter(|key| !keys.contains(key))
            .collect();
        for key in vanished {
            self.change(Change::Deleted(key), outcome);
        }
    }

    fn change(&mut self, change: Change, outcome: &mut Outcome) {
        let remark = |key: &ObjectKey, note: &Note| Remark::Derived(key.clone(), note.clone());
        self.store.take(&[change], &remark, outcome);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::control::{Object, UnknownFields, decode};
    use crate::model::Event;

    fn cluster() -> Cluster {
        Cluster::new(NodeName::parse("here").unwrap())
    }

    fn object(document: Value) -> Object {
        decode(document, UnknownFields::Refuse).unwrap().0
    }

    fn service(name: &str, port: u16) -> Object {
        object(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"port": port}]},
        }))
    }

    fn slice(address: &str) -> Object {
        object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [{"addresses": [address]}, {"addresses": ["10.1.0.2"]}],
            "ports": [{"name": "", "port": 80}],
        }))
    }

    fn words(outcome: &Outcome) -> Vec<String> {
        let word = |event: &Event| match event {
            Event::ServiceApplied(service) => format!("+{}", service.name.name),
            Event::ServiceDeleted(name) => format!("-{}", name.name),
            Event::NamespaceApplied(name) => format!("+ns {name}"),
            Event::NamespaceDeleted(name) => format!("-ns {name}"),
            Event::SliceApplied(slice) => format!("+{} {}", slice.key.name, slice.endpoints.len()),
            Event::SliceDeleted(_)
            | Event::NodeApplied(_)
            | Event::NodeDeleted
            | Event::PodApplied(_)
            | Event::PodDeleted(..) => format!("{event:?}"),
        };
        outcome.events.iter().map(word).collect()
    }

    #[test]
    fn a_list_that_is_read_again_says_nothing_new() {
        let mut cluster = cluster();
        let first = cluster.take(vec![Update::Applied(service("web", 80))]);
        assert_eq!(words(&first), ["+ns shop", "+web"]);
        let keys = HashSet::from([service("web", 80).key()]);
        let again = cluster.take(vec![
            Update::Applied(service("web", 80)),
            Update::Listed(Kind::Service, keys),
        ]);
        assert_eq!(words(&again), [""; 0]);
        let changed = cluster.take(vec![Update::Applied(service("web", 81))]);
        assert_eq!(words(&changed), ["+web"]);
    }

    #[test]
    fn what_a_list_does_not_name_is_gone() {
        let mut cluster = cluster();
        let both = [service("web", 80), service("api", 80)];
        cluster.take(both.map(Update::Applied).into());
        let keys = HashSet::from([service("api", 80).key()]);
        let outcome = cluster.take(vec![Update::Listed(Kind::Service, keys)]);
        assert_eq!(words(&outcome), ["-web"]);
        assert!(cluster.objects().get(&service("web", 80).key()).is_none());
        // Of another kind it says nothing.
        let outcome = cluster.take(vec![Update::Listed(Kind::Pod, HashSet::new())]);
        assert_eq!(words(&outcome), [""; 0]);
    }

    #[test]
    fn it_is_synced_when_the_source_says_so_and_stays_so() {
        let mut cluster = cluster();
        assert!(
            !cluster
                .take(vec![Update::Applied(service("web", 80))])
                .synced
        );
        assert!(cluster.take(vec![Update::Synced]).synced);
        assert!(cluster.take(Vec::new()).synced);
    }

    #[test]
    fn loopback_endpoints_are_refused_and_told() {
        let outcome = cluster().take(vec![Update::Applied(slice("127.0.0.1"))]);
        assert_eq!(words(&outcome), ["+ns shop", "+web-1 1"]);
        let [Remark::Derived(key, note)] = &outcome.remarks[..] else {
            panic!("{:?}", outcome.remarks)
        };
        assert_eq!(key.to_string(), "EndpointSlice shop/web-1");
        assert!(note.to_string().starts_with("endpoints: 127.0.0.1 is"));
        let outcome = cluster().take(vec![Update::Applied(slice("10.1.0.1"))]);
        assert_eq!(words(&outcome), ["+ns shop", "+web-1 2"]);
        assert_eq!(outcome.remarks, []);
    }
}
