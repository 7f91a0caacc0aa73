//! What the controllers look up: Pods by label, Services by selector, slices by Service and by owner.
//!
//! Kept by the store on every change, which also says here which Services may be out of date.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::object::{Kind, Object, ObjectKey};
use super::store::{SERVICE_NAME, ServiceId};

type LabelPair = (String, String);
type NamesByLabel = HashMap<LabelPair, BTreeSet<Arc<str>>>;

/// The indexes. Bounded by the stored objects.
#[derive(Debug, Default)]
pub(super) struct Indexes {
    /// By namespace.
    pods_by_label: HashMap<Arc<str>, NamesByLabel>,
    /// By namespace; Services with a selector by its first pair: only Pods with that label can be theirs.
    services_by_selector: HashMap<Arc<str>, NamesByLabel>,
    slices_by_service: BTreeMap<ServiceId, BTreeSet<Arc<str>>>,
    slices_by_owner: HashMap<String, BTreeSet<ObjectKey>>,
    /// Services whose slices or Endpoints may be out of date.
    pub(super) dirty: BTreeSet<ServiceId>,
}

impl Indexes {
    /// Names of slices that carry the Service's name as a label.
    pub(super) fn slices_of(&self, id: &ServiceId) -> Option<&BTreeSet<Arc<str>>> {
        self.slices_by_service.get(id)
    }

    /// Slices that the object with that uid owns.
    pub(super) fn slices_owned_by(&self, uid: &str) -> Option<&BTreeSet<ObjectKey>> {
        self.slices_by_owner.get(uid)
    }

    /// Names of the Pods that carry the rarest pair of `selector`: the fewest that include all it selects.
    pub(super) fn pods_with_rarest_label(
        &self,
        namespace: &Arc<str>,
        selector: &BTreeMap<String, String>,
    ) -> impl Iterator<Item = &Arc<str>> {
        let index = self.pods_by_label.get(namespace);
        let rarest = selector
            .iter()
            .map(|(key, value)| index.and_then(|index| index.get(&(key.clone(), value.clone()))))
            .min_by_key(|names| names.map_or(0, BTreeSet::len));
        rarest.flatten().into_iter().flatten()
    }

    /// Follows the change of one object.
    pub(super) fn follow(&mut self, key: &ObjectKey, old: Option<&Object>, new: Option<&Object>) {
        match key.kind {
            Kind::Pod => self.follow_pod(key, old, new),
            Kind::Service => {
                self.follow_service(key, old, new);
                self.dirty.insert(ServiceId::of(key));
            }
            Kind::EndpointSlice => self.follow_slice(key, old, new),
            Kind::Endpoints => {
                self.dirty.insert(ServiceId::of(key));
            }
            Kind::Node | Kind::Namespace => {}
        }
    }

    fn follow_pod(&mut self, key: &ObjectKey, old: Option<&Object>, new: Option<&Object>) {
        let labels = |object: Option<&Object>| {
            object
                .and_then(|object| object.metadata().labels.clone())
                .unwrap_or_default()
        };
        let (old, new) = (labels(old), labels(new));
        let index = self.pods_by_label.entry(key.namespace.clone()).or_default();
        if old != new {
            for pair in old.clone() {
                if let Some(names) = index.get_mut(&pair) {
                    names.remove(&key.name);
                    if names.is_empty() {
                        index.remove(&pair);
                    }
                }
            }
            for pair in new.clone() {
                index.entry(pair).or_default().insert(key.name.clone());
            }
        }
        let Some(selectors) = self.services_by_selector.get(&key.namespace) else {
            return;
        };
        for pair in old.into_iter().chain(new) {
            for name in selectors.get(&pair).into_iter().flatten() {
                self.dirty.insert(ServiceId {
                    namespace: key.namespace.clone(),
                    name: name.clone(),
                });
            }
        }
    }

    fn follow_service(&mut self, key: &ObjectKey, old: Option<&Object>, new: Option<&Object>) {
        let first_pair = |object: Option<&Object>| {
            let spec = object?.as_service()?.spec.as_ref()?;
            let (key, value) = spec.selector.as_ref()?.first_key_value()?;
            Some((key.clone(), value.clone()))
        };
        let (old, new) = (first_pair(old), first_pair(new));
        if old == new {
            return;
        }
        let index = self
            .services_by_selector
            .entry(key.namespace.clone())
            .or_default();
        if let Some(pair) = old
            && let Some(names) = index.get_mut(&pair)
        {
            names.remove(&key.name);
            if names.is_empty() {
                index.remove(&pair);
            }
        }
        if let Some(pair) = new {
            index.entry(pair).or_default().insert(key.name.clone());
        }
    }

    fn follow_slice(&mut self, key: &ObjectKey, old: Option<&Object>, new: Option<&Object>) {
        let service = |object: &Object| {
            let labels = object.metadata().labels.as_ref()?;
            Some(ServiceId {
                namespace: key.namespace.clone(),
                name: labels.get(SERVICE_NAME)?.as_str().into(),
            })
        };
        if let Some(old) = old {
            if let Some(id) = service(old) {
                if let Some(names) = self.slices_by_service.get_mut(&id) {
                    names.remove(&key.name);
                    if names.is_empty() {
                        self.slices_by_service.remove(&id);
                    }
                }
                self.dirty.insert(id);
            }
            for uid in owner_uids(old) {
                if let Some(keys) = self.slices_by_owner.get_mut(uid) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.slices_by_owner.remove(uid);
                    }
                }
            }
        }
        if let Some(new) = new {
            if let Some(id) = service(new) {
                self.dirty.insert(id.clone());
                self.slices_by_service
                    .entry(id)
                    .or_default()
                    .insert(key.name.clone());
            }
            for uid in owner_uids(new) {
                self.slices_by_owner
                    .entry(uid.to_owned())
                    .or_default()
                    .insert(key.clone());
            }
        }
    }
}

fn owner_uids(object: &Object) -> impl Iterator<Item = &str> {
    let owners = object.metadata().owner_references.as_ref();
    owners.into_iter().flatten().map(|owner| owner.uid.as_str())
}
