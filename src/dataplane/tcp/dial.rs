//! Reaching a backend for a new connection: several attempts, each with another backend while there is one, so that
//! the client does not notice a dead backend. Whom to try and for how long is decided by [`Attempts`]; this makes the
//! sockets and reads what became of them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::net::poller::{Interest, Readiness};
use crate::net::sockets::send;
use crate::net::streams::{dial, error_of};
use crate::routing::{FrontendKind, Origin, Route, Verdict};

use super::super::Listener;
use super::super::accounts::{BackendAccount, Fault};
use super::super::backend::InUse;
use super::super::engine::{Key, Reactor, Token};
use super::attempts::{Attempts, Failure};
use super::stream::Stream;

/// A connection that needs a backend.
#[derive(Debug)]
pub(super) struct Wanted {
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
    /// What is counted.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Exhausted { .. } => Fault::DialFailed,
            Self::NoBackend => Fault::NoBackend,
            Self::Policy => Fault::Policy,
            Self::ClientGone => Fault::ClientGone,
            Self::Shortage(_) => Fault::Shortage,
        }
    }
}

/// The way to a backend. One socket at a time.
#[derive(Debug)]
pub(super) struct Dial {
    wanted: Wanted,
    attempts: Attempts,
    last: DialError,
    current: Option<Attempt>,
}

#[derive(Debug)]
struct Attempt {
    stream: Stream,
    backend: InUse,
    since: Instant,
    until: Instant,
}

/// How a dial stands.
pub(super) enum Progress {
    /// Waiting for the present attempt.
    Waiting,
    /// Connected, and told the header.
    Reached(Stream, InUse, Arc<BackendAccount>),
    /// No backend could be reached.
    Failed(DialError),
}

impl Dial {
    /// Makes the first attempt.
    pub(super) fn begin(
        wanted: Wanted,
        key: Key,
        listener: &Listener,
        reactor: &mut Reactor,
    ) -> Result<Self, DialError> {
        let attempts = Attempts::new(listener.shared.effort.asked_by(&wanted.route.knobs));
        let mut dial = Self {
            wanted,
            attempts,
            last: DialError::NoBackend,
            current: None,
        };
        dial.next(key, listener, reactor)?;
        Ok(dial)
    }

    /// Something has become of the present attempt.
    pub(super) fn ready(
        &mut self,
        ready: Readiness,
        key: Key,
        listener: &Listener,
        reactor: &mut Reactor,
    ) -> Progress {
        let Some(mut attempt) = self.current.take() else {
            return Progress::Waiting;
        };
        attempt.stream.note(ready);
        if !ready.writable() {
            self.current = Some(attempt);
            return Progress::Waiting;
        }
        match self.greet(&attempt.stream) {
            Ok(()) => {
                let account = listener.account().backend(attempt.backend.addr());
                account.reached(reactor.now().saturating_duration_since(attempt.since));
                attempt.backend.succeeded();
                Progress::Reached(attempt.stream, attempt.backend, account)
            }
            Err(error) => self.go_on(attempt, error, key, listener, reactor),
        }
    }

    /// The present attempt may have lasted too long.
    pub(super) fn due(&mut self, key: Key, listener: &Listener, reactor: &mut Reactor) -> Progress {
        match self
            .current
            .take_if(|attempt| attempt.until <= reactor.now())
        {
            Some(attempt) => {
                let error = io::ErrorKind::TimedOut.into();
                self.go_on(attempt, error, key, listener, reactor)
            }
            None => Progress::Waiting,
        }
    }

    // It is connected if it is not broken; then it is told the header, which a fresh socket takes whole.
    fn greet(&self, stream: &Stream) -> io::Result<()> {
        if stream.is_broken() {
            return Err(error_of(stream.socket()).unwrap_or(io::ErrorKind::ConnectionReset.into()));
        }
        let header = &self.wanted.header;
        if !header.is_empty() && send(stream.socket(), header)? < header.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    fn go_on(
        &mut self,
        failed: Attempt,
        error: io::Error,
        key: Key,
        listener: &Listener,
        reactor: &mut Reactor,
    ) -> Progress {
        self.note(&failed.backend, error, listener);
        drop(failed);
        match self.next(key, listener, reactor) {
            Ok(()) => Progress::Waiting,
            Err(error) => Progress::Failed(error),
        }
    }

    // Makes attempts until one is under way. Each chooses among the backends of the newest table: who did not answer may
    // have been replaced meanwhile.
    fn next(
        &mut self,
        key: Key,
        listener: &Listener,
        reactor: &mut Reactor,
    ) -> Result<(), DialError> {
        let now = reactor.now();
        loop {
            if self.attempts.made() > 0
                && let Some(newest) = listener.shared.table.load().route(&self.wanted.route.key)
            {
                // A Service that was deleted meanwhile had accepted this connection before.
                self.wanted.route = newest.clone();
            }
            let Some((backend, patience)) = self.pick(now) else {
                return Err(std::mem::replace(&mut self.last, DialError::NoBackend));
            };
            let until = now + patience;
            match connect(backend.addr(), key, reactor) {
                Ok(stream) => {
                    reactor.call_at(until, Token::Client(key));
                    self.current = Some(Attempt {
                        stream,
                        backend,
                        since: now,
                        until,
                    });
                    return Ok(());
                }
                Err(error) => self.note(&backend, error, listener),
            }
        }
    }

    fn pick(&mut self, now: Instant) -> Option<(InUse, std::time::Duration)> {
        let wanted = &self.wanted;
        match wanted.route.verdict(wanted.kind, wanted.origin) {
            Verdict::Serve(backends) => self
                .attempts
                .next(|tried| InUse::pick(&wanted.route, backends, wanted.client_ip, tried, now)),
            // The port is held closed, or capture drops: only a flow that raced with the change gets here.
            Verdict::Refuse => None,
            Verdict::Silent => {
                if self.attempts.made() == 0 {
                    self.last = DialError::Policy;
                }
                None
            }
        }
    }

    fn note(&mut self, backend: &InUse, error: io::Error, listener: &Listener) {
        let (why, addr) = (Failure::of(&error), backend.addr());
        let failures = &listener.shared.metrics.dial_failures;
        failures.with_label_values(&[why.as_str()]).inc();
        tracing::debug!(service = %self.wanted.route.key, backend = %addr, %error, attempt = self.attempts.made(), "dial failed");
        if why.blames_backend() {
            listener.account().backend(addr).failures.add(1);
            backend.failed(&self.wanted.route.key, &listener.shared.metrics);
        }
        self.attempts.failed(addr, why);
        self.last = match why {
            Failure::Shortage => DialError::Shortage(error),
            Failure::Refused
            | Failure::Unreachable
            | Failure::Timeout
            | Failure::NoLocalPort
            | Failure::Other => DialError::Exhausted {
                attempts: self.attempts.made(),
                backend: addr,
                error,
            },
        };
    }
}

fn connect(addr: SocketAddr, key: Key, reactor: &Reactor) -> io::Result<Stream> {
    let socket = dial(addr)?;
    reactor.watch(&socket, Interest::Stream, Token::Backend(key))?;
    Ok(Stream::dialled(socket))
}
