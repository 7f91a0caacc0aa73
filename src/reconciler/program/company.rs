//! Processes of our kind on the same node: the one before this one, whose ports may be shared while it lives, and one that has
//! come to follow it.
//!
//! Once the predecessor has ended, whoever else stays at a port that was shared with it is a stranger, and the port is given
//! up until he is gone. Once a successor has ended, what it wrote is replaced.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::capture::plan::ListenerId;

use super::{Effects, Programmer, REOPEN};

/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);

/// How often in a row somebody must be seen at a port to be a stranger: the sockets of a process that ends close one by one,
/// and may outlast it.
const LOOKS: u8 = 3;

/// What is known of others, and when to look again.
#[derive(Debug)]
pub(super) struct Company {
    pub(super) look_at: Instant,
    predecessor: Predecessor,
    // Seen at each look since it ended.
    suspects: BTreeSet<ListenerId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Predecessor {
    /// It may live.
    Possible,
    /// It has ended, and so often was looked since who is at its ports.
    Ended { looks: u8 },
    /// It has, and nobody is left whom we know.
    Gone,
}

impl Company {
    /// Nobody has looked yet.
    pub(super) fn beginning(now: Instant) -> Self {
        Self {
            look_at: now,
            predecessor: Predecessor::Possible,
            suspects: BTreeSet::new(),
        }
    }
}

impl<E: Effects> Programmer<E> {
    /// Looks after the others, if that is due. Before there is a table nothing is claimed, and nobody counts as predecessor.
    pub(super) async fn look_for_company(&mut self, now: Instant) {
        if self.node.is_none() || self.company.look_at > now {
            return;
        }
        self.company.look_at = now + LOOK;
        if self.effects.regain() {
            warn!("the process that had taken over has ended; its rules are replaced");
            self.rules.doubt(now);
        }
        self.effects.yield_to_successor().await;
        for family in self.effects.families() {
            self.effects.clear_other_modes(family).await;
        }
        self.company.predecessor = match self.company.predecessor {
            Predecessor::Possible if self.effects.predecessor_lives() => Predecessor::Possible,
            Predecessor::Possible => Predecessor::Ended { looks: 0 },
            Predecessor::Ended { looks } => self.look_for_strangers(looks + 1, now).await,
            Predecessor::Gone => Predecessor::Gone,
        };
    }

    async fn look_for_strangers(&mut self, looks: u8, now: Instant) -> Predecessor {
        let found: BTreeSet<ListenerId> = match self.effects.accompanied().await {
            Ok(found) => found.into_iter().collect(),
            Err(error) => {
                info!(%error, "whether others share ports that were taken over cannot be seen");
                return Predecessor::Gone;
            }
        };
        let suspects = &mut self.company.suspects;
        if looks == 1 {
            *suspects = found;
        } else {
            suspects.retain(|id| found.contains(id));
        }
        if suspects.is_empty() {
            return Predecessor::Gone;
        }
        if looks < LOOKS {
            return Predecessor::Ended { looks };
        }
        let strangers = std::mem::take(suspects);
        self.leave(&strangers, now).await;
        Predecessor::Gone
    }

    async fn leave(&mut self, shared: &BTreeSet<ListenerId>, now: Instant) {
        for id in shared {
            self.effects.close(id).await;
            self.bound.remove(id);
            self.waiting.remove(id);
            self.reopen.insert(id.route.service.clone());
            self.reopen_at = Some(now + REOPEN);
        }
        for id in shared {
            warn!(service = %id.route, "somebody else served this port as well; it is tried again until he is gone");
        }
    }
}
