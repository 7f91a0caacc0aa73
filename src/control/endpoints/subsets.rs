//! Re-packs the subsets of an Endpoints object: ports offered by exactly the same addresses form one subset.
//!
//! Source: `RepackSubsets`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};

/// An address is an IP and the object behind it: two Pods of a host network are two addresses.
type AddressKey = (String, Option<String>);
type PortKey = (Option<String>, Option<String>, i32, Option<String>);

/// The subsets of the same meaning whose ports are grouped by equal sets of addresses, in canonical order.
pub(super) fn repack(subsets: &[EndpointSubset]) -> Vec<EndpointSubset> {
    let mut addresses: BTreeMap<AddressKey, EndpointAddress> = BTreeMap::new();
    // `None` stands for a subset without ports.
    let mut by_port: BTreeMap<Option<PortKey>, BTreeMap<AddressKey, bool>> = BTreeMap::new();
    for subset in subsets {
        let mut ports: Vec<_> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| Some(port_key(port)))
            .collect();
        if ports.is_empty() {
            ports.push(None);
        }
        for port in ports {
            let offered = by_port.entry(port).or_default();
            for (list, ready) in [
                (&subset.addresses, true),
                (&subset.not_ready_addresses, false),
            ] {
                for address in list.iter().flatten() {
                    let key = address_key(address);
                    addresses
                        .entry(key.clone())
                        .or_insert_with(|| address.clone());
                    // Not ready once is not ready.
                    offered
                        .entry(key)
                        .and_modify(|known| *known &= ready)
                        .or_insert(ready);
                }
            }
        }
    }
    let mut by_addresses: BTreeMap<Vec<(AddressKey, bool)>, Vec<EndpointPort>> = BTreeMap::new();
    for (port, offered) in by_port {
        let ports = by_addresses
            .entry(offered.into_iter().collect())
            .or_default();
        ports.extend(port.map(port_of));
    }
    let mut packed: Vec<_> = by_addresses
        .into_iter()
        .map(|(offered, ports)| {
            let some = |wanted: bool| {
                let list: Vec<_> = offered
                    .iter()
                    .filter(|(_, ready)| *ready == wanted)
                    .filter_map(|(key, _)| addresses.get(key).cloned())
                    .collect();
                (!list.is_empty()).then_some(list)
            };
            EndpointSubset {
                addresses: some(true),
                not_ready_addresses: some(false),
                ports: (!ports.is_empty()).then_some(ports),
            }
        })
        .collect();
    packed.sort_by_cached_key(|subset| {
        let ports = subset.ports.iter().flatten();
        ports.map(port_key).collect::<Vec<_>>()
    });
    packed
}

fn address_key(address: &EndpointAddress) -> AddressKey {
    let target = address.target_ref.as_ref();
    (
        address.ip.clone(),
        target.and_then(|target| target.uid.clone()),
    )
}

fn port_key(port: &EndpointPort) -> PortKey {
    (
        port.name.clone(),
        port.protocol.clone(),
        port.port,
        port.app_protocol.clone(),
    )
}

fn port_of((name, protocol, port, app_protocol): PortKey) -> EndpointPort {
    EndpointPort {
        app_protocol,
        name,
        port,
        protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subset(ready: &[&str], not_ready: &[&str], ports: &[&str]) -> EndpointSubset {
        let list = |ips: &[&str]| {
            let addresses: Vec<_> = ips
                .iter()
                .map(|ip| EndpointAddress {
                    ip: (*ip).to_owned(),
                    ..EndpointAddress::default()
                })
                .collect();
            (!addresses.is_empty()).then_some(addresses)
        };
        let ports: Vec<_> = ports
            .iter()
            .map(|name| EndpointPort {
                name: Some((*name).to_owned()),
                port: 80,
                ..EndpointPort::default()
            })
            .collect();
        EndpointSubset {
            addresses: list(ready),
            not_ready_addresses: list(not_ready),
            ports: (!ports.is_empty()).then_some(ports),
        }
    }

    #[test]
    fn the_documented_examples() {
        let merged = repack(&[
            subset(&["a"], &[], &["http"]),
            subset(&["a"], &[], &["https"]),
        ]);
        assert_eq!(merged, [subset(&["a"], &[], &["http", "https"])]);
        let overlapping = [
            subset(&["a", "b"], &[], &["http"]),
            subset(&["b", "c"], &[], &["https"]),
        ];
        assert_eq!(repack(&overlapping), overlapping);
        let unlike = [
            subset(&["a"], &[], &["http"]),
            subset(&[], &["a"], &["https"]),
        ];
        assert_eq!(repack(&unlike), unlike);
    }

    #[test]
    fn not_ready_beats_ready_and_subsets_without_ports_stay() {
        let both = repack(&[subset(&["a"], &[], &["p"]), subset(&["b"], &["a"], &["p"])]);
        assert_eq!(both, [subset(&["b"], &["a"], &["p"])]);
        let portless = [subset(&["a"], &[], &[])];
        assert_eq!(repack(&portless), portless);
        assert_eq!(repack(&[]), []);
    }
}
