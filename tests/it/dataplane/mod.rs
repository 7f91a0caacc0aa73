//! The data path on its own: real listeners, clients and backends on loopback, tables built from events.

mod descriptors;
mod listeners;
mod redirect;
mod rig;
mod tcp;
mod udp;
