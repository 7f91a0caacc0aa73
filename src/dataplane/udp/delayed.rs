//! Datagrams that are late on purpose. Pure: the clock is the caller's.

use std::collections::BTreeMap;
use std::time::Instant;

use super::flows::FlowId;

/// Datagrams that wait at a time; one more is lost, as in any queue that is full.
const MAX_WAITING: usize = 1024;

type Datagram = (FlowId, Box<[u8]>);

/// Datagrams to backends, in the order in which they are due.
#[derive(Debug, Default)]
pub(super) struct Delayed {
    // The number keeps apart, and in order, what is due at one time.
    waiting: BTreeMap<(Instant, u64), Datagram>,
    taken_total: u64,
}

impl Delayed {
    /// Keeps a datagram of that flow until then; whether there was room.
    pub(super) fn keep(&mut self, until: Instant, flow: FlowId, datagram: &[u8]) -> bool {
        if self.waiting.len() >= MAX_WAITING {
            return false;
        }
        self.taken_total += 1;
        self.waiting
            .insert((until, self.taken_total), (flow, datagram.into()));
        true
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.keys().next().map(|(at, _)| *at)
    }

    /// Takes one that is due by `now`.
    pub(super) fn due(&mut self, now: Instant) -> Option<Datagram> {
        let first = self.waiting.first_entry()?;
        if first.key().0 > now {
            return None;
        }
        Some(first.remove())
    }
}
