//! The objects that a manifest can hold, and what identifies them.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The kinds of object that are read. Others are ignored with a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Service.
    Service,
    /// `v1` Pod.
    Pod,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Endpoints.
    Endpoints,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Namespace,
        Self::Node,
        Self::Service,
        Self::Pod,
        Self::EndpointSlice,
        Self::Endpoints,
    ];

    /// As `kind:` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
        }
    }

    /// As `apiVersion:` spells it.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Namespace | Self::Node | Self::Service | Self::Pod | Self::Endpoints => "v1",
        }
    }

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        match self {
            Self::Namespace | Self::Node => false,
            Self::Service | Self::Pod | Self::EndpointSlice | Self::Endpoints => true,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Kind, namespace (empty for kinds without one) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace; `default` where a manifest names none.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// One decoded object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Namespace.
    Namespace(Box<Namespace>),
    /// A Node.
    Node(Box<Node>),
    /// A Service.
    Service(Box<Service>),
    /// A Pod.
    Pod(Box<Pod>),
    /// An EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// An Endpoints.
    Endpoints(Box<Endpoints>),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::Pod(_) => Kind::Pod,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Endpoints(_) => Kind::Endpoints,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Namespace(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Endpoints(object) => &object.metadata,
        }
    }

    /// The Service, if it is one.
    pub fn as_service(&self) -> Option<&Service> {
        if let Self::Service(object) = self {
            Some(object)
        } else {
            None
        }
    }

    /// The Pod, if it is one.
    pub fn as_pod(&self) -> Option<&Pod> {
        if let Self::Pod(object) = self {
            Some(object)
        } else {
            None
        }
    }

    /// The Node, if it is one.
    pub fn as_node(&self) -> Option<&Node> {
        if let Self::Node(object) = self {
            Some(object)
        } else {
            None
        }
    }

    /// The EndpointSlice, if it is one.
    pub fn as_slice(&self) -> Option<&EndpointSlice> {
        if let Self::EndpointSlice(object) = self {
            Some(object)
        } else {
            None
        }
    }

    /// The Endpoints, if it is one.
    pub fn as_endpoints(&self) -> Option<&Endpoints> {
        if let Self::Endpoints(object) = self {
            Some(object)
        } else {
            None
        }
    }

    /// Its metadata, to be written by the control plane.
    pub(super) fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Namespace(object) => &mut object.metadata,
            Self::Node(object) => &mut object.metadata,
            Self::Service(object) => &mut object.metadata,
            Self::Pod(object) => &mut object.metadata,
            Self::EndpointSlice(object) => &mut object.metadata,
            Self::Endpoints(object) => &mut object.metadata,
        }
    }

    /// As Kubernetes spells it, with `kind` and `apiVersion`.
    ///
    /// # Errors
    /// A time that no calendar has.
    pub fn to_json(&self) -> Result<serde_json::Value, serde_json::Error> {
        match self {
            Self::Namespace(object) => serde_json::to_value(object),
            Self::Node(object) => serde_json::to_value(object),
            Self::Service(object) => serde_json::to_value(object),
            Self::Pod(object) => serde_json::to_value(object),
            Self::EndpointSlice(object) => serde_json::to_value(object),
            Self::Endpoints(object) => serde_json::to_value(object),
        }
    }

    /// What identifies it. An object without a name has an empty one; validation reports that.
    pub fn key(&self) -> ObjectKey {
        let kind = self.kind();
        let metadata = self.metadata();
        let namespace = if kind.is_namespaced() {
            metadata.namespace.as_deref().unwrap_or("default")
        } else {
            ""
        };
        ObjectKey {
            kind,
            namespace: namespace.into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
        }
    }
}
