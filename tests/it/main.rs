//! End-to-end tests without privilege: real sockets on loopback, one module per capability.

mod dataplane;
