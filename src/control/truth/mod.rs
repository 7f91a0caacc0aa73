//! Replays cases recorded from a Kubernetes 1.36 control plane against ours, and compares every outcome strictly.
//!
//! The cases are in `tests/data`; the few that a choice of ours contradicts are listed by id, with the reason.

mod manifests;
mod matcher;
mod mutations;
mod services;
mod slices;
mod spoilt;

use serde_json::Value;

/// The recorded cases of the API server.
const SERVICES: &str = include_str!("../../../tests/data/services.json");
/// The recorded cases of the controllers.
const SLICES: &str = include_str!("../../../tests/data/slices.json");

/// Reads a file of cases.
fn cases(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap()
}

/// Fails with every difference, at most one line each, unless the cases that fail are exactly the `excused` ones.
fn report(total: usize, failures: Vec<(String, String)>, excused: &[(&str, &str)]) {
    let unexpected: Vec<_> = failures
        .iter()
        .filter(|(id, _)| !excused.iter().any(|(excuse, _)| excuse == id))
        .map(|(id, why)| format!("{id}: {why}"))
        .collect();
    let stale: Vec<_> = excused
        .iter()
        .filter(|(id, _)| !failures.iter().any(|(failed, _)| failed == id))
        .collect();
    assert!(
        unexpected.is_empty() && stale.is_empty(),
        "{} of {total} cases differ; no longer differing: {stale:?}\n{}",
        unexpected.len(),
        unexpected.join("\n"),
    );
}
