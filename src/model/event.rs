//! What a source says happened. Facts only; the reconciler owns what follows from them.

use std::sync::Arc;

use super::{EndpointSlice, Node, Pod, Service, ServiceName, SliceKey};

/// One change of the observed state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A Service is new or changed.
    ServiceApplied(Arc<Service>),
    /// A Service is gone.
    ServiceDeleted(ServiceName),
    /// A slice is new or changed.
    SliceApplied(Arc<EndpointSlice>),
    /// A slice is gone.
    SliceDeleted(SliceKey),
    /// Our own Node object is new or changed.
    NodeApplied(Node),
    /// Our own Node object is gone.
    NodeDeleted,
    /// A Pod is new or changed.
    PodApplied(Arc<Pod>),
    /// A Pod is gone: namespace and name.
    PodDeleted(Arc<str>, Arc<str>),
    /// A namespace exists.
    NamespaceApplied(Arc<str>),
    /// A namespace is gone.
    NamespaceDeleted(Arc<str>),
}
