//! The load generator: requests against a target at a rate that does not slip, and what became of each.
//!
//! ```text
//!  Schedule ─► pacer ─► queue ─► lanes (one connection or UDP flow each) ─► Tally ─► Report
//!   (pure)     one per thread     open as many as the rate needs             (pure)   (pure)
//! ```
//!
//! Latency counts from the moment at which a request was due, so a server that stalls is charged for every request that
//! had to wait, sent or not. It knows addresses only; who finds a Service's is the caller.

mod bulk;
mod client;
mod dns;
mod expect;
mod generator;
mod histogram;
mod http;
mod lane;
mod pattern;
mod picture;
mod queue;
mod report;
mod schedule;
mod tally;
mod tcp;
mod udp;

pub use dns::{DnsWork, InvalidQuestion};
pub use expect::{Expectation, InvalidExpectation, Unmet};
pub use generator::{LoadError, Pace, Plan, Progress, run};
pub use picture::picture;
pub use report::{BackendReport, Moment, Percentiles, Report};
pub use schedule::{InvalidRate, Rate};

use std::net::SocketAddr;
use std::sync::Arc;

/// What a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// A line over TCP and its answer.
    Tcp(TcpWork),
    /// A datagram and its answer, which ends with the datagram.
    Udp {
        /// Where to.
        target: SocketAddr,
        /// Bytes of a datagram; at least 1.
        size: usize,
    },
    /// An HTTP/1.1 request.
    Http(HttpWork),
    /// A DNS question over UDP.
    Dns(DnsWork),
    /// As many bytes over TCP as will go.
    Bulk {
        /// Where to.
        target: SocketAddr,
    },
}

/// Requests over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpWork {
    /// Where to.
    pub target: SocketAddr,
    /// Bytes of a request, the line end included; at least 1.
    pub request_size: usize,
    /// Bytes of an answer; `None` for a line, which must end with the request.
    pub response_size: Option<usize>,
    /// Whether the connection is kept for the next request.
    pub keep: bool,
}

/// Requests over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpWork {
    /// Where to.
    pub target: SocketAddr,
    /// The `Host` header.
    pub host: Arc<str>,
    /// Path and query.
    pub path: Arc<str>,
    /// Bytes of a body; with any, the method is POST.
    pub body_size: usize,
    /// Whether the connection is kept for the next request.
    pub keep: bool,
}

impl Work {
    /// The address that all of it goes to.
    pub fn target(&self) -> SocketAddr {
        match self {
            Self::Tcp(work) => work.target,
            Self::Http(work) => work.target,
            Self::Dns(work) => work.target(),
            Self::Udp { target, .. } | Self::Bulk { target } => *target,
        }
    }
}

/// Which of our own addresses connections and flows come from: each in turn; port 0 = any. Empty = the kernel chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(pub Vec<SocketAddr>);

impl Origins {
    fn of(&self, lane: usize) -> Option<SocketAddr> {
        self.0.get(lane.checked_rem(self.0.len())?).copied()
    }
}
