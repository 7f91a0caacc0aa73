//! Readiness at start: named blockers, each cleared by whoever set it. `/readyz` prints the names still pending.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The set of things that still have to happen before the process is ready. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    blockers: Arc<Mutex<Blockers>>,
    cleared: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Blockers {
    next: u64,
    names: BTreeMap<u64, String>,
}

/// Keeps the process from being ready until it is dropped, by whatever path.
#[derive(Debug)]
#[must_use = "a blocker that is dropped at once blocks nothing"]
pub struct Blocker {
    readiness: Readiness,
    id: u64,
}

impl Readiness {
    /// Nothing pending: ready, until somebody blocks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a blocker. Two of one name are two.
    pub fn block(&self, name: impl Into<String>) -> Blocker {
        let mut blockers = self.lock();
        let id = blockers.next;
        blockers.next += 1;
        blockers.names.insert(id, name.into());
        Blocker {
            readiness: self.clone(),
            id,
        }
    }

    /// The names of the blockers that are left, in the order in which they were added.
    pub fn pending(&self) -> Vec<String> {
        self.lock().names.values().cloned().collect()
    }

    /// Whether no blocker is left.
    pub fn is_ready(&self) -> bool {
        self.lock().names.is_empty()
    }

    /// Waits until no blocker is left.
    pub async fn ready(&self) {
        loop {
            let cleared = self.cleared.notified();
            if self.is_ready() {
                return;
            }
            cleared.await;
        }
    }

    // A panic elsewhere cannot leave the map half written, so a poisoned lock is as good.
    fn lock(&self) -> MutexGuard<'_, Blockers> {
        self.blockers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        self.readiness.lock().names.remove(&self.id);
        self.readiness.cleared.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_the_last_blocker_is_dropped() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let sources = readiness.block("sources");
        let listeners = readiness.block("listeners");
        assert_eq!(readiness.pending(), ["sources", "listeners"]);
        drop(sources);
        assert_eq!(readiness.pending(), ["listeners"]);
        assert!(!readiness.is_ready());
        drop(listeners);
        assert!(readiness.is_ready());
        assert_eq!(readiness.pending(), [""; 0]);
    }

    #[tokio::test]
    async fn waiting_ends_with_the_last_blocker() {
        let readiness = Readiness::new();
        let blocker = readiness.block("sources");
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        drop(blocker);
        waiting.await.unwrap();
    }

    #[test]
    fn two_blockers_of_one_name_are_two() {
        let readiness = Readiness::new();
        let first = readiness.block("dns");
        let second = readiness.clone().block("dns");
        drop(first);
        assert_eq!(readiness.pending(), ["dns"]);
        drop(second);
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_task_that_panics_clears_its_blocker_too() {
        let readiness = Readiness::new();
        let blocker = readiness.block("doomed");
        let died = std::thread::spawn(move || {
            let _blocker = blocker;
            panic!("on purpose");
        });
        assert!(died.join().is_err());
        assert!(readiness.is_ready());
    }
}
