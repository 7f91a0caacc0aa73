//! A data thread as the control side holds it: an OS thread that runs an [`Engine`], reached through a mailbox.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::model::ServicePortKey;

use super::engine::Engine;
use super::mailbox::{Mailbox, Order, Period, Socket};
use super::{Drained, Listener};

/// A running data thread. Dropped, the thread ends and resets what it has.
#[derive(Debug)]
pub(super) struct DataThread {
    mailbox: Arc<Mailbox>,
    handle: Option<JoinHandle<()>>,
}

impl DataThread {
    /// Starts thread number `index`.
    pub(super) fn start(index: usize) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        let engine = Engine::new(mailbox.clone())?;
        let handle = std::thread::Builder::new()
            .name(format!("viaduct-data-{index}"))
            .spawn(move || engine.run())?;
        Ok(Self {
            mailbox,
            handle: Some(handle),
        })
    }

    /// What it is reached through.
    pub(super) fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.clone()
    }

    /// Serves a socket from now on.
    pub(super) fn serve(&self, period: Period, listener: Listener, socket: Socket) {
        self.order(Order::Serve {
            period,
            listener,
            socket,
        });
    }

    /// Stops serving, what is queued is taken first. The answer comes when the socket has been closed; it is an error
    /// if the thread does not serve it.
    pub(super) fn stop(&self, period: Period) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Stop { period, done });
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
        self.order(Order::Drain { patience, done });
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

    fn order(&self, order: Order) {
        self.mailbox.post(|mail| mail.orders.push(order));
    }
}

impl Drop for DataThread {
    fn drop(&mut self) {
        self.mailbox.post(|mail| mail.hung_up = true);
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
