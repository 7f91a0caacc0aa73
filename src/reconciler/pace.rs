//! When the kernel is written to. Pure: the clock is an argument, and it says when to ask again.
//!
//! A change that comes alone is written at once; those that come within [`GATHER`] of a write are written together, and an
//! interval that the operator gave is kept between writes. A write that failed is tried again, waiting longer
//! each time but never longer than the sync period; and once per sync period everything is checked.

use std::time::{Duration, Instant};

/// How long after a write changes are gathered for the next. A burst becomes two transactions, and nobody notices 10 ms.
pub(super) const GATHER: Duration = Duration::from_millis(10);

/// The first wait after a failed write; each further one doubles it.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// Decides when the next write and the next check are due. One per family.
#[derive(Debug)]
pub(super) struct Pace {
    sync_period: Duration,
    min_period: Duration,
    last_write: Option<Instant>,
    write_at: Option<Instant>,
    retry: Duration,
    check_at: Instant,
}

impl Pace {
    pub(super) fn new(sync_period: Duration, now: Instant) -> Self {
        Self {
            sync_period,
            min_period: Duration::ZERO,
            last_write: None,
            write_at: None,
            retry: FIRST_RETRY,
            check_at: now + sync_period,
        }
    }

    /// At least so much time lies between two writes from now on.
    pub(super) fn set_min_period(&mut self, min_period: Duration) {
        self.min_period = min_period;
    }

    /// Something changed that the kernel must learn.
    pub(super) fn changed(&mut self, now: Instant) {
        let interval = self.min_period.max(GATHER);
        let earliest = self.last_write.map(|last| last + interval);
        let due = now.max(earliest.unwrap_or(now));
        self.write_at = Some(self.write_at.map_or(due, |at| at.min(due)));
    }

    /// A write was tried.
    pub(super) fn written(&mut self, now: Instant, success: bool) {
        self.last_write = Some(now);
        if success {
            self.write_at = None;
            self.retry = FIRST_RETRY;
            self.check_at = now + self.sync_period;
        } else {
            self.write_at = Some(now + self.retry.min(self.sync_period));
            self.retry = (self.retry * 2).min(self.sync_period);
        }
    }

    /// A check was made.
    pub(super) fn checked(&mut self, now: Instant) {
        self.check_at = now + self.sync_period;
    }

    /// Whether a write is due.
    pub(super) fn write_due(&self, now: Instant) -> bool {
        self.write_at.is_some_and(|at| at <= now)
    }

    /// Whether a check is due. A pending write makes it needless.
    pub(super) fn check_due(&self, now: Instant) -> bool {
        self.write_at.is_none() && self.check_at <= now
    }

    /// Whether a write is waiting, due or not.
    pub(super) fn is_waiting(&self) -> bool {
        self.write_at.is_some()
    }

    /// When to ask again.
    pub(super) fn next(&self) -> Instant {
        self.write_at.unwrap_or(self.check_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    #[test]
    fn a_change_alone_is_written_at_once_and_those_that_follow_are_gathered() {
        let start = Instant::now();
        let mut pace = Pace::new(PERIOD, start);
        pace.changed(start);
        assert!(pace.write_due(start));
        pace.written(start, true);
        let (soon, later) = (Duration::from_millis(1), Duration::from_millis(9));
        pace.changed(start + soon);
        pace.changed(start + later);
        assert!(!pace.write_due(start + later));
        assert!(
            pace.write_due(start + GATHER),
            "the first is not delayed by later ones"
        );
        pace.written(start + GATHER, true);
        assert!(!pace.is_waiting());
        assert_eq!(pace.next(), start + GATHER + PERIOD);
        pace.changed(start + GATHER * 2);
        assert!(pace.write_due(start + GATHER * 2));
    }

    #[test]
    fn an_interval_that_was_asked_for_is_kept_between_writes() {
        let start = Instant::now();
        let mut pace = Pace::new(PERIOD, start);
        pace.set_min_period(Duration::from_secs(1));
        pace.changed(start);
        assert_eq!(pace.next(), start, "nothing was written yet");
        let written = start;
        pace.written(written, true);
        pace.changed(written + GATHER);
        assert_eq!(pace.next(), written + Duration::from_secs(1));
        pace.written(pace.next(), true);
        let later = written + Duration::from_secs(9);
        pace.changed(later);
        assert_eq!(pace.next(), later);
    }

    #[test]
    fn failed_writes_wait_longer_each_time_up_to_the_sync_period() {
        let mut now = Instant::now();
        let mut pace = Pace::new(PERIOD, now);
        let mut waits = Vec::new();
        for _ in 0..9 {
            pace.written(now, false);
            waits.push(pace.next() - now);
            now = pace.next();
            assert!(pace.write_due(now) && !pace.check_due(now));
        }
        assert_eq!(waits[..3], [FIRST_RETRY, FIRST_RETRY * 2, FIRST_RETRY * 4]);
        assert_eq!(waits[8], PERIOD);
        pace.written(now, true);
        pace.written(now, false);
        assert_eq!(pace.next() - now, FIRST_RETRY, "a success resets the wait");
    }

    #[test]
    fn a_check_is_due_once_per_period() {
        let start = Instant::now();
        let mut pace = Pace::new(PERIOD, start);
        assert!(!pace.check_due(start + PERIOD - Duration::from_nanos(1)));
        assert!(pace.check_due(start + PERIOD));
        pace.checked(start + PERIOD);
        assert!(!pace.check_due(start + PERIOD));
    }
}
