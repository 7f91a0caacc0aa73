//! What the kernel is told beside rules: how dear this process is, what connection tracking may hold, and who gets the
//! handshakes of a listener that ends.
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

/// Where connections that a listener has not accepted go when it ends: to another at the same address, rather than nowhere.
/// Source: Linux `ip-sysctl`, since 5.14.
const MIGRATE: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// Has handshakes that are under way with a listener at a virtual address go on with the one that follows it. Without, those
/// few are reset when a listener ends.
pub(super) fn set_migration() {
    if std::fs::read_to_string(MIGRATE).is_ok_and(|value| value.trim() != "0") {
        return;
    }
    match std::fs::write(MIGRATE, "1") {
        Ok(()) => info!(sysctl = "net.ipv4.tcp_migrate_req", value = 1, "set"),
        Err(error) => {
            info!(sysctl = "net.ipv4.tcp_migrate_req", %error, "not set; a handshake that is under way when one process follows another is reset")
        }
    }
}
