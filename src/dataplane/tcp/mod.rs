//! TCP: accept, dial, relay.
//!
//! ```text
//!  accept ──► connection (a task) ──► dial ──► relay ──► flow log
//!                                              │ two directions: copy or splice
//! ```

mod accept;
mod attempts;
mod connection;
mod dial;
mod direction;
mod exchange;
mod pipe_pool;
mod proxy_header;
mod relay;
#[cfg(test)]
mod simulation;

pub(super) use accept::accept;
pub use attempts::Effort;
