//! The kernel's network interface, as far as std and tokio do not wrap it: socket options, shared binds, batches of
//! datagrams, pipes, descriptor limits. A leaf: knows nothing of Services.
//!
//! The only place of `unsafe` (in `batches`, `heap`, `message_addresses`, `readable` and `streams`) and of `setsockopt`. Nothing here decides; callers do.

pub mod batches;
pub mod connections;
pub mod conntrack;
pub mod descriptors;
pub mod heap;
pub mod http_connector;
pub mod local_addresses;
pub mod local_routes;
pub mod message_addresses;
pub mod netlink;
pub mod nf_tables;
pub mod pace_timer;
pub mod pipes;
pub mod policy_route;
pub mod poller;
pub mod reachable;
pub mod readable;
pub mod socket_lists;
pub mod sockets;
pub mod source_filter;
pub mod streams;
pub mod tracking_limits;
