//! The kernel's rules as far as they are known here: what was written, when the next write or check is due, and what
//! failed. One state per family, so that one that fails does not stop the other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use tracing::{debug, error, info, warn};

use crate::capture::plan::Rules;
use crate::model::{Family, Frontend, Protocol};
use crate::telemetry::Health;

use super::metrics::{Extent, Metrics};
use super::pace::Pace;
use super::program::Effects;

/// The rules of all captured families.
pub(super) struct KernelRules {
    health: Health,
    metrics: Metrics,
    families: BTreeMap<Family, FamilyRules>,
}

/// What is due for a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Write,
    Check,
}

struct FamilyRules {
    pace: Pace,
    /// What the kernel holds; `None` if that is not known.
    written: Option<Rules>,
    failing: bool,
}

impl KernelRules {
    pub(super) fn new(
        families: &[Family],
        health: Health,
        metrics: Metrics,
        sync_period: Duration,
        now: Instant,
    ) -> Self {
        let state = || FamilyRules {
            pace: Pace::new(sync_period, now),
            written: None,
            failing: false,
        };
        Self {
            health,
            metrics,
            families: families.iter().map(|family| (*family, state())).collect(),
        }
    }

    /// What the loop counts.
    pub(super) fn metrics(&mut self) -> &mut Metrics {
        &mut self.metrics
    }

    /// What has changed is in effect where nothing waits to be written: the table is published already.
    pub(super) fn note_effects(&mut self) {
        for family in Family::BOTH {
            if self.is_written(family) {
                self.metrics.in_effect(family, Timestamp::now());
            }
        }
        if self.all_written() {
            self.metrics.all_in_effect();
        }
    }

    /// At least so much time lies between two writes of a family from now on.
    pub(super) fn set_min_period(&mut self, min_period: Duration) {
        for state in self.families.values_mut() {
            state.pace.set_min_period(min_period);
        }
    }

    /// Whether the kernel brings traffic for that address here, as far as was written.
    pub(super) fn captures(&self, ip: IpAddr) -> bool {
        let state = self.families.get(&Family::of(ip));
        let written = state.and_then(|state| state.written.as_ref());
        let least = Frontend {
            ip,
            port: 0,
            protocol: Protocol::Tcp,
        };
        let found = written.and_then(|rules| rules.redirects.range(least..).next());
        found.is_some_and(|(frontend, _)| frontend.ip == ip)
    }

    /// Whether the family is captured.
    pub(super) fn has(&self, family: Family) -> bool {
        self.families.contains_key(&family)
    }

    /// The kernel must learn something about these families, where they are captured.
    pub(super) fn changed(&mut self, families: &[Family], now: Instant) {
        for family in families {
            if let Some(state) = self.families.get_mut(family) {
                state.pace.changed(now);
                self.health.queued(family.as_str(), now);
                self.metrics.queued(*family);
            }
        }
    }

    /// The kernel may hold anything.
    pub(super) fn doubt(&mut self, now: Instant) {
        for state in self.families.values_mut() {
            state.written = None;
        }
        self.changed(&Family::BOTH, now);
    }

    /// What is due at `now`.
    pub(super) fn due(&self, now: Instant) -> Vec<(Family, Due)> {
        let due = |pace: &Pace| {
            if pace.write_due(now) {
                Some(Due::Write)
            } else {
                pace.check_due(now).then_some(Due::Check)
            }
        };
        self.families
            .iter()
            .filter_map(|(family, state)| Some((*family, due(&state.pace)?)))
            .collect()
    }

    /// When to ask again; `None` if nothing is captured.
    pub(super) fn next(&self) -> Option<Instant> {
        self.families.values().map(|state| state.pace.next()).min()
    }

    /// Whether nothing waits to be written.
    pub(super) fn all_written(&self) -> bool {
        self.families.values().all(|state| !state.pace.is_waiting())
    }

    /// Whether nothing waits to be written for that family.
    pub(super) fn is_written(&self, family: Family) -> bool {
        let state = self.families.get(&family);
        state.is_none_or(|state| !state.pace.is_waiting())
    }

    /// Writes `rules`, unless the kernel holds them already.
    pub(super) async fn write(&mut self, rules: Rules, effects: &mut impl Effects, now: Instant) {
        let family = rules.family;
        let Some(state) = self.families.get_mut(&family) else {
            return;
        };
        if state.written.as_ref() != Some(&rules) {
            let begun = Instant::now();
            let extent = state
                .written
                .as_ref()
                .map_or(Extent::Full, |_| Extent::Partial);
            if let Err(error) = effects.write_rules(&rules).await {
                error!(%family, %error, "rules could not be written; they are tried again");
                self.metrics.failed(family);
                self.health.failed(family.as_str(), error.to_string());
                return state.failed(now);
            }
            self.metrics.written(family, begun.elapsed(), extent);
            debug!(%family, redirects = rules.redirects.len(), node_ports = rules.node_ports.len(), "rules written");
        }
        if std::mem::take(&mut state.failing) {
            info!(%family, "rules can be written again");
            self.metrics.recovered(family);
        }
        state.written = Some(rules);
        state.pace.written(now, true);
        self.health.updated(family.as_str(), SystemTime::now());
    }

    /// Has the rules looked at, and restored if somebody else removed them.
    pub(super) async fn check(&mut self, family: Family, effects: &mut impl Effects, now: Instant) {
        let Some(state) = self.families.get_mut(&family) else {
            return;
        };
        match effects.check_rules(family).await {
            Ok(restored) => {
                if restored {
                    warn!(%family, "rules had been removed by somebody else; they are back");
                }
                state.pace.checked(now);
            }
            Err(error) => {
                error!(%family, %error, "rules could not be checked; they are written anew");
                self.health.queued(family.as_str(), now);
                self.metrics.failed(family);
                self.health.failed(family.as_str(), error.to_string());
                state.failed(now);
            }
        }
    }
}

impl FamilyRules {
    // What the kernel holds now is not known; the next write replaces everything.
    fn failed(&mut self, now: Instant) {
        self.failing = true;
        self.written = None;
        self.pace.written(now, false);
    }
}
