//! The life of one TCP connection: where it wanted to go, a backend for it, the relay, the log line.
//!
//! Nothing in it waits: each event takes it as far as the kernel allows. Idle connections are many, and their number is
//! what memory limits, so what only dialling needs is kept apart and goes when a backend is reached.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::capture::plan::Entry;
use crate::model::{Frontend, Protocol, ServicePortKey};
use crate::net::poller::Readiness;
use crate::routing::{CountedConnection, Destination, RoutingTable};

use super::super::Listener;
use super::super::accounts::{BackendAccount, Fault};
use super::super::admission::Admitted;
use super::super::backend::InUse;
use super::super::engine::{Key, Token};
use super::super::flow_log::Closed;
use super::super::observer::OpenFlow;
use super::dial::{Dial, DialError, Impaired, Progress, Wanted};
use super::exchange::{Outcome, Side};
use super::kernel::{Kernel, Socket};
use super::proxy_header::proxy_header;
use super::relay::Relay;
use super::stream::Stream;

/// A connection. Dropped before its end, it resets both sides.
#[derive(Debug)]
pub(super) struct Connection<S: Socket> {
    stage: Stage<S>,
    flow: Admitted,
    _counted: CountedConnection,
    peer: SocketAddr,
    opened: Instant,
}

#[derive(Debug)]
enum Stage<S: Socket> {
    Dialling(Box<Dialling<S>>),
    Relaying {
        relay: Relay<S>,
        backend: InUse,
        account: Arc<BackendAccount>,
        // Its answer is to be cut short, on purpose.
        cut: bool,
    },
    Over,
}

#[derive(Debug)]
struct Dialling<S: Socket> {
    client: Unserved<S>,
    dial: Dial<S>,
    // It is no longer young, but has no socket yet whose options could be set.
    settled: bool,
}

/// What an event has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waits for the next event.
    GoesOn,
    /// It could go on at once, but lets others have their turn.
    Yields,
    /// It has ended.
    Over,
}

impl<S: Socket> Connection<S> {
    /// Finds where `client` wanted to go and begins to dial; `None` if it is refused, which has been counted by then.
    pub(super) fn begin(
        client: S,
        peer: SocketAddr,
        flow: Admitted,
        key: Key,
        kernel: &mut impl Kernel<Socket = S>,
    ) -> Option<Self> {
        let opened = kernel.now();
        let client = Unserved(Some(Stream::accepted(client)));
        match Dialling::begin(client, peer, &flow.listener, key, kernel) {
            Ok((dialling, counted)) => Some(Self {
                stage: Stage::Dialling(Box::new(dialling)),
                flow,
                _counted: counted,
                peer,
                opened,
            }),
            Err(refusal) => {
                refusal.report(&flow.listener, peer, opened);
                None
            }
        }
    }

    /// What it came to.
    pub(super) fn route(&self) -> &ServicePortKey {
        &self.flow.listener.id.route
    }

    /// How it stands.
    pub(super) fn as_open(&self) -> OpenFlow {
        let (backend, moved) = match &self.stage {
            Stage::Relaying { relay, backend, .. } => (Some(backend.addr()), relay.moved()),
            Stage::Dialling(_) | Stage::Over => (None, (0, 0)),
        };
        OpenFlow {
            service: self.route().clone(),
            client: self.peer,
            backend,
            opened: self.opened,
            bytes_to_backend: moved.0,
            bytes_to_client: moved.1,
        }
    }

    /// Something has become possible on the client side.
    pub(super) fn client_ready(&mut self, ready: Readiness, buffer: &mut [u8]) -> Fate {
        match &mut self.stage {
            Stage::Dialling(dialling) => {
                // What it says waits for the backend. That it ends is no reason not to dial, a reset is.
                if dialling.client.note(ready) {
                    return self.refuse(DialError::ClientGone);
                }
                Fate::GoesOn
            }
            Stage::Relaying { relay, .. } => {
                relay.client.note(ready);
                self.pump(buffer)
            }
            Stage::Over => Fate::Over,
        }
    }

    /// Something has become possible on the backend side.
    pub(super) fn backend_ready(
        &mut self,
        ready: Readiness,
        key: Key,
        buffer: &mut [u8],
        kernel: &mut impl Kernel<Socket = S>,
    ) -> Fate {
        match &mut self.stage {
            Stage::Dialling(dialling) => {
                let listener = &self.flow.listener;
                let progress = dialling.dial.ready(ready, key, listener, kernel);
                self.take(progress, buffer)
            }
            Stage::Relaying { relay, .. } => {
                relay.backend.note(ready);
                self.pump(buffer)
            }
            Stage::Over => Fate::Over,
        }
    }

    /// A dial attempt may have lasted too long.
    pub(super) fn dial_due(
        &mut self,
        key: Key,
        buffer: &mut [u8],
        kernel: &mut impl Kernel<Socket = S>,
    ) -> Fate {
        match &mut self.stage {
            Stage::Dialling(dialling) => {
                let listener = &self.flow.listener;
                let progress = dialling.dial.due(key, listener, kernel);
                self.take(progress, buffer)
            }
            Stage::Relaying { .. } => Fate::GoesOn,
            Stage::Over => Fate::Over,
        }
    }

    /// Goes on after others had their turn.
    pub(super) fn go_on(&mut self, buffer: &mut [u8]) -> Fate {
        let fate = self.pump(buffer);
        if let Stage::Relaying { relay, .. } = &mut self.stage {
            relay.backend.acknowledge();
        }
        fate
    }

    /// It is no longer young: the backend side gets the options of a long life.
    pub(super) fn settle(&mut self) {
        match &mut self.stage {
            Stage::Dialling(dialling) => dialling.settled = true,
            Stage::Relaying { relay, .. } => {
                relay.backend.tune(self.flow.listener.shared.liveness);
            }
            Stage::Over => {}
        }
    }

    fn take(&mut self, progress: Progress<S>, buffer: &mut [u8]) -> Fate {
        match progress {
            Progress::Waiting => Fate::GoesOn,
            Progress::Failed(error) => self.refuse(error),
            Progress::Reached(stream, backend, account) => {
                self.reached(stream, backend, account);
                match (self.pump(buffer), &self.stage) {
                    // What the client says may be among the events of this round: it completes the handshake. Else, and
                    // the backend may be the one to speak first, the next turn does.
                    (Fate::GoesOn, Stage::Relaying { relay, .. }) if relay.backend.owes_ack() => {
                        Fate::Yields
                    }
                    (fate, _) => fate,
                }
            }
        }
    }

    fn reached(&mut self, mut stream: Stream<S>, backend: InUse, account: Arc<BackendAccount>) {
        if let Stage::Dialling(mut dialling) = std::mem::replace(&mut self.stage, Stage::Over)
            && let Some(client) = dialling.client.0.take()
        {
            if dialling.settled {
                stream.tune(self.flow.listener.shared.liveness);
            }
            let Impaired { cut, rate } = dialling.dial.impaired();
            if let Some(rate) = rate {
                for side in [&client, &stream] {
                    side.socket().limit_rate(rate);
                }
            }
            let relay = Relay::new(client, stream);
            self.stage = Stage::Relaying {
                relay,
                backend,
                account,
                cut,
            };
        }
    }

    fn refuse(&mut self, error: DialError) -> Fate {
        self.stage = Stage::Over;
        Refusal::Dial(error).report(&self.flow.listener, self.peer, self.opened);
        Fate::Over
    }

    fn pump(&mut self, buffer: &mut [u8]) -> Fate {
        let Stage::Relaying {
            relay,
            backend,
            account,
            cut,
        } = &mut self.stage
        else {
            return Fate::GoesOn;
        };
        let listener = &self.flow.listener;
        let before = relay.moved();
        let half = if *cut {
            relay.cut_short(buffer, listener.shared.liveness)
        } else {
            None
        };
        let outcome = match half {
            Some(_) => Outcome::Reset(Side::Backend),
            None => relay.pump(buffer, listener.shared.liveness),
        };
        let mut after = relay.moved();
        after.1 += half.unwrap_or(0);
        account.bytes_to_backend.add(after.0 - before.0);
        account.bytes_to_client.add(after.1 - before.1);
        let fault = match outcome {
            Outcome::Reset(_) if half.is_some() => Some(Fault::Injected),
            Outcome::Blocked => return Fate::GoesOn,
            Outcome::Yield => return Fate::Yields,
            Outcome::Finished => None,
            Outcome::Reset(Side::Client) => Some(Fault::ClientReset),
            Outcome::Reset(Side::Backend) => Some(Fault::BackendReset),
        };
        if let Some(fault) = fault {
            listener.account().fault(fault);
        }
        let closed = Closed {
            service: &self.flow.listener.id.route,
            client: self.peer,
            backend: Some(backend.addr()),
            bytes_to_backend: after.0,
            bytes_to_client: after.1,
            opened: self.opened,
            reason: fault.map_or("finished", Fault::as_str),
        };
        closed.log();
        Fate::Over
    }
}

// A client without a backend. Dropped (refusal, abort, panic), it is reset.
#[derive(Debug)]
struct Unserved<S: Socket>(Option<Stream<S>>);

impl<S: Socket> Unserved<S> {
    // Notes what the reactor says; true if the client is gone.
    fn note(&mut self, ready: Readiness) -> bool {
        let Some(stream) = &mut self.0 else {
            return false;
        };
        stream.note(ready);
        stream.is_broken()
    }
}

impl<S: Socket> Drop for Unserved<S> {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            stream.reset_on_close();
        }
    }
}

impl<S: Socket> Dialling<S> {
    fn begin(
        client: Unserved<S>,
        peer: SocketAddr,
        listener: &Listener,
        key: Key,
        kernel: &mut impl Kernel<Socket = S>,
    ) -> Result<(Self, CountedConnection), Refusal> {
        let Some(stream) = &client.0 else {
            return Err(DialError::ClientGone.into());
        };
        let socket = stream.socket();
        let (wanted, counted) = wanted(socket, peer, listener)?;
        let dial = Dial::begin(wanted, key, listener, kernel)?;
        // Watched from here on, so that what it says or that it goes is known when the backend answers.
        kernel
            .watch(socket, Token::Client(key))
            .map_err(DialError::Shortage)?;
        let dialling = Self {
            client,
            dial,
            settled: false,
        };
        Ok((dialling, counted))
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
    fn fault(&self) -> Fault {
        match self {
            Self::Uncaptured => Fault::Uncaptured,
            Self::NoService => Fault::NoBackend,
            Self::MaxConnections => Fault::MaxConnections,
            Self::Dial(error) => error.fault(),
        }
    }

    fn report(&self, listener: &Listener, client: SocketAddr, opened: Instant) {
        let metrics = &listener.shared.metrics;
        if matches!(self, Self::Uncaptured) {
            metrics.uncaptured.inc();
        }
        let reason = self.fault().as_str();
        metrics.tcp_refused.with_label_values(&[reason]).inc();
        listener.account().fault(self.fault());
        tracing::debug!(listener = %listener.id, %client, error = %self, "connection refused");
        let closed = Closed {
            service: &listener.id.route,
            client,
            backend: None,
            bytes_to_backend: 0,
            bytes_to_client: 0,
            opened,
            reason,
        };
        closed.log();
    }
}

// Finds the route, and what its Service allows and asks for.
fn wanted(
    client: &impl Socket,
    peer: SocketAddr,
    listener: &Listener,
) -> Result<(Wanted, CountedConnection), Refusal> {
    let table = listener.shared.table.load();
    let (Destination { kind, route }, used) = destination(client, peer, listener, &table)?;
    let counted = route.load.admit(route.knobs.max_connections);
    let counted = counted.ok_or(Refusal::MaxConnections)?;
    let header = match route.knobs.proxy_protocol {
        None => Vec::new(),
        Some(version) => {
            let used = used.map_or_else(|| client.local_addr(), Ok);
            let used = used.map_err(|_reset| DialError::ClientGone)?;
            proxy_header(version, peer, used)
        }
    };
    let wanted = Wanted {
        client_ip: peer.ip().to_canonical(),
        origin: listener.origin(peer.ip(), used.map(|used| used.ip()), &table),
        kind,
        route,
        header,
    };
    Ok((wanted, counted))
}

// What the client wanted, and the address that it used where that is not the socket's own. A redirected connection must
// have been going to the service port of this listener; that it arrived proves nothing.
fn destination(
    client: &impl Socket,
    peer: SocketAddr,
    listener: &Listener,
    table: &RoutingTable,
) -> Result<(Destination, Option<SocketAddr>), Refusal> {
    match listener.id.entry {
        Entry::At(_, kind) => {
            let route = table.route(&listener.id.route).ok_or(Refusal::NoService)?;
            let route = route.clone();
            Ok((Destination { kind, route }, None))
        }
        Entry::All | Entry::ClusterIp | Entry::External => {
            captured(client.original_destination(&peer), listener, table)
        }
        Entry::Diverted => captured(client.local_addr(), listener, table),
    }
}

fn captured(
    used: io::Result<SocketAddr>,
    listener: &Listener,
    table: &RoutingTable,
) -> Result<(Destination, Option<SocketAddr>), Refusal> {
    used.ok()
        .and_then(|used| {
            let frontend = Frontend::new(used, Protocol::Tcp);
            Some((table.destination(&frontend)?, Some(used)))
        })
        .filter(|(destination, _)| destination.route.key == listener.id.route)
        .ok_or(Refusal::Uncaptured)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_connection_takes_little_memory() {
        // All that an idle one has on the heap, beside 16 bytes for its place.
        assert!(
            size_of::<Connection<TcpStream>>() <= 272,
            "{}",
            size_of::<Connection<TcpStream>>()
        );
    }
}
