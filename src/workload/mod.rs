//! Workload: what stands at the two ends of the proxy when nothing real does, for demos and load tests.
//!
//! `echo` serves simulated Pods, `load` sends requests and measures. Neither knows a Service: each is told addresses.

mod echo;
pub mod load;

pub use echo::{BindFailure, SimulatedPod, Simulator};
