//! What a lane does for one request, whatever the protocol.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::libc;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::net::descriptors::is_shortage;
use crate::net::sockets::{dialling, dialling_from};

use super::dns::DnsClient;
use super::http::HttpClient;
use super::tally::Failure;
use super::tcp::TcpClient;
use super::udp::UdpClient;
use super::{Origins, Work};

/// Bytes that moved for a request, both ways, and who answered it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answer<'a> {
    pub(super) sent: usize,
    pub(super) received: usize,
    pub(super) backend: Option<&'a str>,
}

/// The client of one lane.
#[derive(Debug)]
pub(super) enum Client {
    Tcp(TcpClient),
    Udp(UdpClient),
    Http(HttpClient),
    Dns(DnsClient),
}

impl Client {
    /// The client of lane number `lane`; `None` for bulk, which is no matter of requests. Connects when it must.
    pub(super) fn new(work: &Work, origins: &Origins, lane: usize) -> Option<Self> {
        let origin = origins.of(lane);
        match work {
            Work::Tcp(work) => Some(Self::Tcp(TcpClient::new(work.clone(), origin))),
            Work::Udp { target, size } => Some(Self::Udp(UdpClient::new(*target, *size, origin))),
            Work::Http(work) => Some(Self::Http(HttpClient::new(work.clone(), origin))),
            Work::Dns(work) => Some(Self::Dns(DnsClient::new(work, origin))),
            Work::Bulk { .. } => None,
        }
    }

    /// Sends request `number` and waits for its answer up to `patience`. After a failure the next one begins afresh.
    pub(super) async fn exchange(
        &mut self,
        number: u64,
        patience: Duration,
    ) -> Result<Answer<'_>, Failure> {
        // Whoever waits too long is dropped where it stands: its connection cannot be used again.
        let in_time = match self {
            Self::Tcp(client) => timeout(patience, client.exchange(number)).await,
            Self::Udp(client) => timeout(patience, client.exchange(number)).await,
            Self::Http(client) => timeout(patience, client.exchange()).await,
            Self::Dns(client) => timeout(patience, client.exchange(number)).await,
        };
        in_time.unwrap_or(Err(Failure::Timeout))
    }
}

/// A connection to `target`, from `origin` if there is one.
pub(super) async fn connect(
    target: SocketAddr,
    origin: Option<SocketAddr>,
) -> Result<TcpStream, Failure> {
    let dial = async {
        let socket = match origin {
            Some(origin) => dialling_from(origin, target)?,
            None => dialling(target)?,
        };
        socket.connect(target).await
    };
    dial.await.map_err(|error| failure_of(&error))
}

/// The kind of a failed call.
pub(super) fn failure_of(error: &io::Error) -> Failure {
    if is_shortage(error) {
        return Failure::Shortage;
    }
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Failure::Refused,
        Some(libc::ECONNRESET | libc::EPIPE) => Failure::Reset,
        Some(libc::ETIMEDOUT) => Failure::Timeout,
        Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => Failure::Shortage,
        Some(_other) => Failure::Unreachable,
        None => Failure::Closed,
    }
}
