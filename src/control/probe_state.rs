//! When a container is probed, and what the answers come to: the counters of one container's startup and readiness probe.
//!
//! A state machine without a clock or a socket: `next` says what is due, `on_outcome` takes what came of it. Whoever runs
//! the probes (`sources::prober`) keeps one per container. Source: the kubelet's `prober.worker`.

use std::time::{Duration, Instant};

/// How often a malfunctioning probe is tried before its result is thrown away; the kubelet's `maxProbeRetries`.
const MAX_TRIES: u8 = 3;

/// When a probe runs, and how many results in a row decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The container's uptime before which nothing is probed.
    pub initial_delay: Duration,
    /// From one probe to the next; at least a second.
    pub period: Duration,
    /// Successes in a row that decide; at least 1.
    pub success_threshold: u32,
    /// Failures in a row that decide; at least 1.
    pub failure_threshold: u32,
}

/// Which probe of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// Has it started? Until then there is no other probe.
    Startup,
    /// May it have traffic?
    Readiness,
}

impl ProbeKind {
    /// The kind as a word, for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Readiness => "readiness",
        }
    }
}

/// What came of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The container answered well.
    Success,
    /// It did not, or not in time.
    Failure,
    /// The probe itself could not be run, so nothing is known.
    Unknown,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Probe now, and tell `on_outcome`.
    Probe(ProbeKind),
    /// Ask again then.
    WaitUntil(Instant),
    /// Nothing will be probed any more.
    Done,
}

/// What is known of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// No threshold has been met yet: not ready.
    Undecided,
    /// Ready.
    Ready,
    /// Not ready.
    NotReady,
}

/// The probes of one container since it started. A restart is a new state.
#[derive(Clone, Debug)]
pub struct ProbeState {
    begun: Instant,
    uptime_then: Duration,
    terminating: bool,
    startup: Option<Run>,
    readiness: Option<Run>,
}

/// One probe's schedule and counters.
#[derive(Clone, Debug)]
struct Run {
    timing: Timing,
    /// The next tick.
    due: Instant,
    tries: u8,
    last: Option<bool>,
    in_a_row: u32,
    decided: Option<bool>,
}

impl ProbeState {
    /// A container that has been up for `uptime` at `first`, when its first probe is due.
    pub fn new(
        startup: Option<Timing>,
        readiness: Option<Timing>,
        first: Instant,
        uptime: Duration,
    ) -> Self {
        let run = |timing| Run {
            timing,
            due: first,
            tries: 0,
            last: None,
            in_a_row: 0,
            decided: None,
        };
        Self {
            begun: first,
            uptime_then: uptime,
            terminating: false,
            startup: startup.map(run),
            readiness: readiness.map(run),
        }
    }

    /// Deletion of the Pod has begun: readiness is probed on, a startup probe ends.
    pub fn terminate(&mut self) {
        self.terminating = true;
    }

    /// What is due. Ticks before `initial_delay` is over pass without a probe.
    pub fn next(&mut self, now: Instant) -> Step {
        let Some(kind) = self.current() else {
            return Step::Done;
        };
        let (begun, uptime_then) = (self.begun, self.uptime_then);
        let run = match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Readiness => &mut self.readiness,
        };
        let Some(run) = run else {
            return Step::Done;
        };
        let uptime = |at: Instant| uptime_then + at.saturating_duration_since(begun);
        if uptime(now) < run.timing.initial_delay {
            let missing = run.timing.initial_delay - uptime(run.due).min(run.timing.initial_delay);
            run.due += ticks(missing, run.timing.period);
        }
        if now < run.due {
            Step::WaitUntil(run.due)
        } else {
            Step::Probe(kind)
        }
    }

    /// Takes what came of the probe that `next` asked for.
    pub fn on_outcome(&mut self, kind: ProbeKind, outcome: Outcome, now: Instant) {
        let run = match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Readiness => &mut self.readiness,
        };
        let Some(run) = run else {
            return;
        };
        match outcome {
            Outcome::Success => run.count(true),
            Outcome::Failure => run.count(false),
            Outcome::Unknown => {
                run.tries += 1;
                if run.tries < MAX_TRIES {
                    return;
                }
            }
        }
        run.tries = 0;
        run.advance(now);
        // As soon as the container has started, it may be ready.
        if kind == ProbeKind::Startup
            && run.decided == Some(true)
            && let Some(readiness) = &mut self.readiness
        {
            readiness.due = now;
        }
    }

    /// What the results so far come to.
    pub fn readiness(&self) -> Readiness {
        let word = |run: &Run| match run.decided {
            None => Readiness::Undecided,
            Some(true) => Readiness::Ready,
            Some(false) => Readiness::NotReady,
        };
        let startup = self.startup.as_ref().map_or(Readiness::Ready, word);
        match (startup, &self.readiness) {
            (Readiness::Ready, Some(readiness)) => word(readiness),
            (Readiness::Ready | Readiness::Undecided | Readiness::NotReady, _) => startup,
        }
    }

    // Once a container has started, its startup probe is over for good.
    fn current(&self) -> Option<ProbeKind> {
        match &self.startup {
            Some(startup) if startup.decided != Some(true) => {
                (!self.terminating).then_some(ProbeKind::Startup)
            }
            Some(_) | None => self.readiness.as_ref().map(|_| ProbeKind::Readiness),
        }
    }
}

impl Run {
    fn count(&mut self, success: bool) {
        if self.last == Some(success) {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            self.last = Some(success);
            self.in_a_row = 1;
        }
        let threshold = if success {
            self.timing.success_threshold
        } else {
            self.timing.failure_threshold
        };
        if self.in_a_row >= threshold {
            self.decided = Some(success);
        }
    }

    // Of the ticks that passed while a probe ran, one is made up for, as a Go ticker has it.
    fn advance(&mut self, now: Instant) {
        self.due += self.timing.period;
        let late = now.saturating_duration_since(self.due);
        self.due += self.timing.period * whole(late, self.timing.period);
    }
}

/// The shortest whole number of periods that is not less than `span`.
fn ticks(span: Duration, period: Duration) -> Duration {
    let passed = whole(span, period);
    let rest = span.saturating_sub(period * passed);
    period * (passed + u32::from(!rest.is_zero()))
}

/// How many whole periods fit into `span`; periods are at least a second, delays at most 68 years.
fn whole(span: Duration, period: Duration) -> u32 {
    let count = span.as_nanos() / period.as_nanos().max(1);
    u32::try_from(count).unwrap_or(u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn timing(initial_delay: u64, period: u64, successes: u32, failures: u32) -> Timing {
        Timing {
            initial_delay: Duration::from_secs(initial_delay),
            period: Duration::from_secs(period),
            success_threshold: successes,
            failure_threshold: failures,
        }
    }

    fn readiness(timing: Timing, now: Instant) -> ProbeState {
        ProbeState::new(None, Some(timing), now, Duration::ZERO)
    }

    /// Runs the machine with probes that take no time; `answer` is asked with the second since the start.
    fn play(
        state: &mut ProbeState,
        start: Instant,
        until: u64,
        mut answer: impl FnMut(u64, ProbeKind) -> Outcome,
    ) -> Vec<(u64, ProbeKind)> {
        let mut now = start;
        let mut probed = Vec::new();
        while now <= start + S * u32::try_from(until).unwrap() {
            match state.next(now) {
                Step::Probe(kind) => {
                    let second = (now - start).as_secs();
                    probed.push((second, kind));
                    state.on_outcome(kind, answer(second, kind), now);
                }
                Step::WaitUntil(at) => {
                    assert!(at > now, "the machine never spins");
                    now = at;
                }
                Step::Done => break,
            }
        }
        probed
    }

    fn seconds(probed: &[(u64, ProbeKind)]) -> Vec<u64> {
        probed.iter().map(|(second, _)| *second).collect()
    }

    /// The states after each of `outcomes`.
    fn states(timing: Timing, outcomes: &str) -> Vec<Readiness> {
        let mut now = Instant::now();
        let mut state = readiness(timing, now);
        let mut seen = Vec::new();
        for letter in outcomes.chars() {
            while let Step::WaitUntil(at) = state.next(now) {
                now = at;
            }
            let outcome = match letter {
                's' => Outcome::Success,
                'f' => Outcome::Failure,
                _ => Outcome::Unknown,
            };
            state.on_outcome(ProbeKind::Readiness, outcome, now);
            seen.push(state.readiness());
        }
        seen
    }

    #[test]
    fn the_initial_state_is_not_ready() {
        let mut state = readiness(timing(0, 10, 1, 3), Instant::now());
        assert_eq!(state.readiness(), Readiness::Undecided);
        assert_eq!(
            state.next(Instant::now()),
            Step::Probe(ProbeKind::Readiness)
        );
    }

    #[test]
    fn the_first_probe_comes_at_once_then_one_every_period() {
        let start = Instant::now();
        let mut state = readiness(timing(0, 3, 1, 3), start);
        let probed = play(&mut state, start, 10, |_, _| Outcome::Success);
        assert_eq!(seconds(&probed), [0, 3, 6, 9]);
    }

    #[test]
    fn ticks_before_the_initial_delay_pass_without_a_probe() {
        for (delay, period, expected) in [
            (5, 10, vec![10, 20]),
            (10, 10, vec![10, 20]),
            (11, 10, vec![20]),
            (2, 1, (2..=20).collect()),
            (7, 3, vec![9, 12, 15, 18]),
        ] {
            let start = Instant::now();
            let mut state = readiness(timing(delay, period, 1, 3), start);
            let probed = play(&mut state, start, 20, |_, _| Outcome::Success);
            assert_eq!(seconds(&probed), expected, "delay {delay}, period {period}");
        }
    }

    #[test]
    fn the_initial_delay_counts_from_the_start_of_the_container() {
        let start = Instant::now();
        let mut state = ProbeState::new(None, Some(timing(30, 10, 1, 3)), start, S * 15);
        let probed = play(&mut state, start, 30, |_, _| Outcome::Success);
        assert_eq!(seconds(&probed), [20, 30]);
        let mut state = ProbeState::new(None, Some(timing(30, 10, 1, 3)), start, S * 30);
        assert_eq!(state.next(start), Step::Probe(ProbeKind::Readiness));
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        use Readiness::{NotReady as N, Ready as R, Undecided as U};
        assert_eq!(states(timing(0, 1, 2, 3), "ss"), [U, R]);
        assert_eq!(states(timing(0, 1, 2, 3), "sfss"), [U, U, U, R]);
        assert_eq!(states(timing(0, 1, 1, 3), "sfff"), [R, R, R, N]);
        // Flapping below the thresholds changes nothing.
        assert_eq!(
            states(timing(0, 1, 2, 3), "ssffsffs"),
            [U, R, R, R, R, R, R, R]
        );
        assert_eq!(states(timing(0, 1, 2, 2), "ffsfs"), [U, N, N, N, N]);
    }

    #[test]
    fn a_malfunction_is_tried_three_times_and_then_forgotten() {
        use Readiness::{NotReady as N, Ready as R};
        let start = Instant::now();
        let mut state = readiness(timing(0, 10, 1, 1), start);
        let probed = play(&mut state, start, 10, |_, _| Outcome::Unknown);
        assert_eq!(seconds(&probed), [0, 0, 0, 10, 10, 10]);
        assert_eq!(state.readiness(), Readiness::Undecided);
        // The counters are as if it had not been run.
        assert_eq!(
            states(timing(0, 1, 1, 2), "sf???f"),
            [R, R, R, R, R, N],
            "two failures in a row"
        );
    }

    #[test]
    fn a_late_probe_makes_up_for_one_tick() {
        let start = Instant::now();
        let mut state = readiness(timing(0, 10, 1, 3), start);
        let late = start + S * 35;
        state.on_outcome(ProbeKind::Readiness, Outcome::Success, late);
        assert_eq!(state.next(late), Step::Probe(ProbeKind::Readiness));
        state.on_outcome(ProbeKind::Readiness, Outcome::Success, late);
        assert_eq!(state.next(late), Step::WaitUntil(start + S * 40));
    }

    #[test]
    fn readiness_waits_for_the_startup_probe() {
        let start = Instant::now();
        let both = |now| {
            let (startup, readiness) = (timing(0, 4, 1, 2), timing(0, 10, 1, 3));
            ProbeState::new(Some(startup), Some(readiness), now, Duration::ZERO)
        };
        let mut state = both(start);
        let probed = play(&mut state, start, 30, |second, kind| match kind {
            ProbeKind::Startup if second < 12 => Outcome::Failure,
            ProbeKind::Startup | ProbeKind::Readiness => Outcome::Success,
        });
        use ProbeKind::{Readiness as R, Startup as S};
        let expected = [(0, S), (4, S), (8, S), (12, S), (12, R), (22, R)];
        assert_eq!(probed, expected, "failing at the threshold, it goes on");
        assert_eq!(state.readiness(), Readiness::Ready);

        let mut state = both(start);
        play(&mut state, start, 4, |_, _| Outcome::Failure);
        assert_eq!(state.readiness(), Readiness::NotReady);
    }

    #[test]
    fn a_startup_probe_alone_decides_once_and_for_all() {
        let start = Instant::now();
        let mut state = ProbeState::new(Some(timing(0, 1, 1, 3)), None, start, Duration::ZERO);
        let probed = play(&mut state, start, 9, |_, _| Outcome::Success);
        assert_eq!(seconds(&probed), [0]);
        assert_eq!(state.next(start + S * 99), Step::Done);
        assert_eq!(state.readiness(), Readiness::Ready);
    }

    #[test]
    fn a_terminating_pod_is_probed_for_readiness_only() {
        let start = Instant::now();
        let mut state = readiness(timing(0, 1, 1, 2), start);
        play(&mut state, start, 1, |_, _| Outcome::Success);
        state.terminate();
        play(&mut state, start, 2, |_, _| Outcome::Failure);
        assert_eq!(state.readiness(), Readiness::Ready);
        play(&mut state, start, 3, |_, _| Outcome::Failure);
        assert_eq!(state.readiness(), Readiness::NotReady);

        let (startup, ready) = (timing(0, 1, 1, 2), timing(0, 1, 1, 2));
        let mut state = ProbeState::new(Some(startup), Some(ready), start, Duration::ZERO);
        state.terminate();
        assert_eq!(state.next(start), Step::Done);
        assert_eq!(state.readiness(), Readiness::Undecided);
    }

    /// The kubelet's loop, as plainly as it can be written: a ticker, and a look at the last results.
    struct Model {
        timing: Timing,
        results: Vec<bool>,
        ready: Readiness,
    }

    impl Model {
        fn tick(&mut self, second: u64, outcome: Outcome) -> bool {
            if S * u32::try_from(second).unwrap() < self.timing.initial_delay {
                return false;
            }
            match outcome {
                Outcome::Unknown => return true,
                Outcome::Success => self.results.push(true),
                Outcome::Failure => self.results.push(false),
            }
            let ends_with = |what: bool, n: u32| {
                let n = n as usize;
                self.results.len() >= n && self.results.iter().rev().take(n).all(|r| *r == what)
            };
            if ends_with(true, self.timing.success_threshold) {
                self.ready = Readiness::Ready;
            }
            if ends_with(false, self.timing.failure_threshold) {
                self.ready = Readiness::NotReady;
            }
            true
        }
    }

    proptest! {
        #[test]
        fn any_sequence_goes_as_in_the_plain_model(
            delay in 0_u64..25, period in 1_u64..12, successes in 1_u32..4, failures in 1_u32..4,
            outcomes in prop::collection::vec(prop_oneof![
                Just(Outcome::Success), Just(Outcome::Failure), Just(Outcome::Unknown)], 0..60),
        ) {
            let timing = timing(delay, period, successes, failures);
            let start = Instant::now();
            let mut state = readiness(timing, start);
            let mut model = Model { timing, results: Vec::new(), ready: Readiness::Undecided };
            for (tick, outcome) in outcomes.into_iter().enumerate() {
                let second = tick as u64 * period;
                let now = start + Duration::from_secs(second);
                let probes = model.tick(second, outcome);
                prop_assert_eq!(state.next(now) == Step::Probe(ProbeKind::Readiness), probes);
                if probes {
                    let tries = if outcome == Outcome::Unknown { MAX_TRIES } else { 1 };
                    for _ in 0..tries {
                        prop_assert_eq!(state.next(now), Step::Probe(ProbeKind::Readiness));
                        state.on_outcome(ProbeKind::Readiness, outcome, now);
                    }
                }
                prop_assert_eq!(state.readiness(), model.ready);
            }
        }
    }
}
