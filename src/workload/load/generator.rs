//! Runs a load: the threads, the pacer of each and its lanes.
//!
//! Each thread has a reactor of its own and shares nothing with the others but a stop signal and the figures for the
//! progress line.

use std::cell::RefCell;
use std::io;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet, yield_now};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::net::descriptors::raise_limit;
use crate::net::pace_timer::PaceTimer;

use super::bulk;
use super::client::Client;
use super::lane::{Shared, follow, press};
use super::queue::{Put, Queue};
use super::report::Report;
use super::schedule::{Rate, Schedule};
use super::tally::Tally;
use super::{Origins, Work};

/// Descriptors that are no connections: standard streams, reactors, timers.
const RESERVE: usize = 64;

/// Requests that are handed out without a look at the lanes, where the pacer is behind.
const BURST: usize = 32;

/// Who sets the pace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// The schedule, whatever becomes of the requests before (open loop).
    Rate(Rate),
    /// The answers: each connection sends its next request when it has the last answer (closed loop).
    Answers,
}

/// A load to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What each request is.
    pub work: Work,
    /// Who sets the pace.
    pub pace: Pace,
    /// Connections or UDP flows at a time, over all threads: at most so many under a rate, exactly so many otherwise.
    pub connections: NonZeroUsize,
    /// Of these, how many take turns from the start under a rate; further ones are opened where those do not keep up.
    pub in_turn: usize,
    /// Generator threads; no more than there are connections are used.
    pub threads: NonZeroUsize,
    /// Load that is not counted, before the rest.
    pub warm_up: Duration,
    /// Load that is counted.
    pub length: Duration,
    /// How long an answer may take before it counts as an error.
    pub patience: Duration,
    /// Where requests come from.
    pub origins: Origins,
}

/// Why a load cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There are not that many descriptors.
    #[error(
        "{asked} are too many, this process may have {possible}; lower it or raise the limit of open files (`ulimit -n`)"
    )]
    Descriptors {
        /// Connections asked for.
        asked: usize,
        /// Connections that the limit allows.
        possible: usize,
    },
    /// A thread or its reactor cannot be made, or ended early.
    #[error("a generator thread: {0}")]
    Thread(#[from] io::Error),
}

/// Figures for a progress line, over all threads, the warm-up included.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    pub(super) fn count(&self, good: bool) {
        let counter = if good { &self.done } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn moved(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Requests that were answered.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Requests that were not.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Bytes that bulk streams have moved, both ways.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Runs a load to its end, or until `stop`; the report is of what there was by then.
///
/// # Errors
///
/// More connections than descriptors, or threads that cannot be made.
pub async fn run(
    plan: Plan,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> Result<Report, LoadError> {
    let possible = raise_limit()?.saturating_sub(RESERVE);
    if plan.connections.get() > possible {
        return Err(LoadError::Descriptors {
            asked: plan.connections.get(),
            possible,
        });
    }
    let plan = Arc::new(plan);
    let n = plan.threads.min(plan.connections).get();
    let start = Instant::now();
    let mut threads = Vec::new();
    for index in 0..n {
        let thread = GeneratorThread {
            plan: plan.clone(),
            index,
            n,
            start,
            progress: progress.clone(),
            stop: stop.clone(),
        };
        threads.push(thread.spawn()?);
    }
    let mut total = Tally::new(plan.warm_up, plan.length);
    for thread in threads {
        let ended_early = |_| io::Error::other("ended without a result");
        total.add(&thread.await.map_err(ended_early)??);
    }
    // The last answer may come before the time is up; the next request would have been due then.
    let measured = if stop.is_cancelled() {
        let elapsed = start.elapsed().saturating_sub(plan.warm_up);
        elapsed.min(plan.length)
    } else {
        plan.length
    };
    Ok(Report::new(plan.work.target(), measured, &total))
}

struct GeneratorThread {
    plan: Arc<Plan>,
    index: usize,
    n: usize,
    start: Instant,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

impl GeneratorThread {
    fn spawn(self) -> io::Result<oneshot::Receiver<io::Result<Tally>>> {
        let (done, tally) = oneshot::channel();
        std::thread::Builder::new()
            .name(format!("viaduct-load-{}", self.index))
            .spawn(move || {
                let _nobody_waits = done.send(self.work());
            })?;
        Ok(tally)
    }

    fn work(self) -> io::Result<Tally> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let tally = LocalSet::new().block_on(&runtime, self.generate())?;
        // Lanes that were broken off hold nothing that is worth waiting for.
        runtime.shutdown_background();
        Ok(tally)
    }

    async fn generate(self) -> io::Result<Tally> {
        let shared = Rc::new(Shared {
            queue: Queue::default(),
            tally: RefCell::new(Tally::new(self.plan.warm_up, self.plan.length)),
            start: self.start,
            patience: self.plan.patience,
            progress: self.progress.clone(),
        });
        let mut lanes = JoinSet::new();
        match (&self.plan.work, self.plan.pace) {
            (Work::Bulk { target }, _) => self.stream(*target, &shared, &mut lanes),
            (_, Pace::Rate(rate)) => self.pace(rate, &shared, &mut lanes).await?,
            (_, Pace::Answers) => self.press(&shared, &mut lanes),
        }
        self.finish(&shared, lanes).await;
        Ok(shared
            .tally
            .replace(Tally::new(Duration::ZERO, Duration::ZERO)))
    }

    // Hands out each request when it is due, and opens lanes while those there are do not keep up.
    async fn pace(
        &self,
        rate: Rate,
        shared: &Rc<Shared>,
        lanes: &mut JoinSet<()>,
    ) -> io::Result<()> {
        let timer = PaceTimer::new()?;
        let mut stopped = pin!(self.stop.cancelled());
        let mut my_lanes = self.my_lanes();
        let mut open = |lanes: &mut JoinSet<()>| {
            if let Some(client) = my_lanes.next() {
                let shared = shared.clone();
                lanes.spawn_local(async move { follow(&shared, client).await });
            }
        };
        for _mine in (self.index..self.plan.in_turn).step_by(self.n) {
            open(lanes);
        }
        // They ask for work before there is any, and get it in the order in which they asked.
        yield_now().await;
        let mut burst = 0;
        for due in Schedule::new(rate, self.end(), self.index as u64, self.n as u64) {
            let wait = due.after.saturating_sub(shared.now());
            if wait > Duration::ZERO {
                burst = 0;
                tokio::select! {
                    biased;
                    () = &mut stopped => return Ok(()),
                    rung = timer.wait(wait) => rung?,
                }
            } else {
                burst += 1;
                if burst % BURST == 0 {
                    yield_now().await;
                    if self.stop.is_cancelled() {
                        return Ok(());
                    }
                }
            }
            match shared.queue.put(due) {
                Put::Taken => {}
                Put::Waits => open(lanes),
                Put::Full => shared.unsent(due),
            }
        }
        Ok(())
    }

    fn press(&self, shared: &Rc<Shared>, lanes: &mut JoinSet<()>) {
        let end = self.end();
        for (lane, client) in self.my_lanes().enumerate() {
            let shared = shared.clone();
            let number = (self.index + lane * self.n) as u64;
            lanes.spawn_local(async move { press(&shared, client, number, end).await });
        }
    }

    fn stream(&self, target: std::net::SocketAddr, shared: &Rc<Shared>, lanes: &mut JoinSet<()>) {
        let (end, warm_up) = (self.end(), self.plan.warm_up);
        for lane in self.lane_numbers() {
            let origin = self.plan.origins.of(lane);
            let shared = shared.clone();
            lanes.spawn_local(async move {
                bulk::stream(&shared, target, origin, warm_up..end).await;
            });
        }
    }

    // What is still waited for gets as long as any answer; then the rest is counted as never sent, and what is on its
    // way ends by its own patience.
    async fn finish(&self, shared: &Rc<Shared>, mut lanes: JoinSet<()>) {
        let left = self.end().saturating_sub(shared.now());
        let patience = self.plan.patience;
        let all_done = async {
            shared.queue.close();
            while lanes.join_next().await.is_some() {}
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            _over = timeout(left + patience, all_done) => {}
        }
        for due in shared.queue.drain() {
            shared.unsent(due);
        }
        if !self.stop.is_cancelled() {
            let rest = async { while lanes.join_next().await.is_some() {} };
            let _broken_off = timeout(patience, rest).await;
        }
    }

    fn end(&self) -> Duration {
        self.plan.warm_up + self.plan.length
    }

    fn lane_numbers(&self) -> impl Iterator<Item = usize> + use<> {
        (self.index..self.plan.connections.get()).step_by(self.n)
    }

    fn my_lanes(&self) -> impl Iterator<Item = Client> + use<> {
        let plan = self.plan.clone();
        self.lane_numbers()
            .filter_map(move |lane| Client::new(&plan.work, &plan.origins, lane))
    }
}
