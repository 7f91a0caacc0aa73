//! End-to-end tests without privilege: real sockets on loopback, one module per capability.
#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in tests, but does not see that their helpers are part of them"
)]

mod dataplane;
