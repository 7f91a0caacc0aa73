//! The loop of one UDP socket: receive, answer, send.
//!
//! What can be answered from memory is sent by the loop itself, so no queue stands between a question and its reply.
//! What waits for an upstream gets a task of its own; the forwarder bounds how many there are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exchange::{Exchange, Step};
use super::message::Transport;

/// The longest question that is read whole. A name has 255 octets at most; the rest is room for EDNS options.
const MAX_QUESTION: usize = 4096;

/// Waited after a receive error, which is rare and never about one datagram: it must not become a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Answers questions from `socket` until `stop`. Replies leave from the address they were asked at: it is bound to one.
pub(super) async fn serve(
    socket: Arc<UdpSocket>,
    exchange: Arc<Exchange>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let mut buffer = vec![0; MAX_QUESTION];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, client) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "DNS datagram not received");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        // Nobody can be answered at port 0.
        if client.port() == 0 {
            continue;
        }
        match exchange.begin(&buffer[..length], client, Transport::Udp) {
            Step::Reply(reply) => send(&socket, &reply, client).await,
            Step::Silence => {}
            Step::Wait(pending) => {
                let socket = socket.clone();
                let finish = exchange.clone().finish(pending);
                tasks.spawn(async move {
                    match finish.await {
                        Step::Reply(reply) => send(&socket, &reply, client).await,
                        Step::Silence | Step::Wait(_) => {}
                    }
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!(%client, %error, "DNS reply not sent");
    }
}
