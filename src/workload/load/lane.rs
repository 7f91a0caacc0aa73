//! A lane: one client that takes requests as they are due, or one after the other, and counts what becomes of them.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::Client;
use super::generator::Progress;
use super::queue::Queue;
use super::schedule::Due;
use super::tally::{Failure, Finished, Tally};

/// How long a lane that sets its own pace rests after a failure: a target that refuses must not be hammered, nor the
/// processor be spent on it.
const REST: Duration = Duration::from_millis(10);

/// What the lanes of one thread share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) tally: RefCell<Tally>,
    pub(super) start: Instant,
    pub(super) patience: Duration,
    pub(super) progress: Arc<Progress>,
}

impl Shared {
    /// Time since the start of the run; zero before it.
    pub(super) fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.start)
    }

    /// Counts a request that was never begun.
    pub(super) fn unsent(&self, due: Due) {
        self.progress.count(false);
        self.tally.borrow_mut().count(Finished {
            due: due.after,
            begun: None,
            over: self.now(),
            outcome: Err(Failure::Unsent),
        });
    }

    // Whether it went well.
    async fn exchange(&self, client: &mut Client, due: Due) -> bool {
        let begun = self.now();
        let outcome = client.exchange(due.number, self.patience).await;
        let over = self.now();
        let mut tally = self.tally.borrow_mut();
        if let Ok(answer) = &outcome
            && tally.is_measured(due.after)
        {
            tally.bytes_sent += answer.sent as u64;
            tally.bytes_received += answer.received as u64;
        }
        let outcome = outcome.map(|answer| answer.backend);
        self.progress.count(outcome.is_ok());
        tally.count(Finished {
            due: due.after,
            begun: Some(begun),
            over,
            outcome,
        });
        outcome.is_ok()
    }
}

/// Takes requests from the queue until it is closed.
pub(super) async fn follow(shared: &Shared, mut client: Client) {
    while let Some(due) = shared.queue.take().await {
        shared.exchange(&mut client, due).await;
    }
}

/// Sends the next request when it has the answer to the last, until `end`. Its requests are due when they are begun.
pub(super) async fn press(shared: &Shared, mut client: Client, lane: u64, end: Duration) {
    let mut n = 0;
    loop {
        let due = Due {
            // Lanes may be told apart by the upper half.
            number: lane << 32 | n,
            after: shared.now(),
        };
        if due.after >= end {
            return;
        }
        n += 1;
        if !shared.exchange(&mut client, due).await {
            tokio::time::sleep(REST).await;
        }
    }
}
