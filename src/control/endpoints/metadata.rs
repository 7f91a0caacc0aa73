//! Names, labels, owners and annotations of what the controllers write.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::trigger::TRIGGER_TIME;
use super::{HEADLESS_LABEL, MANAGED_BY, SLICE_CONTROLLER};
use crate::control::object::{Kind, ObjectKey};
use crate::control::predicates::{is_headless, spec_of};
use crate::control::store::{SERVICE_NAME, ServiceId, Store};

/// A generated name is at most a DNS label, of which five characters are random.
const MAX_BASE: usize = 63 - 5;
/// The longest name of a slice.
const MAX_NAME: usize = 253;

/// A new name for a slice of an object: the object's own, a dash, and something random.
pub(super) fn new_slice_name(store: &mut Store, owner: &ServiceId) -> String {
    let mut base = owner.name.to_string();
    if base.len() < MAX_NAME {
        base.push('-');
    }
    base.truncate(MAX_BASE);
    // One in 14 million is taken; then another is drawn.
    loop {
        let name = format!("{base}{}", store.name_suffix());
        let key = ObjectKey {
            kind: Kind::EndpointSlice,
            namespace: owner.namespace.clone(),
            name: name.as_str().into(),
        };
        if store.get(&key).is_none() {
            return name;
        }
    }
}

/// The labels of a slice of `service`: its own, and three that it cannot override.
pub(super) fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    let name = service.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name);
    labels.insert(MANAGED_BY.to_owned(), SLICE_CONTROLLER.to_owned());
    if is_headless(spec_of(service)) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS_LABEL);
    }
    labels
}

/// The owner reference that ties a slice to the object it is made from.
pub(super) fn owner_reference(kind: Kind, metadata: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version().to_owned(),
        block_owner_deletion: Some(true),
        controller: Some(true),
        kind: kind.as_str().to_owned(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
    }
}

/// Whether the object is controlled by the one with that uid.
pub(super) fn is_owned_by(metadata: &ObjectMeta, owner: &ObjectMeta) -> bool {
    let owners = metadata.owner_references.as_ref();
    owners.into_iter().flatten().any(|reference| {
        reference.controller == Some(true) && Some(&reference.uid) == owner.uid.as_ref()
    })
}

/// Sets the trigger time, or removes it where nothing has triggered.
pub(super) fn set_trigger_time(metadata: &mut ObjectMeta, time: Option<Timestamp>) {
    let annotations = metadata.annotations.get_or_insert_default();
    match time {
        Some(time) => annotations.insert(TRIGGER_TIME.to_owned(), time.to_string()),
        None => annotations.remove(TRIGGER_TIME),
    };
    metadata
        .annotations
        .take_if(|annotations| annotations.is_empty());
}
