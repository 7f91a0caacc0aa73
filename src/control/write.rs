//! One write of one object: defaulted, completed, judged and stored, or rejected without a trace.
//!
//! Manifest files and the API verbs come through here; they differ in what an update is compared with, whether a
//! status is taken over, and whether the first stage with errors ends the write.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;

use super::defaults::set_defaults;
use super::families::infer_families;
use super::ledger::{Draft, Fault};
use super::object::{Kind, Object, ObjectKey};
use super::plane::ControlPlane;
use super::predicates::{cluster_ips, spec_of};
use super::rejection::{Cause, Rejection, Warning};
use super::store::ServiceId;
use super::updates::{carry_over, sync_cluster_ips, wipe_inapplicable};
use super::validation::endpoints::judge_endpoints;
use super::validation::metadata::judge_metadata;
use super::validation::pod::judge_pod;
use super::validation::service::{judge_service, judge_status};
use super::validation::service_update::judge_service_update;
use super::validation::slice::judge_slice;
use super::validation::warnings;

/// Who writes, and so by which rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// A manifest file: its status counts, and all stages report together.
    File,
    /// A client of the API: no status, and the first stage with errors ends the request.
    Client,
    /// A client of an older API server, which read addresses sloppily.
    OldClient,
}

/// What a write is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    /// Create or replace, whichever applies.
    Put,
    /// Create; something of that name is in the way.
    Create,
    /// Create, and then undo everything.
    DryCreate,
}

/// The faults of a write so far.
#[derive(Debug)]
struct Stages {
    writer: Writer,
    faults: Vec<Fault>,
}

/// The write ends here.
struct Stop;

impl ControlPlane {
    /// Writes `object` over what is stored under its key, if anything is. Returns it as completed, without what the store
    /// adds.
    ///
    /// # Errors
    /// See `Rejection`; the state is then as before.
    pub(super) fn write(
        &mut self,
        mut object: Object,
        writer: Writer,
        intent: Intent,
        now: Timestamp,
    ) -> Result<(Object, Vec<Warning>), Rejection> {
        let key = object.key();
        let metadata = object.metadata_mut();
        metadata.namespace = Self::namespace_of(&key).map(|name| name.to_string());
        metadata.creation_timestamp = None;
        metadata.managed_fields = None;
        for map in [&mut metadata.labels, &mut metadata.annotations] {
            map.take_if(|entries| entries.is_empty());
        }
        set_defaults(&mut object);
        if writer != Writer::File {
            self.keep_what_clients_cannot_write(&mut object);
        }
        if let Object::Service(service) = object {
            return self.write_service(*service, &key, writer, intent, now);
        }
        let old = match (writer, intent) {
            (Writer::OldClient, _) => Some(&object),
            (Writer::File | Writer::Client, Intent::Put) => self.store.get(&key),
            (Writer::File | Writer::Client, Intent::Create | Intent::DryCreate) => None,
        };
        let wrong = self.judge(&object, old);
        if !wrong.is_empty() {
            return Err(Rejection {
                warnings: warnings::of_kind(key.kind),
                ..Rejection::invalid(resource(key.kind), &key.name, wrong)
            });
        }
        self.fail_if_exists(&key, intent)?;
        let warnings = warnings::warnings(&object);
        if intent != Intent::DryCreate {
            self.store.put(object.clone(), now);
        }
        Ok((object, warnings))
    }

    // Deletion once begun goes on, and the status has a path of its own. A Service's is kept where its type is known.
    fn keep_what_clients_cannot_write(&self, object: &mut Object) {
        let stored = self.store.get(&object.key());
        let deletion = stored.and_then(|old| old.metadata().deletion_timestamp.clone());
        object.metadata_mut().deletion_timestamp = deletion;
        match object {
            Object::Pod(pod) => {
                pod.status = stored
                    .and_then(Object::as_pod)
                    .and_then(|old| old.status.clone());
            }
            Object::Node(node) => {
                node.status = stored
                    .and_then(Object::as_node)
                    .and_then(|old| old.status.clone());
            }
            Object::Namespace(_)
            | Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::Endpoints(_) => {}
        }
    }

    fn fail_if_exists(&self, key: &ObjectKey, intent: Intent) -> Result<(), Rejection> {
        if intent != Intent::Put && self.store.get(key).is_some() {
            return Err(Rejection::already_exists(plural(key.kind), &key.name));
        }
        Ok(())
    }

    fn judge(&self, object: &Object, old: Option<&Object>) -> Vec<Cause> {
        let loopback = self.config.allow_loopback_endpoints;
        match (object, old) {
            (Object::EndpointSlice(new), Some(Object::EndpointSlice(old))) => {
                judge_slice(new, Some(old), loopback)
            }
            (Object::EndpointSlice(new), _) => judge_slice(new, None, loopback),
            (Object::Endpoints(new), Some(Object::Endpoints(old))) => {
                judge_endpoints(new, Some(old), loopback)
            }
            (Object::Endpoints(new), _) => judge_endpoints(new, None, loopback),
            (Object::Pod(new), _) => judge_pod(new),
            (Object::Service(new), _) => judge_service(new, None),
            (Object::Namespace(new), _) => judge_metadata(&new.metadata, Kind::Namespace),
            (Object::Node(new), _) => judge_metadata(&new.metadata, Kind::Node),
        }
    }

    fn write_service(
        &mut self,
        mut service: Service,
        key: &ObjectKey,
        writer: Writer,
        intent: Intent,
        now: Timestamp,
    ) -> Result<(Object, Vec<Warning>), Rejection> {
        let id = ServiceId::of(key);
        let old = self.store.service(&id).filter(|_| intent == Intent::Put);
        let old = old.cloned();
        let mut draft = Draft::new(key.clone(), intent == Intent::DryCreate);
        let mut stages = Stages {
            writer,
            faults: Vec::new(),
        };
        let outcome = self.run_stages(&mut service, old.as_ref(), &mut draft, &mut stages);
        if outcome.is_err() || !stages.faults.is_empty() {
            self.ledger.roll_back(&draft);
            return Err(stages.into_rejection(&key.name));
        }
        let exists = self.fail_if_exists(key, intent);
        if exists.is_err() || intent == Intent::DryCreate {
            self.ledger.roll_back(&draft);
            let object = Object::Service(Box::new(service));
            let warnings = warnings::warnings(&object);
            return exists.map(|()| (object, warnings));
        }
        self.ledger.commit(&draft);
        let status_warnings = match writer {
            Writer::File => warnings::of_status(&service),
            Writer::Client | Writer::OldClient => Vec::new(),
        };
        let object = Object::Service(Box::new(service));
        let mut warnings = warnings::warnings(&object);
        warnings.extend(status_warnings);
        let accepted = *self.accepted.entry(id).or_insert(now);
        self.store.put(object.clone(), accepted);
        Ok((object, warnings))
    }

    fn run_stages(
        &mut self,
        service: &mut Service,
        old: Option<&Service>,
        draft: &mut Draft,
        stages: &mut Stages,
    ) -> Result<(), Stop> {
        let old_spec = old.map(spec_of);
        let spec = service.spec.get_or_insert_default();
        if let Some(old) = old_spec {
            carry_over(spec, old);
        }
        sync_cluster_ips(spec, old_spec);
        let configured = self.ledger.families();
        let tolerated = match (stages.writer, old_spec) {
            (Writer::OldClient, _) => cluster_ips(spec).to_vec(),
            (Writer::File | Writer::Client, Some(old)) => cluster_ips(old).to_vec(),
            (Writer::File | Writer::Client, None) => Vec::new(),
        };
        let families = infer_families(spec, old_spec, &configured, &tolerated);
        let families_known = families.is_ok();
        stages.note(families.map_err(|causes| Fault::Fields {
            causes,
            retry: false,
        }))?;
        stages.note(if families_known {
            self.ledger.allocate_addresses(spec, old_spec, draft)
        } else {
            self.ledger.judge_addresses(spec, old_spec, draft)
        })?;
        stages.note(self.ledger.allocate_node_ports(spec, old_spec, draft))?;
        stages.note(self.ledger.allocate_health_check(spec, old_spec, draft))?;

        if stages.writer != Writer::File {
            service.status = old.and_then(|old| old.status.clone());
        }
        if let Some(old) = old {
            wipe_inapplicable(service, old);
        }
        let status = service.status.get_or_insert_default();
        status.load_balancer.get_or_insert_default();
        let mut causes = match (stages.writer, old) {
            (Writer::OldClient, _) => judge_service(service, Some(service)),
            (Writer::File | Writer::Client, Some(old)) => judge_service_update(service, old),
            (Writer::File | Writer::Client, None) => judge_service(service, None),
        };
        if stages.writer == Writer::File {
            causes.extend(judge_status(service, old));
        }
        stages.note(if causes.is_empty() {
            Ok(())
        } else {
            Err(Fault::Fields {
                causes,
                retry: false,
            })
        })
    }
}

impl Stages {
    fn note(&mut self, result: Result<(), Fault>) -> Result<(), Stop> {
        if let Err(fault) = result {
            self.faults.push(fault);
            if self.writer != Writer::File {
                return Err(Stop);
            }
        }
        Ok(())
    }

    fn into_rejection(self, name: &str) -> Rejection {
        let mut all_causes: Vec<Cause> = Vec::new();
        let mut whole = None;
        let mut retry = true;
        for fault in self.faults {
            let causes = match fault {
                Fault::Fields {
                    causes,
                    retry: curable,
                } => {
                    retry &= curable;
                    causes
                }
                Fault::Whole(rejection) => {
                    retry &= rejection.retry;
                    let mut causes = rejection.causes.clone();
                    if causes.is_empty() {
                        causes.push(Cause::of_nobody(&rejection.message));
                    }
                    whole.get_or_insert(rejection);
                    causes
                }
            };
            for cause in causes {
                // A later stage repeats what an earlier one has found; an API client sees both, a reader need not.
                if self.writer != Writer::File || !all_causes.contains(&cause) {
                    all_causes.push(cause);
                }
            }
        }
        match whole {
            Some(rejection) if all_causes.len() <= 1 => Rejection { retry, ..rejection },
            Some(_) | None => Rejection {
                retry,
                ..Rejection::invalid(resource(Kind::Service), name, all_causes)
            },
        }
    }
}

/// The kind with its group, as error messages spell it.
pub(super) fn resource(kind: Kind) -> &'static str {
    match kind {
        Kind::EndpointSlice => "EndpointSlice.discovery.k8s.io",
        Kind::Namespace | Kind::Node | Kind::Service | Kind::Pod | Kind::Endpoints => kind.as_str(),
    }
}

/// The name of the collection, as `not found` and `already exists` spell it.
pub(super) fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "namespaces",
        Kind::Node => "nodes",
        Kind::Service => "services",
        Kind::Pod => "pods",
        Kind::EndpointSlice => "endpointslices.discovery.k8s.io",
        Kind::Endpoints => "endpoints",
    }
}
