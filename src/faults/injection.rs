//! Faults that are on at one place, and what they decide for each answer or flow. Pure: time is the caller's.
//!
//! The n-th decision depends on the seed and on n alone, so a run can be repeated: what chance meets does not depend on
//! who asks or when.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::metrics::{FaultKind, Metrics};
use super::text::{Chance, Faults};

/// Faults since they were turned on. Shared by all that they meet.
#[derive(Debug)]
pub struct Injection {
    faults: Faults,
    since: Instant,
    drawn: AtomicU64,
    metrics: Metrics,
}

/// What carries it: not every fault can meet everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Answers over HTTP.
    Http,
    /// Connections, or what is said over them.
    Tcp,
    /// Datagrams.
    Udp,
}

/// What becomes of one answer, datagram or flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// How much later it comes; a stall counts in.
    pub delay: Duration,
    /// It is an error.
    pub error: bool,
    /// A reset comes instead.
    pub reset: bool,
    /// It is lost.
    pub loss: bool,
    /// It comes twice.
    pub duplicate: bool,
    /// It ends too early.
    pub cut: bool,
}

impl Injection {
    /// On from `since`.
    pub fn new(faults: Faults, since: Instant, metrics: Metrics) -> Self {
        Self {
            faults,
            since,
            drawn: AtomicU64::new(0),
            metrics,
        }
    }

    /// What was asked for.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Decides for the next one. What it decides counts as injected, so it must be carried out.
    pub fn draw(&self, now: Instant, carrier: Carrier) -> Fate {
        if self.faults == Faults::default() {
            return Fate::default();
        }
        let turn = self.drawn.fetch_add(1, Ordering::Relaxed);
        let mut draws = Draws::new(self.faults.seed, turn);
        // Every chance draws each time, so that turning one on does not move the others.
        let fate = Fate {
            delay: self.delay(&mut draws) + self.stalled_for(now),
            error: draws.meet(self.faults.error),
            reset: draws.meet(self.faults.reset),
            loss: draws.meet(self.faults.loss),
            duplicate: draws.meet(self.faults.duplicate),
            cut: draws.meet(self.faults.cut),
        }
        .over(carrier);
        for (happens, kind) in [
            (!fate.delay.is_zero(), FaultKind::Delay),
            (fate.error, FaultKind::Error),
            (fate.reset, FaultKind::Reset),
            (fate.loss, FaultKind::Loss),
            (fate.duplicate, FaultKind::Duplicate),
            (fate.cut, FaultKind::Cut),
        ] {
            if happens {
                self.count(kind);
            }
        }
        fate
    }

    /// How long the present stall still lasts; zero outside of one.
    pub fn stalled_for(&self, now: Instant) -> Duration {
        let Some(stall) = self.faults.stall else {
            return Duration::ZERO;
        };
        let lasted = now.saturating_duration_since(self.since).as_nanos();
        let into = lasted % stall.every.as_nanos().max(1);
        let left = stall.lasts.as_nanos().saturating_sub(into);
        // Less than an hour by construction.
        Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX))
    }

    /// Whether readiness is turned off at that time: in every second period of a flap.
    pub fn is_unready(&self, now: Instant) -> bool {
        let Some(flap) = self.faults.flap else {
            return false;
        };
        let lasted = now.saturating_duration_since(self.since).as_nanos();
        (lasted / flap.as_nanos().max(1)) % 2 == 1
    }

    /// How long so many bytes take at the rate asked for; zero without one.
    pub fn time_for(&self, bytes: u64) -> Duration {
        self.faults.rate.map_or(Duration::ZERO, |rate| {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        })
    }

    /// Notes that something of that kind was done, for what is not drawn.
    pub fn count(&self, kind: FaultKind) {
        self.metrics.count(kind);
    }

    fn delay(&self, draws: &mut Draws) -> Duration {
        let place = draws.next();
        let Some(delay) = self.faults.delay else {
            return Duration::ZERO;
        };
        let span = 2 * u64::try_from(delay.jitter.as_nanos()).unwrap_or(u64::MAX / 2);
        let offset = place % span.saturating_add(1);
        delay.mean - delay.jitter + Duration::from_nanos(offset)
    }
}

impl Fate {
    // What can happen there; and of what would end it, one thing happens.
    fn over(self, carrier: Carrier) -> Self {
        let is_udp = carrier == Carrier::Udp;
        let reset = self.reset && !is_udp;
        let loss = self.loss && is_udp;
        let ends = reset || loss;
        Self {
            delay: self.delay,
            error: self.error && carrier == Carrier::Http && !ends,
            reset,
            loss,
            duplicate: self.duplicate && is_udp && !ends,
            cut: self.cut && !ends,
        }
    }
}

/// The numbers of one decision: SplitMix64 (Steele, Lea and Flood, 2014), begun at a place of its own for each turn.
struct Draws(u64);

impl Draws {
    fn new(seed: u64, turn: u64) -> Self {
        let mut begin = Self(turn ^ seed.rotate_left(32));
        Self(begin.next() ^ seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn meet(&mut self, chance: Chance) -> bool {
        let drawn = self.next() % u64::from(Chance::ALWAYS);
        // Below a million.
        chance.meets(u32::try_from(drawn).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injection(text: &str) -> (Injection, Instant) {
        let now = Instant::now();
        let faults = Faults::parse(text).unwrap();
        (Injection::new(faults, now, Metrics::default()), now)
    }

    fn fates(text: &str, n: usize) -> Vec<Fate> {
        let (injection, now) = injection(text);
        (0..n).map(|_| injection.draw(now, Carrier::Tcp)).collect()
    }

    #[test]
    fn the_same_seed_meets_the_same_answers() {
        let text = "delay=5ms±2ms; reset=10%; loss=10%; seed=7";
        assert_eq!(fates(text, 1000), fates(text, 1000));
        let other = fates("delay=5ms±2ms; reset=10%; loss=10%; seed=8", 1000);
        assert_ne!(fates(text, 1000), other);
    }

    #[test]
    fn one_chance_does_not_move_another() {
        let resets = |text| -> Vec<bool> { fates(text, 1000).iter().map(|f| f.reset).collect() };
        assert_eq!(
            resets("reset=10%; seed=7"),
            resets("delay=1ms; loss=50%; reset=10%; cut=3%; seed=7")
        );
    }

    #[test]
    fn chances_come_true_as_often_as_asked() {
        let n = 100_000;
        for (text, expected) in [("reset=1%", 1000), ("reset=0%", 0), ("reset=100%", n)] {
            let met = fates(text, n).iter().filter(|f| f.reset).count();
            // Four standard deviations of 1 % are 126.
            assert!(met.abs_diff(expected) <= 130, "{text}: {met}");
            if expected == 0 || expected == n {
                assert_eq!(met, expected);
            }
        }
    }

    #[test]
    fn only_what_can_be_done_there_is_decided() {
        let now = Instant::now();
        let all =
            Faults::parse("error=100%; reset=100%; loss=100%; duplicate=100%; cut=100%").unwrap();
        let no_end = Faults::parse("error=100%; duplicate=100%; cut=100%").unwrap();
        let said = |faults: &Faults, carrier| {
            let injection = Injection::new(faults.clone(), now, Metrics::default());
            let fate = injection.draw(now, carrier);
            let words = [
                (fate.error, "error"),
                (fate.reset, "reset"),
                (fate.loss, "loss"),
                (fate.duplicate, "duplicate"),
                (fate.cut, "cut"),
            ];
            let met = words.iter().filter(|(met, _)| *met).map(|(_, word)| *word);
            met.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(said(&all, Carrier::Http), "reset");
        assert_eq!(said(&all, Carrier::Tcp), "reset");
        assert_eq!(said(&all, Carrier::Udp), "loss");
        assert_eq!(said(&no_end, Carrier::Http), "error cut");
        assert_eq!(said(&no_end, Carrier::Tcp), "cut");
        assert_eq!(said(&no_end, Carrier::Udp), "duplicate cut");
    }

    #[test]
    fn delays_are_spread_over_their_whole_width() {
        let ms = Duration::from_millis;
        let delays: Vec<_> = fates("delay=5ms±2ms", 10_000)
            .iter()
            .map(|f| f.delay)
            .collect();
        assert!(delays.iter().all(|d| (ms(3)..=ms(7)).contains(d)));
        assert!(delays.iter().min() < Some(&Duration::from_micros(3010)));
        assert!(delays.iter().max() > Some(&Duration::from_micros(6990)));
        assert!(fates("delay=5ms", 10).iter().all(|f| f.delay == ms(5)));
    }

    #[test]
    fn a_stall_holds_until_its_end_and_comes_again() {
        let (injection, start) = injection("stall=1s/10s");
        let left = |ms| {
            injection
                .stalled_for(start + Duration::from_millis(ms))
                .as_millis()
        };
        assert_eq!(
            [left(0), left(250), left(999), left(1000)],
            [1000, 750, 1, 0]
        );
        assert_eq!([left(9999), left(10_000), left(10_400)], [0, 1000, 600]);
    }

    #[test]
    fn readiness_turns_and_turns_back() {
        let (injection, start) = injection("flap=5s");
        let unready = |s| injection.is_unready(start + Duration::from_secs(s));
        assert_eq!(
            [unready(0), unready(4), unready(5), unready(9), unready(10)],
            [false, false, true, true, false]
        );
    }

    #[test]
    fn bytes_take_their_time() {
        let (injection, _) = injection("rate=1kB/s");
        assert_eq!(injection.time_for(500), Duration::from_millis(500));
        assert_eq!(injection.time_for(0), Duration::ZERO);
    }
}
