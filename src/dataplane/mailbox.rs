//! How the control side talks to a data thread: orders, which take effect in the order in which they were given, and
//! routes that have changed.

use std::collections::HashSet;
use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::model::ServicePortKey;
use crate::net::poller::WakeUp;

use super::observer::{OpenFlows, WhoseFlows};
use super::{Drained, Listener};

/// One serving period of a listener; a listener that was held closed in between has a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Period(pub(super) u64);

/// A socket to serve.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(std::net::TcpListener),
    Udp(std::net::UdpSocket),
}

/// What the control side wants done.
#[derive(Debug)]
pub(super) enum Order {
    /// Serve a socket from now on.
    Serve {
        period: Period,
        listener: Listener,
        socket: Socket,
    },
    /// Stop serving: what is queued is taken first, and the answer comes when the socket has been closed. No answer
    /// but an error if it is not served.
    Stop {
        period: Period,
        done: oneshot::Sender<()>,
    },
    /// Say which flows there are.
    List {
        whose: Arc<WhoseFlows>,
        done: oneshot::Sender<OpenFlows>,
    },
    /// Stop everything, wait for connections up to `patience`, reset the rest and end.
    Drain {
        patience: Duration,
        done: oneshot::Sender<Drained>,
    },
}

/// A data thread's mailbox. Bounded by what exists: an order concerns a listener or
/// somebody who waits for the answer, a change a route.
#[derive(Debug)]
pub(super) struct Mailbox {
    mail: Mutex<Mail>,
    /// Called when something has been posted.
    pub(super) arrived: WakeUp,
}

/// What was posted since the last look.
#[derive(Debug, Default)]
pub(super) struct Mail {
    pub(super) orders: Vec<Order>,
    pub(super) changed: HashSet<ServicePortKey>,
    /// Nobody holds the thread any more.
    pub(super) hung_up: bool,
    // Nobody reads it any more.
    thread_ended: bool,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    /// Those of `eventfd(2)`.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            mail: Mutex::default(),
            arrived: WakeUp::new()?,
        })
    }

    /// Posts something. To a thread that has ended, an order is dropped, and with it whoever would answer it.
    pub(super) fn post(&self, write: impl FnOnce(&mut Mail)) {
        let mut mail = self.lock();
        if !mail.thread_ended {
            write(&mut mail);
            self.arrived.call();
        }
    }

    /// Takes out what is there.
    pub(super) fn collect(&self) -> Mail {
        mem::take(&mut self.lock())
    }

    /// The thread reads no more.
    pub(super) fn close(&self) {
        let mut mail = self.lock();
        mail.thread_ended = true;
        mail.orders.clear();
    }

    // Nothing panics while it is held, and a mail half written is still a mail.
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
