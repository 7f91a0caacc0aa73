//! The verbs of an API: create, update, patch, and the status path. What a client of a real API server would see.
//!
//! Manifest files come through `apply` instead. A client must name an existing namespace, brings no status, and is
//! told only of the first stage with errors.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::Value;

use super::decode::{UnknownFields, decode};
use super::defaults::set_defaults;
use super::object::{Kind, Object, ObjectKey};
use super::plane::ControlPlane;
use super::rejection::{Rejection, Warning};
use super::store::whole_seconds;
use super::validation::metadata::judge_metadata;
use super::validation::pod::judge_pod;
use super::validation::service::judge_status;
use super::validation::warnings;
use super::write::{Intent, Writer, plural, resource};

/// What an accepted write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// There was nothing of that name: 201.
    Created,
    /// It took the place of what was there: 200.
    Updated,
}

/// How a Pod is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    /// It terminates, and goes when somebody deletes it with force.
    Wait,
    /// It is gone at once.
    Force,
}

impl ControlPlane {
    /// POST.
    ///
    /// # Errors
    /// The first stage with errors; 404 without its namespace, 409 if the name is taken.
    pub fn create(&mut self, object: Object, now: Timestamp) -> Result<Vec<Warning>, Rejection> {
        self.create_as(object, Writer::Client, Intent::Create, now)
            .map(|(_, warnings)| warnings)
    }

    /// POST with `dryRun=All`: nothing is kept. Returns what would have been. It notices a node port in use, but not an
    /// address.
    ///
    /// # Errors
    /// As `create`.
    pub fn dry_create(
        &mut self,
        object: Object,
        now: Timestamp,
    ) -> Result<(Object, Vec<Warning>), Rejection> {
        self.create_as(object, Writer::Client, Intent::DryCreate, now)
    }

    /// POST to an API server of old, which read addresses sloppily: how bad ones came to be stored.
    ///
    /// # Errors
    /// As `create`.
    pub fn create_as_of_old(
        &mut self,
        object: Object,
        now: Timestamp,
    ) -> Result<Vec<Warning>, Rejection> {
        self.create_as(object, Writer::OldClient, Intent::Create, now)
            .map(|(_, warnings)| warnings)
    }

    fn create_as(
        &mut self,
        mut object: Object,
        writer: Writer,
        intent: Intent,
        now: Timestamp,
    ) -> Result<(Object, Vec<Warning>), Rejection> {
        let metadata = object.metadata_mut();
        metadata.name.take_if(|name| name.is_empty());
        if let (None, Some(base)) = (&metadata.name, &metadata.generate_name) {
            metadata.name = Some(format!("{base}{}", self.store.name_suffix()));
        }
        let key = object.key();
        if key.kind.is_namespaced() && !self.namespace_exists(&key.namespace) {
            return Err(Rejection::not_found("namespaces", &key.namespace));
        }
        self.write(object, writer, intent, now)
    }

    /// PUT. Creates a Service or Endpoints that are missing.
    ///
    /// # Errors
    /// As `create`; 404 for other missing objects, 409 if the object has changed since the version that the client names.
    pub fn update(
        &mut self,
        object: Object,
        now: Timestamp,
    ) -> Result<(Written, Vec<Warning>), Rejection> {
        let key = object.key();
        let Some(stored) = self.store.get(&key) else {
            return match key.kind {
                Kind::Service | Kind::Endpoints => {
                    let warnings = self.create(object, now)?;
                    Ok((Written::Created, warnings))
                }
                Kind::Namespace | Kind::Node | Kind::Pod | Kind::EndpointSlice => {
                    Err(Rejection::not_found(plural(key.kind), &key.name))
                }
            };
        };
        check_preconditions(&key, object.metadata(), stored.metadata())?;
        let (_, warnings) = self.write(object, Writer::Client, Intent::Put, now)?;
        Ok((Written::Updated, warnings))
    }

    /// PATCH with a JSON merge patch (RFC 7396): the stored object with only these fields changed.
    ///
    /// # Errors
    /// As `update`; 400 if the result is no object of the kind.
    pub fn patch(
        &mut self,
        key: &ObjectKey,
        patch: &Value,
        now: Timestamp,
    ) -> Result<Vec<Warning>, Rejection> {
        let (object, mut warnings) = self.patched(key, patch)?;
        warnings.extend(self.update(object, now)?.1);
        Ok(warnings)
    }

    /// PATCH of the status: `spec` stays, labels and annotations are taken over.
    ///
    /// # Errors
    /// As `patch`.
    pub fn patch_status(
        &mut self,
        key: &ObjectKey,
        patch: &Value,
        now: Timestamp,
    ) -> Result<Vec<Warning>, Rejection> {
        let (mut patched, mut warnings) = self.patched(key, patch)?;
        set_defaults(&mut patched);
        let stored = self.store.get(key);
        let (object, wrong) = match (patched, stored) {
            (Object::Service(new), Some(Object::Service(old))) => {
                let service = Service {
                    metadata: status_metadata(new.metadata, &old.metadata),
                    spec: old.spec.clone(),
                    status: new.status,
                };
                let mut wrong = judge_metadata(&service.metadata, Kind::Service);
                wrong.extend(judge_status(&service, Some(old)));
                warnings.extend(warnings::of_status(&service));
                (Object::Service(Box::new(service)), wrong)
            }
            (Object::Pod(new), Some(Object::Pod(old))) => {
                let pod = Pod {
                    metadata: status_metadata(new.metadata, &old.metadata),
                    spec: old.spec.clone(),
                    status: new.status,
                };
                let wrong = judge_pod(&pod);
                (Object::Pod(Box::new(pod)), wrong)
            }
            (Object::Node(new), Some(Object::Node(old))) => {
                let node = Node {
                    metadata: status_metadata(new.metadata, &old.metadata),
                    spec: old.spec.clone(),
                    status: new.status,
                };
                let wrong = judge_metadata(&node.metadata, Kind::Node);
                (Object::Node(Box::new(node)), wrong)
            }
            // The other kinds have no status path.
            (
                Object::Service(_)
                | Object::Pod(_)
                | Object::Node(_)
                | Object::Namespace(_)
                | Object::EndpointSlice(_)
                | Object::Endpoints(_),
                _,
            ) => return Err(Rejection::not_found(plural(key.kind), &key.name)),
        };
        if !wrong.is_empty() {
            return Err(Rejection::invalid(resource(key.kind), &key.name, wrong));
        }
        self.store.put(object, now);
        Ok(warnings)
    }

    /// DELETE of a Pod; with grace it terminates first.
    ///
    /// # Errors
    /// 404.
    pub fn delete_pod(
        &mut self,
        key: &ObjectKey,
        grace: Grace,
        now: Timestamp,
    ) -> Result<(), Rejection> {
        let Some(Object::Pod(pod)) = self.store.get(key) else {
            return Err(Rejection::not_found(plural(key.kind), &key.name));
        };
        let finalizers = pod.metadata.finalizers.as_ref();
        let held = finalizers.is_some_and(|names| !names.is_empty());
        if grace == Grace::Force && !held {
            self.delete(key, now);
            return Ok(());
        }
        let mut pod = pod.clone();
        let begun = Time(whole_seconds(now));
        pod.metadata.deletion_timestamp.get_or_insert(begun);
        self.store.put(Object::Pod(pod), now);
        Ok(())
    }

    fn patched(&self, key: &ObjectKey, patch: &Value) -> Result<(Object, Vec<Warning>), Rejection> {
        let stored = self
            .store
            .get(key)
            .ok_or_else(|| Rejection::not_found(plural(key.kind), &key.name))?;
        let mut document = stored
            .to_json()
            .map_err(|error| Rejection::internal(error.to_string()))?;
        merge_patch(&mut document, patch);
        decode(document, UnknownFields::Warn)
    }
}

// The status path takes over labels and annotations, nothing else of the metadata.
fn status_metadata(new: ObjectMeta, old: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        labels: new.labels,
        annotations: new.annotations,
        ..old.clone()
    }
}

fn check_preconditions(
    key: &ObjectKey,
    new: &ObjectMeta,
    stored: &ObjectMeta,
) -> Result<(), Rejection> {
    let differs = |new: &Option<String>, old: &Option<String>| {
        new.as_deref().is_some_and(|text| !text.is_empty()) && new != old
    };
    if differs(&new.uid, &stored.uid) {
        let (new, old) = (new.uid.as_deref(), stored.uid.as_deref());
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {}, UID in object meta: {}",
            new.unwrap_or_default(),
            old.unwrap_or_default(),
        );
        return Err(Rejection::conflict(plural(key.kind), &key.name, &why));
    }
    if differs(&new.resource_version, &stored.resource_version) {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Rejection::conflict(plural(key.kind), &key.name, why));
    }
    Ok(())
}

// RFC 7396, section 2.
fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(fields) = target else {
        return;
    };
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            merge_patch(fields.entry(name).or_insert(Value::Null), change);
        }
    }
}
