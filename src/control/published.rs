//! The stored objects as others may read them: an immutable map behind one pointer. Written by the reconciler only.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rpds::HashTrieMapSync;

use super::{Change, Kind, Object, ObjectKey};

/// All stored objects at one moment. Cloning shares everything.
#[derive(Clone, Debug, Default)]
pub struct Objects(HashTrieMapSync<ObjectKey, Arc<Object>>);

impl Objects {
    /// Takes over one change of the store.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Applied(object) => self.0.insert_mut(object.key(), Arc::new(object.clone())),
            Change::Deleted(key) => {
                self.0.remove_mut(key);
            }
        }
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.0.get(key)
    }

    /// All objects of a kind, by namespace and name.
    pub fn list(&self, kind: Kind) -> Vec<&Arc<Object>> {
        let mut found: Vec<_> = self.0.iter().filter(|(key, _)| key.kind == kind).collect();
        found.sort_unstable_by_key(|(key, _)| *key);
        found.into_iter().map(|(_, object)| object).collect()
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
