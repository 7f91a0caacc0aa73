//! When to try again: doubling waits with jitter. Pure.

use std::time::{Duration, Instant};

/// The waits of one task. They start anew when nothing has failed for twice the longest wait, so that a server that
/// answers every other request is not asked the faster for it.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    failed_at: Option<Instant>,
}

impl Backoff {
    /// Nothing has failed yet.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
            failed_at: None,
        }
    }

    /// Forgets the failures so far: what failed last is over.
    pub(super) fn begin_anew(&mut self) {
        self.next = self.first;
    }

    /// How long to wait after a failure at `now`: between half and all of the current wait, as `random` (0 to 1) says,
    /// so that the nodes of a cluster do not come back all at once.
    pub(super) fn failed(&mut self, now: Instant, random: f64) -> Duration {
        let quiet = 2 * self.longest;
        if self
            .failed_at
            .is_some_and(|at| now.duration_since(at) > quiet)
        {
            self.next = self.first;
        }
        self.failed_at = Some(now);
        let wait = self.next.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        self.next = (self.next * 2).min(self.longest);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_millis(500), Duration::from_secs(30))
    }

    #[test]
    fn begun_anew_it_waits_as_at_first() {
        let (mut backoff, now) = (backoff(), Instant::now());
        for _ in 0..10 {
            backoff.failed(now, 1.0);
        }
        assert_eq!(backoff.failed(now, 1.0), Duration::from_secs(30));
        backoff.begin_anew();
        assert_eq!(backoff.failed(now, 1.0), Duration::from_millis(500));
        assert_eq!(backoff.failed(now, 1.0), Duration::from_secs(1));
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let (mut backoff, now) = (backoff(), Instant::now());
        let waits: Vec<u128> = (0..9)
            .map(|_| backoff.failed(now, 1.0).as_millis())
            .collect();
        assert_eq!(
            waits,
            [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]
        );
    }

    #[test]
    fn jitter_takes_up_to_half() {
        let now = Instant::now();
        assert_eq!(backoff().failed(now, 0.0), Duration::from_millis(250));
        assert_eq!(backoff().failed(now, 0.5), Duration::from_millis(375));
        assert_eq!(backoff().failed(now, 7.0), Duration::from_millis(500));
    }

    #[test]
    fn only_a_long_quiet_time_starts_anew() {
        let (mut backoff, now) = (backoff(), Instant::now());
        backoff.failed(now, 1.0);
        let quiet = Duration::from_secs(60);
        assert_eq!(backoff.failed(now + quiet, 1.0), Duration::from_secs(1));
        let later = now + 2 * quiet + Duration::from_millis(1);
        assert_eq!(backoff.failed(later, 1.0), Duration::from_millis(500));
    }
}
