//! Logs and the metrics registry. A leaf: imports nothing of ours.

mod health;
mod logging;
mod process;
mod registry;

pub use health::{FamilyReport, Health, Report};
pub use logging::{Format, init};
pub use registry::{registry, render};
