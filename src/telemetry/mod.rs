//! Logs and the metrics registry. A leaf: imports nothing of ours.

mod logging;

pub use logging::{Format, init};
