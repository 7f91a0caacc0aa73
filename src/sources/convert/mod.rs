//! Kubernetes objects → `model`: the only place where the wire types are narrowed for routing and DNS.
//!
//! Pure. What cannot be used is left out and noted, never fatal: one bad value must not cost a Service its others.
//! Nothing here looks at other objects; which endpoints serve is decided in `routing`.

mod address;
mod annotations;
mod node;
mod service;
mod slice;

use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::Protocol;

pub use address::{parse_ip, parse_net};
pub use node::{node, pod};
pub use service::service;
pub use slice::{slice, without_loopback};

/// A converted object and what had to be left out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted<T> {
    /// The object.
    pub value: T,
    /// What was left out or replaced by a default, for the log and `doctor`.
    pub notes: Vec<Note>,
}

/// One value that could not be used as it stands. The object works without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The field, in Kubernetes' spelling: `spec.externalIPs[0]`.
    pub field: String,
    /// What is wrong, and what happens instead.
    pub message: String,
}

impl Note {
    /// About that field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// The namespace and the name of an object; a missing namespace is `default`, as for the API server.
fn identity(metadata: &ObjectMeta) -> (Arc<str>, Arc<str>) {
    let namespace = metadata.namespace.as_deref().unwrap_or("default");
    let name = metadata.name.as_deref().unwrap_or_default();
    (namespace.into(), name.into())
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// Without room to grow: there are as many of these lists as objects, and they stay as they are.
fn exactly<T>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut list: Vec<T> = values.collect();
    list.shrink_to_fit();
    list
}

/// The protocol whose ports are kept for DNS alone.
const SCTP: &str = "SCTP";

/// The protocol of a port; absent means TCP. `Err` is the note's message for one that is not served.
fn protocol(raw: Option<&str>) -> Result<Protocol, String> {
    match raw {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some(other) => Err(format!(
            "protocol {other} is not served; the port is skipped"
        )),
    }
}
