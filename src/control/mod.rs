//! The standalone control plane: what an API server and its controllers make of manifests. Pure.
//!
//! It speaks Kubernetes' own types, because to a manifest it is the API server; `sources::convert` narrows what comes
//! out of it.

mod object;

pub use object::{Kind, Object, ObjectKey};
