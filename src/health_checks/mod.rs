//! Health-check node ports: answers load balancers that ask whether this node has endpoints of a Service.
//!
//! ```text
//!  load balancer ──► any node address : healthCheckNodePort ──► 200, n local endpoints │ 503
//! ```
//!
//! `ports` keeps the listeners in line with what is wanted; `answer` speaks HTTP on one connection. What is wanted is
//! decided by `routing::HealthCheck`.

mod answer;
mod ports;

#[cfg(test)]
mod tests;

pub use ports::{HealthCheckPorts, Unbound};
