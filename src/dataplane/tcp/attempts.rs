//! The attempts to reach a backend for one new connection: whom to try next, for how long, and what a failure means.
//! Pure: no socket, no clock, no reactor; who dials asks here before and reports back after.
//!
//! | failure | is the backend to blame | is it asked again |
//! | --- | --- | --- |
//! | refused, unreachable, other | yes | no |
//! | timeout | yes | when no other is left: its first packet may have been lost, and a single backend deserves all attempts |
//! | no local port | no: they run out per backend address | no, another one may still be reached |
//! | shortage of descriptors or memory | no | nobody is asked any more |
//!
//! A failure other than a timeout costs an attempt but no time.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::libc;

use crate::model::Knobs;
use crate::net::descriptors::is_shortage;

/// How much effort a new connection is worth.
///
/// Source of the defaults: kube-proxy's userspace mode, `EndpointDialTimeouts`: 250 ms, 500 ms, 1 s, 2 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// How long the first attempt may take; each further one may take twice as long as the one before.
    pub connect_timeout: Duration,
    /// How many attempts may follow the first.
    pub retries: u8,
}

impl Default for Effort {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_millis(250),
            retries: 3,
        }
    }
}

impl Effort {
    /// What a Service asks for; this where it does not say.
    pub(super) fn asked_by(self, knobs: &Knobs) -> Self {
        Self {
            connect_timeout: knobs.connect_timeout.unwrap_or(self.connect_timeout),
            retries: knobs.retries.unwrap_or(self.retries),
        }
    }
}

/// The attempts of one connection. Remembers one address per failed attempt, so at most `retries` + 1.
#[derive(Debug)]
pub(super) struct Attempts {
    effort: Effort,
    made: u32,
    // Not to be asked again before the others.
    tried: Vec<SocketAddr>,
    // Not to be asked again at all.
    refused: Vec<SocketAddr>,
    is_over: bool,
}

impl Attempts {
    pub(super) fn new(effort: Effort) -> Self {
        Self {
            effort,
            made: 0,
            tried: Vec::new(),
            refused: Vec::new(),
            is_over: false,
        }
    }

    /// The next backend to try and how long that may take; `None` if there is none, or no attempt is left. `pick`
    /// chooses a backend that is not among those it is given.
    pub(super) fn next<B>(
        &mut self,
        mut pick: impl FnMut(&[SocketAddr]) -> Option<B>,
    ) -> Option<(B, Duration)> {
        if self.is_over || self.made > u32::from(self.effort.retries) {
            return None;
        }
        let backend = pick(&self.tried).or_else(|| {
            if self.tried.len() == self.refused.len() {
                return None;
            }
            self.tried.clone_from(&self.refused);
            pick(&self.tried)
        })?;
        let factor = 1u32.checked_shl(self.made).unwrap_or(u32::MAX);
        self.made += 1;
        Some((backend, self.effort.connect_timeout.saturating_mul(factor)))
    }

    /// Takes note that an attempt failed.
    pub(super) fn failed(&mut self, backend: SocketAddr, why: Failure) {
        self.tried.push(backend);
        match why {
            Failure::Refused | Failure::Unreachable | Failure::NoLocalPort | Failure::Other => {
                self.refused.push(backend);
            }
            Failure::Timeout => {}
            Failure::Shortage => self.is_over = true,
        }
    }

    /// How many there have been.
    pub(super) fn made(&self) -> u32 {
        self.made
    }
}

/// Kinds of failed attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It answered with a reset, or closed before it knew whom it talks to.
    Refused,
    /// There is no way to it.
    Unreachable,
    /// It did not answer in time.
    Timeout,
    /// All local ports are in use towards it.
    NoLocalPort,
    /// We are out of descriptors or memory.
    Shortage,
    /// Anything else.
    Other,
}

impl Failure {
    /// What an error means; our own patience is an error without a number.
    pub(super) fn of(error: &io::Error) -> Self {
        if is_shortage(error) {
            return Self::Shortage;
        }
        match error.raw_os_error() {
            None | Some(libc::ETIMEDOUT) => Self::Timeout,
            Some(libc::ECONNREFUSED | libc::ECONNRESET | libc::EPIPE) => Self::Refused,
            // The last two: routes of the kinds "prohibit" and "blackhole".
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EACCES | libc::EINVAL) => {
                Self::Unreachable
            }
            Some(libc::EADDRNOTAVAIL) => Self::NoLocalPort,
            Some(_other) => Self::Other,
        }
    }

    /// Whether it speaks against the backend.
    pub(super) fn blames_backend(self) -> bool {
        match self {
            Self::Refused | Self::Unreachable | Self::Timeout | Self::Other => true,
            Self::NoLocalPort | Self::Shortage => false,
        }
    }

    /// The metric label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::NoLocalPort => "no_local_port",
            Self::Shortage => "shortage",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, 1], port))
    }

    /// Picks the lowest of the ports 1 to `n` that has not been tried.
    fn lowest(n: u16) -> impl FnMut(&[SocketAddr]) -> Option<SocketAddr> {
        move |tried| (1..=n).map(addr).find(|a| !tried.contains(a))
    }

    /// Whom it asks among `n` backends that all fail in the same way, with its patience in milliseconds.
    fn asked(n: u16, effort: Effort, why: Failure) -> Vec<(u16, u128)> {
        let mut attempts = Attempts::new(effort);
        let mut asked = Vec::new();
        while let Some((backend, patience)) = attempts.next(lowest(n)) {
            asked.push((backend.port(), patience.as_millis()));
            attempts.failed(backend, why);
        }
        assert_eq!(attempts.made() as usize, asked.len());
        asked
    }

    #[test]
    fn each_attempt_asks_another_and_waits_twice_as_long() {
        let asked = |why| asked(5, Effort::default(), why);
        let expected = [(1, 250), (2, 500), (3, 1000), (4, 2000)];
        assert_eq!(asked(Failure::Timeout), expected);
        assert_eq!(asked(Failure::Refused), expected);
        assert_eq!(asked(Failure::NoLocalPort), expected);
    }

    #[test]
    fn who_was_slow_is_asked_again_when_no_other_is_left() {
        let asked = |n, why| asked(n, Effort::default(), why);
        assert_eq!(
            asked(1, Failure::Timeout),
            [(1, 250), (1, 500), (1, 1000), (1, 2000)]
        );
        let ports: Vec<u16> = asked(2, Failure::Timeout).iter().map(|(p, _)| *p).collect();
        assert_eq!(ports, [1, 2, 1, 2]);
    }

    #[test]
    fn who_refused_is_not_asked_again() {
        for why in [
            Failure::Refused,
            Failure::Unreachable,
            Failure::NoLocalPort,
            Failure::Other,
        ] {
            assert_eq!(asked(2, Effort::default(), why), [(1, 250), (2, 500)]);
        }
        let mut attempts = Attempts::new(Effort::default());
        let (first, _) = attempts.next(lowest(2)).unwrap();
        attempts.failed(first, Failure::Refused);
        for _ in 0..3 {
            let (second, _) = attempts.next(lowest(2)).unwrap();
            assert_eq!(second, addr(2), "only the slow one is left");
            attempts.failed(second, Failure::Timeout);
        }
        assert_eq!(attempts.next(lowest(2)), None);
    }

    #[test]
    fn a_shortage_ends_it() {
        assert_eq!(asked(5, Effort::default(), Failure::Shortage), [(1, 250)]);
    }

    #[test]
    fn a_backend_that_appears_meanwhile_is_asked() {
        let mut attempts = Attempts::new(Effort::default());
        let (first, _) = attempts.next(lowest(1)).unwrap();
        attempts.failed(first, Failure::Refused);
        assert_eq!(attempts.next(lowest(1)), None);
        let (second, patience) = attempts.next(lowest(2)).unwrap();
        assert_eq!(second, addr(2));
        assert_eq!(
            patience,
            Duration::from_millis(500),
            "nothing was tried in vain"
        );
    }

    #[test]
    fn a_service_may_ask_for_more_or_less() {
        let asks = |connect_timeout: Option<u64>, retries| {
            let knobs = Knobs {
                connect_timeout: connect_timeout.map(Duration::from_millis),
                retries,
                ..Knobs::default()
            };
            asked(20, Effort::default().asked_by(&knobs), Failure::Timeout)
        };
        assert_eq!(asks(None, Some(0)), [(1, 250)]);
        assert_eq!(asks(Some(40), Some(1)), [(1, 40), (2, 80)]);
        assert_eq!(asks(Some(7), None).last(), Some(&(4, 56)));
        assert_eq!(asks(None, Some(10)).len(), 11);
    }

    #[test]
    fn patience_has_no_overflow() {
        let effort = Effort {
            connect_timeout: Duration::MAX,
            retries: u8::MAX,
        };
        assert_eq!(asked(300, effort, Failure::Timeout).len(), 256);
    }

    #[test]
    fn errors_are_told_apart() {
        let of = |number| Failure::of(&io::Error::from_raw_os_error(number)).as_str();
        assert_eq!(of(libc::ECONNREFUSED), "refused");
        assert_eq!(of(libc::EPIPE), "refused");
        assert_eq!(of(libc::EHOSTUNREACH), "unreachable");
        assert_eq!(of(libc::EADDRNOTAVAIL), "no_local_port");
        assert_eq!(of(libc::EMFILE), "shortage");
        assert_eq!(of(libc::EPROTO), "other");
        assert_eq!(
            Failure::of(&io::ErrorKind::TimedOut.into()),
            Failure::Timeout
        );
    }

    const ALL: [Failure; 6] = [
        Failure::Refused,
        Failure::Unreachable,
        Failure::Timeout,
        Failure::NoLocalPort,
        Failure::Shortage,
        Failure::Other,
    ];

    proptest! {
        /// However the attempts end: nobody is asked twice before everybody who may be was asked, nobody who refused
        /// is asked again, and there are never more attempts than allowed.
        #[test]
        fn the_rules_hold_for_any_course(
            n in 0u16..6,
            retries in 0u8..12,
            course in prop::collection::vec(0usize..ALL.len(), 12),
        ) {
            let effort = Effort { retries, ..Effort::default() };
            let mut attempts = Attempts::new(effort);
            let mut times_asked = vec![0; usize::from(n)];
            let mut refused = vec![false; usize::from(n)];
            let mut ended = false;
            for why in course.into_iter().map(|index| ALL[index]) {
                let Some((backend, _)) = attempts.next(lowest(n)) else { break };
                prop_assert!(!ended, "a shortage ends it");
                let index = usize::from(backend.port()) - 1;
                prop_assert!(!refused[index]);
                let open = (0..usize::from(n)).filter(|i| !refused[*i]);
                prop_assert_eq!(Some(times_asked[index]), open.map(|i| times_asked[i]).min());
                times_asked[index] += 1;
                refused[index] = why != Failure::Timeout && why != Failure::Shortage;
                ended = why == Failure::Shortage;
                attempts.failed(backend, why);
            }
            prop_assert!(attempts.made() <= u32::from(retries) + 1);
        }
    }
}
