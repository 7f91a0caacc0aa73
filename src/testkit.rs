//! Builders for unit tests: the shortest way to a value that a test does not care about. Compiled for tests only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use crate::routing::{Backend, Choice, Live};

/// Backends at 10.1.0.1:8080, 10.1.0.2:8080 and so on; at most 255.
pub(crate) fn backends(n: u8) -> Vec<Arc<Backend>> {
    (1..=n)
        .map(|last| backend(SocketAddr::from(([10, 1, 0, last], 8080))))
        .collect()
}

/// A fresh backend at `addr`.
pub(crate) fn backend(addr: SocketAddr) -> Arc<Backend> {
    Arc::new(Backend {
        addr,
        node: None,
        pod: None,
        live: Arc::new(Live::default()),
    })
}

/// The moment at which tests begin.
pub(crate) fn start() -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    *START
}

/// A choice of 192.0.2.1 at the [`start`].
pub(crate) fn choice<'a>(backends: &'a [Arc<Backend>], tried: &'a [SocketAddr]) -> Choice<'a> {
    Choice {
        client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        backends,
        tried,
        now: start(),
    }
}
