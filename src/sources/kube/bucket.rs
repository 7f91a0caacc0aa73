//! How often an API server may be asked: a token bucket. Pure.

use std::time::{Duration, Instant};

/// How often the API servers are asked, all of them together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Requests a second in the long run (`--kube-api-qps`); finite and above 0.
    pub per_second: f64,
    /// Requests at once after a rest (`--kube-api-burst`); above 0.
    pub burst: u32,
}

impl Default for Rate {
    /// kube-proxy's.
    fn default() -> Self {
        Self {
            per_second: 5.0,
            burst: 10,
        }
    }
}

/// The bucket. It may be overdrawn: whoever does so waits until it is even again, in the order of asking.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            tokens: f64::from(rate.burst),
            filled_at: now,
        }
    }

    /// Takes a token, and says how long to wait before it may be used.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        let Rate { per_second, burst } = self.rate;
        let passed = now.saturating_duration_since(self.filled_at);
        self.filled_at = now;
        let filled = self.tokens + passed.as_secs_f64() * per_second;
        self.tokens = filled.min(f64::from(burst)) - 1.0;
        // A rate next to nothing makes a wait that no duration can hold.
        Duration::try_from_secs_f64((-self.tokens / per_second).max(0.0)).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_the_rest_comes_at_the_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Rate::default(), now);
        for _ in 0..10 {
            assert_eq!(bucket.take(now), Duration::ZERO);
        }
        assert_eq!(bucket.take(now), Duration::from_millis(200));
        assert_eq!(bucket.take(now), Duration::from_millis(400));
        let later = now + Duration::from_secs(1);
        assert_eq!(bucket.take(later), Duration::ZERO);
    }

    #[test]
    fn a_long_rest_saves_no_more_than_the_burst() {
        let now = Instant::now();
        let rate = Rate {
            per_second: 100.0,
            burst: 3,
        };
        let mut bucket = Bucket::new(rate, now);
        let later = now + Duration::from_secs(3600);
        for _ in 0..3 {
            assert_eq!(bucket.take(later), Duration::ZERO);
        }
        assert_eq!(bucket.take(later), Duration::from_millis(10));
    }

    #[test]
    fn a_rate_next_to_nothing_waits_for_ever() {
        let now = Instant::now();
        let rate = Rate {
            per_second: f64::MIN_POSITIVE,
            burst: 1,
        };
        let mut bucket = Bucket::new(rate, now);
        assert_eq!(bucket.take(now), Duration::ZERO);
        assert_eq!(bucket.take(now), Duration::MAX);
    }
}
