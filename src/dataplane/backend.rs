//! Choosing a backend for a flow, and counting that it has it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::faults::{ActiveFaults, Injection};
use crate::model::ServicePortKey;
use crate::routing::{Backend, Ejection, Route};

use super::Metrics;

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
        let backend = route.pick(backends, client, tried, now)?.clone();
        // Counted while it is still dialled: a burst of new flows must not all see it idle.
        backend.live.begin();
        Some(Self(backend))
    }

    /// Where it is.
    pub(super) fn addr(&self) -> SocketAddr {
        self.0.addr
    }

    /// What goes wrong on purpose on the way to it; `port` is the service port that leads there.
    pub(super) fn injection(
        &self,
        faults: &ActiveFaults,
        service: &ServicePortKey,
        port: u16,
    ) -> Option<Arc<Injection>> {
        faults.between(service, port, self.0.addr, self.0.pod.as_deref())
    }

    /// It could not be reached.
    pub(super) fn failed(&self, service: &ServicePortKey, metrics: &Metrics) {
        if let Some(Ejection { failures, length }) = self.0.failed(Instant::now()) {
            metrics.ejections.inc();
            tracing::info!(%service, backend = %self.0.addr, failures, ?length, "backend ejected");
        }
    }

    /// It was reached, or answered.
    pub(super) fn succeeded(&self) {
        self.0.succeeded();
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.live.end();
    }
}
