//! Tests that need no privilege: real sockets on loopback, one module per capability that a user sees, and the rules of
//! the house.

#![allow(
    clippy::unwrap_used,
    reason = "a helper that cannot go on ends its test"
)]

#[path = "../support/api_server.rs"]
mod api_server;
mod check;
mod cluster;
mod command_line;
mod configuration;
mod dataplane;
mod dev;
mod dns;
mod dns_restart;
mod dns_server;
mod dns_table;
mod explain;
mod fault_clients;
mod faults;
mod get;
mod health;
mod house_rules;
mod kube;
mod load;
mod manifests;
#[path = "../support/packet_table.rs"]
mod packet_table;
mod packets;
mod readiness;
mod scenarios;
