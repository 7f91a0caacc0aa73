//! One worker: the life of one container's probes. Waits as its `ProbeState` says, probes, and reports what is new.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::control::{
    Outcome, ProbeKind, ProbePlan, ProbeSpec, ProbeState, ProbeTarget, Readiness, Step,
};

use super::ProbeReport;
use super::attempt::Attempts;

/// From one probe of the container to the next, as long as it is probed for the first time.
pub(super) fn first_period(plan: &ProbePlan) -> Duration {
    let first = plan.startup.as_ref().or(plan.readiness.as_ref());
    first.map_or(Duration::ZERO, |spec| spec.timing.period)
}

/// Probes `target`, at `first` for the first time, until there is nothing left to probe or nobody to report to.
pub(super) async fn probe(
    target: Arc<ProbeTarget>,
    first: Instant,
    terminating: CancellationToken,
    attempts: Arc<Attempts>,
    reports: mpsc::Sender<ProbeReport>,
) {
    let mut state = state_of(&target.plan, first);
    let mut told = Readiness::Undecided;
    let mut malfunction: Option<String> = None;
    loop {
        if terminating.is_cancelled() {
            state.terminate();
        }
        let kind = match state.next(Instant::now()) {
            Step::Probe(kind) => kind,
            Step::WaitUntil(at) => {
                tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {}
                    () = terminating.cancelled(), if !terminating.is_cancelled() => {}
                }
                continue;
            }
            Step::Done => return,
        };
        let Some(spec) = spec_of(&target.plan, kind) else {
            return;
        };
        let attempt = attempts.run(kind, spec).await;
        let outcome = attempt.outcome();
        let text = attempt.into_text();
        debug!(pod = %target.pod, container = &*target.container, probe = kind.as_str(), ?outcome, reason = text, "probed");
        state.on_outcome(kind, outcome, Instant::now());
        if outcome == Outcome::Unknown {
            // Once for each reason, not for each probe.
            if malfunction.as_deref() != Some(&text) {
                warn!(pod = %target.pod, container = &*target.container, probe = kind.as_str(), error = text, "probe cannot be run");
                malfunction = Some(text);
            }
            continue;
        }
        let readiness = state.readiness();
        if readiness != told {
            told = readiness;
            let report = ProbeReport {
                target: target.clone(),
                readiness,
                reason: text,
            };
            if reports.send(report).await.is_err() {
                return;
            }
        }
    }
}

fn state_of(plan: &ProbePlan, first: Instant) -> ProbeState {
    let up_since = plan.running_since;
    let uptime = up_since.map(|since| Timestamp::now().duration_since(since));
    // A start in the future is none yet.
    let uptime = uptime.and_then(|span| Duration::try_from(span).ok());
    ProbeState::new(
        plan.startup.as_ref().map(|spec| spec.timing),
        plan.readiness.as_ref().map(|spec| spec.timing),
        first,
        uptime.unwrap_or_default(),
    )
}

fn spec_of(plan: &ProbePlan, kind: ProbeKind) -> Option<&ProbeSpec> {
    match kind {
        ProbeKind::Startup => plan.startup.as_ref(),
        ProbeKind::Readiness => plan.readiness.as_ref(),
    }
}
