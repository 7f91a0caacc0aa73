//! TCP: accept, dial, relay.
//!
//! ```text
//!  accept ──► connection (a task) ──► dial ──► relay ──► flow log
//!                                              │ two directions: copy or splice
//! ```

mod accept;
mod connection;
mod dial;
mod direction;
mod pipe_pool;
mod relay;

pub(super) use accept::accept;
