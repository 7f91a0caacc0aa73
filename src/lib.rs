//! Viaduct: a userspace L4 proxy for Kubernetes Services.
//!
//! See ARCHITECTURE.md for the map. Everything a user meets starts in `cli`; everything a packet meets is in
//! `capture`, `dataplane` and `dns`; every rule of Kubernetes is in `control` and `routing`.

pub mod admin;
pub mod app;
pub mod balancers;
pub mod capture;
pub mod cli;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod dns;
pub mod faults;
pub mod health_checks;
pub mod model;
pub mod net;
pub mod privileges;
pub mod readiness;
pub mod reconciler;
pub mod routing;
pub mod shutdown;
pub mod sources;
pub mod telemetry;
pub mod workload;

#[cfg(test)]
mod testkit;
