//! Whether the API server answers, and since when not: the facts behind `/readyz`, the metrics and `viaduct get`.
//!
//! Kept for each watched kind by the task that follows it. Losing touch changes nothing in service; this tells how old
//! the state may be. Takes the time as an argument.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::info;

use crate::control::Kind;

/// Shared between the tasks that follow the server and those who report. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Contact(Arc<Mutex<BTreeMap<Kind, Option<Loss>>>>);

#[derive(Clone, Debug)]
struct Loss {
    since: Instant,
    reason: Arc<str>,
}

/// What is known may be out of date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfTouch {
    /// For how long the server has not been heard, about the kind that has waited longest.
    pub age: Duration,
    /// What was heard of that kind last.
    pub reason: Arc<str>,
}

/// What a report to [`Contact`] changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing: it was known already.
    None,
    /// The first kind was lost.
    Lost,
    /// All kinds are there again, after so long.
    Found(Duration),
}

impl Contact {
    /// The server answers about this kind. Logged if that is news.
    pub(super) fn heard(&self, kind: Kind, now: Instant) {
        if let Turn::Found(after) = self.held(kind, now) {
            info!(out_of_touch = ?after, "API server is heard again");
        }
    }

    fn held(&self, kind: Kind, now: Instant) -> Turn {
        self.with(|kinds| {
            let before = longest(kinds, now);
            kinds.insert(kind, None);
            match (before, longest(kinds, now)) {
                (Some(before), None) => Turn::Found(before.age),
                (Some(_), Some(_)) | (None, _) => Turn::None,
            }
        })
    }

    /// The server does not, for this reason.
    pub(super) fn lost(&self, kind: Kind, now: Instant, reason: &str) -> Turn {
        self.with(|kinds| {
            let before = longest(kinds, now);
            let since = kinds.get(&kind).and_then(|loss| Some(loss.as_ref()?.since));
            let loss = Loss {
                since: since.unwrap_or(now),
                reason: reason.into(),
            };
            kinds.insert(kind, Some(loss));
            match before {
                None => Turn::Lost,
                Some(_) => Turn::None,
            }
        })
    }

    /// `None` as long as the server is heard about everything.
    pub fn out_of_touch(&self, now: Instant) -> Option<OutOfTouch> {
        self.with(|kinds| longest(kinds, now))
    }

    // A panic elsewhere leaves plain values behind.
    fn with<T>(&self, action: impl FnOnce(&mut BTreeMap<Kind, Option<Loss>>) -> T) -> T {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn longest(kinds: &BTreeMap<Kind, Option<Loss>>, now: Instant) -> Option<OutOfTouch> {
    let losses = kinds.values().flatten();
    let oldest = losses.min_by_key(|loss| loss.since)?;
    Some(OutOfTouch {
        age: now.saturating_duration_since(oldest.since),
        reason: oldest.reason.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_kind_that_has_waited_longest_gives_age_and_reason() {
        let (contact, start) = (Contact::default(), Instant::now());
        assert_eq!(contact.out_of_touch(start), None);
        assert_eq!(contact.lost(Kind::Service, start, "refused"), Turn::Lost);
        assert_eq!(
            contact.lost(Kind::Node, start + SECOND, "timed out"),
            Turn::None
        );
        assert_eq!(
            contact.lost(Kind::Service, start + 2 * SECOND, "reset"),
            Turn::None
        );
        let told = contact.out_of_touch(start + 3600 * SECOND).unwrap();
        assert_eq!((told.age, &*told.reason), (3600 * SECOND, "reset"));
    }

    #[test]
    fn it_is_found_when_every_kind_is() {
        let (contact, start) = (Contact::default(), Instant::now());
        contact.lost(Kind::Service, start, "refused");
        contact.lost(Kind::Node, start + SECOND, "refused");
        assert_eq!(contact.held(Kind::Service, start + 2 * SECOND), Turn::None);
        let told = contact.out_of_touch(start + 2 * SECOND).unwrap();
        assert_eq!(told.age, SECOND);
        assert_eq!(
            contact.held(Kind::Node, start + 3 * SECOND),
            Turn::Found(2 * SECOND)
        );
        assert_eq!(contact.held(Kind::Node, start + 4 * SECOND), Turn::None);
        assert_eq!(contact.out_of_touch(start + 5 * SECOND), None);
    }
}
