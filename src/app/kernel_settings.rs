//! What the kernel is told beside rules: how dear this process is, and what connection tracking may hold.
//!
//! Never fatal: the process serves as well without, and says so.

use tracing::{info, warn};

use crate::config::Config;
use crate::net::tracking_limits::online_cores;

/// Lowering it needs CAP_SYS_RESOURCE; without, the process runs as well, only less safely.
pub(super) fn set_oom_score(config: &Config) {
    let Some(score) = config.oom_score_adj else {
        return;
    };
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        warn!(flag = "oom-score-adj", score, %error, "not set");
    }
}

/// Sets what the `conntrack` settings ask for, as far as this namespace may.
pub(super) fn set_tracking_limits(config: &Config) {
    let (set, failed) = config.tracking_limits.set(online_cores());
    for (sysctl, value) in set {
        info!(sysctl, value, "connection tracking is set");
    }
    for error in failed {
        warn!(%error, "connection tracking is left as it is");
    }
}
