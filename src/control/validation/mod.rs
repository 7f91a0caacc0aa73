//! What is wrong with an object, field by field, in the API server's words.
//!
//! Nothing here changes an object or looks at other objects; addresses and ports in use are `allocate`'s business.

pub(super) mod endpoints;
pub(super) mod ips;
pub(super) mod metadata;
pub(super) mod names;
pub(super) mod pod;
pub(super) mod service;
pub(super) mod service_families;
pub(super) mod service_update;
pub(super) mod slice;
pub(super) mod warnings;

pub(super) use service_families::judge_cluster_ips;

use super::rejection::Cause;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// One cause per complaint of `names`.
fn each(field: &str, value: &str, complaints: Vec<String>) -> impl Iterator<Item = Cause> {
    complaints
        .into_iter()
        .map(move |detail| Cause::invalid(field, &value, &detail))
}

fn judge_protocol(field: &str, protocol: Option<&str>) -> Option<Cause> {
    let protocol = protocol.unwrap_or_default();
    (!PROTOCOLS.contains(&protocol)).then(|| Cause::not_supported(field, protocol, &PROTOCOLS))
}

fn judge_app_protocol(field: &str, protocol: Option<&str>) -> Vec<Cause> {
    protocol
        .map(|name| each(field, name, names::qualified_name(name)).collect())
        .unwrap_or_default()
}

fn judge_port_number(field: &str, number: i32) -> Option<Cause> {
    (!(1..=65_535).contains(&number))
        .then(|| Cause::invalid(field, &number, "must be between 1 and 65535, inclusive"))
}
