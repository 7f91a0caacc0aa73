//! A data thread: one OS thread with a reactor of its own, the listeners placed on it and all their flows. Flows never
//! change threads, so nothing on the data path is locked.
//!
//! The control side talks to it through a mailbox; what it says takes effect in the order in which it was said.

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::model::ServicePortKey;

use super::{Drained, Listener, tcp, udp};

/// How many scheduler rounds pass between two looks at the reactor: lower than tokio's 61, for latency under bulk.
const EVENT_INTERVAL: u32 = 16;

/// One serving period of a listener; a listener that was held closed in between has a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Period(pub(super) u64);

/// A socket to serve.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(std::net::TcpListener),
    Udp(std::net::UdpSocket),
}

/// A running data thread, as the control side holds it. Dropped, the thread ends and resets what it has.
#[derive(Debug)]
pub(super) struct DataThread {
    mailbox: Arc<Mailbox>,
    handle: Option<JoinHandle<()>>,
}

impl DataThread {
    /// Starts thread number `index`.
    pub(super) fn start(index: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .event_interval(EVENT_INTERVAL)
            .build()?;
        let mailbox = Arc::new(Mailbox::default());
        let inside = mailbox.clone();
        let handle = std::thread::Builder::new()
            .name(format!("viaduct-data-{index}"))
            .spawn(move || run(runtime, &inside))?;
        Ok(Self {
            mailbox,
            handle: Some(handle),
        })
    }

    /// Serves a socket from now on.
    pub(super) fn serve(&self, period: Period, listener: Listener, socket: Socket) {
        self.mailbox.post(|mail| {
            mail.orders.push(Order::Serve {
                period,
                listener,
                socket,
            });
        });
    }

    /// Stops serving, what is queued is taken first. The answer comes when the socket has been closed; it is an error
    /// if the thread does not serve it.
    pub(super) fn stop(&self, period: Period) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        self.mailbox
            .post(|mail| mail.orders.push(Order::Stop { period, done }));
        answer
    }

    /// The table says something new about these routes.
    pub(super) fn routes_changed(&self, routes: &[ServicePortKey]) {
        self.mailbox
            .post(|mail| mail.changed.extend(routes.iter().cloned()));
    }

    /// Stops everything, waits for connections up to `patience`, resets the rest and ends the thread.
    pub(super) fn drain(&self, patience: Duration) -> oneshot::Receiver<Drained> {
        let (done, answer) = oneshot::channel();
        self.mailbox
            .post(|mail| mail.orders.push(Order::Drain { patience, done }));
        answer
    }

    /// Waits for the thread to end, which it does right after it has answered a drain.
    pub(super) fn join(mut self) {
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            tracing::error!("a data thread panicked");
        }
    }
}

impl Drop for DataThread {
    fn drop(&mut self) {
        self.mailbox.post(|mail| mail.hung_up = true);
    }
}

/// What the control side wants. Bounded by what exists: an order concerns a listener, a change a route.
#[derive(Debug, Default)]
struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Mail {
    orders: Vec<Order>,
    changed: HashSet<ServicePortKey>,
    hung_up: bool,
    // Nobody reads it any more.
    thread_ended: bool,
}

#[derive(Debug)]
enum Order {
    Serve {
        period: Period,
        listener: Listener,
        socket: Socket,
    },
    Stop {
        period: Period,
        done: oneshot::Sender<()>,
    },
    Drain {
        patience: Duration,
        done: oneshot::Sender<Drained>,
    },
}

impl Mailbox {
    // To a thread that has ended, an order is dropped, and with it whoever would answer it.
    fn post(&self, write: impl FnOnce(&mut Mail)) {
        let mut mail = self.lock();
        if !mail.thread_ended {
            write(&mut mail);
            self.arrived.notify_one();
        }
    }

    async fn collect(&self) -> Mail {
        self.arrived.notified().await;
        mem::take(&mut self.lock())
    }

    // Nothing panics while it is held, and a mail half written is still a mail.
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a listener's task is told. Dropped by the thread, it means close as well.
#[derive(Debug)]
pub(super) struct Orders {
    inbox: mpsc::Receiver<ListenerOrder>,
    done: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
enum ListenerOrder {
    Recheck,
    Close(oneshot::Sender<()>),
}

/// The next thing a UDP listener has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instruction {
    /// Look all flows up in the table again.
    Recheck,
    /// Stop.
    Close,
}

impl Orders {
    fn new() -> (mpsc::Sender<ListenerOrder>, Self) {
        // Recheck and Close: a second Recheck says no more than the one that waits.
        let (sender, inbox) = mpsc::channel(2);
        (sender, Self { inbox, done: None })
    }

    /// The next instruction.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Instruction> {
        self.inbox.poll_recv(cx).map(|order| match order {
            Some(ListenerOrder::Recheck) => Instruction::Recheck,
            Some(ListenerOrder::Close(done)) => {
                self.done = Some(done);
                Instruction::Close
            }
            None => Instruction::Close,
        })
    }

    /// Ready when the listener is to close.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.poll_next(cx) {
                Poll::Ready(Instruction::Close) => return Poll::Ready(()),
                Poll::Ready(Instruction::Recheck) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Says that the socket has been closed.
    pub(super) fn done(self) {
        if let Some(done) = self.done {
            let _nobody_waits = done.send(());
        }
    }
}

// Marks the mailbox when the thread ends, however it ends.
struct ThreadEnd<'a>(&'a Mailbox);

impl Drop for ThreadEnd<'_> {
    fn drop(&mut self) {
        let mut mail = self.0.lock();
        mail.thread_ended = true;
        mail.orders.clear();
    }
}

fn run(runtime: Runtime, mailbox: &Mailbox) {
    let _end = ThreadEnd(mailbox);
    let mut served = Served::default();
    let drained = runtime.block_on(served.follow(mailbox));
    // Ends what is left: a relay that is dropped before its end resets both sides.
    drop(runtime);
    if let Some((done, drained)) = drained {
        let _nobody_waits = done.send(drained);
    }
}

// The listeners and flows of this thread.
#[derive(Default)]
struct Served {
    listeners: HashMap<Period, (ServicePortKey, mpsc::Sender<ListenerOrder>)>,
    periods: HashMap<ServicePortKey, Vec<Period>>,
    listener_tasks: TaskTracker,
    flows: TaskTracker,
}

impl Served {
    async fn follow(&mut self, mailbox: &Mailbox) -> Option<(oneshot::Sender<Drained>, Drained)> {
        loop {
            let mail = mailbox.collect().await;
            for order in mail.orders {
                match order {
                    Order::Serve {
                        period,
                        listener,
                        socket,
                    } => self.serve(period, listener, socket),
                    Order::Stop { period, done } => self.stop(period, done).await,
                    Order::Drain { patience, done } => {
                        return Some((done, self.drain(patience).await));
                    }
                }
            }
            for route in &mail.changed {
                self.recheck(route);
            }
            if mail.hung_up {
                return None;
            }
        }
    }

    fn serve(&mut self, period: Period, listener: Listener, socket: Socket) {
        let (sender, orders) = Orders::new();
        let route = listener.id.route.clone();
        let listener = Arc::new(listener);
        let id = listener.id.clone();
        let started = match socket {
            Socket::Tcp(socket) => tokio::net::TcpListener::from_std(socket).map(|socket| {
                let flows = self.flows.clone();
                self.listener_tasks
                    .spawn(tcp::accept(listener, socket, orders, flows));
            }),
            Socket::Udp(socket) => udp::Forwarder::new(listener, socket).map(|forwarder| {
                self.listener_tasks.spawn(forwarder.run(orders));
            }),
        };
        match started {
            Ok(()) => {
                self.periods.entry(route.clone()).or_default().push(period);
                self.listeners.insert(period, (route, sender));
            }
            Err(error) => tracing::error!(listener = %id, %error, "listener could not be served"),
        }
    }

    async fn stop(&mut self, period: Period, done: oneshot::Sender<()>) {
        let Some((route, orders)) = self.listeners.remove(&period) else {
            return;
        };
        if let Some(periods) = self.periods.get_mut(&route) {
            periods.retain(|other| *other != period);
            if periods.is_empty() {
                self.periods.remove(&route);
            }
        }
        // A listener whose task is gone has closed its socket by that.
        let _gone = orders.send(ListenerOrder::Close(done)).await;
    }

    fn recheck(&self, route: &ServicePortKey) {
        for period in self.periods.get(route).into_iter().flatten() {
            if let Some((_, orders)) = self.listeners.get(period) {
                // Full means that one waits already.
                let _waits_already = orders.try_send(ListenerOrder::Recheck);
            }
        }
    }

    async fn drain(&mut self, patience: Duration) -> Drained {
        self.listeners.clear();
        self.listener_tasks.close();
        self.listener_tasks.wait().await;
        let active = self.flows.len();
        self.flows.close();
        let _patience_is_over = timeout(patience, self.flows.wait()).await;
        let aborted = self.flows.len();
        Drained {
            finished: active - aborted,
            aborted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_has_ended_leaves_nobody_waiting() {
        let thread = DataThread::start(0).unwrap();
        assert_eq!(thread.drain(Duration::ZERO).await, Ok(Drained::default()));
        thread.stop(Period(1)).await.unwrap_err();
        thread.drain(Duration::ZERO).await.unwrap_err();
        thread.join();
    }
}
