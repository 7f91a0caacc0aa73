//! Which datagrams go through the kernel as one message, that it cuts again (`UDP_SEGMENT`). Pure.

use std::ops::Range;

use super::{SLOTS, Slot};

/// What a path of 1,500 bytes takes over IPv4 in one piece. A longer one the kernel does not cut for us, nor one that is
/// more than the path at hand takes; that is found out by asking.
const LONGEST_CUT: usize = 1472;

/// What one message may hold: the largest UDP payload over IPv4.
const MESSAGE: usize = 65_507;

/// Datagrams per message that every kernel cuts (`UDP_MAX_SEGMENTS`; newer ones twice that).
const MOST_CUT: usize = 64;

/// How many consecutive slots go out as one message each, as far as one call goes: at most [`SLOTS`] messages of at most
/// as many pieces of memory.
pub(super) struct Runs {
    lengths: [u8; SLOTS],
    /// How many messages.
    pub(super) n: usize,
}

impl Runs {
    /// Every datagram by itself.
    pub(super) fn single(slots: Range<usize>) -> Self {
        Self {
            lengths: [1; SLOTS],
            n: slots.len().min(SLOTS),
        }
    }

    /// Datagrams of one size to one place in one message; the last of them may be shorter.
    pub(super) fn of(slots: &[Slot], range: Range<usize>) -> Self {
        let mut runs = Self {
            lengths: [1; SLOTS],
            n: 0,
        };
        let (mut start, mut pieces) = (range.start, 0);
        while start < range.end && pieces < SLOTS {
            let first = &slots[start];
            let mut run = 1;
            pieces += 1;
            if (1..=LONGEST_CUT).contains(&first.len) {
                let most = (MESSAGE / first.len).min(range.end - start).min(MOST_CUT);
                while run < most {
                    let next = &slots[start + run];
                    if !(1..=first.len).contains(&next.len) || !first.goes_where(next) {
                        break;
                    }
                    if !next.lies_behind(&slots[start + run - 1]) {
                        if pieces == SLOTS {
                            break;
                        }
                        pieces += 1;
                    }
                    run += 1;
                    if next.len < first.len {
                        break;
                    }
                }
            }
            runs.lengths[runs.n] = u8::try_from(run).unwrap_or(1);
            runs.n += 1;
            start += run;
        }
        runs
    }

    /// How many datagrams each message holds.
    pub(super) fn lengths(&self) -> impl Iterator<Item = usize> {
        self.lengths[..self.n].iter().map(|run| usize::from(*run))
    }

    /// How many the first one holds.
    pub(super) fn first(&self) -> usize {
        self.lengths().next().unwrap_or(0)
    }
}
