//! The standalone control plane: what an API server and its controllers make of manifests. Pure.
//!
//! It speaks Kubernetes' own types, because to a manifest it is the API server; `sources::convert` narrows what comes
//! out of it. Time is an argument, randomness comes from a seed. Start reading at `plane`.
//!
//! ```text
//! apply / verbs ─► defaults ─► updates ─► families ─► ledger ─► validation ─► store ─► endpoints (slices, Endpoints)
//!                                                                               └────► load_balancers
//! ```

mod addresses;
mod allocations;
mod apply;
mod cluster_ips;
mod config;
mod decode;
mod defaults;
mod endpoints;
mod families;
mod indexes;
mod kubelet;
#[cfg(test)]
mod kubelet_tests;
mod ledger;
mod load_balancers;
mod merge;
mod node_ports;
mod object;
mod packed;
mod plane;
mod predicates;
mod probe_state;
mod probe_targets;
mod published;
mod rejection;
mod service_ports;
mod store;
mod updates;
mod validation;
mod verbs;
mod write;

pub use allocations::{Allocations, Saved, SavedPod, SavedPort, SavedService};
pub use config::{Config, ConfigError, OwnNode};
pub use decode::{UnknownFields, decode};
pub use endpoints::{ControllerEvent, Severity};
pub use object::{Kind, Object, ObjectKey};
pub use plane::ControlPlane;
pub use probe_state::{Outcome, ProbeKind, ProbeState, Readiness, Step, Timing};
pub use probe_targets::{
    Handler, HttpGet, ProbeChange, ProbeId, ProbePlan, ProbeSpec, ProbeTarget,
};
pub use published::{Objects, PublishedObjects};
pub use rejection::{Cause, Rejection, Warning};
pub use store::Change;
pub(crate) use validation::metadata::NAMELESS;
pub use verbs::{Grace, Written};

#[cfg(test)]
mod truth;
