//! Choosing a backend for a flow, and counting that it has it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::routing::{Backend, Choice, Route};

/// A backend that a flow uses or dials; its live figures say so until this is dropped.
#[derive(Debug)]
pub(super) struct InUse(Arc<Backend>);

impl InUse {
    /// Picks one of `backends` that is not in `tried`; `None` if none is left.
    pub(super) fn pick(
        route: &Route,
        backends: &[Arc<Backend>],
        client: IpAddr,
        tried: &[SocketAddr],
        now: Instant,
    ) -> Option<Self> {
        let choice = Choice {
            client,
            backends,
            tried,
            now,
        };
        let backend = backends.get(route.balancer.pick(&choice)?)?.clone();
        // Counted while it is still dialled: a burst of new flows must not all see it idle.
        backend.live.begin();
        Some(Self(backend))
    }

    /// Where it is.
    pub(super) fn addr(&self) -> SocketAddr {
        self.0.addr
    }

    /// It could not be reached.
    pub(super) fn failed(&self) {
        self.0.live.fail();
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.live.end();
    }
}
