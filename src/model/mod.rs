//! The vocabulary: what a Service, an endpoint and a node are here.
//!
//! Slim, validated values that every other folder speaks. Nothing in this folder knows a socket, a clock or the
//! Kubernetes wire types; `sources::convert` narrows those into these, once.

mod endpoint;
mod event;
mod go_duration;
mod ids;
mod names;
mod node;
mod pod;
mod service;

pub use endpoint::{Endpoint, EndpointSlice, Hints, SliceKey, SlicePort};
pub use event::Event;
pub use go_duration::{ParseDurationError, parse_go_duration};
pub use ids::{
    Family, Frontend, InvalidPort, NodeName, Port, Protocol, ServiceName, ServicePortKey,
};
pub use names::Names;
pub use node::Node;
pub use pod::Pod;
pub use service::{
    Algorithm, InvalidEjection, Knobs, LoadBalancerAddress, OutlierEjection, ProxyProtocol,
    SctpPort, Service, ServiceKind, ServicePort, TrafficPolicy,
};
