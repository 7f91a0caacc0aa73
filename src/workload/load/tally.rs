//! What became of requests: counts and histograms, one tally per generator thread, added up at the end. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::histogram::Latencies;

/// Backends that are told apart; what further ones answer is counted under [`OTHERS`].
const MAX_BACKENDS: usize = 1024;

/// The name under which backends past the bound are counted.
const OTHERS: &str = "(others)";

/// Columns of the picture over time.
pub(super) const MOMENTS: usize = 60;

/// Why a request brought no good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(super) enum Failure {
    /// Nobody listens there.
    #[error("refused")]
    Refused,
    /// No connection for another reason.
    #[error("unreachable")]
    Unreachable,
    /// The other side broke off with RST.
    #[error("reset")]
    Reset,
    /// The other side ended the connection before its answer.
    #[error("closed")]
    Closed,
    /// No answer in time.
    #[error("timeout")]
    Timeout,
    /// The answer is not the one to this request.
    #[error("mismatch")]
    Mismatch,
    /// An HTTP status of 400 or more, or a DNS answer that is an error.
    #[error("status")]
    Status,
    /// We are out of descriptors or local ports.
    #[error("shortage")]
    Shortage,
    /// Due, but never sent: too many were waiting for a connection already, or the end came first.
    #[error("unsent")]
    Unsent,
}

/// A request that has been dealt with. Times are counted from the start of the run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finished<'a> {
    /// When it was due.
    pub(super) due: Duration,
    /// When it was begun; `None` if it never was.
    pub(super) begun: Option<Duration>,
    /// When it was over.
    pub(super) over: Duration,
    /// How it went; with the name of the backend, where that is known.
    pub(super) outcome: Result<Option<&'a str>, Failure>,
}

/// The counts of one thread, or of all together.
#[derive(Debug)]
pub(super) struct Tally {
    warm_up: Duration,
    moment: Duration,
    pub(super) sent: u64,
    pub(super) done: u64,
    pub(super) failures: BTreeMap<Failure, u64>,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    /// From due to over.
    pub(super) latency: Latencies,
    /// From due to begun: how late we are ourselves.
    pub(super) lateness: Latencies,
    pub(super) backends: BTreeMap<String, Latencies>,
    /// Latency by when a request was due.
    pub(super) moments: Vec<Latencies>,
}

impl Tally {
    /// Counts what is due after `warm_up`, for `length`.
    pub(super) fn new(warm_up: Duration, length: Duration) -> Self {
        Self {
            warm_up,
            moment: length / u32::try_from(MOMENTS).unwrap_or(u32::MAX),
            sent: 0,
            done: 0,
            failures: BTreeMap::new(),
            bytes_sent: 0,
            bytes_received: 0,
            latency: Latencies::exact(),
            lateness: Latencies::exact(),
            backends: BTreeMap::new(),
            moments: (0..MOMENTS).map(|_| Latencies::rough()).collect(),
        }
    }

    /// Whether a request that was due then is counted.
    pub(super) fn is_measured(&self, due: Duration) -> bool {
        due >= self.warm_up
    }

    /// The length of one step of [`Self::moments`].
    pub(super) fn moment(&self) -> Duration {
        self.moment
    }

    /// Counts one request; one that was due during the warm-up leaves no trace.
    pub(super) fn count(&mut self, finished: Finished<'_>) {
        let Some(since) = finished.due.checked_sub(self.warm_up) else {
            return;
        };
        if let Some(begun) = finished.begun {
            self.sent += 1;
            self.lateness.record(begun.saturating_sub(finished.due));
        }
        let latency = finished.over.saturating_sub(finished.due);
        match finished.outcome {
            Ok(backend) => {
                self.done += 1;
                self.latency.record(latency);
                self.count_moment(since, latency);
                if let Some(name) = backend {
                    self.backend(name).record(latency);
                }
            }
            Err(failure) => *self.failures.entry(failure).or_default() += 1,
        }
    }

    fn count_moment(&mut self, since: Duration, latency: Duration) {
        let column = since.as_nanos() / self.moment.as_nanos().max(1);
        let last = self.moments.len() - 1;
        let column = usize::try_from(column).unwrap_or(last).min(last);
        self.moments[column].record(latency);
    }

    // Names are looked up by reference first: a new one is rare.
    fn backend(&mut self, name: &str) -> &mut Latencies {
        let known = self.backends.contains_key(name);
        let name = if known || self.backends.len() < MAX_BACKENDS {
            name
        } else {
            OTHERS
        };
        if !self.backends.contains_key(name) {
            self.backends.insert(name.to_owned(), Latencies::coarse());
        }
        self.backends
            .get_mut(name)
            .expect("it has been put in just now")
    }

    /// Adds what another thread counted in the same run.
    pub(super) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.done += other.done;
        for (failure, n) in &other.failures {
            *self.failures.entry(*failure).or_default() += n;
        }
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.latency.add(&other.latency);
        self.lateness.add(&other.lateness);
        for (name, latencies) in &other.backends {
            self.backend(name).add(latencies);
        }
        for (mine, theirs) in self.moments.iter_mut().zip(&other.moments) {
            mine.add(theirs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn done(due: u64, over: u64, backend: Option<&str>) -> Finished<'_> {
        Finished {
            due: ms(due),
            begun: Some(ms(due + 1)),
            over: ms(over),
            outcome: Ok(backend),
        }
    }

    #[test]
    fn latency_counts_from_when_a_request_was_due() {
        let mut tally = Tally::new(Duration::ZERO, ms(1000));
        tally.count(done(100, 105, None));
        assert_eq!(tally.latency.max(), ms(5));
        assert_eq!(tally.lateness.max(), ms(1));
        assert_eq!((tally.sent, tally.done), (1, 1));
    }

    #[test]
    fn what_was_due_during_the_warm_up_leaves_no_trace() {
        let mut tally = Tally::new(ms(10), ms(1000));
        tally.count(done(9, 2000, Some("a")));
        assert_eq!((tally.sent, tally.done), (0, 0));
        tally.count(done(10, 11, Some("a")));
        assert_eq!((tally.sent, tally.done), (1, 1));
        assert_eq!(tally.latency.max(), ms(1));
    }

    #[test]
    fn a_failure_is_sent_but_not_done_and_one_never_begun_is_neither() {
        let mut tally = Tally::new(Duration::ZERO, ms(1000));
        tally.count(Finished {
            outcome: Err(Failure::Reset),
            ..done(1, 2, None)
        });
        tally.count(Finished {
            begun: None,
            outcome: Err(Failure::Unsent),
            ..done(1, 2, None)
        });
        assert_eq!((tally.sent, tally.done, tally.latency.count()), (1, 0, 0));
        let failures: Vec<_> = tally.failures.into_iter().collect();
        assert_eq!(failures, [(Failure::Reset, 1), (Failure::Unsent, 1)]);
    }

    #[test]
    fn backends_past_the_bound_are_counted_together() {
        let mut tally = Tally::new(Duration::ZERO, ms(1000));
        for n in 0..MAX_BACKENDS + 5 {
            tally.count(done(1, 2, Some(&format!("pod-{n}"))));
        }
        assert_eq!(tally.backends.len(), MAX_BACKENDS + 1);
        assert_eq!(tally.backends[OTHERS].count(), 5);
    }

    #[test]
    fn two_threads_add_up() {
        let mut all = Tally::new(Duration::ZERO, ms(600));
        let mut other = Tally::new(Duration::ZERO, ms(600));
        all.count(done(1, 2, Some("a")));
        other.count(done(595, 700, Some("a")));
        other.count(done(595, 602, Some("b")));
        all.add(&other);
        assert_eq!((all.sent, all.done), (3, 3));
        assert_eq!(all.backends["a"].count(), 2);
        assert_eq!(all.moments[0].count(), 1);
        assert_eq!(all.moments[MOMENTS - 1].count(), 2);
        assert_eq!(all.latency.max(), ms(105));
    }
}
