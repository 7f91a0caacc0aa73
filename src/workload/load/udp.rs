//! Requests over UDP: a datagram and its answer. One socket, thus one flow, per lane.

use std::net::SocketAddr;

use tokio::net::UdpSocket;

use super::client::{Answer, failure_of};
use super::pattern::{Echo, fill, judge};
use super::tally::Failure;

/// The largest payload that a datagram carries.
const MAX_DATAGRAM: usize = 65_535;

/// One flow.
#[derive(Debug)]
pub(super) struct UdpClient {
    target: SocketAddr,
    size: usize,
    origin: Option<SocketAddr>,
    socket: Option<UdpSocket>,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl UdpClient {
    pub(super) fn new(target: SocketAddr, size: usize, origin: Option<SocketAddr>) -> Self {
        Self {
            target,
            size,
            origin,
            socket: None,
            request: Vec::new(),
            answer: Vec::new(),
        }
    }

    /// The flow is kept after a failure: a datagram may be lost, and its answer come late. Those are passed over.
    pub(super) async fn exchange(&mut self, number: u64) -> Result<Answer<'_>, Failure> {
        let failed = |error| failure_of(&error);
        if self.socket.is_none() {
            self.socket = Some(flow(self.target, self.origin).await?);
        }
        let socket = self.socket.as_ref().ok_or(Failure::Unreachable)?;
        fill(&mut self.request, number, self.size, false);
        socket.send(&self.request).await.map_err(failed)?;
        self.answer.resize(MAX_DATAGRAM, 0);
        let (received, from) = loop {
            let n = socket.recv(&mut self.answer).await.map_err(failed)?;
            match judge(&self.answer[..n], &self.request) {
                Echo::From(name) => break (n, Some(name.len())),
                Echo::Plain => break (n, None),
                Echo::Other => {}
            }
        };
        let name = from.and_then(|n| std::str::from_utf8(&self.answer[..n]).ok());
        Ok(Answer {
            sent: self.request.len(),
            received,
            backend: name,
        })
    }
}

/// A UDP socket connected to `target`, from `origin` if there is one.
pub(super) async fn flow(
    target: SocketAddr,
    origin: Option<SocketAddr>,
) -> Result<UdpSocket, Failure> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0; 16], 0).into(),
    };
    let open = async {
        let socket = UdpSocket::bind(origin.unwrap_or(any)).await?;
        socket.connect(target).await?;
        Ok(socket)
    };
    open.await.map_err(|error| failure_of(&error))
}
