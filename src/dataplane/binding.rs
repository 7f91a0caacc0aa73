//! Where a listener is bound: at its address, at a port that stands in for one that may not be bound, or beside the process
//! that serves there. Never listens.

use std::io;
use std::net::SocketAddr;

use crate::capture::plan::{Arrival, Callers, ListenerSpec, ListenerState, Tenure};
use crate::model::Protocol;
use crate::net::sockets::{Bound, Sharing, Terms, Transport};
use crate::net::source_filter::SourceFilter;

/// How far above its own number a port that may not be bound is served: 80 → 8080, 443 → 8443.
const SHIFT: u16 = 8000;

/// How many ports are tried from there on.
const TRIES: u16 = 64;

/// Who may be at the address of a new listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    /// Nobody: whoever is there keeps us away.
    Nobody,
    /// A process of our kind, which will end: the port is shared with it.
    Predecessor,
}

/// A listener that is bound.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) bound: Bound,
    /// What it is to do. Beside another process it is held closed: what comes there is not to be taken before its owner is
    /// ready.
    pub(super) state: ListenerState,
    /// It is beside another process.
    pub(super) shared: bool,
}

/// Binds a new listener: one whose port may not be bound moves to another, if its clients can know of that. Returns the last
/// address that refused otherwise.
pub(super) fn bind_first(
    spec: &ListenerSpec,
    company: Company,
) -> Result<Begun, (SocketAddr, io::Error)> {
    let alone = |bound| Begun {
        bound,
        state: spec.state,
        shared: false,
    };
    let mut refused = io::ErrorKind::AddrInUse.into();
    for port in ports_to_try(spec.bind.port()) {
        let addr = SocketAddr::new(spec.bind.ip(), port);
        let begun = match bind(spec, addr, Sharing::First) {
            Err(error) if is_in_use(&error) && company == Company::Predecessor => {
                bind_beside(spec, addr)
            }
            bound => bound.map(alone),
        };
        match begun {
            Ok(begun) => return Ok(begun),
            Err(error) if may_move(spec) && is_taken(&error) => refused = error,
            Err(error) => return Err((addr, error)),
        }
    }
    Err((spec.bind, refused))
}

fn bind_beside(spec: &ListenerSpec, addr: SocketAddr) -> io::Result<Begun> {
    let state = ListenerState::HeldClosed;
    let held = ListenerSpec {
        state,
        ..spec.clone()
    };
    Ok(Begun {
        bound: bind(&held, addr, Sharing::Join)?,
        state,
        shared: true,
    })
}

/// Binds a socket of a listener. A port that is held closed refuses everybody, so it needs no filter.
pub(super) fn bind(spec: &ListenerSpec, addr: SocketAddr, sharing: Sharing) -> io::Result<Bound> {
    let filter = match (&spec.callers, spec.state) {
        (Callers::Only(networks), ListenerState::Serving) => Some(SourceFilter::only(networks)),
        (Callers::All, _) | (_, ListenerState::HeldClosed) => None,
    };
    let terms = Terms {
        filter: filter.as_ref(),
        transparent: spec.tenure == Tenure::Transparent,
    };
    Bound::under(terms, transport_of(spec.protocol()), addr, sharing)
}

/// The sockets that a protocol needs.
pub(super) fn transport_of(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

// An address of the loopback network is ours to choose, and so is its port; clients of any other know no stand-in.
fn may_move(spec: &ListenerSpec) -> bool {
    spec.arrival() == Arrival::Direct && spec.bind.ip().is_loopback()
}

fn is_taken(error: &io::Error) -> bool {
    is_in_use(error) || error.kind() == io::ErrorKind::PermissionDenied
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
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
