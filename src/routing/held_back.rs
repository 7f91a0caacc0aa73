//! Which backends of a service port get less than their share for a while: those that failed too often, and new ones
//! that are to warm up. Pure; shared by all data threads.
//!
//! | state | begins | ends | what it does |
//! | --- | --- | --- | --- |
//! | ejected | after so many failed dials in a row | after 1 s, twice as long each time, 60 s at most; or with a dial that succeeds | passed over while others are left |
//! | warming | when it joins others, where the Service asks for slow start | after that time | a share of new flows that grows evenly from a tenth |
//!
//! Of a candidate set at most half, rounded down, is passed over: those that were ejected first. One that is still
//! failing when its time is over needs one more failure to be ejected again. Where nobody is held back, which is nearly
//! always, a pick looks at one number and no backend.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::model::OutlierEjection;

use super::Backend;

/// For how long a backend is ejected the first time.
const FIRST_EJECTION: Duration = Duration::from_secs(1);

/// For how long it is ejected at most.
const LONGEST_EJECTION: Duration = Duration::from_secs(60);

/// The share of new flows with which a new backend begins, of what it gets in the end.
const FIRST_SHARE: f64 = 0.1;

/// Of a backend that has joined and that no pick has seen since: its time begins with the next pick.
const UNSEEN: u64 = u64::MAX;

/// How a backend behaves. Moments are in milliseconds since its service port's `base`, and one more; 0 is never.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    failures_in_row: AtomicU32,
    // Since the last success.
    ejections: AtomicU32,
    ejected_since: AtomicU64,
    ejected_until: AtomicU64,
    warming_since: AtomicU64,
}

/// The clock and the summary of one service port.
#[derive(Debug, Default)]
pub struct HeldBack {
    // The first moment at which anything happened.
    base: OnceLock<Instant>,
    // Failures in a row that eject; 0 = none do.
    threshold: AtomicU32,
    // After that nobody is ejected.
    ejected_until: AtomicU64,
    // How many are warming.
    n_warming: AtomicUsize,
}

/// A backend has just been ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Failed dials in a row.
    pub failures: u32,
    /// For how long.
    pub length: Duration,
}

impl HeldBack {
    pub(crate) fn set_rule(&self, rule: OutlierEjection) {
        let threshold = match rule {
            OutlierEjection::Off => 0,
            OutlierEjection::After(failures) => failures.get(),
        };
        self.threshold.store(threshold, Ordering::Relaxed);
    }

    /// Whether a pick must look at each backend.
    pub(super) fn is_anybody(&self, now: Instant) -> bool {
        self.n_warming.load(Ordering::Relaxed) > 0 || self.is_anybody_ejected(now)
    }

    fn is_anybody_ejected(&self, now: Instant) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until > 0 && self.moment(now) < until
    }

    /// Counts the backends that are warming among those of a new route.
    pub(super) fn count_warming<'a>(&self, backends: impl Iterator<Item = &'a Arc<Backend>>) {
        let warming = backends.filter(|backend| {
            let since = &backend.live.conduct.warming_since;
            since.load(Ordering::Relaxed) > 0
        });
        self.n_warming.store(warming.count(), Ordering::Relaxed);
    }

    fn moment(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(*self.base.get_or_init(|| now));
        u64::try_from(since.as_millis()).map_or(UNSEEN - 1, |ms| ms.saturating_add(1))
    }

    fn failed(&self, conduct: &Conduct, now: Instant) -> Option<Ejection> {
        let failures = conduct
            .failures_in_row
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        let threshold = self.threshold.load(Ordering::Relaxed);
        if threshold == 0 || failures < threshold {
            return None;
        }
        let moment = self.moment(now);
        let before = conduct.ejected_until.load(Ordering::Relaxed);
        // Dials that were on their way when it was ejected say nothing new.
        if before > moment {
            return None;
        }
        let earlier = conduct.ejections.load(Ordering::Relaxed);
        let factor = 1u32.checked_shl(earlier).unwrap_or(u32::MAX);
        let length = FIRST_EJECTION.saturating_mul(factor).min(LONGEST_EJECTION);
        let until = moment + millis(length);
        // Of threads that fail at the same moment one ejects.
        conduct
            .ejected_until
            .compare_exchange(before, until, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        conduct.ejected_since.store(moment, Ordering::Relaxed);
        conduct
            .ejections
            .store(earlier.saturating_add(1), Ordering::Relaxed);
        self.ejected_until.fetch_max(until, Ordering::Relaxed);
        Some(Ejection { failures, length })
    }

    /// A mask over the candidates that are to be passed over; empty if none is.
    pub(super) fn ejected(&self, candidates: &[Arc<Backend>], now: Instant) -> Vec<bool> {
        if !self.is_anybody_ejected(now) {
            return Vec::new();
        }
        let moment = self.moment(now);
        let mut out: Vec<(u64, usize)> = candidates
            .iter()
            .enumerate()
            .filter(|(_, backend)| backend.live.conduct.is_ejected(moment))
            .map(|(index, backend)| {
                let since = &backend.live.conduct.ejected_since;
                (since.load(Ordering::Relaxed), index)
            })
            .collect();
        out.sort_unstable();
        out.truncate(candidates.len() / 2);
        if out.is_empty() {
            return Vec::new();
        }
        let mut mask = vec![false; candidates.len()];
        for (_, index) in out {
            mask[index] = true;
        }
        mask
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(UNSEEN)
}

impl Conduct {
    fn is_ejected(&self, moment: u64) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > moment
    }
}

impl Backend {
    /// It could not be reached. Says so if that ejects it.
    pub fn failed(&self, now: Instant) -> Option<Ejection> {
        self.live.fail();
        self.held_back.failed(&self.live.conduct, now)
    }

    /// It was reached, or answered: whatever failures there were are forgiven.
    pub fn succeeded(&self) {
        let conduct = &self.live.conduct;
        // Nearly always there is nothing to forgive, and nothing that other threads read is written.
        if conduct.failures_in_row.load(Ordering::Relaxed) > 0 {
            conduct.failures_in_row.store(0, Ordering::Relaxed);
            conduct.ejections.store(0, Ordering::Relaxed);
            conduct.ejected_until.store(0, Ordering::Relaxed);
        }
    }

    /// Whether it has failed too often and its time is not over. It may serve all the same, see `held_back`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_for(now).is_some()
    }

    /// For how long it is still ejected.
    pub fn ejected_for(&self, now: Instant) -> Option<Duration> {
        let until = self.live.conduct.ejected_until.load(Ordering::Relaxed);
        if until == 0 {
            return None;
        }
        let left = until.checked_sub(self.held_back.moment(now))?;
        (left > 0).then(|| Duration::from_millis(left))
    }

    /// Whether it is new and its share of new flows still grows.
    pub fn is_warming(&self) -> bool {
        self.live.conduct.warming_since.load(Ordering::Relaxed) > 0
    }

    /// It joins others that served before it.
    pub(super) fn join(&self) {
        let conduct = &self.live.conduct;
        conduct.warming_since.store(UNSEEN, Ordering::Relaxed);
    }
}

/// Slow start over a candidate set: how much of its share each new backend gets.
#[derive(Clone, Copy, Debug)]
pub struct Warming<'a> {
    pub(super) held_back: &'a HeldBack,
    pub(super) length: Duration,
}

impl Warming<'_> {
    /// The part of its share that each candidate gets, from a tenth to 1; empty if all get all of it.
    pub fn shares(&self, candidates: &[Arc<Backend>], now: Instant) -> Vec<f64> {
        let moment = self.held_back.moment(now);
        let mut shares = Vec::new();
        for (index, backend) in candidates.iter().enumerate() {
            let share = self.share(&backend.live.conduct, moment);
            if share < 1.0 {
                shares.resize(candidates.len(), 1.0);
                shares[index] = share;
            }
        }
        shares
    }

    #[allow(clippy::cast_precision_loss, reason = "milliseconds below 2^53")]
    fn share(&self, conduct: &Conduct, moment: u64) -> f64 {
        let length = millis(self.length).max(1);
        let since = match conduct.warming_since.load(Ordering::Relaxed) {
            0 => return 1.0,
            UNSEEN => {
                conduct.warming_since.store(moment, Ordering::Relaxed);
                moment
            }
            since => since,
        };
        let grown = moment.saturating_sub(since);
        if grown >= length {
            self.warmed_up(conduct, since);
            return 1.0;
        }
        (grown as f64 / length as f64).max(FIRST_SHARE)
    }

    // Of threads that see it at the same moment one counts.
    fn warmed_up(&self, conduct: &Conduct, since: u64) {
        let was =
            conduct
                .warming_since
                .compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed);
        if was.is_ok() {
            let n = &self.held_back.n_warming;
            // A new route may have counted without it already.
            let _none_left =
                n.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testkit::{backends_ejected_after, start};

    fn at(ms: u64) -> Instant {
        start() + Duration::from_millis(ms)
    }

    /// Fails until it is ejected, and returns for how long.
    fn eject(backend: &Backend, now: Instant) -> Duration {
        (0..10)
            .find_map(|_| backend.failed(now))
            .map(|ejection| ejection.length)
            .unwrap()
    }

    #[test]
    fn so_many_failures_in_a_row_eject_and_a_success_starts_over() {
        let (held_back, backends) = backends_ejected_after(3, 4);
        let one = &backends[0];
        assert_eq!((one.failed(at(0)), one.failed(at(0))), (None, None));
        one.succeeded();
        assert_eq!((one.failed(at(1)), one.failed(at(1))), (None, None));
        assert!(!held_back.is_anybody(at(1)));
        let ejection = Ejection {
            failures: 3,
            length: Duration::from_secs(1),
        };
        assert_eq!(one.failed(at(1)), Some(ejection));
        assert!(one.is_ejected(at(1)));
        assert_eq!(
            held_back.ejected(&backends, at(1)),
            [true, false, false, false]
        );
        assert_eq!(one.live.failures_total(), 5);
    }

    #[test]
    fn an_ejection_ends_by_itself_and_the_next_is_twice_as_long_up_to_a_minute() {
        let (held_back, backends) = backends_ejected_after(2, 2);
        let mut now = 0;
        let mut lengths = vec![eject(&backends[0], at(now)).as_secs()];
        for _ in 0..8 {
            now += lengths.last().unwrap() * 1000;
            assert!(backends[0].is_ejected(at(now - 1)));
            assert!(!backends[0].is_ejected(at(now)), "its time is over");
            assert!(!held_back.is_anybody(at(now)));
            let again = backends[0].failed(at(now)).unwrap();
            lengths.push(again.length.as_secs());
        }
        assert_eq!(lengths, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        backends[0].succeeded();
        assert!(
            !backends[0].is_ejected(at(now)),
            "a success ends it at once"
        );
        assert_eq!(eject(&backends[0], at(now)), Duration::from_secs(1));
    }

    #[test]
    fn dials_that_were_on_their_way_do_not_prolong_it() {
        let (_, backends) = backends_ejected_after(1, 2);
        eject(&backends[0], at(0));
        assert_eq!(backends[0].failed(at(10)), None);
        assert!(!backends[0].is_ejected(at(1000)));
    }

    #[test]
    fn of_a_set_at_most_half_is_passed_over_those_ejected_first() {
        for (n, most) in [(1, 0), (2, 1), (3, 1), (5, 2)] {
            let (held_back, backends) = backends_ejected_after(1, n);
            for (ms, backend) in (0..).zip(&backends) {
                eject(backend, at(ms));
            }
            let wanted: Vec<bool> = (0..n).map(|i| i < most).collect();
            let mask = held_back.ejected(&backends, at(10));
            assert_eq!(mask, if most == 0 { Vec::new() } else { wanted });
        }
    }

    #[test]
    fn with_the_rule_off_nobody_is_ejected() {
        let (held_back, backends) = backends_ejected_after(0, 3);
        for _ in 0..100 {
            assert_eq!(backends[0].failed(at(0)), None);
        }
        assert!(!held_back.is_anybody(at(0)));
    }

    #[test]
    fn a_share_grows_evenly_from_a_tenth_and_begins_with_the_first_pick() {
        let (held_back, backends) = backends_ejected_after(3, 2);
        backends[1].join();
        held_back.count_warming(backends.iter());
        assert!(held_back.is_anybody(at(0)));
        let warming = Warming {
            held_back: &held_back,
            length: Duration::from_secs(10),
        };
        let share = |ms| warming.shares(&backends, at(ms)).get(1).copied();
        for (ms, wanted) in [
            (5_000, 0.1),
            (5_500, 0.1),
            (7_000, 0.2),
            (10_000, 0.5),
            (14_990, 0.999),
        ] {
            assert!((share(ms).unwrap() - wanted).abs() < 1e-9, "{ms} ms");
        }
        assert_eq!(share(15_000), None, "all get all of it");
        assert!(
            !held_back.is_anybody(at(15_000)),
            "and picks need not look any more"
        );
    }

    proptest! {
        /// Whatever fails and recovers when: never more than half is passed over, only ejected ones are, and the
        /// reference counts for itself who is ejected.
        #[test]
        fn it_agrees_with_a_plain_model(
            n in 1u8..8,
            steps in prop::collection::vec((0u64..3_000, any::<prop::sample::Index>(), any::<bool>()), 1..80),
        ) {
            let (held_back, backends) = backends_ejected_after(2, n);
            #[derive(Clone, Copy, Default)]
            struct Model { in_row: u32, ejections: u32, since: u64, until: u64 }
            let mut model = vec![Model::default(); usize::from(n)];
            let mut now = 0;
            // Sets the base of moments.
            held_back.moment(at(0));
            for (pause, which, fails) in steps {
                now += pause;
                let which = which.index(usize::from(n));
                let m = &mut model[which];
                if fails {
                    m.in_row += 1;
                    let ejects = m.in_row >= 2 && m.until <= now;
                    if ejects {
                        m.since = now;
                        m.until = now + 1000 * 2u64.pow(m.ejections).min(60);
                        m.ejections += 1;
                    }
                    prop_assert_eq!(backends[which].failed(at(now)).is_some(), ejects);
                } else {
                    *m = Model::default();
                    backends[which].succeeded();
                }
                let mut out: Vec<(u64, usize)> = model
                    .iter()
                    .enumerate()
                    .filter(|(_, m)| m.until > now)
                    .map(|(i, m)| (m.since, i))
                    .collect();
                prop_assert_eq!(out.iter().map(|(_, i)| *i).collect::<Vec<_>>(), {
                    let mut ejected: Vec<usize> = (0..model.len()).filter(|i| backends[*i].is_ejected(at(now))).collect();
                    ejected.sort_by_key(|i| out.iter().position(|(_, j)| i == j));
                    ejected
                });
                out.sort_unstable();
                out.truncate(usize::from(n) / 2);
                let mut mask = held_back.ejected(&backends, at(now));
                mask.resize(usize::from(n), false);
                let wanted: Vec<bool> = (0..model.len()).map(|i| out.iter().any(|(_, j)| *j == i)).collect();
                prop_assert_eq!(mask, wanted);
            }
        }
    }
}
