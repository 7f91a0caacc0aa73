//! When to call whom. Pure: the clock is the caller's.
//!
//! Nothing is ever taken back: who is called too early or for nothing says so by doing nothing, which is cheaper than
//! to find and remove a timer for every connection that was dialled in time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::token::Token;

/// Calls that are due some time. Bounded by what makes them: a few per connection or listener at a time.
#[derive(Debug, Default)]
pub(super) struct Timers {
    calls: BinaryHeap<Reverse<(Instant, u64)>>,
}

impl Timers {
    /// Calls `token` at that time.
    pub(super) fn call_at(&mut self, at: Instant, token: Token) {
        self.calls.push(Reverse((at, token.to_bits())));
    }

    /// When the next call is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.calls.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes a call that is due by `now`; earlier ones come first.
    pub(super) fn due(&mut self, now: Instant) -> Option<Token> {
        loop {
            if self.next()? > now {
                return None;
            }
            let Reverse((_, token)) = self.calls.pop()?;
            if let Some(token) = Token::from_bits(token) {
                return Some(token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn calls_come_in_order_and_not_before_their_time() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        assert_eq!((timers.next(), timers.due(start)), (None, None));
        timers.call_at(after(20), Token::Settling);
        timers.call_at(after(10), Token::Patience);
        timers.call_at(after(20), Token::Mailbox);
        assert_eq!(timers.next(), Some(after(10)));
        assert_eq!(timers.due(after(9)), None);
        assert_eq!(timers.due(after(10)), Some(Token::Patience));
        assert_eq!(timers.due(after(19)), None);
        let both = [timers.due(after(20)), timers.due(after(20))];
        assert!(both.contains(&Some(Token::Settling)) && both.contains(&Some(Token::Mailbox)));
        assert_eq!(timers.next(), None);
    }
}
