//! Why traffic goes where it goes: the decisions of a table, made again and written down on the way. Pure.
//!
//! Every decision is the one that flows meet: `destination` finds the service port, `Route::policy` and
//! `Route::verdict` decide, `judge` says why an endpoint is in a set or is not. Nothing here decides anything itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Instant;

use crate::model::{Family, Frontend, Protocol, TrafficPolicy};

use super::explanation::{
    ExplainedConnections, ExplainedEndpoint, ExplainedFlow, ExplainedFrontend, ExplainedPort,
    Explanation, Outcome,
};
use super::judge::{Judged, Judgement, judge};
use super::remarks::{about_held_back, ports_of, why_not_proxied};
use super::target::{Target, UnknownTarget};
use super::{FrontendKind, Origin, Route, RoutingTable, ServiceEntry, Verdict};

/// A service port, and where it is asked about.
struct Asked<'a> {
    entry: &'a ServiceEntry,
    route: &'a Route,
    frontends: Vec<ExplainedFrontend>,
}

impl RoutingTable {
    /// Where traffic to `target` goes at `now`, and why.
    ///
    /// # Errors
    /// There is no such Service, port or address here.
    pub fn explain(&self, target: &Target, now: Instant) -> Result<Explanation, UnknownTarget> {
        let mut remarks = Vec::new();
        if !self.synced {
            remarks.push("the initial state is not complete yet".to_owned());
        }
        let asked = match target {
            Target::Service(name, port) => {
                let entry = self.service(name);
                let entry = entry.ok_or_else(|| UnknownTarget::Service(name.clone()))?;
                self.ask_service(entry, port.as_deref(), &mut remarks)?
            }
            Target::Address(address) => self.ask_address(*address)?,
        };
        let service_ports: Vec<_> = asked
            .into_iter()
            .map(|a| self.explain_port(a, now))
            .collect();
        Ok(Explanation {
            target: target.to_string(),
            served: are_served(&service_ports),
            service_ports,
            remarks,
        })
    }

    fn ask_service<'a>(
        &'a self,
        entry: &'a ServiceEntry,
        wanted: Option<&str>,
        remarks: &mut Vec<String>,
    ) -> Result<Vec<Asked<'a>>, UnknownTarget> {
        let service = &entry.service;
        let is_wanted = |name: &str, number: u16| {
            wanted.is_none_or(|wanted| wanted == name || *wanted == number.to_string())
        };
        let sctp = service.sctp_ports.iter();
        let mut sctp = sctp
            .filter(|p| is_wanted(&p.name, p.port.number()))
            .peekable();
        let mut ports = service.ports.iter();
        if let Some(port) = wanted
            && sctp.peek().is_none()
            && !ports.any(|p| is_wanted(&p.name, p.port.number()))
        {
            return Err(UnknownTarget::Port {
                service: service.name.clone(),
                port: port.to_owned(),
                known: ports_of(service),
            });
        }
        remarks.extend(sctp.map(|p| format!("port {}/SCTP is not served", p.port)));
        remarks.extend(why_not_proxied(service));
        let routes = entry.routes.iter().map(AsRef::as_ref);
        let routes = routes.filter(|route: &&Route| is_wanted(&route.key.port, route.port));
        let ask = |route: &'a Route| Asked {
            entry,
            route,
            frontends: self.explain_frontends(route),
        };
        Ok(routes.map(ask).collect())
    }

    fn ask_address(&self, address: SocketAddr) -> Result<Vec<Asked<'_>>, UnknownTarget> {
        let mut asked = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let frontend = self.served_behind(Frontend::new(address, protocol));
            let Some(destination) = self.destination(&frontend) else {
                continue;
            };
            let key = &destination.route.key;
            let found = self.service(&key.service).zip(self.route(key));
            asked.extend(found.map(|(entry, route)| Asked {
                entry,
                route,
                frontends: vec![self.explain_frontend(
                    route,
                    destination.kind,
                    frontend.addr().to_string(),
                    self.served_port(&frontend),
                )],
            }));
        }
        if asked.is_empty() {
            let why = self.why_nobody(Frontend::new(address, Protocol::Tcp).addr());
            return Err(UnknownTarget::Address { address, why });
        }
        Ok(asked)
    }

    // The frontend that is served at an address to which it had to move; else the address itself.
    fn served_behind(&self, bound: Frontend) -> Frontend {
        let mut moved = self.moved.iter();
        let origin = moved.find(|(from, port)| {
            let port = **port;
            Frontend { port, ..**from } == bound
        });
        origin.map_or(bound, |(from, _)| *from)
    }

    fn explain_frontends(&self, route: &Route) -> Vec<ExplainedFrontend> {
        let fixed = route.frontends.iter().map(|(frontend, kind)| {
            let address = frontend.addr().to_string();
            self.explain_frontend(route, *kind, address, self.served_port(frontend))
        });
        let node_port = route.node_port.filter(|_| self.answers_node_ports(route));
        let node_port = node_port.map(|port| {
            self.explain_frontend(route, FrontendKind::NodePort, format!("*:{port}"), port)
        });
        fixed.chain(node_port).collect()
    }

    pub(super) fn answers_node_ports(&self, route: &Route) -> bool {
        let mut answering = self.node.node_port_addresses.iter();
        answering.any(|ip| Family::of(*ip) == route.key.family)
    }

    fn explain_frontend(
        &self,
        route: &Route,
        kind: FrontendKind,
        address: String,
        served_port: u16,
    ) -> ExplainedFrontend {
        // Without any endpoint whoever calls is refused.
        let is_guarded = kind == FrontendKind::LoadBalancer && route.any_endpoints;
        let ranges = route.source_ranges.iter().filter(|_| is_guarded);
        ExplainedFrontend {
            address,
            kind: kind.as_str().to_owned(),
            served_port,
            source_ranges: ranges.map(ToString::to_string).collect(),
            flows: Origin::ALL
                .map(|origin| self.explain_flow(route, kind, origin))
                .into(),
        }
    }

    fn explain_flow(&self, route: &Route, kind: FrontendKind, origin: Origin) -> ExplainedFlow {
        let policy = route.policy(kind, origin);
        let (outcome, backends, why) = match route.verdict(kind, origin) {
            Verdict::Serve(backends) => {
                let why = match policy {
                    TrafficPolicy::Cluster => "by endpoints of the whole cluster",
                    TrafficPolicy::Local => "by endpoints on this node",
                };
                (Outcome::Served, backends, why.to_owned())
            }
            Verdict::Refuse => {
                let why = "no endpoint is ready, nor serves while terminating".to_owned();
                (Outcome::Refused, &[][..], why)
            }
            Verdict::Silent => {
                let node = self.node.name.as_ref().map(ToString::to_string);
                let node = node.unwrap_or_else(|| "this node, which has no name".to_owned());
                let why = format!("endpoints exist, but none on {node}");
                (Outcome::Silent, &[][..], why)
            }
        };
        let mut backends: Vec<SocketAddr> = backends.iter().map(|backend| backend.addr).collect();
        backends.sort_unstable();
        let spared = kind != FrontendKind::ClusterIp && policy != route.external_policy;
        let spared = if spared {
            "; an external policy of Local binds callers outside alone"
        } else {
            ""
        };
        ExplainedFlow {
            from: origin.as_str().to_owned(),
            policy: policy.as_str().to_owned(),
            outcome,
            why: why + spared,
            backends,
        }
    }

    fn explain_port(&self, asked: Asked<'_>, now: Instant) -> ExplainedPort {
        let Asked {
            entry,
            route,
            frontends,
        } = asked;
        let key = &route.key;
        let port = entry.port(key);
        let Judged {
            mut endpoints,
            topology,
        } = judge(&entry.endpoints_of(key), &self.node);
        let mut remarks = self.remarks_on(entry, route, port, topology, &endpoints);
        remarks.extend(about_held_back(route, now));
        endpoints.sort_by_key(|judgement| judgement.addr);
        let over_tcp = key.protocol == Protocol::Tcp;
        let proxy_protocol = route.knobs.proxy_protocol.filter(|_| over_tcp);
        ExplainedPort {
            service_port: key.to_string(),
            port: route.port,
            protocol: key.protocol.as_str().to_owned(),
            family: key.family.as_str().to_owned(),
            algorithm: route.algorithm.as_str().to_owned(),
            affinity_seconds: route.affinity.map(|affinity| affinity.as_secs()),
            connections: over_tcp.then(|| explain_connections(route)),
            proxy_protocol: proxy_protocol.map(|version| version.as_str().to_owned()),
            served: frontends.iter().any(ExplainedFrontend::is_served),
            frontends,
            topology,
            endpoints: endpoints.iter().map(explain_endpoint).collect(),
            remarks,
        }
    }
}

// A port that both families serve is served if one of them does.
fn are_served(ports: &[ExplainedPort]) -> bool {
    let mut served: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    for port in ports {
        *served
            .entry((&port.service_port, &port.protocol))
            .or_default() |= port.served;
    }
    !served.is_empty() && served.into_values().all(|served| served)
}

fn explain_connections(route: &Route) -> ExplainedConnections {
    ExplainedConnections {
        active: route.load.connections(),
        max: route.knobs.max_connections.map(NonZeroU32::get),
        refused_total: route.load.refused_total(),
    }
}

fn explain_endpoint(judgement: &Judgement<'_>) -> ExplainedEndpoint {
    let endpoint = judgement.endpoint;
    ExplainedEndpoint {
        address: judgement.addr,
        pod: endpoint.pod.as_deref().map(str::to_owned),
        node: endpoint.node.as_ref().map(ToString::to_string),
        cluster: judgement.cluster,
        local: judgement.local,
    }
}
