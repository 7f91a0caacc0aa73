//! UDP flows that conntrack would go on treating as it did before a change of rules. Which ones: pure.
//!
//! The kernel asks the NAT rules about the first datagram of a flow only. So a client that sent before its
//! destination was captured, or while it was captured elsewhere, would never get here as long as it keeps sending from
//! the same port. TCP needs nothing of this: established connections must stay, and new ones are new flows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use tracing::{debug, warn};

use crate::model::{Family, Protocol};
use crate::net::conntrack::{self, UdpFlow};
use crate::net::netlink::IpVersion;

use super::Metrics;
use super::plan::{Rules, local_network};

/// UDP destinations whose rules change, each with the proxy port that it is led to from then on; `None` = left alone.
/// A flow that goes elsewhere is stale.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StaleFlows {
    addresses: BTreeMap<SocketAddr, Option<u16>>,
    /// By port, at any address of `node`.
    ports: BTreeMap<u16, Option<u16>>,
    node: Vec<IpNet>,
    /// The node's own addresses: what is captured arrives at one of them.
    local: Vec<IpNet>,
}

/// Whether the kernel is known to do what was applied last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// It does.
    Known,
    /// It may do anything, for example what an earlier run asked of it.
    Unknown,
}

impl StaleFlows {
    /// What a change from `before` to `after` leaves behind.
    pub(super) fn between(before: &Rules, after: &Rules, state: Before) -> Self {
        // A flow that arrives at an address that is gone is stale even if nothing else changes.
        let lost = before
            .local_addresses
            .difference(&after.local_addresses)
            .next();
        let state = lost.map_or(state, |_| Before::Unknown);
        let addresses = changes(&udp_frontends(before), &udp_frontends(after), state);
        let node: BTreeSet<IpAddr> = before
            .node_addresses
            .union(&after.node_addresses)
            .copied()
            .collect();
        let moved = before.node_addresses != after.node_addresses;
        let node_ports = if moved { Before::Unknown } else { state };
        let mut ports = changes(&udp_node_ports(before), &udp_node_ports(after), node_ports);
        // A flow straight to a proxy port that was not guarded then would go on.
        let guarded = after.guarded_udp_ports.iter();
        let guarded = guarded
            .filter(|port| state == Before::Unknown || !before.guarded_udp_ports.contains(*port));
        for port in guarded {
            ports.entry(*port).or_insert(Some(0));
        }
        let node = node.union(&after.local_addresses);
        Self {
            addresses,
            ports,
            node: node.copied().map(local_network).collect(),
            local: after
                .local_addresses
                .iter()
                .copied()
                .map(local_network)
                .collect(),
        }
    }

    /// Those that no rule led anywhere `before`. They can be forgotten ahead of the change as well, so that the first
    /// datagram after it is not lost to what its predecessors left.
    pub(super) fn uncaptured(mut self, before: &Rules) -> Self {
        let (frontends, node_ports) = (udp_frontends(before), udp_node_ports(before));
        self.addresses
            .retain(|address, _| !frontends.contains_key(address));
        self.ports.retain(|port, _| !node_ports.contains_key(port));
        self
    }

    fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.ports.is_empty()
    }

    fn contains(&self, flow: UdpFlow) -> bool {
        let within = |ranges: &[IpNet], ip: IpAddr| ranges.iter().any(|range| range.contains(&ip));
        let on_node = || within(&self.node, flow.to.ip());
        let at_port = || self.ports.get(&flow.to.port()).filter(|_| on_node());
        match self.addresses.get(&flow.to).or_else(at_port) {
            Some(Some(port)) => {
                flow.arrives_at.port() != *port
                    || flow.arrives_at == flow.to
                    || !within(&self.local, flow.arrives_at.ip())
            }
            Some(None) => flow.arrives_at != flow.to,
            None => false,
        }
    }
}

fn udp_frontends(rules: &Rules) -> BTreeMap<SocketAddr, u16> {
    let udp = rules.redirects.iter();
    let udp = udp.filter(|(frontend, _)| frontend.protocol == Protocol::Udp);
    udp.map(|(frontend, port)| (frontend.addr(), *port))
        .collect()
}

fn udp_node_ports(rules: &Rules) -> BTreeMap<u16, u16> {
    let udp = rules.node_ports.iter();
    let udp = udp.filter(|((protocol, _), _)| *protocol == Protocol::Udp);
    udp.map(|((_, port), target)| (*port, *target)).collect()
}

fn changes<K: Ord + Copy>(
    before: &BTreeMap<K, u16>,
    after: &BTreeMap<K, u16>,
    state: Before,
) -> BTreeMap<K, Option<u16>> {
    let keys = before.keys().chain(after.keys());
    keys.map(|key| (*key, after.get(key).copied()))
        .filter(|(key, now)| state == Before::Unknown || before.get(key).copied() != *now)
        .collect()
}

/// Makes the kernel forget `stale`, so that their next datagram is looked at afresh. Best effort: without it such a
/// client waits until the kernel's own timeout.
pub(super) async fn forget(family: Family, stale: StaleFlows, metrics: &Metrics) {
    if stale.is_empty() {
        return;
    }
    let ip_version = match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    };
    let begun = Instant::now();
    let work = move || conntrack::forget_udp(ip_version, |flow| stale.contains(flow));
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(flows)) => {
            metrics.forgot(family, flows, begun.elapsed());
            debug!(%family, flows, "stale UDP flows forgotten");
        }
        Ok(Err(error)) => {
            warn!(%family, %error, "stale UDP flows could not be forgotten; clients that keep their port may wait for up to two minutes");
        }
        Err(error) => warn!(%family, %error, "forgetting stale UDP flows did not finish"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{addr, ip, tcp, udp};

    fn rules(port: u16) -> Rules {
        let mut rules = Rules::none(Family::V4);
        rules.redirects = [(udp("10.96.0.10:53"), port), (tcp("10.96.0.10:53"), 1)]
            .into_iter()
            .collect();
        rules.node_ports = [((Protocol::Udp, 30053), port)].into_iter().collect();
        rules.node_addresses = [ip("172.18.0.2"), ip("127.0.0.1")].into();
        rules.local_addresses = rules.node_addresses.clone();
        rules.guarded_udp_ports = [port].into_iter().collect();
        rules
    }

    fn flow(to: &str, arrives_at: &str) -> UdpFlow {
        UdpFlow {
            to: addr(to),
            arrives_at: addr(arrives_at),
        }
    }

    #[test]
    fn flows_that_go_where_the_rules_lead_stay() {
        let stale = StaleFlows::between(&Rules::none(Family::V4), &rules(40000), Before::Unknown);
        assert!(!stale.contains(flow("10.96.0.10:53", "172.18.0.2:40000")));
        assert!(!stale.contains(flow("172.18.0.2:30053", "172.18.0.2:40000")));
        assert!(
            stale.contains(flow("10.96.0.10:53", "172.18.0.2:39999")),
            "an earlier run"
        );
        assert!(
            stale.contains(flow("10.96.0.10:53", "10.96.0.10:53")),
            "before any capture"
        );
        assert!(stale.contains(flow("127.1.2.3:30053", "127.1.2.3:30053")));
        assert!(
            stale.contains(flow("172.18.0.2:40000", "172.18.0.2:40000")),
            "not guarded then"
        );
    }

    #[test]
    fn flows_of_others_stay() {
        let stale = StaleFlows::between(&Rules::none(Family::V4), &rules(40000), Before::Unknown);
        assert!(!stale.contains(flow("10.96.0.11:53", "10.1.0.1:53")));
        assert!(
            !stale.contains(flow("10.1.0.1:30053", "10.1.0.1:30053")),
            "another machine's port"
        );
    }

    #[test]
    fn only_what_changes_is_looked_at() {
        let before = rules(40000);
        let nothing = StaleFlows::between(&before, &before, Before::Known);
        assert!(nothing.is_empty());
        let mut after = rules(40000);
        after.redirects.insert(udp("10.96.0.20:53"), 40000);
        let stale = StaleFlows::between(&before, &after, Before::Known);
        assert!(!stale.contains(flow("10.96.0.10:53", "172.18.0.2:1")));
        assert!(stale.contains(flow("10.96.0.20:53", "10.96.0.20:53")));
    }

    #[test]
    fn a_flow_to_an_address_that_is_gone_is_stale() {
        let (before, mut after) = (rules(40000), rules(40000));
        after.local_addresses = [ip("172.18.0.3"), ip("127.0.0.1")].into();
        let stale = StaleFlows::between(&before, &after, Before::Known);
        assert!(stale.contains(flow("10.96.0.10:53", "172.18.0.2:40000")));
        assert!(!stale.contains(flow("10.96.0.10:53", "172.18.0.3:40000")));
    }

    #[test]
    fn what_is_released_is_led_nowhere() {
        let stale = StaleFlows::between(&rules(40000), &Rules::none(Family::V4), Before::Known);
        assert!(stale.contains(flow("10.96.0.10:53", "172.18.0.2:40000")));
        assert!(!stale.contains(flow("10.96.0.10:53", "10.96.0.10:53")));
        assert!(stale.contains(flow("172.18.0.2:30053", "172.18.0.2:40000")));
    }

    #[test]
    fn only_what_was_not_captured_is_forgotten_ahead() {
        let (before, mut after) = (rules(40000), rules(41000));
        after.redirects.insert(udp("10.96.0.20:53"), 41000);
        let ahead = StaleFlows::between(&before, &after, Before::Known).uncaptured(&before);
        assert!(!ahead.contains(flow("10.96.0.10:53", "172.18.0.2:40000")));
        assert!(!ahead.contains(flow("172.18.0.2:30053", "172.18.0.2:40000")));
        assert!(ahead.contains(flow("10.96.0.20:53", "10.96.0.20:53")));
    }
}
