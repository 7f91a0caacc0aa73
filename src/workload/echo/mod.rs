//! Simulated Pods: Viaduct itself answers at their ports, and every answer names the Pod.
//!
//! ```text
//!  TCP  GET / HTTP/1.1     ──►  200, body "web-0\n", X-Pod, X-Client      (http)
//!  TCP  anything else      ──►  each line with "web-0: " before it        (tcp)
//!  UDP  a datagram         ──►  "web-0: " and the datagram                (udp)
//! ```
//!
//! Unless faults are on: `behaviour` says which, each of the three does what it says.

mod behaviour;
mod http;
mod idle;
mod simulator;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use simulator::{BindFailure, SimulatedPod, Simulator};

/// What one port of a simulated Pod takes at most.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// TCP connections at once. Further ones wait in the kernel's queue until one ends.
    connections: usize,
    /// After how long without a byte in either direction a TCP connection is closed.
    idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            idle: Duration::from_secs(3600),
        }
    }
}
