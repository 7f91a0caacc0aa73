//! What the kernel is told beside rules: how dear this process is, and what connection tracking may hold.
//!
//! Never fatal: the process serves as well without, and says so.

use tracing::{info, warn};

use crate::config::Config;
use crate::net::tracking_limits::{SetLimitError, online_cores};

/// Lowering it needs CAP_SYS_RESOURCE; without, the process runs as well, only less safely.
pub(super) fn set_oom_score(config: &Config) {
    let Some(score) = config.oom_score_adj else {
        return;
    };
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        warn!(flag = "oom-score-adj", score, %error, "not set");
    }
}

/// Sets what the `conntrack` settings ask for, as far as this namespace may. Defaults that it may not write are no fault of
/// anybody's: a container has most of them read-only.
pub(super) fn set_tracking_limits(config: &Config) {
    let cores = online_cores();
    let (set, failed) = config.tracking_limits.set(cores);
    let (raised, wanting) = config.tracking_floor.raise(cores);
    for (sysctl, value) in set.into_iter().chain(raised) {
        info!(sysctl, value, "connection tracking is set");
    }
    for error in failed {
        warn!(%error, "connection tracking is left as it is");
    }
    if let Some(first) = wanting.first() {
        let wanting: Vec<String> = wanting.iter().map(SetLimitError::assignment).collect();
        let (defaults, reason) = (wanting.join(", "), &first.source);
        info!(defaults, %reason, "connection tracking has less; what should be so is set on the host");
    }
}
