//! The stored objects, their versions and identities, and the log of what changed.
//!
//! Every change goes through `put` or `remove`, which keep the indexes that the controllers read by and append to the
//! log that `reconcile` hands out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use rand::Rng;
use rand::rngs::StdRng;

use super::indexes::Indexes;
use super::object::{Kind, Object, ObjectKey};

/// The label that says which Service a slice belongs to.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// One change of a stored object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// New, or changed to this.
    Applied(Object),
    /// Gone.
    Deleted(ObjectKey),
}

/// A Service by namespace and name; the unit of the controllers' work.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ServiceId {
    /// The namespace.
    pub(super) namespace: Arc<str>,
    /// The name.
    pub(super) name: Arc<str>,
}

/// All objects. Bounded by what the manifests hold and what the controllers make of it.
#[derive(Debug)]
pub(super) struct Store {
    objects: BTreeMap<ObjectKey, Object>,
    log: Vec<Change>,
    /// The last resourceVersion given out.
    version: u64,
    rng: StdRng,
    indexes: Indexes,
}

impl Store {
    /// An empty one; `rng` makes the uids.
    pub(super) fn new(rng: StdRng) -> Self {
        Self {
            objects: BTreeMap::new(),
            log: Vec::new(),
            version: 0,
            rng,
            indexes: Indexes::default(),
        }
    }

    /// The object of that key.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key)
    }

    /// All objects of a kind, by namespace and name.
    pub(super) fn list(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        self.entries(kind).map(|(_, object)| object)
    }

    /// The same with their keys.
    pub(super) fn entries(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &Object)> {
        let first = ObjectKey {
            kind,
            namespace: "".into(),
            name: "".into(),
        };
        self.objects
            .range(first..)
            .take_while(move |(key, _)| key.kind == kind)
    }

    /// The Service of that name.
    pub(super) fn service(&self, id: &ServiceId) -> Option<&Service> {
        self.get(&id.key(Kind::Service))?.as_service()
    }

    /// The Endpoints of that name.
    pub(super) fn endpoints(&self, id: &ServiceId) -> Option<&Endpoints> {
        self.get(&id.key(Kind::Endpoints))?.as_endpoints()
    }

    /// The slices that carry the Service's name as a label, by name.
    pub(super) fn slices_of(&self, id: &ServiceId) -> impl Iterator<Item = &EndpointSlice> {
        let names = self.indexes.slices_of(id);
        names.into_iter().flatten().filter_map(|name| {
            let key = ObjectKey {
                kind: Kind::EndpointSlice,
                namespace: id.namespace.clone(),
                name: name.clone(),
            };
            self.get(&key)?.as_slice()
        })
    }

    /// The slices that the object with that uid owns.
    pub(super) fn slices_owned_by(&self, uid: &str) -> Vec<ObjectKey> {
        let owned = self.indexes.slices_owned_by(uid);
        owned.into_iter().flatten().cloned().collect()
    }

    /// The Pods of a namespace that carry every pair of `selector`, by name.
    pub(super) fn select_pods(
        &self,
        namespace: &Arc<str>,
        selector: &BTreeMap<String, String>,
    ) -> Vec<&Pod> {
        let names = self.indexes.pods_with_rarest_label(namespace, selector);
        names
            .filter_map(|name| {
                let key = ObjectKey {
                    kind: Kind::Pod,
                    namespace: namespace.clone(),
                    name: name.clone(),
                };
                self.get(&key)?.as_pod()
            })
            .filter(|pod| selects(selector, &pod.metadata))
            .collect()
    }

    /// Stores `object`, with a new version; a new object gets its identity too. Says whether anything changed.
    pub(super) fn put(&mut self, mut object: Object, now: Timestamp) -> bool {
        let key = object.key();
        let old = self.objects.get(&key);
        if let Some(old) = old {
            let version = old.metadata().resource_version.clone();
            let metadata = object.metadata_mut();
            metadata.resource_version = version;
            metadata.uid.clone_from(&old.metadata().uid);
            metadata
                .creation_timestamp
                .clone_from(&old.metadata().creation_timestamp);
            metadata.generation = old.metadata().generation;
            if key.kind == Kind::EndpointSlice {
                set_generation(&mut object, old);
            }
            if object == *old {
                return false;
            }
        } else {
            let uid = self.new_uid();
            let metadata = object.metadata_mut();
            metadata.uid = Some(uid);
            metadata
                .creation_timestamp
                .get_or_insert(Time(whole_seconds(now)));
            metadata.generation = (key.kind == Kind::EndpointSlice).then_some(1);
        }
        self.version += 1;
        object.metadata_mut().resource_version = Some(self.version.to_string());
        let old = self.objects.insert(key.clone(), object.clone());
        self.reindex(&key, old.as_ref(), Some(&object));
        self.log.push(Change::Applied(object));
        true
    }

    /// Removes the object of that key and gives it back.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<Object> {
        let old = self.objects.remove(key)?;
        self.version += 1;
        self.reindex(key, Some(&old), None);
        self.log.push(Change::Deleted(key.clone()));
        Some(old)
    }

    /// Everything logged since the last call.
    pub(super) fn take_log(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.log)
    }

    /// A Service that needs another look, once.
    pub(super) fn next_dirty(&mut self) -> Option<ServiceId> {
        self.indexes.dirty.pop_first()
    }

    /// The Service is up to date, whatever was written on the way.
    pub(super) fn settle(&mut self, id: &ServiceId) {
        self.indexes.dirty.remove(id);
    }

    /// Five characters that Kubernetes appends to generated names.
    pub(super) fn name_suffix(&mut self) -> String {
        /// Without vowels and look-alikes, so that no word comes out.
        const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
        (0..5)
            .map(|_| char::from(ALPHABET[rand::RngExt::random_range(&mut self.rng, 0..27)]))
            .collect()
    }

    // A version 4 UUID (RFC 9562).
    fn new_uid(&mut self) -> String {
        let mut bytes = [0u8; 16];
        self.rng.fill_bytes(&mut bytes);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let mut uid = String::with_capacity(36);
        for (i, byte) in bytes.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                uid.push('-');
            }
            write!(uid, "{byte:02x}").expect("a String takes everything");
        }
        uid
    }

    // Marks the Services that what changed matters to.
    fn reindex(&mut self, key: &ObjectKey, old: Option<&Object>, new: Option<&Object>) {
        self.indexes.follow(key, old, new);
        // Zones, and whether a Pod's node exists. Nodes of a file change rarely.
        if key.kind == Kind::Node {
            let all: Vec<_> = self
                .entries(Kind::Service)
                .map(|(key, _)| ServiceId::of(key))
                .collect();
            self.indexes.dirty.extend(all);
        }
    }
}

impl ServiceId {
    /// The Service that an object of that name belongs to.
    pub(super) fn of(key: &ObjectKey) -> Self {
        Self {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }

    /// The key of the object of that kind and name.
    pub(super) fn key(&self, kind: Kind) -> ObjectKey {
        ObjectKey {
            kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

/// Whether an object carries every pair of `selector`.
pub(super) fn selects(selector: &BTreeMap<String, String>, metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    selector
        .iter()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Kubernetes keeps times of objects to the second.
pub(super) fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

// The generation counts changes of what is wanted, not of metadata.
fn set_generation(object: &mut Object, old: &Object) {
    let (Object::EndpointSlice(new), Object::EndpointSlice(old)) = (object, old) else {
        return;
    };
    let changed = new.endpoints != old.endpoints || new.ports != old.ports;
    let generation = old.metadata.generation.unwrap_or(1);
    new.metadata.generation = Some(generation + i64::from(changed));
}
