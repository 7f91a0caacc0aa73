//! The open listeners: binds their sockets, places them on data threads, changes them between serving and held closed
//! on the same port.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::capture::plan::{Callers, ListenerId, ListenerSpec, ListenerState};
use crate::net::socket_lists::bound_sockets;
use crate::net::sockets::{Bound, Held, Sharing, Transport};
use crate::net::streams::Liveness;

use super::binding::{Begun, Company, bind, bind_first, transport_of};
use super::mailbox::{Period, Socket};
use super::thread::DataThread;
use super::{Listener, Shared};

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

/// A listener after it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Where it is bound.
    pub addr: SocketAddr,
    /// What it does; held closed for now if somebody else serves there, see [`Dataplane::open_beside`](super::Dataplane::open_beside).
    pub state: ListenerState,
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
    // It was opened beside another process.
    shared: bool,
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

    // How many of them receive.
    fn receiving(&self) -> usize {
        match self {
            Self::Held(_) => 0,
            Self::Serving { .. } => self.sockets(),
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

    /// Opens a listener, or changes the state of an open one in place.
    pub(super) async fn open(
        &mut self,
        spec: &ListenerSpec,
        company: Company,
        threads: &[DataThread],
    ) -> Result<Opened, OpenError> {
        if let Some(open) = self.open.get(&spec.id)
            && open.state.is(spec.state)
            && (open.callers == spec.callers || spec.state == ListenerState::HeldClosed)
        {
            let (addr, state) = (open.addr, spec.state);
            return Ok(Opened { addr, state });
        }
        let before = self.open.get(&spec.id).map(|open| (open.addr, open.shared));
        let mut begun = match before {
            Some((addr, shared)) => Begun {
                bound: bind(spec, addr, Sharing::Join)
                    .map_err(|source| OpenError::Bind { addr, source })?,
                state: spec.state,
                shared,
            },
            None => bind_first(spec, company)
                .map_err(|(addr, source)| OpenError::Bind { addr, source })?,
        };
        let (addr, state) = (begun.bound.addr, begun.state);
        let on = match state {
            ListenerState::HeldClosed => Vec::new(),
            ListenerState::Serving => self.place(&spec.id, threads.len()),
        };
        let sockets = on.len().max(1);
        let unfiltered = begun.bound.unfiltered.take();
        let callers = match unfiltered {
            Some(_) => spec.callers.clone(),
            None => Callers::All,
        };
        if !self.shared.admission.take_listeners(sockets) {
            return Err(OpenError::Descriptors { addr });
        }
        let opened = match state {
            ListenerState::HeldClosed => begun.bound.hold().map(State::Held),
            ListenerState::Serving => self.serve(spec, begun.bound, &callers, on, threads),
        };
        let opened = opened.map_err(|source| {
            self.shared.admission.return_listeners(sockets);
            OpenError::Bind { addr, source }
        })?;
        self.shared.audible.opened(&spec.id, unfiltered.as_ref());
        let opened = Open {
            addr,
            state: opened,
            callers: spec.callers.clone(),
            shared: begun.shared,
        };
        // Only now is the old socket closed: the port is never free in between.
        if let Some(before) = self.open.insert(spec.id.clone(), opened) {
            self.end(before, threads).await;
        }
        Ok(Opened { addr, state })
    }

    /// Of those that were opened beside another process, the ones where still somebody else is bound.
    pub(super) async fn accompanied(&self) -> io::Result<Vec<ListenerId>> {
        let mut found = Vec::new();
        for transport in [Transport::Tcp, Transport::Udp] {
            let shared = |(id, open): &(&ListenerId, &Open)| {
                open.shared && transport_of(id.route.protocol) == transport
            };
            let mut shared = self.open.iter().filter(shared).peekable();
            if shared.peek().is_none() {
                continue;
            }
            // As long as the list of all connections.
            let listing = tokio::task::spawn_blocking(move || bound_sockets(transport));
            let bound = listing.await.map_err(io::Error::other)??;
            let others = |(_, open): &(&ListenerId, &Open)| {
                bound.get(&open.addr).copied().unwrap_or(0) > open.state.receiving()
            };
            found.extend(shared.filter(others).map(|(id, _)| id.clone()));
        }
        Ok(found)
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
        let transport = transport_of(spec.protocol());
        let addr = first.addr;
        let liveness = self.shared.liveness;
        let mut sockets = vec![start(first, transport, liveness)?];
        for _further in on.iter().skip(1) {
            sockets.push(start(
                bind(spec, addr, Sharing::Join)?,
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
