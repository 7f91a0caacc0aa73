//! Logs and the metrics registry. A leaf: imports nothing of ours.

mod health;
mod logging;

pub use health::{Health, Report};
pub use logging::{Format, init};
