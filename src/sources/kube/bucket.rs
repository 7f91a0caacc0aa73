//! How often an API server may be asked: a token bucket with kube-proxy's numbers. Pure.

use std::time::{Duration, Instant};

/// Requests a second in the long run (`--kube-api-qps`).
const RATE: f64 = 5.0;
/// Requests at once after a rest (`--kube-api-burst`).
const BURST: f64 = 10.0;

/// The bucket. It may be overdrawn: whoever does so waits until it is even again, in the order of asking.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            filled_at: now,
        }
    }

    /// Takes a token, and says how long to wait before it may be used.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.filled_at);
        self.filled_at = now;
        self.tokens = (self.tokens + passed.as_secs_f64() * RATE).min(BURST) - 1.0;
        Duration::from_secs_f64((-self.tokens / RATE).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_the_rest_comes_at_the_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
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
        let mut bucket = Bucket::new(now);
        let later = now + Duration::from_secs(3600);
        for _ in 0..10 {
            assert_eq!(bucket.take(later), Duration::ZERO);
        }
        assert!(bucket.take(later) > Duration::ZERO);
    }
}
