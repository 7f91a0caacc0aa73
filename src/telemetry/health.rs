//! Whether the control loop keeps up: the facts behind `/healthz` and `/livez`.
//!
//! A family is healthy as long as no queued change has waited for longer than the timeout. No changes at all is healthy,
//! and one family's progress does not heal the other. Source: kube-proxy's proxier health server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Shared between the loop that works and the server that reports. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    families: BTreeMap<&'static str, FamilyState>,
    node_eligible: bool,
}

#[derive(Clone, Debug, Default)]
struct FamilyState {
    updated: Option<SystemTime>,
    waiting_since: Option<Instant>,
    failure: Option<String>,
}

/// What the server reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Every family keeps up.
    pub healthy: bool,
    /// The node exists and is not about to be deleted.
    pub node_eligible: bool,
    /// By family.
    pub families: BTreeMap<&'static str, FamilyReport>,
}

/// How one family does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyReport {
    /// When it was last brought up to date.
    pub updated: Option<SystemTime>,
    /// Whether it keeps up.
    pub healthy: bool,
    /// Why the last attempt failed, if it did.
    pub failure: Option<String>,
}

impl Health {
    /// A change for that family waits to be put into effect.
    pub fn queued(&self, family: &'static str, now: Instant) {
        self.with(|state| {
            state
                .families
                .entry(family)
                .or_default()
                .waiting_since
                .get_or_insert(now);
        });
    }

    /// What waits for that family could not be put into effect, or what is in effect could not be checked, and why.
    pub fn failed(&self, family: &'static str, failure: String) {
        self.with(|state| state.families.entry(family).or_default().failure = Some(failure));
    }

    /// Everything for that family is in effect.
    pub fn updated(&self, family: &'static str, at: SystemTime) {
        self.with(|state| {
            state.families.insert(
                family,
                FamilyState {
                    updated: Some(at),
                    waiting_since: None,
                    failure: None,
                },
            );
        });
    }

    /// Whether the node may take new traffic.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.with(|state| state.node_eligible = eligible);
    }

    /// The report at `now`; a change may wait for `timeout`.
    pub fn report(&self, now: Instant, timeout: Duration) -> Report {
        self.with(|state| {
            let keeps_up = |f: &FamilyState| {
                f.waiting_since
                    .is_none_or(|since| now.duration_since(since) <= timeout)
            };
            let families: BTreeMap<_, _> = state
                .families
                .iter()
                .map(|(name, f)| {
                    let report = FamilyReport {
                        updated: f.updated,
                        healthy: keeps_up(f),
                        failure: f.failure.clone(),
                    };
                    (*name, report)
                })
                .collect();
            let healthy = families.values().all(|family| family.healthy);
            Report {
                healthy,
                node_eligible: state.node_eligible,
                families,
            }
        })
    }

    // A panic elsewhere leaves plain values behind, never a half-made one.
    fn with<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn a_change_that_waits_too_long_is_unhealthy_and_heals() {
        let health = Health::default();
        let start = Instant::now();
        assert!(
            health.report(start, TIMEOUT).healthy,
            "healthy during start"
        );
        health.queued("IPv4", start);
        health.queued("IPv4", start + Duration::from_secs(50));
        assert!(
            health.report(start + TIMEOUT, TIMEOUT).healthy,
            "at the bound"
        );
        assert!(
            !health
                .report(start + TIMEOUT + Duration::from_millis(1), TIMEOUT)
                .healthy,
            "one past it"
        );
        health.failed("IPv4", "no permission".to_owned());
        health.updated("IPv6", SystemTime::now());
        let report = health.report(start + 2 * TIMEOUT, TIMEOUT);
        let failure = report.families["IPv4"].failure.as_deref();
        assert_eq!(failure, Some("no permission"));
        assert_eq!(report.families["IPv6"].failure, None);
        assert!(
            !health.report(start + 2 * TIMEOUT, TIMEOUT).healthy,
            "the other family does not heal it"
        );
        health.updated("IPv4", SystemTime::now());
        let report = health.report(start + 9 * TIMEOUT, TIMEOUT);
        assert!(report.healthy && report.families["IPv4"].failure.is_none());
    }

    #[test]
    fn a_node_never_seen_is_not_eligible() {
        let health = Health::default();
        assert!(!health.report(Instant::now(), TIMEOUT).node_eligible);
        health.set_node_eligible(true);
        assert!(health.report(Instant::now(), TIMEOUT).node_eligible);
    }
}
