//! Which names an address has: the reverse side of `records`. Pure.
//!
//! A cluster IP has the name of its Service, an endpoint's address the endpoint's name in every Service that has it. An
//! address of neither kind is ours only inside the ranges that Services get theirs from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;

use crate::routing::RoutingTable;

use super::records::{Authority, End, Local};
use super::reverse::{self, Reverse};
use super::services::endpoint_labels_at;

impl Authority {
    /// Answers the reverse name of an address or a range; `None` if it is none of ours.
    pub(super) fn reverse(
        &self,
        table: &RoutingTable,
        serial: u32,
        name: &Name,
        lower: &Name,
        kind: RecordType,
    ) -> Option<Local> {
        let owned = |ip: IpAddr| {
            self.owned_ranges
                .iter()
                .copied()
                .find(|net| net.contains(&ip))
        };
        let end = match reverse::parse(lower)? {
            Reverse::Address(ip) => {
                let pointers = self.pointers(table, ip);
                let zone = owned(ip);
                if pointers.is_empty() {
                    let soa = self.reverse_soa(name, serial, ip, zone?);
                    self.missing(table, End::NxDomain, soa)
                } else if kind == RecordType::PTR {
                    let data = pointers.into_iter().map(|to| RData::PTR(PTR(to))).collect();
                    self.records(self.main_zone(), name, data, kind, table)
                } else {
                    let soa = self.reverse_soa(name, serial, ip, zone.unwrap_or(ip.into()));
                    self.missing(table, End::NoData, soa)
                }
            }
            Reverse::Below(ip) => {
                let known = !self.pointers(table, ip).is_empty();
                let zone = owned(ip).or(known.then_some(ip.into()))?;
                self.missing(
                    table,
                    End::NxDomain,
                    self.reverse_soa(name, serial, ip, zone),
                )
            }
            Reverse::Range(net) => {
                let zone = self
                    .owned_ranges
                    .iter()
                    .copied()
                    .find(|own| own.contains(&net))?;
                let soa = self.reverse_soa(name, serial, net.addr(), zone);
                self.missing(table, End::NoData, soa)
            }
        };
        Some(Local {
            aliases: Vec::new(),
            end,
        })
    }

    // The Service that has it as cluster IP, else every endpoint name that is ready there.
    fn pointers(&self, table: &RoutingTable, ip: IpAddr) -> BTreeSet<Name> {
        let owners = table.owners_of(ip);
        let entries = || owners.iter().filter_map(|owner| table.service(owner));
        let by_cluster_ip = entries()
            .filter(|entry| entry.service.cluster_ips.contains(&ip))
            .map(|entry| &entry.service.name)
            .min();
        if let Some(name) = by_cluster_ip {
            return self
                .main_zone()
                .service_name(&name.namespace, &name.name)
                .into_iter()
                .collect();
        }
        let mut names = BTreeSet::new();
        for entry in entries() {
            let service = &entry.service.name;
            for label in endpoint_labels_at(entry, ip) {
                names.extend(self.main_zone().under(&[
                    &label,
                    &service.name,
                    &service.namespace,
                    "svc",
                ]));
            }
        }
        names
    }

    fn reverse_soa(&self, asked: &Name, serial: u32, ip: IpAddr, zone: IpNet) -> Record {
        let owner = reverse::zone_of(ip, zone).unwrap_or_else(|| asked.clone());
        self.soa_at(self.main_zone(), owner, asked, serial)
    }
}
