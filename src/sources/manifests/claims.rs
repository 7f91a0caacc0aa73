//! Which manifest speaks for an object when several describe it: the first, by file name and place in the file.
//!
//! The others wait; when the first goes, the next takes over. Bounded by what the files contain.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::manifest::Manifest;
use crate::control::ObjectKey;

/// Where a manifest is; the order decides who comes first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    /// The file.
    pub(super) file: Arc<Path>,
    /// Its number among the documents of the file.
    pub(super) position: usize,
}

/// Every manifest by what it describes. Owned by the `Directory`.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_key: HashMap<ObjectKey, BTreeMap<Place, Arc<Manifest>>>,
}

impl Claims {
    pub(super) fn insert(&mut self, key: ObjectKey, place: Place, manifest: Arc<Manifest>) {
        self.by_key.entry(key).or_default().insert(place, manifest);
    }

    pub(super) fn remove(&mut self, key: &ObjectKey, place: &Place) -> Option<Arc<Manifest>> {
        let places = self.by_key.get_mut(key)?;
        let removed = places.remove(place);
        if places.is_empty() {
            self.by_key.remove(key);
        }
        removed
    }

    /// The manifest that speaks for an object.
    pub(super) fn first(&self, key: &ObjectKey) -> Option<(&Place, &Arc<Manifest>)> {
        self.by_key.get(key)?.first_key_value()
    }

    /// The manifest of an object at one place.
    pub(super) fn at(&self, key: &ObjectKey, place: &Place) -> Option<&Arc<Manifest>> {
        self.by_key.get(key)?.get(place)
    }

    /// Where an object is described, the first place first.
    pub(super) fn places(&self, key: &ObjectKey) -> impl Iterator<Item = &Place> {
        self.by_key.get(key).into_iter().flat_map(BTreeMap::keys)
    }
}
