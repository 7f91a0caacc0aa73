//! Logs and the metrics registry. A leaf: imports nothing of ours.

mod logging;
mod process;
mod registry;

pub use logging::{Format, init};
pub use registry::{registry, render};
