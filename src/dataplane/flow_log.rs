//! The flow log: one line per flow at its end, on a tracing target of its own. Off unless `viaduct::flow` is at debug.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::model::ServicePortKey;

/// A flow that has ended.
#[derive(Debug)]
pub(super) struct Closed<'a> {
    pub(super) service: &'a ServicePortKey,
    pub(super) client: SocketAddr,
    /// `None` if none was reached.
    pub(super) backend: Option<SocketAddr>,
    pub(super) bytes_to_backend: u64,
    pub(super) bytes_to_client: u64,
    pub(super) opened: Instant,
    /// One word of a closed set.
    pub(super) reason: &'static str,
}

impl Closed<'_> {
    /// Writes the line.
    pub(super) fn log(&self) {
        tracing::debug!(
            target: "viaduct::flow",
            service = %self.service,
            protocol = %self.service.protocol,
            client = %self.client,
            backend = self.backend.map(tracing::field::display),
            bytes_to_backend = self.bytes_to_backend,
            bytes_to_client = self.bytes_to_client,
            duration_ms = milliseconds(self.opened.elapsed()),
            reason = self.reason,
            "flow closed"
        );
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
