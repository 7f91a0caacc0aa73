//! The prober: runs the startup and readiness probes of Pods and tells what they come to.
//!
//! ```text
//!  reconciler ── ProbeChange ──► Prober ── one worker per container ──► attempt: http, tcp, exec, grpc
//!       ▲                                        │ counters: control::ProbeState
//!       └────────── ProbeReport (news only) ─────┘
//! ```
//!
//! It is the one loop in the flow of data. What a report means for a Pod is decided by the control plane. Probes go to
//! the Pod's own address, never through a Service.

mod attempt;
mod connect;
mod exec;
mod grpc;
mod http;
mod metrics;
#[cfg(test)]
mod tests;
mod tls;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::control::{ProbeChange, ProbeId, ProbeTarget, Readiness};

pub use metrics::Metrics;

use attempt::Attempts;

/// Containers that are probed at a time. Past it a container is not probed and so not ready, with a warning and a count,
/// until its Pod changes. A worker that waits takes about 1 KB.
const MAX_TARGETS: usize = 65_536;

/// Reports that may wait for the reconciler; past it workers wait with their next probe.
const MAX_REPORTS: usize = 1024;

/// By how much each probe that starts together with the prober moves the first probe of the next ones apart.
const SPREAD: Duration = Duration::from_millis(1);

/// Whether commands of exec probes may run. They run on this machine as the user of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExecProbes {
    /// They run.
    #[default]
    Allowed,
    /// They do not: each is a malfunction, so its container is never ready.
    Refused,
}

/// What probes have found out about a container, when it differs from before.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    /// The container.
    pub target: Arc<ProbeTarget>,
    /// What is known now.
    pub readiness: Readiness,
    /// What the last probe met, in at most 200 characters; empty if all was well.
    pub reason: String,
}

/// All workers. Dropping it ends them.
#[derive(Debug)]
pub struct Prober {
    workers: HashMap<ProbeId, Worker>,
    max_targets: usize,
    tasks: TaskTracker,
    attempts: Arc<Attempts>,
    reports: mpsc::Sender<ProbeReport>,
    /// When the first target came.
    began: Option<Instant>,
}

#[derive(Debug)]
struct Worker {
    terminating: CancellationToken,
    _stop: DropGuard,
}

impl Prober {
    /// Nothing is probed yet. What will be found out comes out of the receiver.
    pub fn new(exec: ExecProbes, metrics: Metrics) -> (Self, mpsc::Receiver<ProbeReport>) {
        let (reports, receiver) = mpsc::channel(MAX_REPORTS);
        let prober = Self {
            workers: HashMap::new(),
            max_targets: MAX_TARGETS,
            tasks: TaskTracker::new(),
            attempts: Arc::new(Attempts::new(exec, metrics)),
            reports,
            began: None,
        };
        (prober, receiver)
    }

    /// Takes over what is to be probed from now on. Never waits.
    pub fn apply(&mut self, changes: Vec<ProbeChange>) {
        for change in changes {
            match change {
                ProbeChange::Start(target) => self.start(*target),
                ProbeChange::Terminate(id) => {
                    if let Some(worker) = self.workers.get(&id) {
                        worker.terminating.cancel();
                    }
                }
                ProbeChange::Stop(id) => {
                    self.workers.remove(&id);
                }
            }
        }
        let n_targets = i64::try_from(self.workers.len()).unwrap_or(i64::MAX);
        self.attempts.metrics.targets.set(n_targets);
    }

    /// Ends all workers, and returns when they have.
    pub async fn shutdown(self) {
        drop(self.workers);
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn start(&mut self, target: ProbeTarget) {
        if self.workers.len() >= self.max_targets {
            self.attempts.metrics.rejected.inc();
            warn!(pod = %target.pod, container = &*target.container, max = self.max_targets, "too many probes; not probed, so not ready");
            return;
        }
        let (stop, terminating) = (CancellationToken::new(), CancellationToken::new());
        if target.terminating {
            terminating.cancel();
        }
        let id = target.id;
        let first = Instant::now() + self.first_delay(&target);
        let worker = worker::probe(
            Arc::new(target),
            first,
            terminating.clone(),
            self.attempts.clone(),
            self.reports.clone(),
        );
        self.tasks
            .spawn(stop.clone().run_until_cancelled_owned(worker));
        self.workers.insert(
            id,
            Worker {
                terminating,
                _stop: stop.drop_guard(),
            },
        );
    }

    // Many that start together with the prober are spread over a period. The kubelet draws from a whole period for any
    // number, which a handful of Pods need not wait for.
    fn first_delay(&mut self, target: &ProbeTarget) -> Duration {
        let began = *self.began.get_or_insert_with(Instant::now);
        let period = worker::first_period(&target.plan);
        if began.elapsed() >= period {
            return Duration::ZERO;
        }
        let n_workers = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
        let most = SPREAD.saturating_mul(n_workers).min(period);
        most.mul_f64(rand::random())
    }
}
