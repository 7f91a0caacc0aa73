//! The life of one TCP connection: where it wanted to go, a backend for it, the relay, the log line.
//!
//! Runs in a task of its own from the moment of accept, so that nothing slow here delays another client.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::net::TcpStream;

use crate::capture::plan::Entry;
use crate::model::{Frontend, Protocol};
use crate::net::sockets::{original_destination, reset_on_close};
use crate::routing::{CountedConnection, Destination, RoutingTable};

use super::super::Listener;
use super::super::admission::Admitted;
use super::super::backend::InUse;
use super::super::flow_log::Closed;
use super::dial::{DialError, Wanted, dial};
use super::exchange::Side;
use super::proxy_header::proxy_header;
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
    _counted: CountedConnection,
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
        Ok((stream, backend, counted)) => Some(Served {
            relay: Relay::new(client.0.take()?, stream, flow),
            backend,
            peer,
            opened,
            _counted: counted,
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
    #[error("its Service is gone")]
    NoService,
    #[error("its Service has as many connections as it may have")]
    MaxConnections,
    #[error(transparent)]
    Dial(#[from] DialError),
}

impl Refusal {
    fn reason(&self) -> &'static str {
        match self {
            Self::Uncaptured => "uncaptured",
            Self::NoService => "no_backend",
            Self::MaxConnections => "max_connections",
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
) -> Result<(TcpStream, InUse, CountedConnection), Refusal> {
    let (Destination { kind, route }, used, origin) = {
        let table = listener.shared.table.load();
        let (destination, used) = destination(client, peer, listener, &table)?;
        (destination, used, table.node.origin(peer.ip()))
    };
    let counted = route.load.admit(route.knobs.max_connections);
    let counted = counted.ok_or(Refusal::MaxConnections)?;
    let header = match route.knobs.proxy_protocol {
        Some(version) => proxy_header(version, peer, used),
        None => Vec::new(),
    };
    let wanted = Wanted {
        client,
        client_ip: peer.ip().to_canonical(),
        origin,
        kind,
        route,
        header,
    };
    let (stream, backend) = dial(wanted, &listener.shared).await?;
    Ok((stream, backend, counted))
}

// What the client wanted, and the address that it used. A redirected connection must have been going to the service port
// of this listener; that it arrived proves nothing.
fn destination(
    client: &TcpStream,
    peer: SocketAddr,
    listener: &Listener,
    table: &RoutingTable,
) -> Result<(Destination, SocketAddr), Refusal> {
    match listener.id.entry {
        Entry::At(_, kind) => {
            let route = table.route(&listener.id.route).ok_or(Refusal::NoService)?;
            let used = client
                .local_addr()
                .map_err(|_reset| DialError::ClientGone)?;
            let route = route.clone();
            Ok((Destination { kind, route }, used))
        }
        Entry::All | Entry::ClusterIp | Entry::External => original_destination(client, &peer)
            .ok()
            .and_then(|used| {
                let frontend = Frontend::new(used, Protocol::Tcp);
                Some((table.destination(&frontend)?, used))
            })
            .filter(|(destination, _)| destination.route.key == listener.id.route)
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
