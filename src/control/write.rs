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
use super::predicates::spec_of;
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
    /// Writes `object` over what is stored under its key, if anything is.
    ///
    /// # Errors
    /// See `Rejection`; the state is then as before.
    pub(super) fn write(
        &mut self,
        mut object: Object,
        writer: Writer,
        now: Timestamp,
    ) -> Result<Vec<Warning>, Rejection> {
        let key = object.key();
        let metadata = object.metadata_mut();
        metadata.namespace = Self::namespace_of(&key).map(|name| name.to_string());
        metadata.creation_timestamp = None;
        metadata.managed_fields = None;
        for map in [&mut metadata.labels, &mut metadata.annotations] {
            map.take_if(|entries| entries.is_empty());
        }
        set_defaults(&mut object);
        match object {
            Object::Service(service) => self.write_service(*service, &key, writer, now),
            other => {
                let old = self.store.get(&key);
                let wrong = self.judge(&other, old);
                if !wrong.is_empty() {
                    return Err(Rejection::invalid(resource(key.kind), &key.name, wrong));
                }
                let warnings = warnings::warnings(&other);
                self.store.put(other, now);
                Ok(warnings)
            }
        }
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
        now: Timestamp,
    ) -> Result<Vec<Warning>, Rejection> {
        let id = ServiceId::of(key);
        let old = self.store.service(&id).cloned();
        let mut draft = Draft::new(key.clone());
        let mut stages = Stages {
            writer,
            faults: Vec::new(),
        };
        let outcome = self.run_stages(&mut service, old.as_ref(), &mut draft, &mut stages);
        if outcome.is_err() || !stages.faults.is_empty() {
            self.ledger.roll_back(&draft);
            return Err(stages.into_rejection(&key.name));
        }
        self.ledger.commit(&draft);
        let mut warnings = warnings::warnings(&Object::Service(Box::new(service.clone())));
        if writer == Writer::File {
            warnings.extend(warnings::of_status(&service));
        }
        let accepted = *self.accepted.entry(id).or_insert(now);
        self.store.put(Object::Service(Box::new(service)), accepted);
        Ok(warnings)
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
        let families = infer_families(spec, old_spec, &configured);
        let families_known = families.is_ok();
        stages.note(families.map_err(|causes| Fault::Fields {
            causes,
            retry: false,
        }))?;
        if families_known {
            stages.note(self.ledger.allocate_addresses(spec, old_spec, draft))?;
        }
        stages.note(self.ledger.allocate_node_ports(spec, old_spec, draft))?;
        stages.note(self.ledger.allocate_health_check(spec, old_spec, draft))?;

        match (stages.writer, old) {
            (Writer::Client, old) => service.status = old.and_then(|old| old.status.clone()),
            (Writer::File, _) => {}
        }
        if let Some(old) = old {
            wipe_inapplicable(service, old);
        }
        let mut causes = match old {
            Some(old) => judge_service_update(service, old),
            None => judge_service(service, None),
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
            if self.writer == Writer::Client {
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
                    let causes = rejection.causes.clone();
                    whole.get_or_insert(rejection);
                    causes
                }
            };
            for cause in causes {
                // A later stage repeats what an earlier one has found; an API client sees both, a reader need not.
                if self.writer == Writer::Client || !all_causes.contains(&cause) {
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
