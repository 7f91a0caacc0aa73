//! When each request is due: a function of its number, so that nothing that happens on the way moves a later one. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Requests a second: constant, or changing evenly from one to the other over the whole time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    from: f64,
    to: f64,
}

/// A text that is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no rate; write requests a second as 1000, or a ramp as 100..10000, each above 0 and up to 10000000"
)]
pub struct InvalidRate(String);

/// The highest rate that is taken: a hundred times what one core can send.
const MAX_RATE: f64 = 10_000_000.0;

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| {
            let number: f64 = text.trim().parse().ok()?;
            (number > 0.0 && number <= MAX_RATE).then_some(number)
        };
        match (number(from), number(to)) {
            (Some(from), Some(to)) => Ok(Self { from, to }),
            _ => Err(InvalidRate(text.to_owned())),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.from)?;
        if self.from < self.to || self.to < self.from {
            write!(f, "..{}", self.to)?;
        }
        Ok(())
    }
}

/// The requests that one of several generator threads sends: every `stride`th, beginning with number `next`.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    rate: Rate,
    length: Duration,
    next: u64,
    stride: u64,
}

/// One request: its number among all threads' and when it is due, counted from the start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Due {
    pub(super) number: u64,
    pub(super) after: Duration,
}

impl Schedule {
    /// What thread `index` of `threads` sends within `length`.
    pub(super) fn new(rate: Rate, length: Duration, index: u64, threads: u64) -> Self {
        Self {
            rate,
            length,
            next: index,
            stride: threads.max(1),
        }
    }
}

impl Iterator for Schedule {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        let number = self.next;
        let after = due_after(self.rate, self.length, number);
        if after >= self.length {
            return None;
        }
        self.next += self.stride;
        Some(Due { number, after })
    }
}

// Under a rate that goes evenly from `a` to `b` within `T`, at + (b-a)t²/2T requests are due by t; solved for t, in the
// form that does not cancel.
#[allow(
    clippy::cast_precision_loss,
    reason = "2^53 requests take 28 years at the highest rate"
)]
fn due_after(rate: Rate, length: Duration, number: u64) -> Duration {
    let Rate { from, to } = rate;
    let n = number as f64;
    let under_root = from * from + 2.0 * (to - from) * n / length.as_secs_f64();
    // Negative: a falling ramp ends before that many are due.
    if under_root < 0.0 {
        return Duration::MAX;
    }
    Duration::try_from_secs_f64(2.0 * n / (from + under_root.sqrt())).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    fn all(rate_text: &str, seconds: u64) -> Vec<Due> {
        Schedule::new(rate(rate_text), Duration::from_secs(seconds), 0, 1).collect()
    }

    #[test]
    fn a_constant_rate_is_evenly_spaced_and_exact_in_number() {
        let due = all("1000", 2);
        assert_eq!(due.len(), 2000);
        assert_eq!(due[0].after, Duration::ZERO);
        for (number, due) in due.iter().enumerate() {
            let wanted = Duration::from_millis(number as u64);
            assert!(
                due.after.abs_diff(wanted) < Duration::from_nanos(10),
                "{due:?}"
            );
        }
    }

    #[test]
    fn a_rate_below_one_a_second_is_one() {
        let due: Vec<Duration> = all("0.5", 5).iter().map(|due| due.after).collect();
        assert_eq!(due, [0, 2, 4].map(Duration::from_secs));
    }

    #[test]
    fn a_ramp_sends_the_mean_of_its_ends_and_most_at_the_high_one() {
        for (text, first_half) in [("100..300", 1500), ("300..100", 2500)] {
            let due = all(text, 20);
            assert!(due.len().abs_diff(4000) <= 1, "{}", due.len());
            let early = due.iter().filter(|due| due.after < Duration::from_secs(10));
            assert!(early.count().abs_diff(first_half) <= 1, "{text}");
            assert!(due.windows(2).all(|pair| pair[0].after < pair[1].after));
        }
    }

    #[test]
    fn threads_share_the_requests_without_overlap() {
        let one = all("777", 1);
        let mut shared: Vec<Due> = (0..3)
            .flat_map(|index| Schedule::new(rate("777"), Duration::from_secs(1), index, 3))
            .collect();
        shared.sort_by_key(|due| due.number);
        assert_eq!(shared, one);
    }

    #[test]
    fn what_is_no_rate_is_told() {
        for text in [
            "0", "-1", "", "fast", "1..", "..5", "0..10", "10000001", "NaN", "inf", "1..2..3",
        ] {
            assert_eq!(
                text.parse::<Rate>(),
                Err(InvalidRate(text.to_owned())),
                "{text}"
            );
        }
        for text in ["1000", "0.5", "100..10000", "10000000"] {
            assert_eq!(rate(text).to_string(), text);
        }
    }
}
