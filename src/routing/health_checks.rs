//! Health-check node ports: where a load balancer may ask whether this node has endpoints of a Service, and what it is
//! told. Pure; `health_checks` answers.
//!
//! Source: `spec.healthCheckNodePort`; kube-proxy's service health server, which counts each family on its own.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::model::{Family, Port, ServiceName};

use super::backends::endpoints_of;
use super::frontends::is_proxied;
use super::judge::{Standing, judge};
use super::{NodeView, ServiceEntry};

/// The health-check node port of a Service at one address, and what it tells there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: ServiceName,
    /// Where it is bound; an unspecified address stands for every address of its family.
    pub bind: SocketAddr,
    /// Distinct addresses of ready endpoints on this node, over all ports of the Service in this family. Endpoints that
    /// only serve while they terminate do not count.
    pub local_endpoints: usize,
}

impl ServiceEntry {
    /// The Service's health checks on `node`, one for each address; none if it asks for none or is not proxied.
    pub fn health_checks(&self, node: &NodeView) -> Vec<HealthCheck> {
        let port = self.service.health_check_node_port.map(Port::number);
        let Some(port) = port.filter(|_| is_proxied(&self.service)) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for family in Family::BOTH {
            if self.service.cluster_ip(family).is_none() {
                continue;
            }
            let local_endpoints = self.local_endpoints(family, node);
            let addresses = node.health_check_addresses.iter();
            let of_family = addresses.filter(|ip| Family::of(**ip) == family);
            found.extend(of_family.map(|ip| HealthCheck {
                service: self.service.name.clone(),
                bind: SocketAddr::new(*ip, port),
                local_endpoints,
            }));
        }
        found
    }

    fn local_endpoints(&self, family: Family, node: &NodeView) -> usize {
        let mut ips: BTreeSet<IpAddr> = BTreeSet::new();
        for port in &self.service.ports {
            let judged = judge(&endpoints_of(port, family, &self.slices), node);
            let endpoints = judged.endpoints.iter();
            let ready = endpoints.filter(|judgement| judgement.local == Standing::Ready);
            ips.extend(ready.map(|judgement| judgement.addr.ip()));
        }
        ips.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        Endpoint, EndpointSlice, Protocol, Service, ServiceKind, SlicePort, TrafficPolicy,
    };
    use crate::testkit::{
        EndpointWith, ep, ip, node_name, port, service, service_port, slice, slice_port,
    };

    fn here(addresses: &str) -> NodeView {
        NodeView {
            name: Some(node_name("here")),
            health_check_addresses: addresses.split_whitespace().map(ip).collect(),
            ..NodeView::default()
        }
    }

    fn web(cluster_ips: &str) -> Service {
        Service {
            kind: ServiceKind::LoadBalancer,
            external_policy: TrafficPolicy::Local,
            health_check_node_port: Some(port(30999)),
            ..service("web", cluster_ips)
        }
    }

    fn entry(service: Service, slices: impl IntoIterator<Item = EndpointSlice>) -> ServiceEntry {
        ServiceEntry {
            service: Arc::new(service),
            slices: slices.into_iter().map(Arc::new).collect(),
            routes: Vec::new(),
            load: Arc::default(),
        }
    }

    /// What is told where, for one slice.
    fn told(service: Service, endpoints: Vec<Endpoint>, addresses: &str) -> Vec<(String, usize)> {
        let entry = entry(service, [slice("web-1", "web", endpoints)]);
        let checks = entry.health_checks(&here(addresses)).into_iter();
        checks
            .map(|check| (check.bind.to_string(), check.local_endpoints))
            .collect()
    }

    fn count(endpoints: Vec<Endpoint>) -> usize {
        let told = told(web("10.96.0.10"), endpoints, "0.0.0.0");
        assert_eq!(told.len(), 1);
        told[0].1
    }

    #[test]
    fn only_ready_endpoints_of_this_node_count() {
        let local = |ip: &str| ep(ip).on("here");
        assert_eq!(count(vec![]), 0);
        assert_eq!(count(vec![local("10.1.0.1"), local("10.1.0.2")]), 2);
        assert_eq!(count(vec![ep("10.1.0.1").on("there"), ep("10.1.0.2")]), 0);
        assert_eq!(count(vec![local("10.1.0.1").unready()]), 0);
        assert_eq!(
            count(vec![local("10.1.0.1").terminating()]),
            0,
            "it serves, and the balancer is to move on all the same"
        );
        let ready_for_ever = Endpoint {
            ready: true,
            ..local("10.1.0.1").terminating()
        };
        assert_eq!(count(vec![ready_for_ever]), 1, "publishNotReadyAddresses");
    }

    #[test]
    fn an_address_counts_once_whatever_its_ports_and_slices() {
        let mut service = web("10.96.0.10");
        service.ports = vec![
            service_port("a", Protocol::Tcp, 80),
            service_port("b", Protocol::Udp, 81),
        ];
        let named = |name: &str, ports: Vec<SlicePort>, endpoint: Endpoint| EndpointSlice {
            ports,
            ..slice(name, "web", [endpoint.on("here")])
        };
        let both = || {
            vec![
                slice_port("a", Protocol::Tcp, 8080),
                slice_port("b", Protocol::Udp, 8081),
            ]
        };
        let entry = entry(
            service,
            [
                named("web-1", both(), ep("10.1.0.1")),
                named("web-2", both(), ep("10.1.0.1").terminating()),
                named(
                    "web-3",
                    vec![slice_port("other", Protocol::Tcp, 8080)],
                    ep("10.1.0.2"),
                ),
            ],
        );
        let checks = entry.health_checks(&here("0.0.0.0"));
        assert_eq!(checks[0].local_endpoints, 1);
    }

    #[test]
    fn each_family_has_its_own_addresses_and_its_own_count() {
        let dual = || web("10.96.0.10 fd00::10");
        let endpoints = || vec![ep("10.1.0.1").on("here")];
        assert_eq!(
            told(dual(), endpoints(), "172.18.0.2 172.18.1.2 ::"),
            [
                ("172.18.0.2:30999".to_owned(), 1),
                ("172.18.1.2:30999".to_owned(), 1),
                ("[::]:30999".to_owned(), 0)
            ]
        );
        assert_eq!(
            told(web("10.96.0.10"), endpoints(), "0.0.0.0 ::").len(),
            1,
            "a family without a cluster IP is not served"
        );
        assert!(told(dual(), endpoints(), "").is_empty());
    }

    #[test]
    fn a_service_that_is_not_proxied_has_none() {
        let none = |service| told(service, vec![], "0.0.0.0").is_empty();
        assert!(!none(web("10.96.0.10")));
        assert!(none(Service {
            foreign_proxy: true,
            ..web("10.96.0.10")
        }));
        assert!(none(Service {
            health_check_node_port: None,
            ..web("10.96.0.10")
        }));
        assert!(none(web("")));
    }

    #[test]
    fn a_node_without_a_name_has_nothing_local() {
        let entry = entry(web("10.96.0.10"), [slice("web-1", "web", [ep("10.1.0.1")])]);
        let nameless = NodeView {
            name: None,
            ..here("0.0.0.0")
        };
        assert_eq!(entry.health_checks(&nameless)[0].local_endpoints, 0);
    }
}
