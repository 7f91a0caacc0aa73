//! UDP: flows, and the batched loop that forwards their datagrams.
//!
//! ```text
//!  client ─► listener ─[recvmmsg]─► flow table ─► run of one flow ─[sendmmsg]─► its socket ─► backend
//!  client ◄─ listener ◄─[sendmmsg]─ gathered from all ready flows ◄─[recvmmsg]─ its socket ◄─ backend
//! ```
//!
//! A flow is a client address and the local address it sent to; it has a connected socket, so that the kernel reports
//! a backend's "port unreachable" to it.

mod backends;
mod flows;
mod forwarder;
mod session;

pub(super) use forwarder::Forwarder;
