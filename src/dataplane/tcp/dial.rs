//! Reaching a backend for a new connection: several attempts, each with another backend while there is one, so that
//! the client does not notice a dead backend. Whom to try and for how long is decided by [`Attempts`]; this makes the
//! sockets and reads what became of them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc;

use crate::faults::{Carrier, FaultKind, Injection};
use crate::net::poller::Readiness;
use crate::routing::{FrontendKind, Origin, Route, Verdict};

use super::super::Listener;
use super::super::accounts::{BackendAccount, Fault};
use super::super::backend::InUse;
use super::super::engine::{Key, Token};
use super::attempts::{Attempts, Failure};
use super::kernel::{Kernel, Socket};
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
    /// A fault asks for it.
    #[error("reset on purpose")]
    Injected,
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
            Self::Injected => Fault::Injected,
            Self::Shortage(_) => Fault::Shortage,
        }
    }
}

/// The way to a backend. One socket at a time.
#[derive(Debug)]
pub(super) struct Dial<S> {
    wanted: Wanted,
    attempts: Attempts,
    last: DialError,
    current: Option<Attempt<S>>,
    held: Option<Held>,
    impaired: Impaired,
}

/// A backend that is not dialled yet, on purpose.
#[derive(Debug)]
struct Held {
    backend: InUse,
    until: Instant,
    // How long the attempt may take; `None` if there shall be none.
    patience: Option<Duration>,
}

/// What goes wrong on purpose once the backend is reached.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Impaired {
    /// The answer is cut short.
    pub(super) cut: bool,
    /// Bytes per second in each direction.
    pub(super) rate: Option<u64>,
}

/// How long a connection stays in a black hole whose client has no patience of its own: as long as most have.
const BLACK_HOLE: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Attempt<S> {
    stream: Stream<S>,
    backend: InUse,
    since: Instant,
    until: Instant,
}

/// How a dial stands.
pub(super) enum Progress<S> {
    /// Waiting for the present attempt.
    Waiting,
    /// Connected, and told the header.
    Reached(Stream<S>, InUse, Arc<BackendAccount>),
    /// No backend could be reached.
    Failed(DialError),
}

impl<S: Socket> Dial<S> {
    /// Makes the first attempt.
    pub(super) fn begin(
        wanted: Wanted,
        key: Key,
        listener: &Listener,
        kernel: &mut impl Kernel<Socket = S>,
    ) -> Result<Self, DialError> {
        let attempts = Attempts::new(listener.shared.effort.asked_by(&wanted.route.knobs));
        let mut dial = Self {
            wanted,
            attempts,
            last: DialError::NoBackend,
            current: None,
            held: None,
            impaired: Impaired::default(),
        };
        dial.next(key, listener, kernel)?;
        Ok(dial)
    }

    /// Something has become of the present attempt.
    pub(super) fn ready(
        &mut self,
        ready: Readiness,
        key: Key,
        listener: &Listener,
        kernel: &mut impl Kernel<Socket = S>,
    ) -> Progress<S> {
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
                account.reached(kernel.now().saturating_duration_since(attempt.since));
                attempt.backend.succeeded();
                Progress::Reached(attempt.stream, attempt.backend, account)
            }
            Err(error) => self.go_on(attempt, error, key, listener, kernel),
        }
    }

    /// What goes wrong on purpose with the backend that was reached.
    pub(super) fn impaired(&self) -> Impaired {
        self.impaired
    }

    /// The present attempt may have lasted too long, or what holds it up may be over.
    pub(super) fn due(
        &mut self,
        key: Key,
        listener: &Listener,
        kernel: &mut impl Kernel<Socket = S>,
    ) -> Progress<S> {
        if let Some(held) = self.held.take_if(|held| held.until <= kernel.now()) {
            return self.release(held, key, listener, kernel);
        }
        match self
            .current
            .take_if(|attempt| attempt.until <= kernel.now())
        {
            Some(attempt) => {
                let error = io::ErrorKind::TimedOut.into();
                self.go_on(attempt, error, key, listener, kernel)
            }
            None => Progress::Waiting,
        }
    }

    // It is connected if it is not broken; then it is told the header, which a fresh socket takes whole.
    fn greet(&self, stream: &Stream<S>) -> io::Result<()> {
        if stream.is_broken() {
            return Err(stream
                .socket()
                .error()
                .unwrap_or(io::ErrorKind::ConnectionReset.into()));
        }
        let header = &self.wanted.header;
        if !header.is_empty() && stream.socket().send(header)? < header.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    fn go_on(
        &mut self,
        failed: Attempt<S>,
        error: io::Error,
        key: Key,
        listener: &Listener,
        kernel: &mut impl Kernel<Socket = S>,
    ) -> Progress<S> {
        self.note(&failed.backend, error, listener);
        drop(failed);
        match self.next(key, listener, kernel) {
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
        kernel: &mut impl Kernel<Socket = S>,
    ) -> Result<(), DialError> {
        let now = kernel.now();
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
            let route = &self.wanted.route;
            let faults = &listener.shared.faults;
            self.impaired = Impaired::default();
            match backend.injection(faults, &route.key, route.port) {
                None => {
                    if self.attempt(backend, patience, key, listener, kernel) {
                        return Ok(());
                    }
                }
                Some(injection) if injection.faults().refuse => {
                    injection.count(FaultKind::Refuse);
                    let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
                    self.note(&backend, refused, listener);
                }
                Some(injection) => {
                    let held = self.impair(&injection, backend, patience, now)?;
                    kernel.call_at(held.until, Token::Client(key));
                    self.held = Some(held);
                    return Ok(());
                }
            }
        }
    }

    // Decides what goes wrong with a connection to that backend.
    fn impair(
        &mut self,
        injection: &Injection,
        backend: InUse,
        patience: Duration,
        now: Instant,
    ) -> Result<Held, DialError> {
        if injection.faults().blackhole {
            injection.count(FaultKind::Blackhole);
            return Ok(Held {
                backend,
                until: now + BLACK_HOLE,
                patience: None,
            });
        }
        let fate = injection.draw(now, Carrier::Tcp);
        if fate.reset {
            return Err(DialError::Injected);
        }
        self.impaired = Impaired {
            cut: fate.cut,
            rate: injection.faults().rate,
        };
        if self.impaired.rate.is_some() {
            injection.count(FaultKind::Rate);
        }
        Ok(Held {
            backend,
            until: now + fate.delay,
            patience: Some(patience),
        })
    }

    fn release(
        &mut self,
        held: Held,
        key: Key,
        listener: &Listener,
        kernel: &mut impl Kernel<Socket = S>,
    ) -> Progress<S> {
        let Some(patience) = held.patience else {
            return Progress::Failed(DialError::Injected);
        };
        if self.attempt(held.backend, patience, key, listener, kernel) {
            return Progress::Waiting;
        }
        match self.next(key, listener, kernel) {
            Ok(()) => Progress::Waiting,
            Err(error) => Progress::Failed(error),
        }
    }

    // Begins to dial that backend; whether that could be.
    fn attempt(
        &mut self,
        backend: InUse,
        patience: Duration,
        key: Key,
        listener: &Listener,
        kernel: &mut impl Kernel<Socket = S>,
    ) -> bool {
        let now = kernel.now();
        let until = now + patience;
        match connect(backend.addr(), key, kernel) {
            Ok(stream) => {
                kernel.call_at(until, Token::Client(key));
                self.current = Some(Attempt {
                    stream,
                    backend,
                    since: now,
                    until,
                });
                true
            }
            Err(error) => {
                self.note(&backend, error, listener);
                false
            }
        }
    }

    fn pick(&mut self, now: Instant) -> Option<(InUse, Duration)> {
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

fn connect<S: Socket>(
    addr: SocketAddr,
    key: Key,
    kernel: &mut impl Kernel<Socket = S>,
) -> io::Result<Stream<S>> {
    let socket = kernel.dial(addr)?;
    kernel.watch(&socket, Token::Backend(key))?;
    Ok(Stream::dialled(socket))
}
