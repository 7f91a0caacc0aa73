//! The flows of one UDP listener on one data thread: who has one, which are idle, which is the oldest. Pure: no
//! sockets and no clock; what a flow carries (`S`) is the caller's.
//!
//! Idleness costs nothing per datagram but a timestamp: each place in the table has at most one entry in a queue of
//! deadlines, which is brought up to date only when it comes up.
//!
//! The table itself has no bound; the caller admits flows against the process-wide one, and makes room with
//! [`FlowTable::evict`].

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How many places [`FlowTable::evict`] looks at: bounds the work of one refused datagram.
const EVICTION_LOOKS: usize = 16;

/// A flow, as long as it lives; another flow in the same place has another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) struct FlowId {
    /// Below 2^24: each place has had a descriptor of its own.
    pub(in super::super) place: u32,
    pub(in super::super) turn: u16,
}

/// What to do with a client's datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It belongs to this flow.
    Forward(FlowId),
    /// It begins a flow.
    Open,
}

/// The flows, by the key their clients are told apart by.
#[derive(Debug)]
pub(super) struct FlowTable<K, S> {
    idle_timeout: Duration,
    places: Vec<Place<K, S>>,
    free: Vec<u32>,
    by_key: HashMap<K, u32>,
    // No later than the place's real deadline.
    deadlines: BinaryHeap<Reverse<(Instant, u32)>>,
}

#[derive(Debug)]
struct Place<K, S> {
    turn: u16,
    queued: bool,
    flow: Option<Flow<K, S>>,
}

#[derive(Debug)]
struct Flow<K, S> {
    key: K,
    last_active: Instant,
    session: S,
}

impl<K: Copy + Eq + Hash, S> FlowTable<K, S> {
    /// An empty table.
    pub(super) fn new(idle_timeout: Duration) -> Self {
        Self {
            idle_timeout,
            places: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            deadlines: BinaryHeap::new(),
        }
    }

    /// How many flows there are.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Decides about a datagram from a client; it keeps its flow alive.
    pub(super) fn on_client_datagram(&mut self, key: &K, now: Instant) -> Action {
        let Some(place) = self.by_key.get(key) else {
            return Action::Open;
        };
        let id = self.id(*place);
        if let Some(flow) = self.flow(id) {
            flow.last_active = now;
        }
        Action::Forward(id)
    }

    /// The flow that a backend's datagram belongs to, and whose it is; it keeps the flow alive. `None` if it has ended.
    pub(super) fn on_backend_datagram(&mut self, id: FlowId, now: Instant) -> Option<(K, &mut S)> {
        let flow = self.flow(id)?;
        flow.last_active = now;
        Some((flow.key, &mut flow.session))
    }

    /// Begins a flow. The key must have none.
    pub(super) fn open(&mut self, key: K, session: S, now: Instant) -> FlowId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                turn: 0,
                queued: false,
                flow: None,
            });
            // As many places as there were flows at a time, each with a socket: far below 2^32.
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        self.by_key.insert(key, place);
        let entry = &mut self.places[place as usize];
        entry.flow = Some(Flow {
            key,
            last_active: now,
            session,
        });
        if !entry.queued {
            entry.queued = true;
            self.deadlines
                .push(Reverse((now + self.idle_timeout, place)));
        }
        self.id(place)
    }

    /// What a flow carries; `None` if it has ended.
    pub(super) fn session(&mut self, id: FlowId) -> Option<&mut S> {
        self.flow(id).map(|flow| &mut flow.session)
    }

    /// What all flows carry.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &S> {
        let flows = self.places.iter().filter_map(|place| place.flow.as_ref());
        flows.map(|flow| &flow.session)
    }

    /// Ends a flow; `None` if it has ended before.
    pub(super) fn close(&mut self, id: FlowId) -> Option<(K, S)> {
        self.flow(id)?;
        self.vacate(id.place)
    }

    /// Ends all flows that `ends` says should.
    pub(super) fn close_where(&mut self, mut ends: impl FnMut(&S) -> bool) -> Vec<(K, S)> {
        let ending: Vec<u32> = (0..)
            .zip(&self.places)
            .filter(|(_, place)| place.flow.as_ref().is_some_and(|flow| ends(&flow.session)))
            .map(|(place, _)| place)
            .collect();
        ending
            .into_iter()
            .filter_map(|place| self.vacate(place))
            .collect()
    }

    /// Ends the flows that have been idle for the timeout, and says when to call again: at the latest when the next
    /// one is due, `None` once the table is empty.
    pub(super) fn expire(&mut self, now: Instant) -> (Vec<(K, S)>, Option<Instant>) {
        let mut expired = Vec::new();
        while let Some(Reverse((deadline, place))) = self.deadlines.peek().copied() {
            if deadline > now {
                return (expired, Some(deadline));
            }
            self.deadlines.pop();
            match self.deadline(place) {
                Some(real) if real > now => self.deadlines.push(Reverse((real, place))),
                Some(_due) => {
                    self.places[place as usize].queued = false;
                    expired.extend(self.vacate(place));
                }
                None => self.places[place as usize].queued = false,
            }
        }
        (expired, None)
    }

    /// Ends the flow that has been idle longest, if that is at least `idle`; `None` if there is none such, or none
    /// found at reasonable cost.
    pub(super) fn evict(&mut self, now: Instant, idle: Duration) -> Option<(K, S)> {
        for _ in 0..EVICTION_LOOKS {
            let Reverse((deadline, place)) = self.deadlines.pop()?;
            match self.deadline(place) {
                Some(real) if real > deadline => self.deadlines.push(Reverse((real, place))),
                Some(real) => {
                    self.deadlines.push(Reverse((deadline, place)));
                    let last_active = real.checked_sub(self.idle_timeout)?;
                    return if last_active + idle <= now {
                        self.vacate(place)
                    } else {
                        None
                    };
                }
                None => self.places[place as usize].queued = false,
            }
        }
        None
    }

    /// Sets the timeout for all flows, those that are open included. The next [`FlowTable::expire`] says when to come
    /// back.
    pub(super) fn set_idle_timeout(&mut self, idle_timeout: Duration) {
        if idle_timeout == self.idle_timeout {
            return;
        }
        self.idle_timeout = idle_timeout;
        self.deadlines.clear();
        for (index, place) in (0..).zip(&mut self.places) {
            place.queued = place.flow.is_some();
            if let Some(flow) = &place.flow {
                self.deadlines
                    .push(Reverse((flow.last_active + idle_timeout, index)));
            }
        }
    }

    /// Counts every flow as active now.
    pub(super) fn touch_all(&mut self, now: Instant) {
        for place in &mut self.places {
            if let Some(flow) = &mut place.flow {
                flow.last_active = now;
            }
        }
    }

    fn id(&self, place: u32) -> FlowId {
        FlowId {
            place,
            turn: self.places[place as usize].turn,
        }
    }

    fn flow(&mut self, id: FlowId) -> Option<&mut Flow<K, S>> {
        let place = self.places.get_mut(id.place as usize)?;
        if place.turn == id.turn {
            place.flow.as_mut()
        } else {
            None
        }
    }

    fn deadline(&self, place: u32) -> Option<Instant> {
        let flow = self.places[place as usize].flow.as_ref()?;
        Some(flow.last_active + self.idle_timeout)
    }

    // Its entry in the queue stays, for the place's next flow.
    fn vacate(&mut self, place: u32) -> Option<(K, S)> {
        let entry = &mut self.places[place as usize];
        let flow = entry.flow.take()?;
        entry.turn = entry.turn.wrapping_add(1);
        self.by_key.remove(&flow.key);
        self.free.push(place);
        Some((flow.key, flow.session))
    }
}

#[cfg(test)]
mod tests;
