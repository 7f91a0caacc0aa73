//! A report as text for people.

use crate::admin::TableView;
use crate::cli::get::align;
use crate::workload::load::{Percentiles, Report, picture};

/// The whole report.
pub(super) fn text(target: &str, report: &Report, bulk: bool) -> String {
    let mut text = format!(
        "{target} ({}) for {:.1} s\n\n",
        report.target, report.seconds
    );
    if bulk {
        text.push_str(&streams(report));
    } else {
        text.push_str(&requests(report));
    }
    for (kind, n) in &report.errors {
        text.push_str(&format!("  {kind:<12} {n}\n"));
    }
    if !report.backends.is_empty() {
        text.push('\n');
        text.push_str(&align(&backends(report), true));
    }
    text
}

fn streams(report: &Report) -> String {
    let speed = |bytes: u64| megabytes(per_second(bytes, report.seconds));
    format!(
        "sent      {} bytes, {} MB/s\nreceived  {} bytes, {} MB/s\nerrors    {}\n",
        report.bytes_sent,
        speed(report.bytes_sent),
        report.bytes_received,
        speed(report.bytes_received),
        report.n_errors()
    )
}

fn requests(report: &Report) -> String {
    let moments: Vec<f64> = report.moments.iter().map(|moment| moment.max).collect();
    format!(
        "sent      {}\ndone      {}, {:.1} a second\nlatency   {}\nlateness  {} (how late this generator was)\n\
         over time {} longest of each step, log scale up to {}\nerrors    {}\n",
        report.sent,
        report.done,
        report.rate,
        percentiles(&report.latency),
        percentiles(&report.lateness),
        picture(&moments),
        time(report.latency.max),
        report.n_errors()
    )
}

fn percentiles(times: &Percentiles) -> String {
    format!(
        "p50 {}  p90 {}  p99 {}  p99.9 {}  p99.99 {}  max {}  mean {}",
        time(times.p50),
        time(times.p90),
        time(times.p99),
        time(times.p99_9),
        time(times.p99_99),
        time(times.max),
        time(times.mean)
    )
}

fn backends(report: &Report) -> TableView {
    let columns = ["BACKEND", "DONE", "SHARE", "P50", "P99", "MAX"];
    let rows = report.backends.iter().map(|backend| {
        vec![
            backend.name.clone(),
            backend.done.to_string(),
            share(backend.done, report.done),
            time(backend.latency.p50),
            time(backend.latency.p99),
            time(backend.latency.max),
        ]
    });
    TableView {
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

/// Millions of bytes, with one decimal.
#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a figure for people"
)]
fn per_second(n: u64, seconds: f64) -> u64 {
    if seconds > 0.0 {
        (n as f64 / seconds) as u64
    } else {
        0
    }
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn share(part: u64, whole: u64) -> String {
    format!("{:.1}%", 100.0 * part as f64 / whole.max(1) as f64)
}

// Three digits that matter, in the unit that fits.
fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "µs"),
    };
    let decimals = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (seconds, text) in [
            (0.0, "0.00 µs"),
            (0.000_012_34, "12.3 µs"),
            (0.000_999_6, "1000 µs"),
            (0.001, "1.00 ms"),
            (0.0999, "99.9 ms"),
            (0.5, "500 ms"),
            (1.0, "1.00 s"),
            (75.0, "75.0 s"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn shares_and_speeds_stand_without_a_whole() {
        assert_eq!(share(1, 3), "33.3%");
        assert_eq!(share(0, 0), "0.0%");
        assert_eq!(per_second(10, 0.0), 0);
        assert_eq!(megabytes(per_second(5_000_000, 2.0)), "2.5");
    }
}
