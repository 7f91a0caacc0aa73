//! The controllers that turn Services, Pods and Endpoints into EndpointSlices and Endpoints.
//!
//! One call brings everything of one Service name up to date, always from the present state of all objects, so that
//! hand edits are repaired by the same code that follows changes. Nothing here knows a clock: times come from objects.

mod events;
mod hints;
mod metadata;
mod mirror;
mod object;
mod packing;
mod ports;
mod select;
mod slices;
mod subsets;
mod topology;
mod trigger;

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;

use self::object::plan_endpoints;
use self::select::selected_pods;
use self::slices::drop_slices;
use super::object::{Kind, Object};
use super::predicates::{has_selector, is_external_name, spec_of};
use super::store::{ServiceId, Store};
use crate::model::Family;
pub(super) use events::Events;
pub use events::{ControllerEvent, Severity};
pub(super) use trigger::TriggerTimes;

/// Who maintains the slices of Services with a selector.
const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// The label that names who maintains a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The label of slices and Endpoints of headless Services.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// What the controllers remember and are configured with. All of it is bounded by the Services there are.
#[derive(Debug)]
pub(super) struct Controllers {
    max_endpoints_per_slice: usize,
    triggers: TriggerTimes,
    /// What there is to say about objects.
    pub(super) events: Events,
    /// Families of Services with proportional hints.
    hinted: BTreeSet<(ServiceId, Family)>,
    /// Services whose slices and Endpoints we maintain.
    written: BTreeSet<ServiceId>,
}

/// What became of the Endpoints object of a Service's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndpointsObject {
    /// It is the controller's, or nobody's, or somebody else's: as it should be.
    Settled,
    /// The controller wrote it and no longer does: whoever had it before may have it back.
    GivenUp,
}

impl Controllers {
    /// Controllers that have seen nothing yet.
    pub(super) fn new(max_endpoints_per_slice: usize) -> Self {
        Self {
            max_endpoints_per_slice,
            triggers: TriggerTimes::default(),
            events: Events::default(),
            hinted: BTreeSet::new(),
            written: BTreeSet::new(),
        }
    }

    /// Brings slices and Endpoints of that name up to date. Mirroring waits until given-up Endpoints are settled.
    pub(super) fn sync(
        &mut self,
        store: &mut Store,
        id: &ServiceId,
        now: Timestamp,
    ) -> EndpointsObject {
        let service = store.service(id).cloned();
        let Some(service) = service.filter(selects_pods) else {
            let outcome = self.give_up(id);
            // Slices that look like ours but were never maintained are somebody's own business.
            if outcome == EndpointsObject::GivenUp {
                drop_slices(store, id);
            }
            self.forget_hints(id);
            return outcome;
        };
        let pods = selected_pods(store, &service);
        let trigger = self.triggers.compute(id, &service, &pods);
        let slices = self.plan_slices(store, id, &service, &pods);
        let endpoints = plan_endpoints(store, id, &service, &pods, trigger);
        slices.write(store, id, trigger, now);
        if let Some(endpoints) = endpoints {
            store.put(Object::Endpoints(Box::new(endpoints)), now);
        }
        self.written.insert(id.clone());
        EndpointsObject::Settled
    }

    /// Brings mirrored slices of that name up to date.
    pub(super) fn sync_mirrored(&mut self, store: &mut Store, id: &ServiceId, now: Timestamp) {
        let service = store.service(id).cloned();
        self.sync_mirror(store, id, service.as_ref(), now);
    }

    // Whether the Endpoints of that name are the controller's work; it then forgets them.
    fn give_up(&mut self, id: &ServiceId) -> EndpointsObject {
        if self.written.remove(id) {
            EndpointsObject::GivenUp
        } else {
            EndpointsObject::Settled
        }
    }

    /// The Service is gone; one of its name starts anew. Says whether its Endpoints were the controller's work.
    pub(super) fn service_deleted(&mut self, id: &ServiceId) -> EndpointsObject {
        self.triggers.forget(id);
        self.forget_hints(id);
        self.give_up(id)
    }

    fn forget_hints(&mut self, id: &ServiceId) {
        self.events.forget(&id.key(Kind::Service));
        for family in Family::BOTH {
            self.hinted.remove(&(id.clone(), family));
        }
    }
}

fn selects_pods(service: &Service) -> bool {
    let spec = spec_of(service);
    has_selector(spec) && !is_external_name(spec)
}
