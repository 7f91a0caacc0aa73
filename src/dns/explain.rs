//! How a name is answered, and which object decides it. Pure.
//!
//! The records are those of `records`, asked for type by type, so that an explanation cannot say anything else than an
//! answer. Only the sentences about objects are made here.

use hickory_proto::rr::{Name, RecordType};
use serde::{Deserialize, Serialize};

use crate::model::{ServiceKind, ServiceName};
use crate::routing::{RoutingTable, ServiceEntry};

use super::PodMode;
use super::names::{Asked, Part};
use super::records::{Answer, Authority, End, Local};
use super::reverse::{self, Reverse};

/// The types that an explanation goes through.
const KINDS: [RecordType; 6] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::CNAME,
    RecordType::PTR,
    RecordType::TXT,
];

/// Endpoints that are named; the rest is counted.
const NAMED: usize = 3;

/// How one name is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedName {
    /// The name, absolute and in lower case.
    pub name: String,
    /// Who answers: `cluster`, `reverse` (addresses of the cluster) or `forward` (other resolvers).
    pub zone: String,
    /// Whether there is a record of any type, or other resolvers decide.
    pub answered: bool,
    /// Why, and from which object.
    pub because: Vec<String>,
    /// What each type gets: records, `no data`, `no such name` or `not known yet`. Empty if others decide.
    pub answers: Vec<ExplainedAnswer>,
}

/// What one type gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedAnswer {
    /// The type.
    pub kind: String,
    /// The records' data, or why there is none.
    pub says: Vec<String>,
}

impl Authority {
    /// Explains how `name` is answered from `table`; `upstreams` are asked if it is none of ours.
    pub(super) fn explain(
        &self,
        table: &RoutingTable,
        name: &Name,
        upstreams: &[String],
    ) -> ExplainedName {
        let lower = name.to_lowercase();
        let mut answers = Vec::new();
        let mut answered = false;
        let mut zone = "forward";
        for kind in KINDS {
            let local = match self.answer(table, 0, &lower, kind) {
                Answer::Cluster(local) => {
                    zone = "cluster";
                    local
                }
                Answer::Reverse(local) => {
                    zone = "reverse";
                    local
                }
                Answer::Forward => {
                    answered = true;
                    continue;
                }
            };
            let (has_records, says) = says(local);
            answered |= has_records;
            answers.push(ExplainedAnswer {
                kind: kind.to_string(),
                says,
            });
        }
        // A name that does not exist does so for every type.
        if answers.iter().all(|answer| answer.says == ["no such name"]) {
            answers.truncate(1);
            if let Some(answer) = answers.first_mut() {
                "any".clone_into(&mut answer.kind);
            }
        }
        let because = match self.asked(&lower) {
            Some((_, asked)) => self.about(table, asked),
            None if zone == "reverse" => self.about_address(table, &lower),
            None if upstreams.is_empty() => {
                vec![
                    "it is not under the cluster domain, and there is no upstream resolver to ask"
                        .to_owned(),
                ]
            }
            None => vec![format!(
                "it is not under the cluster domain; asked is {}",
                upstreams.join(", ")
            )],
        };
        ExplainedName {
            name: lower.to_ascii(),
            zone: zone.to_owned(),
            answered,
            because,
            answers,
        }
    }

    fn about(&self, table: &RoutingTable, asked: Asked<'_>) -> Vec<String> {
        let mut because = Vec::new();
        if !table.synced {
            because.push(
                "the sources have not told everything yet, so nothing is known to be missing"
                    .to_owned(),
            );
        }
        let namespace_exists = |namespace: &str| {
            if table.has_namespace(namespace) {
                format!("the namespace {namespace} exists")
            } else {
                format!("there is no namespace {namespace}")
            }
        };
        match asked {
            Asked::Apex => because.push("it is the cluster domain itself".to_owned()),
            Asked::Branch => because.push("it exists because other names are below it".to_owned()),
            Asked::Version => {
                because.push("it tells the version of the DNS specification".to_owned());
            }
            Asked::NameServer => because.push(format!(
                "it is this server: the cluster IPs of Service {}, or else the listen addresses",
                self.dns_service
            )),
            Asked::ServiceNamespace(namespace) => because.push(namespace_exists(namespace)),
            Asked::PodNamespace(namespace) => {
                because.push(namespace_exists(namespace));
                because.push(format!("--dns-pods is {}", self.pods));
            }
            Asked::PodAddress { namespace, .. } => {
                because.push(namespace_exists(namespace));
                because.push(match self.pods {
                    PodMode::Disabled => "--dns-pods disabled: no Pod has a name".to_owned(),
                    PodMode::Insecure => {
                        "--dns-pods insecure: the name alone says the address".to_owned()
                    }
                    PodMode::Verified => {
                        "--dns-pods verified: a running Pod of the namespace must have the address"
                            .to_owned()
                    }
                });
            }
            Asked::Service {
                namespace,
                service,
                part,
            } => {
                let name = ServiceName::new(namespace, service);
                match table.service(&name) {
                    Some(entry) => because.extend(self.about_service(entry, part)),
                    None => {
                        because.push(format!("there is no Service {name}"));
                        because.push(namespace_exists(namespace));
                    }
                }
            }
            Asked::Nothing => because.push(
                "it is under the cluster domain, where no object has a name of that form; such names are never forwarded"
                    .to_owned(),
            ),
        }
        because
    }

    fn about_service(&self, entry: &ServiceEntry, part: Part<'_>) -> Vec<String> {
        let service = &entry.service;
        let ips = |ips: &[std::net::IpAddr]| {
            let texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
            texts.join(", ")
        };
        let mut because = vec![match &service.kind {
            ServiceKind::ExternalName(target) => {
                format!("Service {} is an alias of {target}", service.name)
            }
            ServiceKind::Headless => format!("Service {} is headless", service.name),
            ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => format!(
                "Service {} has the cluster IPs {}",
                service.name,
                ips(&service.cluster_ips)
            ),
        }];
        let endpoints = entry.slices.iter().flat_map(|slice| &slice.endpoints);
        let (ready, unready): (Vec<_>, Vec<_>) = endpoints.partition(|endpoint| endpoint.ready);
        if !matches!(service.kind, ServiceKind::ExternalName(_)) {
            let named: Vec<String> = ready
                .iter()
                .take(NAMED)
                .map(|endpoint| ips(&endpoint.addresses))
                .collect();
            let more = if ready.len() > NAMED { ", ..." } else { "" };
            let list = if named.is_empty() {
                String::new()
            } else {
                format!(" ({}{more})", named.join(", "))
            };
            because.push(format!(
                "{} of its endpoints are ready{list}, {} are not",
                ready.len(),
                unready.len()
            ));
        }
        if ready.is_empty() && service.kind == ServiceKind::Headless {
            because.push("without a ready endpoint a headless Service has no name".to_owned());
        }
        match part {
            Part::Whole => {}
            Part::Endpoint(label) => because.push(format!(
                "{label} must be the hostname of a ready endpoint, or the dashed address of one without a hostname"
            )),
            Part::Protocol(protocol) => because.push(format!(
                "it exists if the Service has a named port of {protocol}"
            )),
            Part::Port { port, protocol } => because.push(format!(
                "it needs a port named {port} of {protocol}"
            )),
        }
        because
    }

    fn about_address(&self, table: &RoutingTable, lower: &Name) -> Vec<String> {
        let ip = match reverse::parse(lower) {
            Some(Reverse::Address(ip)) => ip,
            Some(Reverse::Below(_) | Reverse::Range(_)) | None => {
                return vec![
                    "it lies in the Services' address ranges and is no whole address".to_owned(),
                ];
            }
        };
        let owners: Vec<String> = table
            .owners_of(ip)
            .iter()
            .map(|owner| format!("{ip} belongs to Service {owner}"))
            .collect();
        if owners.is_empty() {
            vec![format!(
                "no Service has {ip}, which is in the Services' address ranges"
            )]
        } else {
            owners
        }
    }
}

// Whether there are records, and what is said.
fn says(local: Local) -> (bool, Vec<String>) {
    let mut says: Vec<String> = local
        .aliases
        .iter()
        .map(|alias| format!("alias of {}", alias.data))
        .collect();
    let has_records = match local.end {
        End::Records { answers, .. } => {
            says.extend(answers.iter().map(|record| record.data.to_string()));
            true
        }
        End::NoData(_) => {
            says.push("no data".to_owned());
            !local.aliases.is_empty()
        }
        End::NxDomain(_) => {
            says.push("no such name".to_owned());
            false
        }
        End::Unsynced => {
            says.push("not known yet".to_owned());
            false
        }
        End::Outside(target) => {
            says.push(format!("whatever other resolvers say of {target}"));
            true
        }
    };
    (has_records, says)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::table;
    use super::super::names::{Zone, parse_absolute};
    use super::*;

    fn explain(name: &str) -> ExplainedName {
        let authority = Authority {
            zones: vec![Zone::parse("cluster.local").unwrap()],
            pods: PodMode::Verified,
            dns_service: ServiceName::new("kube-system", "kube-dns"),
            own_addresses: Vec::new(),
            hide_empty: false,
            ttl: 5,
            negative_ttl: 5,
            max_aliases: 10,
            owned_ranges: vec!["10.96.0.0/16".parse().unwrap()],
        };
        let upstreams = ["192.0.2.53:53".to_owned()];
        authority.explain(&table(), &parse_absolute(name).unwrap(), &upstreams)
    }

    #[test]
    fn every_kind_of_name_names_its_object() {
        // name, zone, whether answered, a part of the reasons, a part of the answers
        let rows = [
            (
                "web.ns.svc.cluster.local",
                "cluster",
                true,
                "Service ns/web has the cluster IPs 10.96.0.1",
                "10.96.0.1",
            ),
            (
                "db-0.db.ns.svc.cluster.local",
                "cluster",
                true,
                "db-0 must be the hostname",
                "10.1.1.1",
            ),
            (
                "none.ns.svc.cluster.local",
                "cluster",
                false,
                "without a ready endpoint",
                "no such name",
            ),
            (
                "gone.ns.svc.cluster.local",
                "cluster",
                false,
                "there is no Service ns/gone",
                "no such name",
            ),
            (
                "x.gone.svc.cluster.local",
                "cluster",
                false,
                "there is no namespace gone",
                "no such name",
            ),
            (
                "in.ns.svc.cluster.local",
                "cluster",
                true,
                "is an alias of web.ns",
                "alias of web.ns",
            ),
            (
                "_http._tcp.web.ns.svc.cluster.local",
                "cluster",
                true,
                "a port named http of tcp",
                "80 web.ns",
            ),
            (
                "10-9-9-9.ns.pod.cluster.local",
                "cluster",
                false,
                "verified",
                "no such name",
            ),
            (
                "www.example.com.ns.svc.cluster.local",
                "cluster",
                false,
                "never forwarded",
                "no such name",
            ),
            (
                "1.0.96.10.in-addr.arpa",
                "reverse",
                true,
                "10.96.0.1 belongs to Service ns/web",
                "web.ns.svc",
            ),
            (
                "9.9.96.10.in-addr.arpa",
                "reverse",
                false,
                "no Service has 10.96.9.9",
                "no such name",
            ),
            ("www.example.com", "forward", true, "192.0.2.53:53", ""),
        ];
        for (name, zone, answered, because, says) in rows {
            let explained = explain(name);
            assert_eq!(
                (&*explained.zone, explained.answered),
                (zone, answered),
                "{name}"
            );
            let reasons = explained.because.join("; ");
            assert!(reasons.contains(because), "{name}: {reasons}");
            let texts: Vec<String> = explained
                .answers
                .iter()
                .map(|answer| answer.says.join(", "))
                .collect();
            assert!(
                says.is_empty() || texts.iter().any(|text| text.contains(says)),
                "{name}: {texts:?}"
            );
        }
    }
}
