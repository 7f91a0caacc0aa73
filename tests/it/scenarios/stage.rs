//! The stage that a scenario plays on: the cluster's ranges and the node's addresses, from `name=value` settings.

use std::str::FromStr;

use viaduct::routing::NodePortAddresses;

use super::pipeline::{Cluster, Interfaces};
use super::script::Settings;

/// How the cluster is set up, as far as a scenario says something else than usual.
pub(super) fn cluster(mut settings: Settings) -> Result<Cluster, String> {
    let mut cluster = Cluster {
        service_cidrs: list("10.96.0.0/16,fd00:10:96::/112")?,
        node_ports: 30000..=32767,
        load_balancers: None,
    };
    if let Some(text) = settings.remove("service-cidrs") {
        cluster.service_cidrs = list(&text)?;
    }
    if let Some(text) = settings.remove("load-balancers") {
        cluster.load_balancers = Some(one(&text)?);
    }
    if let Some(text) = settings.remove("node-ports") {
        let (first, last) = text
            .split_once('-')
            .ok_or_else(|| format!("{text} is no FIRST-LAST"))?;
        cluster.node_ports = one(first)?..=one(last)?;
    }
    nothing_left(&settings)?;
    Ok(cluster)
}

/// The node that every scenario begins with.
pub(super) fn usual_interfaces() -> Interfaces {
    let list = |text: &str| list(text).expect("addresses");
    Interfaces {
        addresses: list("127.0.0.1,::1,192.0.2.1,2001:db8::1"),
        node_port_addresses: NodePortAddresses::All,
        pod_cidrs: vec![
            one("10.1.0.0/24").expect("a network"),
            one("fd00:10:1::/64").expect("a network"),
        ],
    }
}

/// The interfaces and flags of the node after these settings, which are taken out.
pub(super) fn interfaces(
    before: &Interfaces,
    settings: &mut Settings,
) -> Result<Interfaces, String> {
    let mut interfaces = before.clone();
    if let Some(text) = settings.remove("addresses") {
        interfaces.addresses = list(&text)?;
    }
    if let Some(text) = settings.remove("pod-cidrs") {
        interfaces.pod_cidrs = list(&text)?;
    }
    if let Some(text) = settings.remove("node-port-addresses") {
        interfaces.node_port_addresses = match text.as_str() {
            "all" => NodePortAddresses::All,
            "primary" => NodePortAddresses::Primary,
            cidrs => NodePortAddresses::Within(list(cidrs)?),
        };
    }
    Ok(interfaces)
}

fn list<T: FromStr>(text: &str) -> Result<Vec<T>, String> {
    text.split(',').map(one).collect()
}

fn one<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} does not parse"))
}

/// A setting that nobody has taken is a mistake.
pub(super) fn nothing_left(settings: &Settings) -> Result<(), String> {
    match settings.keys().next() {
        Some(name) => Err(format!("there is no setting {name}")),
        None => Ok(()),
    }
}
