//! Whose ports are shared: while the process before this one lives, a listener may be opened beside it. Once it has ended,
//! whoever else is at such a port is a stranger, and the port is given up until he is gone.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::{Effects, Programmer, REOPEN};

/// How often it is looked whether the process before this one lives, and how long its sockets may outlast it: the kernel
/// closes them one by one.
const LOOK: Duration = Duration::from_secs(1);

/// What is known of the process before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    /// It lives, or did so when it was looked at.
    Predecessor { look_at: Instant },
    /// It has just ended.
    Ended { since: Instant },
    /// Nobody is left of whom we know.
    Nobody,
}

impl Company {
    /// When to look again.
    pub(super) fn next(self) -> Option<Instant> {
        match self {
            Self::Predecessor { look_at } => Some(look_at),
            Self::Ended { since } => Some(since + LOOK),
            Self::Nobody => None,
        }
    }
}

impl<E: Effects> Programmer<E> {
    /// Looks after the process before this one, if that is due.
    pub(super) async fn look_for_company(&mut self, now: Instant) {
        if self.company.next().is_none_or(|next| next > now) {
            return;
        }
        self.company = match self.company {
            Company::Predecessor { .. } if self.effects.predecessor_lives() => {
                let look_at = now + LOOK;
                Company::Predecessor { look_at }
            }
            Company::Predecessor { .. } => Company::Ended { since: now },
            Company::Ended { .. } | Company::Nobody => {
                self.leave_strangers(now).await;
                Company::Nobody
            }
        };
    }

    async fn leave_strangers(&mut self, now: Instant) {
        let shared = match self.effects.accompanied().await {
            Ok(shared) => shared,
            Err(error) => {
                info!(%error, "whether others share ports that were taken over cannot be seen");
                return;
            }
        };
        debug!(
            strangers = shared.len(),
            "the process before this one has ended"
        );
        for id in shared {
            warn!(service = %id.route, "somebody else serves this port as well; it is tried again until he is gone");
            self.effects.close(&id).await;
            self.bound.remove(&id);
            self.waiting.remove(&id);
            self.reopen.insert(id.route.service.clone());
            self.reopen_at = Some(now + REOPEN);
        }
    }
}
