//! Latency histograms with a bound on memory, and the text format that HdrHistogram's plotters read. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Longer latencies are counted as this: an hour.
const HIGHEST_NS: u64 = 3_600_000_000_000;

/// Durations by how often they occurred, and the longest exactly. Its memory does not grow.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    histogram: Histogram<u64>,
    max: Duration,
}

impl Latencies {
    /// To 0.1 %; some 250 KB.
    pub(super) fn exact() -> Self {
        Self::with_digits(3)
    }

    /// To 1 %; some 35 KB.
    pub(super) fn coarse() -> Self {
        Self::with_digits(2)
    }

    /// To 10 %; some 5 KB.
    pub(super) fn rough() -> Self {
        Self::with_digits(1)
    }

    fn with_digits(digits: u8) -> Self {
        Self {
            histogram: Histogram::new_with_max(HIGHEST_NS, digits)
                .expect("a range above 2 and digits from 0 to 5"),
            max: Duration::ZERO,
        }
    }

    /// Counts one.
    pub(super) fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(HIGHEST_NS);
        self.histogram.saturating_record(ns.clamp(1, HIGHEST_NS));
        self.max = self.max.max(latency);
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The longest; zero without any.
    pub(super) fn max(&self) -> Duration {
        self.max
    }

    /// That many of a hundred are at most this long; zero without any.
    pub(super) fn percentile(&self, percent: f64) -> Duration {
        Duration::from_nanos(self.histogram.value_at_percentile(percent)).min(self.max)
    }

    /// The mean; zero without any.
    pub(super) fn mean(&self) -> Duration {
        Duration::try_from_secs_f64(self.histogram.mean() / 1e9).unwrap_or_default()
    }

    /// Adds those of another one.
    pub(super) fn add(&mut self, other: &Self) {
        self.histogram
            .add(&other.histogram)
            .expect("both have the same range");
        self.max = self.max.max(other.max);
    }
}

/// The distribution as HdrHistogram's plotters read it (`.hgrm`), in milliseconds.
///
/// Source: HdrHistogram, `outputPercentileDistribution`.
pub(super) fn hgrm(latencies: &Latencies) -> String {
    let histogram = &latencies.histogram;
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut total = 0;
    for step in histogram.iter_quantiles(5) {
        total += step.count_since_last_iteration();
        let value = milliseconds(step.value_iterated_to().min(histogram.max()));
        let quantile = step.quantile_iterated_to();
        // Writing to a string cannot fail.
        let _written = if quantile < 1.0 {
            let inverse = 1.0 / (1.0 - quantile);
            writeln!(
                text,
                "{value:>12.3} {quantile:2.12} {total:>10} {inverse:>14.2}"
            )
        } else {
            writeln!(text, "{value:>12.3} {quantile:2.12} {total:>10}")
        };
    }
    let _written = write!(
        text,
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]\n\
         #[Max     = {:>12.3}, Total count    = {:>12}]\n\
         #[Buckets = {:>12}, SubBuckets     = {:>12}]\n",
        histogram.mean() / 1e6,
        histogram.stdev() / 1e6,
        milliseconds(histogram.max()),
        histogram.len(),
        histogram.buckets(),
        2048
    );
    text
}

#[allow(
    clippy::cast_precision_loss,
    reason = "an hour in nanoseconds fits in 52 bits"
)]
fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upto(n: u64) -> Latencies {
        let mut latencies = Latencies::exact();
        (1..=n).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        latencies
    }

    #[test]
    fn percentiles_are_exact_to_a_thousandth() {
        let latencies = upto(1000);
        for (percent, ms) in [(50.0, 500), (99.0, 990), (99.5, 995), (100.0, 1000)] {
            let wanted = Duration::from_millis(ms);
            let error = latencies.percentile(percent).abs_diff(wanted);
            assert!(error <= wanted / 1000, "p{percent}: {error:?}");
        }
        assert_eq!(latencies.max(), Duration::from_millis(1000));
        assert!(
            latencies.mean().abs_diff(Duration::from_micros(500_500)) < Duration::from_millis(1)
        );
    }

    #[test]
    fn what_is_longer_than_the_bound_is_counted_at_it() {
        let mut latencies = Latencies::coarse();
        latencies.record(Duration::MAX);
        latencies.record(Duration::ZERO);
        assert_eq!(latencies.count(), 2);
        assert_eq!(latencies.max(), Duration::MAX);
        let p99 = latencies.percentile(99.0);
        assert!(p99.abs_diff(Duration::from_nanos(HIGHEST_NS)) < Duration::from_secs(36));
    }

    #[test]
    fn an_empty_one_is_zero_everywhere() {
        let empty = Latencies::exact();
        assert_eq!(
            (empty.max(), empty.mean()),
            (Duration::ZERO, Duration::ZERO)
        );
        assert_eq!(empty.percentile(99.0), Duration::ZERO);
    }

    #[test]
    fn the_distribution_counts_everything_and_ends_at_one() {
        let text = hgrm(&upto(1000));
        let rows: Vec<Vec<&str>> = text
            .lines()
            .skip(2)
            .take_while(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().collect())
            .collect();
        let last = rows.last().unwrap();
        assert_eq!(last[1..], ["1.000000000000", "1000"]);
        let half = rows.iter().find(|row| row[1] == "0.500000000000").unwrap();
        assert!(half[0].starts_with("500."), "{half:?}");
        assert_eq!(half[2..], ["500", "2.00"]);
        assert!(text.contains("Total count    =         1000]"), "{text}");
    }
}
