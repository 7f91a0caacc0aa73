//! How many TCP connections a Service has, over all its ports and both families, and the bound its annotation sets.
//!
//! Born on the data path like `Live`; the same object for as long as the Service exists, whatever its tables say, so
//! a bound that is set on a Service in use counts what was there before.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The TCP connections of one Service, those that are still being dialled included.
#[derive(Debug, Default)]
pub struct ServiceLoad {
    connections: AtomicU64,
    refused_total: AtomicU64,
}

impl ServiceLoad {
    /// Counts one more connection for as long as the result lives; `None` at the bound, which is counted too.
    ///
    /// Exact: however many threads meet at the bound, as many are admitted as there is room for.
    pub fn admit(self: &Arc<Self>, bound: Option<NonZeroU32>) -> Option<CountedConnection> {
        let bound = bound.map_or(u64::MAX, |bound| u64::from(bound.get()));
        let one_more = |n| (n < bound).then_some(n + 1);
        let admitted =
            self.connections
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        if admitted.is_err() {
            self.refused_total.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(CountedConnection(self.clone()))
    }

    /// Connections at this moment. More than the bound where that was lowered below what there was.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Connections refused at the bound since the Service appeared.
    pub fn refused_total(&self) -> u64 {
        self.refused_total.load(Ordering::Relaxed)
    }
}

/// A connection that counts until this is dropped.
#[derive(Debug)]
pub struct CountedConnection(Arc<ServiceLoad>);

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn the_bound_holds_and_frees_again() {
        let load = Arc::new(ServiceLoad::default());
        let bound = NonZeroU32::new(2);
        let first = load.admit(bound).unwrap();
        let _second = load.admit(bound).unwrap();
        assert!(load.admit(bound).is_none());
        assert_eq!((load.connections(), load.refused_total()), (2, 1));
        drop(first);
        let _third = load.admit(bound).unwrap();
        assert!(load.admit(bound).is_none());
        assert_eq!((load.connections(), load.refused_total()), (2, 2));
    }

    #[test]
    fn what_was_there_before_the_bound_counts() {
        let load = Arc::new(ServiceLoad::default());
        let mut open: Vec<_> = (0..3).map(|_| load.admit(None).unwrap()).collect();
        let bound = NonZeroU32::new(2);
        assert!(load.admit(bound).is_none());
        open.truncate(1);
        assert!(load.admit(bound).is_some());
        assert!(load.admit(None).is_some(), "and no bound is no bound");
    }

    #[test]
    fn as_many_are_admitted_as_there_is_room_for_however_many_ask() {
        const THREADS: usize = 4;
        const BOUND: u32 = 100;
        let load = Arc::new(ServiceLoad::default());
        let start = Barrier::new(THREADS);
        let admitted: usize = std::thread::scope(|scope| {
            let ask = || {
                start.wait();
                let held: Vec<_> = (0..BOUND)
                    .filter_map(|_| load.admit(NonZeroU32::new(BOUND)))
                    .collect();
                let n = held.len();
                // Nobody gives a place back before all have asked.
                start.wait();
                n
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(admitted, BOUND as usize);
        assert_eq!(load.connections(), 0);
        assert_eq!(load.refused_total(), 3 * u64::from(BOUND));
    }
}
