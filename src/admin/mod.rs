//! The admin API on a Unix socket, health and metrics over HTTP. All of it only reads, but for faults on purpose.
//!
//! `views` turns objects and the routing table into rows; `server` answers `viaduct get`; `node_health` answers
//! probes and scrapes.

mod faults;
mod http;
mod node_health;
mod reach;
mod server;
mod views;

pub use faults::FaultOrder;
pub use node_health::{Answers, HealthServer, MetricsServer, bind, serve_health, serve_metrics};
pub use server::{AdminServer, BindError, OUT_OF_TOUCH, Sources};
pub use views::{Resource, Selection, Snapshot, TableView};
