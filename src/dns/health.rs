//! Whether an upstream resolver is alive: told by the questions it gets, and by probes while it is thought dead.
//!
//! Two failures in a row make it dead, any reply makes it alive. A dead one is probed twice a second and asked last.
//! Probes end with the resolver: they hold it weakly.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cache::Key;
use super::metrics::Metrics;
use super::upstream::{Upstream, ask_udp, encode_query};

/// Failures in a row after which a resolver counts as dead.
const FAILURES_UNTIL_DEAD: u32 = 2;

/// Between two probes of a dead resolver.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// How long the reply to a probe is waited for.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// NS, which every resolver knows of the root.
const TYPE_NS: u16 = 2;

/// What is known of one resolver's health.
#[derive(Debug, Default)]
pub(super) struct Health {
    failures: AtomicU32,
    dead: AtomicBool,
}

impl Health {
    /// Whether it is thought dead.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// It has replied, whatever it said.
    pub(super) fn replied(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.dead.store(false, Ordering::Relaxed);
    }

    /// It has not; whether that makes it dead just now.
    pub(super) fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        failures >= FAILURES_UNTIL_DEAD && !self.dead.swap(true, Ordering::Relaxed)
    }
}

/// Starts the probes of dead resolvers; all end with `stop`.
#[derive(Clone, Debug)]
pub(super) struct Probes {
    /// Where they run.
    pub(super) tasks: TaskTracker,
    /// When they end.
    pub(super) stop: CancellationToken,
    /// What they count.
    pub(super) metrics: Arc<Metrics>,
}

impl Probes {
    /// Notes that `upstream` gave no reply, and has it probed if that makes it dead.
    pub(super) fn failed(&self, upstream: &Arc<Upstream>) {
        if !upstream.health.failed() {
            return;
        }
        tracing::warn!(upstream = %upstream.addr, "upstream resolver does not answer; probing it");
        let (probes, upstream) = (self.clone(), Arc::downgrade(upstream));
        self.tasks.spawn(async move {
            tokio::select! {
                () = probes.stop.cancelled() => {}
                () = probe_until_alive(&upstream, &probes.metrics) => {}
            }
        });
    }
}

async fn probe_until_alive(upstream: &Weak<Upstream>, metrics: &Metrics) {
    loop {
        sleep(PROBE_INTERVAL).await;
        let Some(upstream) = upstream.upgrade() else {
            return;
        };
        // A question of a client may have found it alive meanwhile.
        if !upstream.health.is_dead() {
            return;
        }
        let query = encode_query(&Key::root(TYPE_NS), rand::random());
        if let Ok(Ok(_)) = timeout(PROBE_TIMEOUT, ask_udp(upstream.addr, &query)).await {
            tracing::info!(upstream = %upstream.addr, "upstream resolver answers again");
            upstream.health.replied();
            return;
        }
        metrics.health_failures.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_failures_in_a_row_kill_and_one_reply_revives() {
        let health = Health::default();
        assert!(!health.failed());
        health.replied();
        assert!(!health.failed());
        assert!(!health.is_dead());
        assert!(health.failed());
        assert!(health.is_dead());
        assert!(!health.failed(), "it is dead already");
        health.replied();
        assert!(!health.is_dead());
    }
}
