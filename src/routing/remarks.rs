//! What an explanation says besides its verdicts: the likely reasons why there is no endpoint, no address, no route.

use std::net::SocketAddr;
use std::time::Instant;

use crate::model::{Family, Port, Protocol, Service, ServiceKind, ServicePort};

use super::frontends::{is_proxied, wanted_frontends};
use super::judge::{Judgement, Standing, Topology};
use super::shown_source::about_source;
use super::{Route, RoutingTable, ServiceEntry};

impl RoutingTable {
    /// What is to be said of a service port.
    pub(super) fn remarks_on(
        &self,
        entry: &ServiceEntry,
        route: &Route,
        port: Option<&ServicePort>,
        topology: Topology,
        endpoints: &[Judgement<'_>],
    ) -> Vec<String> {
        let family = route.key.family;
        let mut remarks = Vec::new();
        if let Some(port) = port {
            remarks.extend(self.lost_addresses(&entry.service, port, route));
            remarks.extend(unpaired_slices(entry, port, family));
        }
        if endpoints.is_empty() && remarks.is_empty() {
            remarks.push(format!(
                "no slice has an {family} endpoint: no Pod matches, or none has an address"
            ));
        }
        remarks.extend(about_topology(topology, endpoints));
        remarks.extend(about_source(route, &self.node));
        if let Some(port) = route.node_port.filter(|_| !self.answers_node_ports(route)) {
            remarks.push(format!(
                "node port {port} answers at no {family} address of this node; --nodeport-addresses decides"
            ));
        }
        remarks
    }

    /// Why nobody answers at an address, as far as that is known.
    pub(super) fn why_nobody(&self, address: SocketAddr) -> String {
        let ip = address.ip();
        let mut of_service = self.routes().filter(|route| {
            let mut frontends = route.frontends.iter();
            frontends.any(|(frontend, _)| frontend.ip == ip)
        });
        if let Some(route) = of_service.next()
            && let Some(entry) = self.service(&route.key.service)
        {
            let ports = ports_of(&entry.service);
            return format!(
                "{ip} belongs to {}, whose ports are {ports}",
                route.key.service
            );
        }
        if let Some(service) = self.owners_of(ip).first() {
            return format!(
                "{ip} is an endpoint of {service}, and who dials that does not pass through here"
            );
        }
        let mut node_ports = [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .filter_map(|p| self.node_ports.get(&(Family::of(ip), p, address.port())));
        if let Some(route) = node_ports.next() {
            let answering = self.node.node_port_addresses.iter();
            let answering: Vec<String> = answering.map(ToString::to_string).collect();
            return format!(
                "{} is a node port of {}, but the addresses of this node where node ports answer are {}",
                address.port(),
                route.key,
                or_none(answering.join(", "))
            );
        }
        format!("{ip} is the address of no Service")
    }

    // Addresses that the service port asks for and an older Service has.
    fn lost_addresses(&self, service: &Service, port: &ServicePort, route: &Route) -> Vec<String> {
        let wanted = wanted_frontends(service, port, route.key.family).into_iter();
        let mut lost: Vec<String> = wanted
            .filter_map(|(frontend, _)| {
                let (_, holder) = self.frontends.get(&frontend)?;
                (holder.key != route.key).then(|| format!("{frontend} is held by {}", holder.key))
            })
            .collect();
        if let Some(number) = port.node_port.map(Port::number)
            && let Some(holder) =
                self.node_ports
                    .get(&(route.key.family, route.key.protocol, number))
            && holder.key != route.key
        {
            lost.push(format!("node port {number} is held by {}", holder.key));
        }
        lost
    }
}

/// Who gets less than his share for now.
pub(super) fn about_held_back(route: &Route, now: Instant) -> Vec<String> {
    let passed_over = route.held_back.ejected(&route.cluster, now);
    let mut remarks = Vec::new();
    for (index, backend) in route.cluster.iter().enumerate() {
        if let Some(left) = backend.ejected_for(now) {
            let consequence = if passed_over.get(index).is_some_and(|out| *out) {
                "is passed over"
            } else {
                "is used all the same, for half are out already"
            };
            remarks.push(format!(
                "{} failed too often and {consequence}, for {:.1} s more or until a dial succeeds",
                backend.addr,
                left.as_secs_f64()
            ));
        } else if backend.is_warming() && route.knobs.slow_start.is_some() {
            remarks.push(format!(
                "{} is new, its share of new flows still grows",
                backend.addr
            ));
        }
    }
    remarks
}

fn about_topology(topology: Topology, endpoints: &[Judgement<'_>]) -> Option<String> {
    let falls_back = endpoints
        .iter()
        .any(|judgement| judgement.cluster == Standing::Fallback);
    match topology {
        Topology::SameNode => Some("hints keep traffic on this node".to_owned()),
        Topology::SameZone => Some("hints keep traffic in this zone".to_owned()),
        Topology::None => falls_back.then(|| {
            "no endpoint is ready: those that still serve while terminating are used".to_owned()
        }),
    }
}

fn unpaired_slices(entry: &ServiceEntry, port: &ServicePort, family: Family) -> Vec<String> {
    let slices = entry.slices.iter();
    let routed = slices.filter(|slice| slice.family == family && !slice.headless);
    let unpaired = routed.filter(|slice| {
        let mut ports = slice.ports.iter();
        !ports.any(|p| p.name == port.name && p.protocol == port.protocol)
    });
    unpaired
        .map(|slice| {
            let ports = slice.ports.iter();
            let ports: Vec<String> = ports
                .map(|p| shown_port(&p.name, p.port, p.protocol))
                .collect();
            let ports = or_none(ports.join(", "));
            format!(
                "the slice {} has no {} port named {:?}; its ports are {ports}",
                slice.key, port.protocol, port.name
            )
        })
        .collect()
}

/// Why a Service has no routes, if it has none.
pub(super) fn why_not_proxied(service: &Service) -> Option<String> {
    if is_proxied(service) {
        return None;
    }
    Some(match &service.kind {
        ServiceKind::Headless => {
            "headless: DNS names its endpoints, and nothing is proxied".to_owned()
        }
        ServiceKind::ExternalName(name) => {
            format!("an alias of {name} in DNS, and nothing is proxied")
        }
        ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => {
            if service.foreign_proxy {
                "left to another proxy by its label service.kubernetes.io/service-proxy-name"
                    .to_owned()
            } else {
                "it has no cluster IP".to_owned()
            }
        }
    })
}

/// The ports of a Service in one line.
pub(super) fn ports_of(service: &Service) -> String {
    let sctp = service.sctp_ports.iter();
    let sctp = sctp.map(|p| format!("{}/SCTP", p.port));
    let ports = service.ports.iter();
    let ports = ports.map(|p| shown_port(&p.name, p.port.number(), p.protocol));
    or_none(ports.chain(sctp).collect::<Vec<_>>().join(", "))
}

fn shown_port(name: &str, number: u16, protocol: Protocol) -> String {
    if name.is_empty() {
        format!("{number}/{protocol}")
    } else {
        format!("{name} {number}/{protocol}")
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() {
        "none".to_owned()
    } else {
        text
    }
}
