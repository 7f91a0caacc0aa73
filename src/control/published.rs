//! The stored objects as others may read them: an immutable map behind one pointer. Written by the reconciler only.
//!
//! A large cluster's objects are kept packed: nobody reads them but `viaduct get` and the file of the last state, and as
//! values they would be most of the memory of the process.

use std::sync::Arc;

use arc_swap::ArcSwap;
use imbl::OrdMap;

use super::packed::Packed;
use super::{Kind, Object, ObjectKey};

/// All stored objects at one moment. Cloning shares everything.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    form: Form,
    map: OrdMap<ObjectKey, Stored>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Whole,
    Packed,
}

#[derive(Clone, Debug)]
enum Stored {
    Whole(Arc<Object>),
    Packed(Packed),
}

impl Objects {
    /// No objects yet; those that come are packed. Reading one costs its decoding.
    pub fn packed() -> Self {
        Self {
            form: Form::Packed,
            map: OrdMap::new(),
        }
    }

    /// Stores an object under its key.
    pub fn insert(&mut self, key: ObjectKey, object: &Object) {
        let stored = self.stored(object);
        self.map.insert(key, stored);
    }

    /// Forgets an object.
    pub fn remove(&mut self, key: &ObjectKey) {
        self.map.remove(key);
    }

    /// Whether there is an object of that key.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.map.contains_key(key)
    }

    /// Whether the object is stored exactly so.
    pub fn holds(&self, object: &Object) -> bool {
        match self.map.get(&object.key()) {
            None => false,
            Some(Stored::Whole(known)) => **known == *object,
            Some(Stored::Packed(known)) => Packed::of(object).is_some_and(|given| given == *known),
        }
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        read(key.kind, self.map.get(key)?)
    }

    /// The keys of a kind, by namespace and name.
    pub fn keys(&self, kind: Kind) -> Vec<&ObjectKey> {
        let first = ObjectKey {
            kind,
            namespace: "".into(),
            name: "".into(),
        };
        let rest = self.map.range(first..).map(|(key, _)| key);
        rest.take_while(|key| key.kind == kind).collect()
    }

    /// All objects of a kind, by namespace and name.
    pub fn list(&self, kind: Kind) -> impl Iterator<Item = Arc<Object>> {
        let keys = self.keys(kind).into_iter();
        keys.filter_map(|key| self.get(key))
    }

    fn stored(&self, object: &Object) -> Stored {
        let whole = || Stored::Whole(Arc::new(object.clone()));
        match self.form {
            Form::Whole => whole(),
            // What cannot be packed is no less worth keeping.
            Form::Packed => Packed::of(object).map_or_else(whole, Stored::Packed),
        }
    }
}

fn read(kind: Kind, stored: &Stored) -> Option<Arc<Object>> {
    match stored {
        Stored::Whole(object) => Some(Arc::clone(object)),
        Stored::Packed(packed) => packed.read(kind).map(Arc::new),
    }
}

/// The place where the newest objects are found. Cheap to clone; readers never wait.
#[derive(Clone, Debug, Default)]
pub struct PublishedObjects(Arc<ArcSwap<Objects>>);

impl PublishedObjects {
    /// The newest objects, to keep.
    pub fn load_full(&self) -> Arc<Objects> {
        self.0.load_full()
    }

    /// Makes `objects` the newest.
    pub fn publish(&self, objects: Objects) {
        self.0.store(Arc::new(objects));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::control::{UnknownFields, decode};

    fn object(kind: Kind, body: Value) -> Object {
        let mut document = body;
        document["kind"] = kind.as_str().into();
        document["apiVersion"] = kind.api_version().into();
        decode(document, UnknownFields::Refuse).unwrap().0
    }

    fn one_of_each() -> Vec<Object> {
        let metadata =
            json!({"name": "a", "namespace": "b", "creationTimestamp": "2026-01-01T00:00:00Z"});
        let spec = json!({"ports": [{"port": 80, "targetPort": "http"}], "selector": {"x": "y"}});
        let endpoints =
            json!([{"addresses": ["10.1.0.1"], "hints": {"forZones": [{"name": "z"}]}}]);
        let with = |field: &str, value: Value| json!({"metadata": metadata, field: value});
        vec![
            object(
                Kind::Namespace,
                json!({"metadata": {"name": "b"}, "status": {"phase": "Active"}}),
            ),
            object(
                Kind::Node,
                json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24"}}),
            ),
            object(Kind::Service, with("spec", spec)),
            object(Kind::Pod, with("status", json!({"podIP": "10.1.0.1"}))),
            object(
                Kind::EndpointSlice,
                json!({"metadata": metadata, "addressType": "IPv4", "endpoints": endpoints}),
            ),
            object(
                Kind::Endpoints,
                with("subsets", json!([{"addresses": [{"ip": "10.1.0.1"}]}])),
            ),
        ]
    }

    #[test]
    fn packed_or_whole_an_object_is_read_as_it_was_stored() {
        for mut objects in [Objects::default(), Objects::packed()] {
            for given in one_of_each() {
                let key = given.key();
                assert!(!objects.contains(&key) && !objects.holds(&given));
                objects.insert(given.key(), &given);
                assert!(objects.holds(&given), "{key}");
                assert_eq!(*objects.get(&key).unwrap(), given);
                assert_eq!(objects.list(key.kind).count(), 1);
                let mut other = given.clone();
                other.metadata_mut().resource_version = Some("2".to_owned());
                assert!(!objects.holds(&other));
                objects.remove(&key);
                assert!(!objects.contains(&key));
            }
        }
    }
}
