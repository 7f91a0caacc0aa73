//! End-to-end tests without privilege: real sockets on loopback, one module per capability, and the rules of the house.

#![allow(
    clippy::unwrap_used,
    reason = "a helper that cannot go on ends its test"
)]

mod dataplane;
mod house_rules;
