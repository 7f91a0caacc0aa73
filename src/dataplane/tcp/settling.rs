//! Connections that are younger than most of those that are short: only what outlives them is worth the system calls
//! that set the options of a long life. Pure: the clock is the caller's.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::engine::Key;

/// After how long a connection counts as settled. Keepalive begins to probe after hours of silence, so nothing is lost
/// by setting it late.
pub(super) const SETTLED: Duration = Duration::from_secs(10);

/// How many are kept in mind; beyond, the oldest counts as settled before its time.
const YOUNG: usize = 1024;

/// The young ones, oldest first.
#[derive(Debug, Default)]
pub(super) struct Settling {
    young: VecDeque<(Instant, Key)>,
}

impl Settling {
    /// A connection begins. Returns one that has to count as settled to make room.
    pub(super) fn begin(&mut self, key: Key, now: Instant) -> Option<Key> {
        self.young.push_back((now + SETTLED, key));
        if self.young.len() <= YOUNG {
            return None;
        }
        self.young.pop_front().map(|(_, oldest)| oldest)
    }

    /// When [`Settling::due`] has something to say; `None` if there is no young one.
    pub(super) fn next(&self) -> Option<Instant> {
        self.young.front().map(|(at, _)| *at)
    }

    /// Takes out one that has settled by now.
    pub(super) fn due(&mut self, now: Instant) -> Option<Key> {
        if self.next()? > now {
            return None;
        }
        self.young.pop_front().map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::engine::Slab;

    #[test]
    fn who_lasts_settles_and_too_many_settle_early() {
        let start = Instant::now();
        let mut slab = Slab::new();
        let mut settling = Settling::default();
        let keys: Vec<Key> = (0..=YOUNG).map(|_| slab.insert(())).collect();
        for key in &keys[..YOUNG] {
            assert_eq!(settling.begin(*key, start), None);
        }
        let later = start + SETTLED / 2;
        assert_eq!(settling.begin(keys[YOUNG], later), Some(keys[0]));
        assert_eq!(settling.next(), Some(start + SETTLED));
        assert_eq!(settling.due(later), None);
        for key in &keys[1..YOUNG] {
            assert_eq!(settling.due(start + SETTLED), Some(*key));
        }
        assert_eq!(settling.due(start + SETTLED), None);
        assert_eq!(settling.due(later + SETTLED), Some(keys[YOUNG]));
        assert_eq!(settling.next(), None);
    }
}
