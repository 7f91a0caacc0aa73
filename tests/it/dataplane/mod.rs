//! The data path on its own: real listeners, clients and backends on loopback, tables built from events.

mod descriptors;
mod dialling;
mod listeners;
mod max_connections;
mod proxy_protocol;
mod redirect;
mod rig;
mod scale;
mod tcp;
mod udp;
