//! The open listeners: binds their sockets, places them on data threads, changes them between serving and held closed
//! on the same port.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::capture::plan::{Arrival, Callers, ListenerId, ListenerSpec, ListenerState, Tenure};
use crate::model::Protocol;
use crate::net::sockets::{Bound, Held, Sharing, Terms, Transport};
use crate::net::source_filter::SourceFilter;
use crate::net::streams::Liveness;

use super::mailbox::{Period, Socket};
use super::thread::DataThread;
use super::{Listener, Shared};

/// How far above its own number a port that may not be bound is served: 80 → 8080, 443 → 8443.
const SHIFT: u16 = 8000;

/// How many ports are tried from there on.
const TRIES: u16 = 64;

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address cannot be bound, nor any of the ports that stand in for it.
    #[error("cannot bind {addr}: {source}")]
    Bind {
        /// What was asked for.
        addr: SocketAddr,
        /// The last refusal.
        source: io::Error,
    },
    /// The descriptor budget is used up.
    #[error(
        "no descriptors left for a listener at {addr}; raise the limit of open files (ulimit -n)"
    )]
    Descriptors {
        /// What was asked for.
        addr: SocketAddr,
    },
}

/// All open listeners. Owned by the facade; one change at a time.
#[derive(Debug)]
pub(super) struct Listeners {
    shared: Arc<Shared>,
    open: HashMap<ListenerId, Open>,
    periods: u64,
}

#[derive(Debug)]
struct Open {
    addr: SocketAddr,
    state: State,
    callers: Callers,
}

#[derive(Debug)]
enum State {
    Held(Held),
    Serving { period: Period, threads: Vec<usize> },
}

impl State {
    fn sockets(&self) -> usize {
        match self {
            Self::Held(_) => 1,
            Self::Serving { threads, .. } => threads.len(),
        }
    }

    fn is(&self, wanted: ListenerState) -> bool {
        match (self, wanted) {
            (Self::Held(_), ListenerState::HeldClosed)
            | (Self::Serving { .. }, ListenerState::Serving) => true,
            (Self::Held(_), ListenerState::Serving)
            | (Self::Serving { .. }, ListenerState::HeldClosed) => false,
        }
    }
}

impl Listeners {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            open: HashMap::new(),
            periods: 0,
        }
    }

    /// Opens a listener, or changes the state of an open one in place. Returns where it is bound.
    pub(super) async fn open(
        &mut self,
        spec: &ListenerSpec,
        threads: &[DataThread],
    ) -> Result<SocketAddr, OpenError> {
        if let Some(open) = self.open.get(&spec.id)
            && open.state.is(spec.state)
            && (open.callers == spec.callers || spec.state == ListenerState::HeldClosed)
        {
            return Ok(open.addr);
        }
        let before = self.open.get(&spec.id).map(|open| open.addr);
        let mut first = match before {
            Some(addr) => bind(spec, addr, Sharing::Join)?,
            None => bind_first(spec)?,
        };
        let addr = first.addr;
        let on = match spec.state {
            ListenerState::HeldClosed => Vec::new(),
            ListenerState::Serving => self.place(&spec.id, threads.len()),
        };
        let sockets = on.len().max(1);
        let unfiltered = first.unfiltered.take();
        let callers = match unfiltered {
            Some(_) => spec.callers.clone(),
            None => Callers::All,
        };
        if !self.shared.admission.take_listeners(sockets) {
            return Err(OpenError::Descriptors { addr });
        }
        let opened = match spec.state {
            ListenerState::HeldClosed => first.hold().map(State::Held),
            ListenerState::Serving => self.serve(spec, first, &callers, on, threads),
        };
        let state = opened.map_err(|source| {
            self.shared.admission.return_listeners(sockets);
            OpenError::Bind { addr, source }
        })?;
        self.shared.audible.opened(&spec.id, unfiltered.as_ref());
        let opened = Open {
            addr,
            state,
            callers: spec.callers.clone(),
        };
        // Only now is the old socket closed: the port is never free in between.
        if let Some(before) = self.open.insert(spec.id.clone(), opened) {
            self.end(before, threads).await;
        }
        Ok(addr)
    }

    /// Closes a listener, if it is open.
    pub(super) async fn close(&mut self, id: &ListenerId, threads: &[DataThread]) {
        if let Some(open) = self.open.remove(id) {
            self.shared.audible.closed(id);
            self.end(open, threads).await;
        }
    }

    async fn end(&mut self, open: Open, threads: &[DataThread]) {
        let sockets = open.state.sockets();
        match open.state {
            State::Held(held) => drop(held),
            State::Serving {
                period,
                threads: on,
            } => {
                let stopping: Vec<_> = on
                    .iter()
                    .filter_map(|index| threads.get(*index))
                    .map(|thread| thread.stop(period))
                    .collect();
                for stopped in stopping {
                    // An error means that it was not running, which is what is wanted.
                    let _was_not_running = stopped.await;
                }
            }
        }
        self.shared.admission.return_listeners(sockets);
    }

    // One socket per thread spreads connections in the kernel; past a share of the descriptors one must do.
    fn place(&self, id: &ListenerId, threads: usize) -> Vec<usize> {
        if self.shared.admission.may_spread(threads) {
            return (0..threads).collect();
        }
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let slot = hasher.finish() % u64::try_from(threads.max(1)).unwrap_or(1);
        vec![usize::try_from(slot).unwrap_or(0)]
    }

    fn serve(
        &mut self,
        spec: &ListenerSpec,
        first: Bound,
        callers: &Callers,
        on: Vec<usize>,
        threads: &[DataThread],
    ) -> io::Result<State> {
        let transport = transport(spec);
        let addr = first.addr;
        let liveness = self.shared.liveness;
        let mut sockets = vec![start(first, transport, liveness)?];
        for _further in on.iter().skip(1) {
            sockets.push(start(
                bound(spec, addr, Sharing::Join)?,
                transport,
                liveness,
            )?);
        }
        self.periods += 1;
        let period = Period(self.periods);
        for (index, socket) in on.iter().zip(sockets) {
            let listener = Listener::new(spec.id.clone(), callers.clone(), self.shared.clone());
            if let Some(thread) = threads.get(*index) {
                thread.serve(period, listener, socket);
            }
        }
        Ok(State::Serving {
            period,
            threads: on,
        })
    }
}

fn transport(spec: &ListenerSpec) -> Transport {
    match spec.protocol() {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

fn start(bound: Bound, transport: Transport, liveness: Liveness) -> io::Result<Socket> {
    match transport {
        Transport::Tcp => {
            let socket = bound.listen()?;
            // Connections inherit it.
            liveness.apply(&socket);
            Ok(Socket::Tcp(socket))
        }
        Transport::Udp => bound.receive().map(Socket::Udp),
    }
}

fn bind(spec: &ListenerSpec, addr: SocketAddr, sharing: Sharing) -> Result<Bound, OpenError> {
    bound(spec, addr, sharing).map_err(|source| OpenError::Bind { addr, source })
}

// A port that is held closed refuses everybody.
fn bound(spec: &ListenerSpec, addr: SocketAddr, sharing: Sharing) -> io::Result<Bound> {
    let filter = match (&spec.callers, spec.state) {
        (Callers::Only(networks), ListenerState::Serving) => Some(SourceFilter::only(networks)),
        (Callers::All, _) | (_, ListenerState::HeldClosed) => None,
    };
    let terms = Terms {
        filter: filter.as_ref(),
        transparent: spec.tenure == Tenure::Transparent,
    };
    Bound::under(terms, transport(spec), addr, sharing)
}

// Binds a new listener: a direct one whose port may not be bound moves to another.
fn bind_first(spec: &ListenerSpec) -> Result<Bound, OpenError> {
    let mut refused = None;
    for port in ports_to_try(spec.bind.port()) {
        let addr = SocketAddr::new(spec.bind.ip(), port);
        match bound(spec, addr, Sharing::First) {
            Ok(bound) => return Ok(bound),
            Err(error) if may_move(spec) && is_taken(&error) => {
                refused = Some(error);
            }
            Err(source) => return Err(OpenError::Bind { addr, source }),
        }
    }
    Err(OpenError::Bind {
        addr: spec.bind,
        source: refused.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()),
    })
}

// An address of the loopback network is ours to choose, and so is its port; clients of any other know no stand-in.
fn may_move(spec: &ListenerSpec) -> bool {
    spec.arrival() == Arrival::Direct && spec.bind.ip().is_loopback()
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied
    )
}

// A port and those that stand in for it, best first.
fn ports_to_try(port: u16) -> impl Iterator<Item = u16> {
    let stand_in = port.checked_add(SHIFT).or(port.checked_add(1));
    let stand_ins = stand_in
        .filter(|_| port != 0)
        .into_iter()
        .flat_map(|first| first..=first.saturating_add(TRIES - 1));
    std::iter::once(port).chain(stand_ins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_ports_move_8000_higher_and_then_on() {
        let ports: Vec<u16> = ports_to_try(80).collect();
        assert_eq!(ports[..3], [80, 8080, 8081]);
        assert_eq!(ports.len(), 65);
        assert_eq!(
            ports_to_try(0).collect::<Vec<_>>(),
            [0],
            "any port is any port"
        );
        let ports: Vec<u16> = ports_to_try(60_000).collect();
        assert_eq!(ports[..2], [60_000, 60_001], "no room 8000 higher");
        assert_eq!(ports_to_try(65_535).collect::<Vec<_>>(), [65_535]);
    }
}
