//! The life of one TCP connection: where it wanted to go, a backend for it, the relay, the log line.
//!
//! Runs in a task of its own from the moment of accept, so that nothing slow here delays another client.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::net::TcpStream;

use crate::capture::plan::Entry;
use crate::model::{Frontend, Protocol};
use crate::net::sockets::{original_destination, reset_on_close};
use crate::routing::{Destination, RoutingTable, Verdict};

use super::super::Listener;
use super::super::admission::Admitted;
use super::super::backend::InUse;
use super::super::flow_log::Closed;
use super::dial::{DialError, dial};
use super::exchange::Side;
use super::relay::{End, Relay};

/// An accepted connection, served until its end. A future written by hand, because an `async` one would keep room for
/// both stages: idle connections are many, and their number is what memory limits.
#[expect(
    clippy::large_enum_variant,
    reason = "the large variant is the one that lasts"
)]
pub(super) enum Connection {
    /// On the way to a backend.
    Reaching(Pin<Box<dyn Future<Output = Option<Served>> + Send>>),
    Relaying(Served),
}

impl Connection {
    pub(super) fn new(client: TcpStream, peer: SocketAddr, flow: Admitted) -> Self {
        Self::Reaching(Box::pin(connect(client, peer, flow)))
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let Self::Reaching(reaching) = this {
            match ready!(reaching.as_mut().poll(cx)) {
                Some(served) => *this = Self::Relaying(served),
                None => return Poll::Ready(()),
            }
        }
        match this {
            Self::Relaying(served) => served.poll(cx),
            Self::Reaching(_) => Poll::Pending,
        }
    }
}

/// A connection that has its backend.
pub(super) struct Served {
    relay: Relay,
    backend: InUse,
    peer: SocketAddr,
    opened: Instant,
}

impl Served {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let end = ready!(Pin::new(&mut self.relay).poll(cx));
        let (bytes_to_backend, bytes_to_client) = self.relay.moved();
        let closed = Closed {
            service: &self.relay.flow().listener.id.route,
            client: self.peer,
            backend: Some(self.backend.addr()),
            bytes_to_backend,
            bytes_to_client,
            opened: self.opened,
            reason: match end {
                End::Finished => "finished",
                End::Reset(Side::Client) => "client_reset",
                End::Reset(Side::Backend) => "backend_reset",
            },
        };
        closed.log();
        Poll::Ready(())
    }
}

// A client without a backend. Dropped (refusal, abort, panic), it is reset.
struct Unserved(Option<TcpStream>);

impl Drop for Unserved {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            reset_on_close(stream);
        }
    }
}

// Connects to a backend, or resets the client.
async fn connect(client: TcpStream, peer: SocketAddr, flow: Admitted) -> Option<Served> {
    let opened = Instant::now();
    let mut client = Unserved(Some(client));
    let stream = client.0.as_ref()?;
    match reach(stream, peer, &flow.listener).await {
        Ok((stream, backend)) => Some(Served {
            relay: Relay::new(client.0.take()?, stream, flow),
            backend,
            peer,
            opened,
        }),
        Err(refusal) => {
            refusal.report(&flow.listener, peer, opened);
            None
        }
    }
}

/// Why a connection is reset without being served.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("it did not come through capture")]
    Uncaptured,
    #[error("no backend could serve it")]
    NoBackend,
    #[error("the traffic policy keeps it from all backends")]
    Policy,
    #[error(transparent)]
    Dial(#[from] DialError),
}

impl Refusal {
    fn reason(&self) -> &'static str {
        match self {
            Self::Uncaptured => "uncaptured",
            Self::NoBackend => "no_backend",
            Self::Policy => "policy",
            Self::Dial(error) => error.reason(),
        }
    }

    fn report(&self, listener: &Listener, client: SocketAddr, opened: Instant) {
        let metrics = &listener.shared.metrics;
        if matches!(self, Self::Uncaptured) {
            metrics.uncaptured.inc();
        }
        metrics
            .tcp_refused
            .with_label_values(&[self.reason()])
            .inc();
        tracing::debug!(listener = %listener.id, %client, error = %self, "connection refused");
        let closed = Closed {
            service: &listener.id.route,
            client,
            backend: None,
            bytes_to_backend: 0,
            bytes_to_client: 0,
            opened,
            reason: self.reason(),
        };
        closed.log();
    }
}

// Finds the route and connects to a backend of it.
async fn reach(
    client: &TcpStream,
    peer: SocketAddr,
    listener: &Listener,
) -> Result<(TcpStream, InUse), Refusal> {
    let (Destination { kind, route }, origin) = {
        let table = listener.shared.table.load();
        let destination = destination(client, peer, listener, &table)?;
        (destination, table.node.origin(peer.ip()))
    };
    let client_ip: IpAddr = peer.ip().to_canonical();
    match route.verdict(kind, origin) {
        Verdict::Serve(backends) => {
            let metrics = &listener.shared.metrics;
            Ok(dial(&route, backends, client_ip, metrics).await?)
        }
        // The port is held closed, or capture drops: only a flow that raced with the change gets here.
        Verdict::Refuse => Err(Refusal::NoBackend),
        Verdict::Silent => Err(Refusal::Policy),
    }
}

// A redirected connection must have been going to the service port of this listener; that it arrived proves nothing.
fn destination(
    client: &TcpStream,
    peer: SocketAddr,
    listener: &Listener,
    table: &RoutingTable,
) -> Result<Destination, Refusal> {
    match listener.id.entry {
        Entry::At(_, kind) => {
            let route = table.route(&listener.id.route).ok_or(Refusal::NoBackend)?;
            Ok(Destination {
                kind,
                route: route.clone(),
            })
        }
        Entry::All | Entry::ClusterIp | Entry::External => original_destination(client, &peer)
            .ok()
            .map(|addr| Frontend::new(addr, Protocol::Tcp))
            .and_then(|frontend| table.destination(&frontend))
            .filter(|destination| destination.route.key == listener.id.route)
            .ok_or(Refusal::Uncaptured),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_takes_little_memory() {
        // Beside it, tokio keeps some 700 bytes per connection: a task header and two registrations.
        assert!(
            size_of::<Connection>() <= 272,
            "{}",
            size_of::<Connection>()
        );
    }
}
