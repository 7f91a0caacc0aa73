//! The outcome of a load as data: what `viaduct load` prints and programs read. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use super::histogram::{Latencies, hgrm};
use super::tally::Tally;

/// What became of a load. Times are in seconds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Where it went.
    pub target: SocketAddr,
    /// For how long requests were counted.
    pub seconds: f64,
    /// Requests begun.
    pub sent: u64,
    /// Requests answered as they should be.
    pub done: u64,
    /// Requests that were not, by kind; `unsent` are those that were due and never begun.
    pub errors: BTreeMap<String, u64>,
    /// Answered requests a second.
    pub rate: f64,
    /// Bytes sent with answered requests, or by bulk streams.
    pub bytes_sent: u64,
    /// Bytes received in answers, or by bulk streams.
    pub bytes_received: u64,
    /// From when a request was due to its answer.
    pub latency: Percentiles,
    /// From when a request was due to when it was begun.
    pub lateness: Percentiles,
    /// Who answered, where they said so; the busiest first.
    pub backends: Vec<BackendReport>,
    /// The latency over time, in sixty steps.
    pub moments: Vec<Moment>,
    /// The distribution of the latency in HdrHistogram's text format.
    #[serde(skip)]
    pub hgrm: String,
}

/// A distribution of times in seconds; all zero without any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The mean.
    pub mean: f64,
    /// Half are at most this long.
    pub p50: f64,
    /// 90 of 100.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    #[serde(rename = "p99.9")]
    pub p99_9: f64,
    /// 9,999 of 10,000.
    #[serde(rename = "p99.99")]
    pub p99_99: f64,
    /// The longest.
    pub max: f64,
}

/// What one backend answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendReport {
    /// The name by which it answers.
    pub name: String,
    /// Requests it answered.
    pub done: u64,
    /// How long they took.
    pub latency: Percentiles,
}

/// One step of the picture over time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Moment {
    /// When it begins, in seconds.
    pub at: f64,
    /// Requests that were due in it and answered.
    pub done: u64,
    /// How long half of them took at most.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Percentiles {
    fn of(latencies: &Latencies) -> Self {
        let at = |percent| latencies.percentile(percent).as_secs_f64();
        Self {
            mean: latencies.mean().as_secs_f64(),
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p99_9: at(99.9),
            p99_99: at(99.99),
            max: latencies.max().as_secs_f64(),
        }
    }
}

impl Report {
    /// What was counted within `measured`.
    #[allow(clippy::cast_precision_loss, reason = "figures for people")]
    pub(super) fn new(target: SocketAddr, measured: Duration, tally: &Tally) -> Self {
        let seconds = measured.as_secs_f64();
        let errors = tally
            .failures
            .iter()
            .map(|(kind, n)| (kind.to_string(), *n));
        let mut backends: Vec<BackendReport> = tally
            .backends
            .iter()
            .map(|(name, latencies)| BackendReport {
                name: name.clone(),
                done: latencies.count(),
                latency: Percentiles::of(latencies),
            })
            .collect();
        backends.sort_by(|a, b| b.done.cmp(&a.done).then_with(|| a.name.cmp(&b.name)));
        let step = tally.moment().as_secs_f64();
        let moments = tally
            .moments
            .iter()
            .enumerate()
            .map(|(i, latencies)| Moment {
                at: step * i as f64,
                done: latencies.count(),
                p50: latencies.percentile(50.0).as_secs_f64(),
                p99: latencies.percentile(99.0).as_secs_f64(),
                max: latencies.max().as_secs_f64(),
            });
        Self {
            target,
            seconds,
            sent: tally.sent,
            done: tally.done,
            errors: errors.collect(),
            rate: if seconds > 0.0 {
                tally.done as f64 / seconds
            } else {
                0.0
            },
            bytes_sent: tally.bytes_sent,
            bytes_received: tally.bytes_received,
            latency: Percentiles::of(&tally.latency),
            lateness: Percentiles::of(&tally.lateness),
            backends,
            moments: moments.collect(),
            hgrm: hgrm(&tally.latency),
        }
    }

    /// Requests without a good answer, of every kind.
    pub fn n_errors(&self) -> u64 {
        self.errors.values().sum()
    }
}
