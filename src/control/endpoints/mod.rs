//! The controllers that turn Services, Pods and Endpoints into EndpointSlices and Endpoints.
//!
//! One call brings everything of one Service name up to date, always from the present state of all objects, so that
//! hand edits are repaired by the same code that follows changes. Nothing here knows a clock: times come from objects.

mod hints;
mod metadata;
mod packing;
mod ports;
mod select;
mod slices;
mod trigger;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;

use super::object::Object;
use super::predicates::{has_selector, is_external_name, spec_of};
use super::store::{ServiceId, Store};
pub(super) use trigger::TriggerTimes;

/// Who maintains the slices of Services with a selector.
const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// The label that names who maintains a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The label of slices and Endpoints of headless Services.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// What the controllers remember and are configured with.
#[derive(Debug)]
pub(super) struct Controllers {
    /// How many endpoints a slice may have.
    pub(super) max_endpoints_per_slice: usize,
    /// The last readiness changes seen, per Service.
    pub(super) triggers: TriggerTimes,
}

impl Controllers {
    /// Brings slices and Endpoints of that name up to date.
    pub(super) fn sync(&mut self, store: &mut Store, id: &ServiceId, now: Timestamp) {
        let service = store.service(id).cloned();
        let selecting = service
            .as_ref()
            .filter(|service| selects_pods(service))
            .cloned();
        match &selecting {
            Some(service) => self.sync_slices(store, id, service, now),
            None => {
                self.triggers.forget(id);
                self.drop_slices(store, id, service.as_ref());
            }
        }
    }
}

fn selects_pods(service: &Service) -> bool {
    let spec = spec_of(service);
    has_selector(spec) && !is_external_name(spec)
}

/// Stores a slice.
fn put_slice(
    store: &mut Store,
    slice: k8s_openapi::api::discovery::v1::EndpointSlice,
    now: Timestamp,
) {
    store.put(Object::EndpointSlice(Box::new(slice)), now);
}
