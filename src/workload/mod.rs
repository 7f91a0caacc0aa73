//! Workload: what stands at the two ends of the proxy when nothing real does, for demos and load tests.
//!
//! `echo` serves simulated Pods. It knows nothing of Services: it answers where it is told to.

mod echo;

pub use echo::{BindFailure, SimulatedPod, Simulator};
