//! DNS over UDP: one thread per socket, datagrams in batches, replies written where the questions lie.
//!
//! A plain question that was answered before is answered from the thread's [`Memo`]; every other message goes through
//! the exchange, like one over TCP. Questions that wait for an upstream leave the thread and are sent by a task of the
//! runtime, so nothing that others do or leave undone holds up a name of the cluster.
//!
//! A reply leaves from the address that was asked, because each socket is bound to one.

use std::io;
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use prometheus::local::LocalHistogram;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::net::batches::{Batch, SLOTS};
use crate::net::sockets::{leave_port, send_datagram, shut_down};

use super::exchange::{Answered, Exchange, Pending, Step};
use super::lasting::Moment;
use super::memo::Memo;
use super::message::Transport;
use super::metrics::{Metrics, Tally, float};
use super::simple::Simple;

/// Room for a datagram: the longest reply that may be configured. Not a power of two, so that the slots of a batch are
/// spread over the processor's caches. A longer question is cut, and so malformed.
const SLOT_BYTES: usize = 4096 + 192;

/// Waited after an error of the socket, which must not become a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Batches taken after the end was asked for: what the kernel had queued by then.
const LAST_BATCHES: usize = 64;

/// Within so long a datagram that the kernel had assigned to this socket, when it left the port, is in its queue. A question
/// of a thousand was lost once where nobody waited, on a machine that had far too much to do; why was not seen.
const ON_ITS_WAY: Duration = Duration::from_millis(20);

/// One socket and its thread. Both end when it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Arc<UdpSocket>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Answers what comes to `socket`, which blocks, on a thread of its own. Questions that wait become tasks of
    /// `runtime`, tracked by `tasks`. The memo takes at most `memo_octets`.
    pub(super) fn start(
        socket: UdpSocket,
        exchange: Arc<Exchange>,
        memo_octets: usize,
        runtime: Handle,
        tasks: TaskTracker,
    ) -> io::Result<Self> {
        let socket = Arc::new(socket);
        let stop = Arc::new(AtomicBool::new(false));
        let metrics = exchange.metrics().clone();
        let worker = Worker {
            socket: socket.clone(),
            stop: stop.clone(),
            batch: Batch::with_slot_bytes(SLOT_BYTES),
            memo: Memo::new(memo_octets),
            question: Simple::new(),
            has_reply: [false; SLOTS],
            lost: 0,
            durations: metrics.duration.local(),
            request_sizes: metrics.request_size.local(),
            response_sizes: metrics.response_size.local(),
            exchange,
            metrics,
            runtime,
            tasks,
        };
        let thread = thread::Builder::new()
            .name("dns-udp".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self {
            socket,
            stop,
            thread: Some(thread),
        })
    }

    /// Takes no more questions: what comes from now on is for others who share the port.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = leave_port(&self.socket) {
            tracing::debug!(%error, "DNS questions may be lost");
        }
        shut_down(&*self.socket, Shutdown::Read);
    }

    /// Waits until the thread has answered what had come. Blocks.
    pub(super) fn join(mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread of the DNS server died");
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Worker {
    socket: Arc<UdpSocket>,
    stop: Arc<AtomicBool>,
    batch: Batch,
    memo: Memo<Tally>,
    question: Simple,
    has_reply: [bool; SLOTS],
    lost: u32,
    durations: LocalHistogram,
    request_sizes: LocalHistogram,
    response_sizes: LocalHistogram,
    exchange: Arc<Exchange>,
    metrics: Arc<Metrics>,
    runtime: Handle,
    tasks: TaskTracker,
}

impl Worker {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            match self.batch.wait(&*self.socket, 0..SLOTS) {
                Ok(received) => self.serve(received.datagrams),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%error, "DNS datagrams not received");
                    thread::sleep(ERROR_PAUSE);
                }
            }
        }
        self.serve_the_rest();
        thread::sleep(ON_ITS_WAY);
        self.serve_the_rest();
    }

    fn serve_the_rest(&mut self) {
        for _ in 0..LAST_BATCHES {
            match self.batch.receive(&*self.socket, 0..SLOTS) {
                Ok(received) => self.serve(received.datagrams),
                Err(_nothing_left) => break,
            }
        }
    }

    fn serve(&mut self, n: usize) {
        let started = Instant::now();
        self.count_lost(n);
        let table = self.exchange.table().load_full();
        let moment = Moment {
            table: &table,
            now: started,
        };
        let mut n_remembered = 0;
        for slot in 0..n {
            self.has_reply[slot] = false;
            let Some(client) = self.batch.source(slot).filter(|client| client.port() != 0) else {
                // Of a socket that is being shut down this is no datagram.
                if !self.stop.load(Ordering::Acquire) {
                    self.metrics.drop_one("no_source");
                }
                continue;
            };
            let length = self.batch.len(slot);
            self.request_sizes.observe(float(length));
            let remembered = AssertUnwindSafe(|| {
                self.exchange.admits(client.ip(), &table.node) && self.remember(slot, &moment)
            });
            match catch_unwind(remembered) {
                Ok(true) => n_remembered += 1,
                Ok(false) => self.ask(slot, client),
                Err(_) => {
                    self.metrics.panics.inc();
                    self.memo.clear();
                }
            }
            if self.has_reply[slot] {
                // To where it came from; what the kernel told about the question is nothing to send.
                self.batch.address_to(slot, client, None);
                self.response_sizes.observe(float(self.batch.len(slot)));
            }
        }
        self.send(n);
        let took = started.elapsed().as_secs_f64();
        for _ in 0..n_remembered {
            self.durations.observe(took);
        }
        self.durations.flush();
        self.request_sizes.flush();
        self.response_sizes.flush();
    }

    // What found no room in the socket's buffer before the batch of `n`; its last datagram knows of all.
    fn count_lost(&mut self, n: usize) {
        let Some(lost) = n.checked_sub(1).and_then(|last| self.batch.lost(last)) else {
            return;
        };
        let more = lost.wrapping_sub(self.lost);
        self.lost = lost;
        self.metrics.drop_some("overload", more);
    }

    // Answers from the memo, if it can.
    fn remember(&mut self, slot: usize, moment: &Moment<'_>) -> bool {
        let max_udp = self.exchange.max_udp();
        if !self.question.read(self.batch.bytes(slot), max_udp) {
            return false;
        }
        let room = self.batch.room(slot);
        let answer = self
            .memo
            .answer(&self.question, room, moment, &mut rand::rng());
        let Some((length, tally)) = answer else {
            return false;
        };
        tally.count();
        self.batch.set_len(slot, length);
        self.has_reply[slot] = true;
        true
    }

    // The way of every message.
    fn ask(&mut self, slot: usize, client: SocketAddr) {
        let message = self.batch.bytes(slot);
        match self.exchange.begin(message, client, Transport::Udp) {
            Step::Reply(Answered { octets, again }) => {
                let max_udp = self.exchange.max_udp();
                if let Some(again) = again
                    && self.question.read(self.batch.bytes(slot), max_udp)
                {
                    let key = self.question.key();
                    self.memo.keep(key, &octets, again.lasting, again.tally);
                }
                // Replies over UDP are cut to less than a slot.
                if let Some(room) = self.batch.room(slot).get_mut(..octets.len()) {
                    room.copy_from_slice(&octets);
                    self.batch.set_len(slot, octets.len());
                    self.has_reply[slot] = true;
                }
            }
            Step::Silence => {}
            Step::Wait(pending) => self.wait(pending, client),
        }
    }

    fn wait(&self, pending: Box<Pending>, client: SocketAddr) {
        let finish = self.exchange.clone().finish(pending);
        let (socket, metrics) = (self.socket.clone(), self.metrics.clone());
        let sending = async move {
            if let Step::Reply(answered) = finish.await {
                metrics.response_size.observe(float(answered.octets.len()));
                if let Err(error) = send_datagram(&*socket, &answered.octets, client) {
                    metrics.drop_one("not_sent");
                    tracing::debug!(%client, %error, "DNS reply not sent");
                }
            }
        };
        self.tasks.spawn_on(sending, &self.runtime);
    }

    // Sends the replies among the first `n` slots, run by run.
    fn send(&mut self, n: usize) {
        let mut from = 0;
        while from < n {
            if !self.has_reply[from] {
                from += 1;
                continue;
            }
            let rest = &self.has_reply[from..n];
            let to = from + rest.iter().position(|reply| !reply).unwrap_or(rest.len());
            match self.batch.send(&*self.socket, from..to) {
                Ok(sent) => from += sent.max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.metrics.drop_one("not_sent");
                    tracing::debug!(%error, "DNS reply not sent");
                    from += 1;
                }
            }
        }
    }
}

/// How many sockets, and so threads, each of `n_addresses` gets: one per core, within a bound on all of them.
pub(super) fn sockets_per_address(n_addresses: usize) -> usize {
    const MAX_THREADS: usize = 64;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    cores.min(MAX_THREADS / n_addresses.max(1)).max(1)
}
