//! Faults: what is broken on purpose, as text, as values and as decisions.
//!
//! ```text
//!  "delay=5ms±2ms; reset=1%"  ──► Faults ──► Injection (seeded) ──► Fate of each answer or flow
//!                                              ▲
//!   viaduct fault TARGET TEXT ──► ActiveFaults ┘ which are on, by target
//! ```
//!
//! Says what shall go wrong; `workload::echo` does it to the answers of simulated Pods, `dataplane` between a client and
//! any backend. Nothing here touches a socket or reads a clock.

mod active;
mod injection;
mod metrics;
mod target;
mod text;

pub use active::{ActiveFaults, Changes, ListedFault, TooManyFaults};
pub use injection::{Carrier, Fate, Injection};
pub use metrics::{FaultKind, Metrics};
pub use target::{FaultTarget, InvalidFaultTarget, Subject};
pub use text::{Chance, Delay, Faults, ParseFaultsError, Place, Stall};
