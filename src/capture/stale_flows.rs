//! UDP flows that conntrack would go on treating as it did before a change of rules. Which ones: pure.
//!
//! The kernel asks the NAT rules about the first datagram of a flow only. So a client that sent before its
//! destination was captured, or while it was captured elsewhere, would never get here as long as it keeps sending from
//! the same port. TCP needs nothing of this: established connections must stay, and new ones are new flows.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tracing::{debug, warn};

use crate::model::{Family, Protocol};
use crate::net::conntrack;

use super::plan::{Rules, local_network};

/// Original destinations of UDP flows to forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StaleFlows {
    addresses: BTreeSet<SocketAddr>,
    /// Ports at any address of `node`.
    ports: BTreeSet<u16>,
    node: Vec<IpNet>,
}

impl StaleFlows {
    /// Those that a change from `before` to `after` leaves behind. Without `known`, the kernel may have done anything
    /// before, for example what an earlier run asked of it.
    pub(super) fn between(before: Option<&Rules>, after: &Rules, known: bool) -> Self {
        let nothing = Rules::none(after.family);
        let before = before.unwrap_or(&nothing);
        let node: BTreeSet<IpAddr> = before
            .node_addresses
            .union(&after.node_addresses)
            .copied()
            .collect();
        let node_moved = before.node_addresses != after.node_addresses;
        let redirected = before.redirects.keys().chain(after.redirects.keys());
        let node_ports = before.node_ports.keys().chain(after.node_ports.keys());
        // A guarded port is like one that is redirected nowhere: flows from before it was guarded would pass.
        let guarded = after.guarded_udp_ports.iter();
        let guarded = guarded.filter(|port| !known || !before.guarded_udp_ports.contains(port));
        Self {
            addresses: redirected
                .filter(|frontend| frontend.protocol == Protocol::Udp)
                .filter(|frontend| {
                    !known || before.redirects.get(frontend) != after.redirects.get(frontend)
                })
                .map(|frontend| frontend.addr())
                .collect(),
            ports: node_ports
                .filter(|(protocol, _)| *protocol == Protocol::Udp)
                .filter(|key| {
                    !known || node_moved || before.node_ports.get(key) != after.node_ports.get(key)
                })
                .map(|(_, port)| *port)
                .chain(guarded.copied())
                .collect(),
            node: node
                .union(&after.local_addresses)
                .copied()
                .map(local_network)
                .collect(),
        }
    }

    /// All that `rules` capture.
    pub(super) fn of(rules: &Rules) -> Self {
        Self::between(None, rules, false)
    }

    fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.ports.is_empty()
    }

    fn contains(&self, destination: SocketAddr) -> bool {
        self.addresses.contains(&destination)
            || (self.ports.contains(&destination.port())
                && self
                    .node
                    .iter()
                    .any(|range| range.contains(&destination.ip())))
    }
}

/// Makes the kernel forget `stale`, so that their next datagram is looked at afresh. Best effort: without it such a
/// client waits until the kernel's own timeout.
pub(super) async fn forget(family: Family, stale: StaleFlows) {
    if stale.is_empty() {
        return;
    }
    let ip_version = match family {
        Family::V4 => conntrack::IpVersion::V4,
        Family::V6 => conntrack::IpVersion::V6,
    };
    let work = move || conntrack::forget_udp(ip_version, |destination| stale.contains(destination));
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(flows)) => debug!(%family, flows, "stale UDP flows forgotten"),
        Ok(Err(error)) => {
            warn!(%family, %error, "stale UDP flows could not be forgotten; clients that keep their port may wait for up to two minutes");
        }
        Err(error) => warn!(%family, %error, "forgetting stale UDP flows did not finish"),
    }
}
