//! How many messages to ask a socket for: datagrams, or what the kernel has gathered of them. Pure.
//!
//! Each place that is offered to the kernel costs, and a batch of one costs more than a single call, so a socket that has
//! one now and then is asked for one, and a busy one for a batch.

use crate::net::batches::SLOTS;

/// What one socket is likely to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Appetite {
    messages: u8,
    fewest: u8,
    last_round: u64,
}

impl Appetite {
    /// For a socket that is asked for one message while it has one now and then. That one was all does not show, so
    /// it must be watched by level.
    pub(super) fn of_one() -> Self {
        Self::of(1)
    }

    /// For a socket that is always asked for one more than one, so that one alone shows as all.
    pub(super) fn of_two() -> Self {
        Self::of(2)
    }

    fn of(fewest: u8) -> Self {
        Self {
            messages: fewest,
            fewest,
            last_round: 0,
        }
    }

    /// How many to ask for.
    pub(super) fn messages(self) -> usize {
        usize::from(self.messages)
    }

    /// The socket was asked for `asked` and had `n`, at least one, in that round of events.
    pub(super) fn had(&mut self, n: usize, asked: usize, round: u64) {
        // Where one alone says nothing, one in each round does.
        let is_steady = round <= self.last_round + 1;
        self.last_round = round;
        if n == asked && (asked > 1 || is_steady) {
            let most = u8::try_from(SLOTS).unwrap_or(u8::MAX);
            self.messages = self.messages.saturating_mul(2).min(most);
        } else if n <= asked / 4 || n == 1 {
            let fewest = if is_steady { 2 } else { self.fewest };
            self.messages = (self.messages / 2).max(fewest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_socket_is_asked_for_a_batch_and_a_quiet_one_for_one() {
        let mut appetite = Appetite::of_one();
        // Now and then.
        for round in [10, 20, 30] {
            assert_eq!(appetite.messages(), 1);
            appetite.had(1, 1, round);
        }
        // Round after round, more each time than it was asked for.
        let mut asked = Vec::new();
        for round in 31..39 {
            asked.push(appetite.messages());
            appetite.had(appetite.messages(), appetite.messages(), round);
        }
        assert_eq!(asked, [1, 2, 4, 8, 16, 32, 64, 64]);
        // Half of it is no reason to ask for less, one is.
        appetite.had(32, 64, 39);
        assert_eq!(appetite.messages(), 64);
        for round in 40..50 {
            appetite.had(1, appetite.messages(), round);
        }
        assert_eq!(appetite.messages(), 2, "steady, one by one");
        appetite.had(1, 2, 60);
        assert_eq!(appetite.messages(), 1);
    }

    #[test]
    fn a_socket_that_must_show_its_end_is_never_asked_for_one() {
        let mut appetite = Appetite::of_two();
        for (round, n) in [(1, 1), (10, 2), (11, 4), (12, 1), (20, 1), (30, 1), (40, 1)] {
            assert!(appetite.messages() > 1);
            appetite.had(n, appetite.messages(), round);
        }
        assert_eq!(appetite.messages(), 2);
    }
}
