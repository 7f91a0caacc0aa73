//! The UDP side of a simulated Pod: each datagram comes back with the Pod's name before it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::faults::{Carrier, FaultKind, Injection};

use super::behaviour::Behaviour;

/// The largest payload that an IPv4 datagram carries: 65,535 less the headers of IP and UDP.
const MAX_DATAGRAM: usize = 65_507;

/// Answers that are delayed at a time; one more is lost, as in a full queue.
const MAX_DELAYED: usize = 1024;

/// How long to wait before a port that is taken is tried again.
const REBIND: Duration = Duration::from_millis(100);

/// A UDP port of a simulated Pod.
pub(super) struct Port {
    /// Where.
    pub(super) addr: SocketAddr,
    /// What goes wrong.
    pub(super) behaviour: Behaviour,
    /// Runs delayed answers.
    pub(super) tasks: TaskTracker,
    /// Ends them.
    pub(super) stop: CancellationToken,
}

impl Port {
    /// Answers datagrams until it is dropped. While it refuses, there is no socket: the kernel says so.
    pub(super) async fn serve(mut self, mut socket: UdpSocket) {
        loop {
            let mut watching = self.behaviour.clone();
            tokio::select! {
                () = watching.refuses() => {}
                () = self.answer(Arc::new(socket)) => {}
            }
            self.behaviour.takes().await;
            socket = loop {
                match UdpSocket::bind(self.addr).await {
                    Ok(socket) => break socket,
                    Err(error) => {
                        tracing::warn!(pod = self.behaviour.pod(), addr = %self.addr, %error, "port is taken");
                        tokio::time::sleep(REBIND).await;
                    }
                }
            };
        }
    }

    // Where name and datagram together are too large, the datagram comes back as it is. An answer that the kernel does
    // not take is lost, as datagrams may be.
    async fn answer(&self, socket: Arc<UdpSocket>) {
        let name = format!("{}: ", self.behaviour.pod()).into_bytes();
        let places = Arc::new(Semaphore::new(MAX_DELAYED));
        let mut buffer = name.clone();
        buffer.resize(name.len() + MAX_DATAGRAM, 0);
        loop {
            match socket.recv_from(&mut buffer[name.len()..]).await {
                Ok((n, client)) => {
                    let whole = name.len() + n;
                    let from = if whole <= MAX_DATAGRAM { 0 } else { name.len() };
                    self.send(&socket, &buffer[from..whole], client, &places)
                        .await;
                }
                Err(error) => {
                    tracing::debug!(pod = self.behaviour.pod(), %error, "no datagram");
                    // Nothing that a datagram does ends here; whatever it is must not become a busy loop.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn send(
        &self,
        socket: &Arc<UdpSocket>,
        answer: &[u8],
        client: SocketAddr,
        places: &Arc<Semaphore>,
    ) {
        let injection = self.behaviour.injection();
        if injection.faults().blackhole {
            return injection.count(FaultKind::Blackhole);
        }
        let fate = injection.draw(Instant::now(), Carrier::Udp);
        if fate.loss {
            return;
        }
        let answer = if fate.cut {
            &answer[..answer.len() / 2]
        } else {
            answer
        };
        let copies = 1 + usize::from(fate.duplicate);
        if fate.delay.is_zero() {
            self.pace(&injection, answer.len()).await;
            deliver(socket, answer, client, copies).await;
        } else if let Ok(place) = places.clone().try_acquire_owned() {
            let (socket, answer) = (socket.clone(), answer.to_vec());
            let later = async move {
                tokio::time::sleep(fate.delay).await;
                deliver(&socket, &answer, client, copies).await;
                drop(place);
            };
            let stop = self.stop.clone();
            self.tasks.spawn(stop.run_until_cancelled_owned(later));
        }
    }

    async fn pace(&self, injection: &Injection, bytes: usize) {
        let pause = injection.time_for(bytes as u64);
        if !pause.is_zero() {
            injection.count(FaultKind::Rate);
            tokio::time::sleep(pause).await;
        }
    }
}

async fn deliver(socket: &UdpSocket, answer: &[u8], client: SocketAddr, copies: usize) {
    for _ in 0..copies {
        if let Err(error) = socket.send_to(answer, client).await {
            tracing::debug!(%client, %error, "answer lost");
        }
    }
}
