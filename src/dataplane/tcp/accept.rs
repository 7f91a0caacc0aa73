//! The accept loop of one listener on one data thread. Accepts and hands over; never dials, never waits for a peer.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use crate::net::descriptors::is_shortage;
use crate::net::sockets::reset_on_close;

use super::super::Listener;
use super::super::admission::{Admitted, FlowKind};
use super::super::thread::Orders;
use super::connection::Connection;

/// How long a listener rests when descriptors have run out: clients wait in the backlog meanwhile.
const REST: Duration = Duration::from_millis(20);

/// Accepts until told to close; connections that wait by then are still taken.
pub(in super::super) async fn accept(
    listener: Arc<Listener>,
    socket: TcpListener,
    mut orders: Orders,
    flows: TaskTracker,
) {
    loop {
        let step = poll_fn(|cx| {
            if orders.poll_close(cx).is_ready() {
                return Poll::Ready(Step::Close);
            }
            socket.poll_accept(cx).map(Step::Accepted)
        });
        match step.await {
            Step::Accepted(Ok((client, peer))) => take(&listener, client, peer, &flows),
            Step::Accepted(Err(error)) => {
                let shortage = is_shortage(&error);
                let reason = if shortage { "shortage" } else { "other" };
                let errors = &listener.shared.metrics.accept_errors;
                errors.with_label_values(&[reason]).inc();
                tracing::debug!(listener = %listener.id, %error, "accept failed");
                // Everything but a shortage concerns a connection that is gone by now (accept(2)).
                if shortage {
                    tokio::time::sleep(REST).await;
                }
            }
            Step::Close => break,
        }
    }
    if let Err(error) = take_waiting(&listener, socket, &flows) {
        tracing::debug!(listener = %listener.id, %error, "accepting what waited failed");
    }
    orders.done();
}

enum Step {
    Accepted(io::Result<(TcpStream, SocketAddr)>),
    Close,
}

// Closing a listening socket resets what waits in its backlog. The kernel is asked directly: the reactor may not have
// heard of the last arrivals yet.
fn take_waiting(
    listener: &Arc<Listener>,
    socket: TcpListener,
    flows: &TaskTracker,
) -> io::Result<()> {
    let socket = socket.into_std()?;
    loop {
        let (client, peer) = match socket.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        client.set_nonblocking(true)?;
        take(listener, TcpStream::from_std(client)?, peer, flows);
    }
}

fn take(listener: &Arc<Listener>, client: TcpStream, peer: SocketAddr, flows: &TaskTracker) {
    match Admitted::new(listener, FlowKind::Tcp) {
        Some(flow) => {
            flows.spawn(Connection::new(client, peer, flow));
        }
        None => {
            reset_on_close(&client);
            let refused = &listener.shared.metrics.tcp_refused;
            refused.with_label_values(&["limit"]).inc();
        }
    }
}
