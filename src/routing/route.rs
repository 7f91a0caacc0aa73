//! A route: what one service port does with a flow.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::model::{Algorithm, Frontend, Knobs, NodeName, ServicePortKey, TrafficPolicy};

use super::backends::Known;
use super::{Balancer, Choice, FrontendKind, HeldBack, Live, Origin, ServiceLoad, Warming};

/// An endpoint judged eligible.
#[derive(Debug)]
pub struct Backend {
    /// Where it is dialled; its identity within the service port.
    pub addr: SocketAddr,
    /// The node it runs on.
    pub node: Option<NodeName>,
    /// The Pod behind it, where one is named.
    pub pod: Option<Arc<str>>,
    /// Live figures; the same object as long as the address stays in the service port.
    pub live: Arc<Live>,
    /// Who of its service port is held back.
    pub held_back: Arc<HeldBack>,
}

/// What one service port does with its flows. Immutable; a change makes a new one.
#[derive(Debug)]
pub struct Route {
    /// The service port.
    pub key: ServicePortKey,
    /// `spec.ports[].port`.
    pub port: u16,
    /// Candidates of the whole cluster, in shuffled order.
    pub cluster: Vec<Arc<Backend>>,
    /// Candidates on this node, in shuffled order, whether or not a policy asks for them.
    pub local: Vec<Arc<Backend>>,
    /// All endpoints, whatever the policies.
    pub(crate) known: Known,
    /// Some endpoint could serve somewhere: tells silence from refusal.
    pub any_endpoints: bool,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// The algorithm in force.
    pub algorithm: Algorithm,
    /// Client-IP affinity, and for how long.
    pub affinity: Option<Duration>,
    /// What the Service's annotations ask for.
    pub knobs: Knobs,
    /// The addresses granted to this service port, with their kinds; node ports are listed apart.
    pub frontends: Vec<(Frontend, FrontendKind)>,
    /// The node port granted to it.
    pub node_port: Option<u16>,
    /// Who may call its load-balancer addresses: `spec.loadBalancerSourceRanges` of its family. Empty = anybody.
    pub source_ranges: Vec<IpNet>,
    /// The algorithm's state.
    pub balancer: Arc<dyn Balancer>,
    /// Who of its backends is held back.
    pub held_back: Arc<HeldBack>,
    /// The TCP connections of the whole Service; all its routes have the same one.
    pub load: Arc<ServiceLoad>,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'a> {
    /// One of these serves it. Never empty.
    Serve(&'a [Arc<Backend>]),
    /// Refused at once: nothing could serve it anywhere.
    Refuse,
    /// No answer at all: endpoints exist, but the policy keeps this flow from them.
    Silent,
}

impl Route {
    /// Picks one of `candidates`, which are one of its sets, for a new flow of `client`; `None` if all have been tried.
    /// Those that are ejected are picked when nobody else is left.
    pub fn pick<'a>(
        &self,
        candidates: &'a [Arc<Backend>],
        client: IpAddr,
        tried: &[SocketAddr],
        now: Instant,
    ) -> Option<&'a Arc<Backend>> {
        let mut choice = Choice {
            client,
            backends: candidates,
            tried,
            passed_over: &[],
            warming: None,
            now,
        };
        if !self.held_back.is_anybody(now) {
            return candidates.get(self.balancer.pick(&choice)?);
        }
        choice.warming = self.knobs.slow_start.map(|length| Warming {
            held_back: &self.held_back,
            length,
        });
        let ejected = self.held_back.ejected(candidates, now);
        let first = self.balancer.pick(&Choice {
            passed_over: &ejected,
            ..choice
        });
        candidates.get(first.or_else(|| self.balancer.pick(&choice))?)
    }

    /// What becomes of a flow to an address of that kind from that origin.
    ///
    /// Source: KEP-2086, KEP-1669.
    pub fn verdict(&self, kind: FrontendKind, origin: Origin) -> Verdict<'_> {
        let policy = self.policy(kind, origin);
        let candidates = match policy {
            TrafficPolicy::Cluster => &self.cluster,
            TrafficPolicy::Local => &self.local,
        };
        if !candidates.is_empty() {
            Verdict::Serve(candidates)
        } else if self.any_endpoints && policy == TrafficPolicy::Local {
            Verdict::Silent
        } else {
            Verdict::Refuse
        }
    }

    /// The policy that holds for such a flow: an external policy of Local binds callers outside alone.
    ///
    /// Source: kube-proxy's external short circuit for local sources.
    pub fn policy(&self, kind: FrontendKind, origin: Origin) -> TrafficPolicy {
        match (kind, origin) {
            (FrontendKind::ClusterIp, _) => self.internal_policy,
            (
                FrontendKind::ExternalIp | FrontendKind::LoadBalancer | FrontendKind::NodePort,
                Origin::Outside,
            ) => self.external_policy,
            (
                FrontendKind::ExternalIp | FrontendKind::LoadBalancer | FrontendKind::NodePort,
                Origin::LocalPod | Origin::Node,
            ) => TrafficPolicy::Cluster,
        }
    }

    /// Whether an existing flow to that backend may go on: to ready endpoints and those that serve while terminating,
    /// whatever the policies. A UDP flow to anything else ends.
    pub fn still_serves(&self, backend: SocketAddr) -> bool {
        self.known.serves(backend)
    }

    /// The addresses of which that is true, in order.
    pub fn serving(&self) -> impl Iterator<Item = SocketAddr> {
        self.known.serving()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{addr, backend, port_key, route};

    use FrontendKind::*;
    use Origin::*;
    use TrafficPolicy::{Cluster, Local};

    /// Shows a verdict as the set that serves, or as what it is otherwise.
    fn shown(verdict: Verdict<'_>) -> &'static str {
        match verdict {
            Verdict::Serve([only]) if only.addr.port() == 1 => "cluster",
            Verdict::Serve(_) => "local",
            Verdict::Refuse => "refuse",
            Verdict::Silent => "silent",
        }
    }

    /// A route whose cluster set has one backend at port 1 and whose local set one at port 2, if they have any.
    fn with(policies: [TrafficPolicy; 2], cluster: bool, local: bool) -> Route {
        let set = |filled: bool, text| Vec::from_iter(filled.then(|| backend(addr(text))));
        Route {
            cluster: set(cluster, "10.1.0.1:1"),
            local: set(local, "10.1.0.1:2"),
            any_endpoints: cluster,
            internal_policy: policies[0],
            external_policy: policies[1],
            ..route(port_key("web"))
        }
    }

    const EXTERNAL: [FrontendKind; 3] = [ExternalIp, LoadBalancer, NodePort];

    #[test]
    fn the_cluster_ip_follows_the_internal_policy_whoever_calls() {
        for external in [Cluster, Local] {
            for origin in [Outside, LocalPod, Node] {
                let verdict = |internal, cluster, local| {
                    shown(with([internal, external], cluster, local).verdict(ClusterIp, origin))
                };
                assert_eq!(verdict(Cluster, true, true), "cluster");
                assert_eq!(verdict(Cluster, true, false), "cluster");
                assert_eq!(verdict(Local, true, true), "local");
                assert_eq!(verdict(Local, true, false), "silent");
                assert_eq!(verdict(Local, false, false), "refuse");
                assert_eq!(verdict(Cluster, false, false), "refuse");
            }
        }
    }

    #[test]
    fn external_addresses_follow_the_external_policy_from_outside() {
        for kind in EXTERNAL {
            for internal in [Cluster, Local] {
                let verdict = |external, cluster, local| {
                    shown(with([internal, external], cluster, local).verdict(kind, Outside))
                };
                assert_eq!(verdict(Cluster, true, false), "cluster");
                assert_eq!(verdict(Local, true, true), "local");
                assert_eq!(verdict(Local, true, false), "silent");
                assert_eq!(verdict(Local, false, false), "refuse");
                assert_eq!(verdict(Cluster, false, false), "refuse");
            }
        }
    }

    #[test]
    fn external_addresses_serve_the_whole_cluster_to_callers_of_this_node() {
        for kind in EXTERNAL {
            for origin in [LocalPod, Node] {
                for policies in [[Cluster, Local], [Local, Local]] {
                    let verdict = |cluster, local| {
                        shown(with(policies, cluster, local).verdict(kind, origin))
                    };
                    assert_eq!(verdict(true, true), "cluster");
                    assert_eq!(verdict(true, false), "cluster");
                    assert_eq!(verdict(false, false), "refuse");
                }
            }
        }
    }

    #[test]
    fn live_figures_count_flows_and_failures() {
        let live = Live::default();
        live.begin();
        live.begin();
        live.end();
        live.fail();
        assert_eq!(
            (live.active(), live.flows_total(), live.failures_total()),
            (1, 2, 1)
        );
    }
}
