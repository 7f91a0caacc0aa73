//! Which flows of a UDP listener have something to read from their backends.

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;

use crate::net::poller::{EVENTS, Poller};
use crate::net::readable::readable;

use super::super::Listener;
use super::flows::FlowId;

/// The sockets of one listener's flows, in one epoll set. Costs a descriptor of its own.
pub(super) struct Backends {
    listener: Arc<Listener>,
    poller: AsyncFd<Poller>,
    /// Flows whose sockets are known to be readable.
    pub(super) ready: VecDeque<FlowId>,
}

impl Backends {
    /// An empty set; `None` if there is no descriptor for it.
    pub(super) fn new(listener: &Arc<Listener>) -> Option<Self> {
        if !listener.shared.admission.take_listeners(1) {
            return None;
        }
        let backends = Poller::new().and_then(readable).map(|poller| Self {
            listener: listener.clone(),
            poller,
            ready: VecDeque::new(),
        });
        if backends.is_err() {
            listener.shared.admission.return_listeners(1);
        }
        backends.ok()
    }

    /// Watches the socket of a flow, until it is closed.
    pub(super) fn watch(&self, socket: &UdpSocket, id: FlowId) -> io::Result<()> {
        self.poller.get_ref().add(socket, id.to_token())
    }

    /// Queues the flows whose sockets have become readable.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut tokens = [0; EVENTS];
        receive_ready(&self.poller, EVENTS, cx, |poller| {
            match poller.ready(&mut tokens)? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                n => Ok(n),
            }
        })
        .map(|n| {
            let flows = tokens[..n].iter().map(|token| FlowId::from_token(*token));
            self.ready.extend(flows);
        })
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        self.listener.shared.admission.return_listeners(1);
    }
}

/// Receives once something is there, up to `most`; pending only when the task will be woken by the next arrival.
pub(super) fn receive_ready<T: AsRawFd>(
    from: &AsyncFd<T>,
    most: usize,
    cx: &mut Context<'_>,
    mut receive: impl FnMut(&T) -> io::Result<usize>,
) -> Poll<usize> {
    loop {
        let mut guard = match ready!(from.poll_read_ready(cx)) {
            Ok(guard) => guard,
            // The runtime ends, and this task with it.
            Err(_shutdown) => return Poll::Pending,
        };
        match receive(guard.get_inner()) {
            Ok(n) => {
                // Less than asked for has emptied it; the next arrival is a new event.
                if n < most {
                    guard.clear_ready();
                }
                return Poll::Ready(n);
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(%error, "receive failed");
                }
                guard.clear_ready();
            }
        }
    }
}
