//! What a name under the cluster domain, or the reverse name of one of its addresses, owns. Pure.
//!
//! Everything is read from one [`RoutingTable`], so an answer never mixes two states of the cluster. Nothing here is
//! sent: `message` turns an answer into octets, and `forward` asks others where [`Answer::Forward`] or
//! [`End::Outside`] says so.
//!
//! Source: Kubernetes DNS specification 1.1.0; RFC 1034, 2308, 8020 and 8482; CoreDNS where the specification is silent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{CNAME, NS, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;

use crate::model::{ServiceKind, ServiceName};
use crate::routing::{RoutingTable, ServiceEntry};

use super::PodMode;
use super::names::{Asked, Part, Zone, parse_absolute, undashed};
use super::services::{
    PortFilter, PortTarget, Target, addresses, endpoint_addresses, has_ready_endpoint, port_targets,
};

/// The version of the Kubernetes DNS specification that `dns-version` tells.
const SCHEMA_VERSION: &str = "1.1.0";

/// The specification's own example; the value changes with a release only.
const SCHEMA_VERSION_TTL: u32 = 28_800;

/// What we answer for, and how.
#[derive(Clone, Debug)]
pub(super) struct Authority {
    /// The cluster domains, at least one. Every name exists under each; addresses have names under the first.
    pub(super) zones: Vec<Zone>,
    /// Which pod names exist.
    pub(super) pods: PodMode,
    /// The Service whose cluster IPs are the server's addresses.
    pub(super) dns_service: ServiceName,
    /// The server's addresses where that Service does not exist.
    pub(super) own_addresses: Vec<IpAddr>,
    /// Services with cluster IPs and without a ready endpoint do not exist.
    pub(super) hide_empty: bool,
    /// Seconds that a record may be kept.
    pub(super) ttl: u32,
    /// Seconds that the absence of one may be kept.
    pub(super) negative_ttl: u32,
    /// Aliases followed within the cluster.
    pub(super) max_aliases: usize,
    /// Ranges whose reverse names are never asked of others.
    pub(super) owned_ranges: Vec<IpNet>,
}

/// Who answers a question, and what.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// A name under the cluster domain.
    Cluster(Local),
    /// The reverse name of an address of the cluster.
    Reverse(Local),
    /// Not ours.
    Forward,
}

/// An answer of our own.
#[derive(Clone, Debug)]
pub(super) struct Local {
    /// Aliases from the asked name on, each before what it points to.
    pub(super) aliases: Vec<Record>,
    /// What is at the end of them.
    pub(super) end: End,
}

/// What the last name of a chain owns.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// Records of the asked type (none if the aliases themselves are the answer, or go in a circle).
    Records {
        /// For the answer section.
        answers: Vec<Record>,
        /// Addresses of the names in them.
        additionals: Vec<Record>,
    },
    /// The name exists, the type does not. With the SOA that says for how long.
    NoData(Record),
    /// The name does not exist. With the SOA that says for how long.
    NxDomain(Record),
    /// Not known to be missing: the sources have not told everything yet.
    Unsynced,
    /// An alias leaves the cluster domain; others know the rest.
    Outside(Name),
}

// What one name owns of one type.
enum Found {
    Data(Vec<RData>),
    Ports(Vec<(SRV, BTreeSet<IpAddr>)>),
    NoData,
    NxDomain,
    Alias(Name),
}

impl Authority {
    /// Answers `name` (as the client spells it) and `kind` from `table`. `serial` is the SOA's.
    pub(super) fn answer(
        &self,
        table: &RoutingTable,
        serial: u32,
        name: &Name,
        kind: RecordType,
    ) -> Answer {
        let lower = name.to_lowercase();
        if let Some((zone, asked)) = self.asked(&lower) {
            return Answer::Cluster(self.cluster(zone, table, serial, name, asked, kind));
        }
        match self.reverse(table, serial, name, &lower, kind) {
            Some(local) => Answer::Reverse(local),
            None => Answer::Forward,
        }
    }

    /// The longest of our domains that the name is under, and what it asks for there.
    pub(super) fn asked<'a>(&'a self, lower: &'a Name) -> Option<(&'a Zone, Asked<'a>)> {
        let under = self
            .zones
            .iter()
            .filter_map(|zone| Some((zone, zone.asked(lower)?)));
        under.max_by_key(|(zone, _)| zone.apex.iter().len())
    }

    /// The domain under which addresses have their names.
    pub(super) fn main_zone(&self) -> &Zone {
        &self.zones[0]
    }

    fn cluster(
        &self,
        zone: &Zone,
        table: &RoutingTable,
        serial: u32,
        name: &Name,
        asked: Asked<'_>,
        kind: RecordType,
    ) -> Local {
        let mut aliases = Vec::new();
        let mut owner = name.clone();
        let mut found = self.find(zone, table, serial, asked, kind);
        let end = loop {
            let target = match found {
                Found::Alias(target) => target,
                Found::Data(data) => break self.records(zone, &owner, data, kind, table),
                Found::Ports(ports) => break self.ports(name, &owner, ports),
                Found::NoData => {
                    break self.missing(table, End::NoData, self.soa(zone, name, serial));
                }
                Found::NxDomain => {
                    break self.missing(table, End::NxDomain, self.soa(zone, name, serial));
                }
            };
            let repeated =
                target == *name || aliases.iter().any(|alias: &Record| alias.name == target);
            aliases.push(self.record(owner, RData::CNAME(CNAME(target.clone()))));
            // CNAME asks for the alias itself, and ANY for one record of our choice (RFC 8482).
            let complete = matches!(kind, RecordType::CNAME | RecordType::ANY);
            if complete || repeated || aliases.len() == self.max_aliases {
                break End::Records {
                    answers: Vec::new(),
                    additionals: Vec::new(),
                };
            }
            match self.asked(&target) {
                Some((next_zone, next)) => {
                    found = self.find(next_zone, table, serial, next, kind);
                }
                None => break End::Outside(target),
            }
            owner = target;
        };
        Local { aliases, end }
    }

    fn find(
        &self,
        zone: &Zone,
        table: &RoutingTable,
        serial: u32,
        asked: Asked<'_>,
        kind: RecordType,
    ) -> Found {
        match asked {
            Asked::Apex if kind == RecordType::SOA => {
                Found::Data(vec![RData::SOA(self.soa_data(zone, serial))])
            }
            Asked::Apex if kind == RecordType::NS => {
                Found::Data(vec![RData::NS(NS(name_server(zone)))])
            }
            Asked::Apex | Asked::Branch => Found::NoData,
            Asked::Version if kind == RecordType::TXT => {
                Found::Data(vec![RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]))])
            }
            Asked::Version => Found::NoData,
            Asked::NameServer => of_type(&self.server_addresses(table), kind),
            Asked::ServiceNamespace(namespace) if table.has_namespace(namespace) => Found::NoData,
            Asked::PodNamespace(namespace)
                if self.pods != PodMode::Disabled && table.has_namespace(namespace) =>
            {
                Found::NoData
            }
            Asked::PodAddress { namespace, label } => self.pod(table, namespace, label, kind),
            Asked::Service {
                namespace,
                service,
                part,
            } => match self.visible(table, namespace, service) {
                Some(entry) => self.service(zone, table, entry, part, kind),
                None => Found::NxDomain,
            },
            Asked::ServiceNamespace(_) | Asked::PodNamespace(_) | Asked::Nothing => Found::NxDomain,
        }
    }

    // A headless Service without any ready endpoint has no name: specification 2.4 and CoreDNS agree.
    fn visible<'t>(
        &self,
        table: &'t RoutingTable,
        namespace: &str,
        service: &str,
    ) -> Option<&'t Arc<ServiceEntry>> {
        let entry = table.service(&ServiceName::new(namespace, service))?;
        let needs_endpoints = match entry.service.kind {
            ServiceKind::Headless => true,
            ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => {
                self.hide_empty
            }
            ServiceKind::ExternalName(_) => false,
        };
        (!needs_endpoints || has_ready_endpoint(entry)).then_some(entry)
    }

    fn service(
        &self,
        zone: &Zone,
        table: &RoutingTable,
        entry: &ServiceEntry,
        part: Part<'_>,
        kind: RecordType,
    ) -> Found {
        if let ServiceKind::ExternalName(target) = &entry.service.kind {
            // Nothing is below an alias, and an address is no name to point to.
            let alias = parse_absolute(target)
                .filter(|name| !name.is_root() && target.parse::<IpAddr>().is_err())
                .filter(|_| part == Part::Whole);
            return alias.map_or(Found::NxDomain, Found::Alias);
        }
        let srv = kind == RecordType::SRV;
        match part {
            Part::Whole if srv => {
                srv_targets(zone, entry, port_targets(entry, table, PortFilter::All))
            }
            Part::Whole => of_type(&addresses(entry), kind),
            Part::Endpoint(label) => {
                let found = endpoint_addresses(entry, label);
                if found.is_empty() {
                    return Found::NxDomain;
                }
                of_type(&found, kind)
            }
            Part::Protocol(protocol) => {
                let below = port_targets(entry, table, PortFilter::Protocol(protocol));
                if below.is_empty() {
                    Found::NxDomain
                } else {
                    Found::NoData
                }
            }
            Part::Port { port, protocol } => {
                let targets = port_targets(entry, table, PortFilter::Named { port, protocol });
                if targets.is_empty() {
                    Found::NxDomain
                } else if srv {
                    srv_targets(zone, entry, targets)
                } else {
                    Found::NoData
                }
            }
        }
    }

    fn pod(&self, table: &RoutingTable, namespace: &str, label: &str, kind: RecordType) -> Found {
        let Some(ip) = undashed(label).filter(|_| table.has_namespace(namespace)) else {
            return Found::NxDomain;
        };
        let exists = match self.pods {
            PodMode::Disabled => false,
            PodMode::Insecure => true,
            PodMode::Verified => table
                .pods_at(ip)
                .iter()
                .any(|pod| !pod.finished && *pod.namespace == *namespace),
        };
        if exists {
            of_type(&BTreeSet::from([ip]), kind)
        } else {
            Found::NxDomain
        }
    }

    /// The records of one type and owner.
    pub(super) fn records(
        &self,
        zone: &Zone,
        owner: &Name,
        data: Vec<RData>,
        kind: RecordType,
        table: &RoutingTable,
    ) -> End {
        let ttl = if kind == RecordType::TXT {
            SCHEMA_VERSION_TTL
        } else {
            self.ttl
        };
        let answers = data
            .into_iter()
            .map(|data| Record::from_rdata(owner.clone(), ttl, data))
            .collect();
        let additionals = if kind == RecordType::NS {
            self.glue(&name_server(zone), &self.server_addresses(table))
        } else {
            Vec::new()
        };
        End::Records {
            answers,
            additionals,
        }
    }

    // Addresses of each distinct target once, under the client's spelling where that is the asked name.
    fn ports(&self, asked: &Name, owner: &Name, ports: Vec<(SRV, BTreeSet<IpAddr>)>) -> End {
        let mut told = BTreeSet::new();
        let mut answers = Vec::with_capacity(ports.len());
        let mut additionals = Vec::new();
        for (srv, reached_at) in ports {
            if told.insert(srv.target.clone()) {
                let spelled = if srv.target == *asked {
                    asked
                } else {
                    &srv.target
                };
                additionals.extend(self.glue(spelled, &reached_at));
            }
            answers.push(self.record(owner.clone(), RData::SRV(srv)));
        }
        End::Records {
            answers,
            additionals,
        }
    }

    fn glue(&self, name: &Name, addresses: &BTreeSet<IpAddr>) -> Vec<Record> {
        addresses
            .iter()
            .map(|ip| self.record(name.clone(), RData::from(*ip)))
            .collect()
    }

    fn record(&self, owner: Name, data: RData) -> Record {
        Record::from_rdata(owner, self.ttl, data)
    }

    /// Says that something is missing, with the SOA for how long; before the sources have told everything, that is not
    /// known of anything.
    pub(super) fn missing(&self, table: &RoutingTable, end: fn(Record) -> End, soa: Record) -> End {
        if table.synced {
            end(soa)
        } else {
            End::Unsynced
        }
    }

    fn soa(&self, zone: &Zone, asked: &Name, serial: u32) -> Record {
        self.soa_at(zone, zone.apex.clone(), asked, serial)
    }

    /// The SOA of a zone, under the client's spelling where that is the asked name.
    pub(super) fn soa_at(&self, zone: &Zone, owner: Name, asked: &Name, serial: u32) -> Record {
        let owner = if owner == *asked {
            asked.clone()
        } else {
            owner
        };
        Record::from_rdata(
            owner,
            self.negative_ttl,
            RData::SOA(self.soa_data(zone, serial)),
        )
    }

    fn soa_data(&self, zone: &Zone, serial: u32) -> SOA {
        let mailbox = zone.under(&["hostmaster"]);
        SOA::new(
            name_server(zone),
            mailbox.unwrap_or_else(|| zone.apex.clone()),
            serial,
            7200,
            1800,
            86_400,
            self.negative_ttl,
        )
    }

    fn server_addresses(&self, table: &RoutingTable) -> BTreeSet<IpAddr> {
        let served = table
            .service(&self.dns_service)
            .map_or(&[][..], |entry| &entry.service.cluster_ips);
        if served.is_empty() {
            self.own_addresses.iter().copied().collect()
        } else {
            served.iter().copied().collect()
        }
    }
}

fn srv_targets(
    zone: &Zone,
    entry: &ServiceEntry,
    targets: BTreeMap<PortTarget<'_>, BTreeSet<IpAddr>>,
) -> Found {
    if targets.is_empty() {
        return Found::NoData;
    }
    let weight = u16::try_from(100 / targets.len()).unwrap_or(0).max(1);
    let name = &entry.service.name;
    let ports = targets.into_iter().filter_map(|(to, reached_at)| {
        let own = zone.service_name(&name.namespace, &name.name)?;
        let target = match to.target {
            Target::Service => own,
            Target::Endpoint(label) => own.prepend_label(label.as_bytes()).ok()?,
        };
        Some((SRV::new(0, weight, to.port, target), reached_at))
    });
    Found::Ports(ports.collect())
}

// Ours, as the domain names it.
fn name_server(zone: &Zone) -> Name {
    zone.under(&["ns", "dns"])
        .unwrap_or_else(|| zone.apex.clone())
}

// The addresses of the family that `kind` asks for. The name exists, so none of them is no data.
fn of_type(addresses: &BTreeSet<IpAddr>, kind: RecordType) -> Found {
    let data: Vec<RData> = addresses
        .iter()
        .filter(|ip| {
            kind == RecordType::A && ip.is_ipv4() || kind == RecordType::AAAA && ip.is_ipv6()
        })
        .map(|ip| RData::from(*ip))
        .collect();
    if data.is_empty() {
        Found::NoData
    } else {
        Found::Data(data)
    }
}

#[cfg(test)]
#[path = "records_tests/mod.rs"]
mod tests;
