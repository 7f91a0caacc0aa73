//! Re-packs the subsets of an Endpoints object: ports offered by exactly the same addresses form one subset.
//!
//! Source: `RepackSubsets`.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};

/// An address is an IP and the object behind it: two Pods of a host network are two addresses.
type AddressKey<'a> = (&'a str, Option<&'a str>);
type PortKey<'a> = (Option<&'a str>, Option<&'a str>, i32, Option<&'a str>);

/// The subsets of the same meaning whose ports are grouped by equal sets of addresses, in canonical order.
pub(super) fn repack(subsets: &[EndpointSubset]) -> Vec<EndpointSubset> {
    let mut addresses: Vec<&EndpointAddress> = Vec::new();
    let mut numbers: HashMap<AddressKey<'_>, usize> = HashMap::new();
    // Addresses by number, and whether they are ready; `None` stands for a subset without ports.
    let mut by_port: BTreeMap<Option<PortKey<'_>>, BTreeMap<usize, bool>> = BTreeMap::new();
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
                    let number = *numbers.entry(address_key(address)).or_insert_with(|| {
                        addresses.push(address);
                        addresses.len() - 1
                    });
                    // Not ready once is not ready.
                    offered
                        .entry(number)
                        .and_modify(|known| *known &= ready)
                        .or_insert(ready);
                }
            }
        }
    }
    let mut by_addresses: BTreeMap<Vec<(usize, bool)>, Vec<PortKey<'_>>> = BTreeMap::new();
    for (port, offered) in by_port {
        let ports = by_addresses
            .entry(offered.into_iter().collect())
            .or_default();
        ports.extend(port);
    }
    let mut packed: Vec<_> = by_addresses.into_iter().collect();
    packed.sort_by(|(_, a), (_, b)| a.cmp(b));
    packed
        .into_iter()
        .map(|(offered, ports)| {
            let some = |wanted: bool| {
                let chosen = offered.iter().filter(|(_, ready)| *ready == wanted);
                let mut list: Vec<_> = chosen.map(|(number, _)| addresses[*number]).collect();
                list.sort_by_key(|address| address_key(address));
                (!list.is_empty()).then(|| list.into_iter().cloned().collect())
            };
            EndpointSubset {
                addresses: some(true),
                not_ready_addresses: some(false),
                ports: (!ports.is_empty()).then(|| ports.into_iter().map(port_of).collect()),
            }
        })
        .collect()
}

fn address_key(address: &EndpointAddress) -> AddressKey<'_> {
    let target = address.target_ref.as_ref();
    (&address.ip, target.and_then(|target| target.uid.as_deref()))
}

fn port_key(port: &EndpointPort) -> PortKey<'_> {
    (
        port.name.as_deref(),
        port.protocol.as_deref(),
        port.port,
        port.app_protocol.as_deref(),
    )
}

fn port_of((name, protocol, port, app_protocol): PortKey<'_>) -> EndpointPort {
    EndpointPort {
        app_protocol: app_protocol.map(str::to_owned),
        name: name.map(str::to_owned),
        port,
        protocol: protocol.map(str::to_owned),
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
