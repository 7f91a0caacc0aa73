//! The life of one TCP connection: where it wanted to go, a backend for it, the relay, the log line.
//!
//! Runs in a task of its own from the moment of accept, so that nothing slow here delays another client.

use std::net::{IpAddr, SocketAddr};
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

/// Serves an accepted connection until its end.
pub(super) async fn serve(client: TcpStream, peer: SocketAddr, flow: Admitted) {
    let opened = Instant::now();
    // Boxed, because it is large and gone when the relay begins.
    let reached = Box::pin(reach(&client, peer, &flow.listener)).await;
    let (stream, backend) = match reached {
        Ok(reached) => reached,
        Err(refusal) => {
            reset_on_close(&client);
            refusal.report(&flow.listener, peer, opened);
            return;
        }
    };
    let mut relay = Relay::new(client, stream, flow);
    let end = (&mut relay).await;
    let (bytes_to_backend, bytes_to_client) = relay.moved();
    let closed = Closed {
        service: &relay.flow().listener.id.route,
        client: peer,
        backend: Some(backend.addr()),
        bytes_to_backend,
        bytes_to_client,
        opened,
        reason: match end {
            End::Finished => "finished",
            End::Reset(Side::Client) => "client_reset",
            End::Reset(Side::Backend) => "backend_reset",
        },
    };
    closed.log();
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
