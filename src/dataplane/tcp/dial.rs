//! Reaching a backend for a new connection: several attempts, each with another backend while there is one, so that
//! the client does not notice a dead backend. Whom to try and for how long is decided by [`Attempts`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::net::sockets::{dialling, send};
use crate::routing::{FrontendKind, Origin, Route, Verdict};

use super::super::Shared;
use super::super::backend::InUse;
use super::attempts::{Attempts, Failure};

/// A connection that needs a backend.
pub(super) struct Wanted<'a> {
    /// Its client's socket, watched for a reset.
    pub(super) client: &'a TcpStream,
    /// Its client's address, for affinity.
    pub(super) client_ip: IpAddr,
    /// Where its client is.
    pub(super) origin: Origin,
    /// What the address that the client used is to the Service.
    pub(super) kind: FrontendKind,
    /// The service port that owns that address.
    pub(super) route: Arc<Route>,
    /// What the backend is told before anything the client says; may be empty.
    pub(super) header: Vec<u8>,
}

/// Why no backend was reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// Every attempt failed, or no backend was left to try.
    #[error("{attempts} attempts failed, the last one at {backend}: {error}")]
    Exhausted {
        attempts: u32,
        backend: SocketAddr,
        error: io::Error,
    },
    /// There is none to choose.
    #[error("no backend could serve it")]
    NoBackend,
    /// The traffic policy keeps the connection from all backends.
    #[error("the traffic policy keeps it from all backends")]
    Policy,
    /// The client has reset the connection meanwhile.
    #[error("the client went away")]
    ClientGone,
    /// We are out of descriptors or memory; no backend is to blame.
    #[error("cannot dial: {0}")]
    Shortage(io::Error),
}

impl DialError {
    /// The metric label and flow-log word.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Exhausted { .. } => "dial_failed",
            Self::NoBackend => "no_backend",
            Self::Policy => "policy",
            Self::ClientGone => "client_gone",
            Self::Shortage(_) => "shortage",
        }
    }
}

/// Connects to a backend and tells it the header. Every attempt chooses among the backends of the newest table: who did
/// not answer may have been replaced meanwhile.
pub(super) async fn dial(
    wanted: Wanted<'_>,
    shared: &Shared,
) -> Result<(TcpStream, InUse), DialError> {
    let mut route = wanted.route;
    let mut attempts = Attempts::new(shared.effort.asked_by(&route.knobs));
    let mut last = DialError::NoBackend;
    loop {
        let picked = match route.verdict(wanted.kind, wanted.origin) {
            Verdict::Serve(backends) => attempts.next(|tried| {
                InUse::pick(&route, backends, wanted.client_ip, tried, Instant::now())
            }),
            // The port is held closed, or capture drops: only a flow that raced with the change gets here.
            Verdict::Refuse => None,
            Verdict::Silent => {
                if attempts.made() == 0 {
                    last = DialError::Policy;
                }
                None
            }
        };
        let Some((backend, patience)) = picked else {
            return Err(last);
        };
        let addr = backend.addr();
        let connecting = connect(addr, patience, &wanted.header, wanted.client);
        let failure = match connecting.await {
            Ok(stream) => {
                backend.succeeded();
                return Ok((stream, backend));
            }
            Err(Stopped::ClientGone) => return Err(DialError::ClientGone),
            Err(Stopped::Failed(error)) => error,
        };
        let why = Failure::of(&failure);
        let failures = &shared.metrics.dial_failures;
        failures.with_label_values(&[why.as_str()]).inc();
        tracing::debug!(service = %route.key, backend = %addr, error = %failure, attempt = attempts.made(), "dial failed");
        if why.blames_backend() {
            backend.failed(&route.key, &shared.metrics);
        }
        attempts.failed(addr, why);
        last = match why {
            Failure::Shortage => DialError::Shortage(failure),
            Failure::Refused
            | Failure::Unreachable
            | Failure::Timeout
            | Failure::NoLocalPort
            | Failure::Other => DialError::Exhausted {
                attempts: attempts.made(),
                backend: addr,
                error: failure,
            },
        };
        // A Service that was deleted meanwhile had accepted this connection before.
        if let Some(newest) = shared.table.load().route(&route.key) {
            route = newest.clone();
        }
    }
}

/// Why an attempt ended without a connection.
enum Stopped {
    Failed(io::Error),
    ClientGone,
}

async fn connect(
    addr: SocketAddr,
    patience: Duration,
    header: &[u8],
    client: &TcpStream,
) -> Result<TcpStream, Stopped> {
    let mut reaching = pin!(reach(addr, header));
    // A backend on this node has answered by the next look at the reactor. Then no timer is set, which would cost a
    // write to wake the reactor, and a round for having been woken.
    tokio::select! {
        biased;
        outcome = &mut reaching => return outcome.map_err(Stopped::Failed),
        () = yield_now() => {}
    }
    tokio::select! {
        biased;
        outcome = timeout(patience, reaching) => match outcome {
            Ok(outcome) => outcome.map_err(Stopped::Failed),
            Err(_elapsed) => Err(Stopped::Failed(io::ErrorKind::TimedOut.into())),
        },
        // A reset. A client that has only ended its own direction may still wait for an answer.
        _gone = client.ready(Interest::ERROR) => Err(Stopped::ClientGone),
    }
}

// A connection counts as reached once its backend has been told who the client is; the kernel has room for that at
// once, or takes it piece by piece.
async fn reach(addr: SocketAddr, header: &[u8]) -> io::Result<TcpStream> {
    let stream = dialling(addr)?.connect(addr).await?;
    let mut rest = header;
    while !rest.is_empty() {
        let write = || send(&stream, rest);
        let written = stream.async_io(Interest::WRITABLE, write).await?;
        rest = &rest[written..];
    }
    Ok(stream)
}
