//! Where objects come from: files and API servers, and how they become the model.
//!
//! A source reads, decodes and tells what changed; it never decides what follows from a change. Kubernetes' own types
//! stop at `convert`: past it only `model` travels.

pub mod convert;
pub mod interfaces;
pub mod kube;
pub mod manifests;
pub mod pod_networks;
pub mod prober;
