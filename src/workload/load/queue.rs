//! Requests that are due, between the pacer and the lanes of one thread.
//!
//! Owned by that thread alone; nothing is locked. Bounded: what finds it full is never sent, and counted so.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use tokio::sync::Notify;

use super::schedule::Due;

/// Requests that may wait for a lane; some 3 MB.
const MAX_WAITING: usize = 100_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: RefCell<VecDeque<Due>>,
    // Lanes that wait for a request.
    idle: Cell<usize>,
    closed: Cell<bool>,
    arrived: Notify,
}

/// What the pacer is to do about a request that it has put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// A lane will take it.
    Taken,
    /// No lane is free: one more would help.
    Waits,
    /// There is no room for it.
    Full,
}

impl Queue {
    /// Puts a request in.
    pub(super) fn put(&self, due: Due) -> Put {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= MAX_WAITING {
            return Put::Full;
        }
        waiting.push_back(due);
        if waiting.len() <= self.idle.get() {
            self.arrived.notify_one();
            Put::Taken
        } else {
            Put::Waits
        }
    }

    /// The next request; `None` once the queue is closed and empty.
    pub(super) async fn take(&self) -> Option<Due> {
        loop {
            if let Some(due) = self.waiting.borrow_mut().pop_front() {
                return Some(due);
            }
            if self.closed.get() {
                return None;
            }
            self.idle.set(self.idle.get() + 1);
            self.arrived.notified().await;
            self.idle.set(self.idle.get() - 1);
        }
    }

    /// Nothing more comes.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.arrived.notify_waiters();
        // For a lane that is woken for a request which another one takes.
        self.arrived.notify_one();
    }

    /// Takes out what nobody has taken.
    pub(super) fn drain(&self) -> Vec<Due> {
        self.waiting.take().into()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    fn due(number: u64) -> Due {
        Due {
            number,
            after: Duration::ZERO,
        }
    }

    #[test]
    fn a_request_goes_to_a_lane_that_waits() {
        let mut cx = Context::from_waker(Waker::noop());
        let queue = Queue::default();
        let mut lane = pin!(queue.take());
        assert_eq!(lane.as_mut().poll(&mut cx), Poll::Pending);
        assert_eq!(queue.put(due(1)), Put::Taken);
        assert_eq!(queue.put(due(2)), Put::Waits, "the lane has one already");
        assert_eq!(lane.as_mut().poll(&mut cx), Poll::Ready(Some(due(1))));
        assert_eq!(queue.take().now_or_never(), Some(Some(due(2))));
    }

    #[test]
    fn a_full_queue_takes_no_more_until_there_is_room() {
        let queue = Queue::default();
        for number in 0..MAX_WAITING as u64 {
            assert_eq!(queue.put(due(number)), Put::Waits);
        }
        assert_eq!(queue.put(due(0)), Put::Full);
        assert!(queue.take().now_or_never().is_some());
        assert_eq!(queue.put(due(0)), Put::Waits);
        assert_eq!(queue.drain().len(), MAX_WAITING);
    }

    #[test]
    fn closing_ends_every_lane_after_what_is_left() {
        let mut cx = Context::from_waker(Waker::noop());
        let queue = Queue::default();
        let (mut first, mut second) = (pin!(queue.take()), pin!(queue.take()));
        assert_eq!(first.as_mut().poll(&mut cx), Poll::Pending);
        assert_eq!(second.as_mut().poll(&mut cx), Poll::Pending);
        queue.put(due(1));
        queue.close();
        assert_eq!(first.as_mut().poll(&mut cx), Poll::Ready(Some(due(1))));
        assert_eq!(second.as_mut().poll(&mut cx), Poll::Ready(None));
        assert_eq!(queue.take().now_or_never(), Some(None));
    }
}
