//! An explanation as data: what `viaduct explain` prints and programs read. Made by `explain`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Standing, Topology};

/// Where traffic to a target goes, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What was asked about.
    pub target: String,
    /// Every service port below is served, in one of its families at least.
    pub served: bool,
    /// The service ports concerned: ports in order, IPv4 before IPv6.
    pub service_ports: Vec<ExplainedPort>,
    /// What is to be said of the whole.
    pub remarks: Vec<String>,
}

/// One service port in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedPort {
    /// `namespace/name:port`.
    pub service_port: String,
    /// `spec.ports[].port`.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The balancing algorithm.
    pub algorithm: String,
    /// For how long a client stays with its backend, where it does.
    pub affinity_seconds: Option<u64>,
    /// The TCP connections of the whole Service; `None` over UDP.
    pub connections: Option<ExplainedConnections>,
    /// The version of the PROXY protocol that backends are spoken to with: `v1` or `v2`; `None` over UDP.
    pub proxy_protocol: Option<String>,
    /// At one of its frontends at least, callers from everywhere are served.
    pub served: bool,
    /// The addresses asked about.
    pub frontends: Vec<ExplainedFrontend>,
    /// How hints narrow the endpoints of the cluster.
    pub topology: Topology,
    /// Every endpoint, by address.
    pub endpoints: Vec<ExplainedEndpoint>,
    /// What is to be said of this service port.
    pub remarks: Vec<String>,
}

/// How many TCP connections a Service has, over all its ports and both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedConnections {
    /// At this moment.
    pub active: u64,
    /// As many as there may be.
    pub max: Option<u32>,
    /// Refused because there were as many as there may be.
    pub refused_total: u64,
}

/// One address and what it does with a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedFrontend {
    /// `ip:port`; a node port at any address that answers node ports is `*:port`.
    pub address: String,
    /// `ClusterIP`, `ExternalIP`, `LoadBalancer` or `NodePort`.
    pub kind: String,
    /// The port that is really bound: another one where the loopback mode had to move it.
    pub served_port: u16,
    /// Who is answered at all; empty = anybody.
    pub source_ranges: Vec<String>,
    /// A flow from outside, from a Pod on this node and from the node itself.
    pub flows: Vec<ExplainedFlow>,
}

/// What becomes of a flow from one origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedFlow {
    /// `outside`, `pod` or `node`.
    pub from: String,
    /// The traffic policy that binds it: `Cluster` or `Local`.
    pub policy: String,
    /// What becomes of it.
    pub outcome: Outcome,
    /// Why, in a sentence.
    pub why: String,
    /// The backends that it is picked from, sorted; empty unless it is served.
    pub backends: Vec<SocketAddr>,
}

/// A verdict by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A backend serves it.
    Served,
    /// Refused at once.
    Refused,
    /// No answer at all.
    Silent,
}

/// One endpoint and its standing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedEndpoint {
    /// Its address and port.
    pub address: SocketAddr,
    /// The Pod behind it, where one is named.
    pub pod: Option<String>,
    /// The node it runs on.
    pub node: Option<String>,
    /// Its standing where a policy says Cluster.
    pub cluster: Standing,
    /// Its standing where a policy says Local.
    pub local: Standing,
}

impl ExplainedFrontend {
    /// Whether callers from everywhere are served.
    pub fn is_served(&self) -> bool {
        self.flows
            .iter()
            .all(|flow| flow.outcome == Outcome::Served)
    }
}
