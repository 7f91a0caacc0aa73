//! Reaching a backend for a new connection: several attempts, each with another backend while there is one, so that
//! the client does not notice a dead backend.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::net::descriptors::is_shortage;
use crate::net::sockets::dialling;
use crate::routing::{Backend, Route};

use super::super::Metrics;
use super::super::backend::InUse;

/// How long each attempt may take. A backend that refuses or is unreachable costs an attempt but no time.
///
/// Source: kube-proxy's userspace mode, `EndpointDialTimeouts`.
const PATIENCE: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// Why no backend was reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// Every attempt failed, or no backend was left to try.
    #[error("{attempts} attempts failed, the last one at {backend}: {error}")]
    Exhausted {
        attempts: usize,
        backend: SocketAddr,
        error: io::Error,
    },
    /// The balancer chose none.
    #[error("no backend to choose")]
    NoBackend,
    /// We are out of descriptors, memory or local ports; no backend is to blame.
    #[error("cannot dial: {0}")]
    Shortage(io::Error),
}

impl DialError {
    /// The metric label and flow-log word.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Exhausted { .. } => "dial_failed",
            Self::NoBackend => "no_backend",
            Self::Shortage(_) => "shortage",
        }
    }
}

/// Connects to one of `backends`.
///
/// A backend that refused is not asked again. One that was only too slow is, when no other is left: its first packet
/// may have been lost, and a single backend deserves all attempts.
pub(super) async fn dial(
    route: &Route,
    backends: &[Arc<Backend>],
    client: IpAddr,
    metrics: &Metrics,
) -> Result<(TcpStream, InUse), DialError> {
    let mut refused = Vec::new();
    let mut tried = Vec::new();
    let mut last = DialError::NoBackend;
    for (attempt, patience) in PATIENCE.into_iter().enumerate() {
        let pick =
            |tried: &[SocketAddr]| InUse::pick(route, backends, client, tried, Instant::now());
        let backend = pick(&tried).or_else(|| {
            tried.clone_from(&refused);
            pick(&tried)
        });
        let Some(backend) = backend else { break };
        let addr = backend.addr();
        let failure = match connect(addr, patience).await {
            Ok(stream) => return Ok((stream, backend)),
            Err(error) => error,
        };
        let why = Failure::of(&failure);
        metrics
            .dial_failures
            .with_label_values(&[why.as_str()])
            .inc();
        tracing::debug!(service = %route.key, backend = %addr, error = %failure, attempt, "dial failed");
        match why {
            Failure::Shortage => return Err(DialError::Shortage(failure)),
            // Local ports run out per backend address: another one may still be reached.
            Failure::NoLocalPort => refused.push(addr),
            Failure::Refused | Failure::Unreachable | Failure::Other => {
                backend.failed();
                refused.push(addr);
            }
            Failure::Timeout => backend.failed(),
        }
        tried.push(addr);
        last = DialError::Exhausted {
            attempts: attempt + 1,
            backend: addr,
            error: failure,
        };
    }
    Err(last)
}

async fn connect(addr: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let mut connecting = pin!(dialling(addr)?.connect(addr));
    // A backend on this node has answered by the next look at the reactor. Then no timer is set, which would cost a
    // write to wake the reactor, and a round for having been woken.
    tokio::select! {
        biased;
        outcome = &mut connecting => return outcome,
        () = yield_now() => {}
    }
    match timeout(patience, connecting).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Kinds of failed attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Refused,
    Unreachable,
    Timeout,
    NoLocalPort,
    Shortage,
    Other,
}

impl Failure {
    fn of(error: &io::Error) -> Self {
        if is_shortage(error) {
            return Self::Shortage;
        }
        match error.raw_os_error() {
            // Our own patience has no error number.
            None | Some(libc::ETIMEDOUT) => Self::Timeout,
            Some(libc::ECONNREFUSED | libc::ECONNRESET) => Self::Refused,
            // The last two: routes of the kinds "prohibit" and "blackhole".
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EACCES | libc::EINVAL) => {
                Self::Unreachable
            }
            Some(libc::EADDRNOTAVAIL) => Self::NoLocalPort,
            Some(_other) => Self::Other,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::NoLocalPort => "no_local_port",
            Self::Shortage => "shortage",
            Self::Other => "other",
        }
    }
}
