//! Replies as octets, for questions that were answered before. Pure: time and chance are arguments.
//!
//! A reply of the usual way through `exchange` is kept next to the question it answers, and given again for as long as
//! the usual way would say the same: for names of the cluster while the routing table says so, for others while the cached
//! answer lives; `lasting` tells. So this is no cache with a lifetime of its own: a changed table is seen by the
//! next question. Each thread owns one; bounded by octets, and emptied at the bound.

use std::collections::HashMap;

use rand::Rng;
use rand::RngExt;

use super::lasting::{Lasting, Moment};
use super::simple::Simple;
use super::wire::{HEADER, Section, TYPE_A, TYPE_AAAA, TYPE_OPT, layout, read_u32};

/// What an entry costs besides its octets: the map's slot and the allocations' own.
const ENTRY_OVERHEAD: usize = 250;

/// Replies by question, each with what is to be counted when it is given again.
#[derive(Debug)]
pub(super) struct Memo<T> {
    entries: HashMap<Box<[u8]>, Entry<T>>,
    octets: usize,
    max_octets: usize,
}

#[derive(Debug)]
struct Entry<T> {
    lasting: Lasting,
    // The header but for the id.
    head: [u8; HEADER - 2],
    // All that follows the question.
    tail: Box<[u8]>,
    // Where the data of the answer's addresses is in the tail, and how long each is.
    addresses: Box<[u16]>,
    address_length: usize,
    // Where TTLs are in the tail, if they count down.
    ttls: Box<[u16]>,
    tally: T,
}

impl<T> Memo<T> {
    /// An empty one, of at most `max_octets` with everything.
    pub(super) fn new(max_octets: usize) -> Self {
        Self {
            entries: HashMap::new(),
            octets: 0,
            max_octets,
        }
    }

    /// Writes the reply to `question`, which was read from `message`, over it; its length, and what to count. `None` if
    /// it is not known, not valid any more, or longer than the client takes.
    pub(super) fn answer(
        &mut self,
        question: &Simple,
        message: &mut [u8],
        moment: &Moment<'_>,
        rng: &mut impl Rng,
    ) -> Option<(usize, &T)> {
        let entry = self.entries.get_mut(question.key())?;
        let age = entry.lasting.age(moment)?;
        let end = question.end + entry.tail.len();
        if end > question.limit {
            return None;
        }
        let (head, tail) = message.get_mut(..end)?.split_at_mut(question.end);
        head.get_mut(2..HEADER)?.copy_from_slice(&entry.head);
        tail.copy_from_slice(&entry.tail);
        shuffle(tail, &entry.addresses, entry.address_length, rng);
        if age > 0 {
            count_down(tail, &entry.ttls, age);
        }
        Some((end, &entry.tally))
    }

    /// Keeps `reply`, which says all there is to say, to the question with this key. At the bound all others go.
    pub(super) fn keep(&mut self, key: &[u8], reply: &[u8], lasting: Lasting, tally: T) {
        let Some(entry) = Entry::read(reply, lasting, tally) else {
            return;
        };
        let cost = entry.cost(key);
        if cost > self.max_octets {
            return;
        }
        if self.octets + cost > self.max_octets {
            self.clear();
        }
        self.octets += cost;
        if let Some(before) = self.entries.insert(key.into(), entry) {
            self.octets -= before.cost(key);
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.octets = 0;
    }
}

impl<T> Entry<T> {
    fn read(reply: &[u8], lasting: Lasting, tally: T) -> Option<Self> {
        let layout = layout(reply).ok()?;
        let question_end = layout.question.end;
        // The tail is pasted behind the same question, so only what is before it may differ.
        let place = |at: usize| u16::try_from(at.checked_sub(question_end)?).ok();
        let mut address_length = 0;
        let mut owner = &[][..];
        let mut addresses = Vec::new();
        for span in &layout.records {
            let length = match span.kind {
                TYPE_A => 4,
                TYPE_AAAA => 16,
                _ => continue,
            };
            if span.section != Section::Answer || span.data.len() != length {
                continue;
            }
            if addresses.is_empty() {
                (address_length, owner) = (length, &reply[span.owner.clone()]);
            }
            if length == address_length && reply[span.owner.clone()] == *owner {
                addresses.push(place(span.data.start)?);
            }
        }
        let ttls = match lasting {
            Lasting::Table(_) | Lasting::Service { .. } => Vec::new(),
            Lasting::Time { .. } => layout
                .records
                .iter()
                .filter(|span| span.kind != TYPE_OPT)
                .map(|span| place(span.ttl_at))
                .collect::<Option<_>>()?,
        };
        if addresses.len() < 2 {
            addresses.clear();
        }
        Some(Self {
            lasting,
            head: *reply.get(2..HEADER)?.first_chunk()?,
            tail: reply.get(question_end..)?.into(),
            addresses: addresses.into(),
            address_length,
            ttls: ttls.into(),
            tally,
        })
    }

    fn cost(&self, key: &[u8]) -> usize {
        let places = self.addresses.len() + self.ttls.len();
        key.len() + self.tail.len() + 2 * places + ENTRY_OVERHEAD
    }
}

// Puts the data at `places` in a random order, each order as likely as any other.
fn shuffle(tail: &mut [u8], places: &[u16], length: usize, rng: &mut impl Rng) {
    for last in (1..places.len()).rev() {
        let other = rng.random_range(0..=last);
        if other == last {
            continue;
        }
        let (low, high) = (usize::from(places[other]), usize::from(places[last]));
        // Records follow one another, so the later place is beyond the earlier one's data.
        let (before, behind) = tail.split_at_mut(high);
        before[low..low + length].swap_with_slice(&mut behind[..length]);
    }
}

fn count_down(tail: &mut [u8], places: &[u16], seconds: u32) {
    for at in places.iter().map(|at| usize::from(*at)) {
        if let Ok(ttl) = read_u32(tail, at) {
            let left = ttl.saturating_sub(seconds);
            tail[at..at + 4].copy_from_slice(&left.to_be_bytes());
        }
    }
}

#[cfg(test)]
#[path = "memo_tests.rs"]
mod tests;
