//! Which endpoints may serve: the cluster set and the local set of one service port.
//!
//! Source: KEP-1669 (terminating fallback), KEP-2433 and KEP-3015 (hints); kube-proxy `CategorizeEndpoints`.

use std::net::SocketAddr;

use crate::model::Endpoint;

use super::judge::{Judgement, Standing, judge};
use super::{NodeView, Topology};

/// The two candidate sets of a service port, by address, and whether anything could serve anywhere.
#[derive(Debug)]
pub struct Candidates<'a> {
    /// Usable from anywhere.
    pub cluster: Vec<(SocketAddr, &'a Endpoint)>,
    /// Usable where a policy says Local.
    pub local: Vec<(SocketAddr, &'a Endpoint)>,
    /// Some endpoint is ready or serves while terminating, wherever it is.
    pub any: bool,
    /// Why endpoints were kept or left out of the cluster set.
    pub topology: Topology,
}

/// The candidates among `endpoints`, given with their addresses within the service port, for a proxy on `node`: those
/// that [`judge`] keeps.
pub fn eligible<'a>(endpoints: &[(SocketAddr, &'a Endpoint)], node: &NodeView) -> Candidates<'a> {
    let judged = judge(endpoints, node);
    let set = |standing: fn(&Judgement<'a>) -> Standing| {
        let kept = judged.endpoints.iter();
        let kept = kept.filter(|judgement| standing(judgement).is_candidate());
        kept.map(|judgement| (judgement.addr, judgement.endpoint))
            .collect()
    };
    let cluster: Vec<_> = set(|judgement| judgement.cluster);
    Candidates {
        // Whatever is usable anywhere is in the cluster set, or kept from it by others that are.
        any: !cluster.is_empty(),
        cluster,
        local: set(|judgement| judgement.local),
        topology: judged.topology,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{EndpointWith, ep, node_name};

    fn here() -> NodeView {
        NodeView {
            name: Some(node_name("here")),
            zone: Some("z1".into()),
            ..NodeView::default()
        }
    }

    /// Endpoints by the last number of their addresses, all at port 80.
    fn at(endpoints: &[Endpoint]) -> Vec<(SocketAddr, &Endpoint)> {
        endpoints
            .iter()
            .map(|e| (SocketAddr::new(e.addresses[0], 80), e))
            .collect()
    }

    fn lasts(set: &[(SocketAddr, &Endpoint)]) -> String {
        let last = |ip: std::net::IpAddr| ip.to_string().rsplit('.').next().unwrap().to_owned();
        let all: Vec<String> = set.iter().map(|(addr, _)| last(addr.ip())).collect();
        all.join(" ")
    }

    #[track_caller]
    fn assert_sets(endpoints: &[Endpoint], cluster: &str, local: &str) {
        assert_sets_on(&here(), endpoints, cluster, local);
    }

    #[track_caller]
    fn assert_sets_on(node: &NodeView, endpoints: &[Endpoint], cluster: &str, local: &str) {
        let endpoints = at(endpoints);
        let found = eligible(&endpoints, node);
        assert_eq!(
            (lasts(&found.cluster), lasts(&found.local)),
            (cluster.to_owned(), local.to_owned())
        );
        assert_eq!(
            found.any,
            !found.cluster.is_empty(),
            "some endpoint serves somewhere, or the cluster set is empty"
        );
    }

    fn a() -> Endpoint {
        ep("10.1.0.1")
    }

    fn b() -> Endpoint {
        ep("10.1.0.2")
    }

    fn c() -> Endpoint {
        ep("10.1.0.3")
    }

    #[test]
    fn ready_endpoints_serve_and_those_of_this_node_locally() {
        assert_sets(&[], "", "");
        assert_sets(&[a().on("here"), b().on("there"), c()], "1 2 3", "1");
    }

    #[test]
    fn without_a_node_name_nothing_is_local() {
        assert_sets_on(&NodeView::default(), &[a().on("here"), b()], "1 2", "");
    }

    #[test]
    fn endpoints_that_are_neither_ready_nor_serve_while_terminating_are_never_used() {
        assert_sets(&[a().unready(), b().terminating().serving(false)], "", "");
        assert_sets(&[a().unready().serving(true).on("here")], "", "");
    }

    #[test]
    fn ready_wins_over_terminating() {
        let endpoints = [a().on("here"), b().terminating().on("here")];
        assert_sets(&endpoints, "1", "1");
    }

    #[test]
    fn endpoints_that_serve_while_terminating_are_used_when_none_is_ready() {
        let endpoints = [
            a().terminating().on("here"),
            b().terminating(),
            c().terminating().serving(false).on("here"),
        ];
        assert_sets(&endpoints, "1 2", "1");
    }

    #[test]
    fn the_fallback_is_decided_for_each_set_on_its_own() {
        assert_sets(&[a().terminating().on("here"), b().on("there")], "2", "1");
    }

    #[test]
    fn ready_while_terminating_counts_as_ready() {
        // Slices of a Service with publishNotReadyAddresses say so.
        let published = Endpoint {
            ready: true,
            ..a().terminating()
        };
        assert_sets(&[published, b()], "1 2", "");
    }

    #[test]
    fn of_two_entries_with_one_address_the_one_that_does_not_terminate_counts() {
        for entries in [
            [a().terminating().on("here"), a().on("here")],
            [a().on("here"), a().terminating().on("here")],
        ] {
            assert_sets(&entries, "1", "1");
        }
        assert_sets(&[a().terminating(), a().unready()], "", "");
        assert_sets(&[a().unready(), a()], "1", "");
        assert_sets(&[a(), a().unready()], "1", "");
    }

    #[test]
    fn one_ip_at_two_ports_is_two_backends() {
        let endpoint = a();
        let at_two: Vec<_> = [80, 81]
            .map(|port| (SocketAddr::new(endpoint.addresses[0], port), &endpoint))
            .into();
        assert_eq!(eligible(&at_two, &here()).cluster.len(), 2);
    }

    /// The rows of the table of topology modes, with what the cluster set becomes.
    #[test]
    fn hints_choose_the_mode() {
        let zoned = |e: Endpoint, zones: &[&str]| e.for_zones(zones);
        let noded = |e: Endpoint, nodes: &[&str]| e.for_nodes(nodes);
        let rows = [
            (vec![a(), b()], Topology::None, "1 2", "no hints"),
            (
                vec![zoned(a(), &["z1"]), zoned(b(), &["z2"])],
                Topology::SameZone,
                "1",
                "every endpoint has a zone, one has ours",
            ),
            (
                vec![zoned(a(), &["z1"]), b()],
                Topology::None,
                "1 2",
                "one endpoint without a zone hint",
            ),
            (
                vec![zoned(a(), &["z2"]), zoned(b(), &["z3"])],
                Topology::None,
                "1 2",
                "nobody has our zone",
            ),
            (
                vec![zoned(a(), &["z2", "z1"]), zoned(b(), &["z2"])],
                Topology::SameZone,
                "1",
                "one of several zones",
            ),
            (
                vec![noded(a(), &["here"]), noded(b(), &["there"])],
                Topology::SameNode,
                "1",
                "every endpoint has a node, one has ours",
            ),
            (
                vec![noded(a(), &["here"]), b()],
                Topology::None,
                "1 2",
                "one endpoint without a node hint",
            ),
            (
                vec![
                    noded(zoned(a(), &["z1"]), &["there"]),
                    noded(zoned(b(), &["z2"]), &["there"]),
                ],
                Topology::SameZone,
                "1",
                "nodes hinted, but not ours: the zone decides",
            ),
            (
                vec![
                    noded(zoned(a(), &["z1"]), &["there"]),
                    noded(zoned(b(), &["z2"]), &["here"]),
                ],
                Topology::SameNode,
                "2",
                "the node goes before the zone",
            ),
            (
                vec![zoned(a(), &["z1"]), b().unready()],
                Topology::SameZone,
                "1",
                "an unready endpoint without hints spoils nothing",
            ),
            (
                vec![zoned(a(), &["z2"]), zoned(b(), &["z1"]).unready()],
                Topology::None,
                "1",
                "an unready endpoint's hint is none",
            ),
            (
                vec![
                    zoned(a(), &["z1"]).terminating(),
                    zoned(b(), &["z2"]).terminating(),
                ],
                Topology::None,
                "1 2",
                "the fallback ignores hints",
            ),
        ];
        for (endpoints, topology, cluster, why) in rows {
            let endpoints = at(&endpoints);
            let found = eligible(&endpoints, &here());
            assert_eq!(
                (found.topology, &*lasts(&found.cluster)),
                (topology, cluster),
                "{why}"
            );
        }
    }

    #[test]
    fn a_node_without_zone_or_name_filters_nothing() {
        let endpoints = [
            a().for_zones(&["z1"]).for_nodes(&["here"]),
            b().for_zones(&["z2"]).for_nodes(&["there"]),
        ];
        assert_sets_on(&NodeView::default(), &endpoints, "1 2", "");
    }

    #[test]
    fn hints_never_narrow_the_local_set() {
        let endpoints = [
            a().on("here").for_zones(&["z2"]),
            b().on("there").for_zones(&["z1"]),
        ];
        assert_sets(&endpoints, "2", "1");
    }
}
