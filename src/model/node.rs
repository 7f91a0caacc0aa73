//! This node: what routing must know of it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::NodeName;

/// The node we run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// The label `topology.kubernetes.io/zone`, if it is set and not empty.
    pub zone: Option<Arc<str>>,
    /// Addresses of the Node object (`InternalIP`, `ExternalIP`), first of a family = primary.
    pub addresses: Vec<IpAddr>,
    /// CIDRs that its Pods get their addresses from (`spec.podCIDRs`).
    pub pod_cidrs: Vec<IpNet>,
}
