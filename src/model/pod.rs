//! A Pod, reduced to what DNS needs in the verified pod mode and for search lists.

use std::net::IpAddr;
use std::sync::Arc;

/// A Pod that has addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// All of `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// Phase Succeeded or Failed, or marked for deletion: its addresses may belong to another Pod by now.
    pub finished: bool,
    /// Uses the node's own addresses.
    pub host_network: bool,
}
