//! The rules of all Services together, kept as they come and go, so that one change among 10,000 costs one change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::capture::plan::{Rules, Share};
use crate::model::Family;
use crate::routing::NodeView;

/// What a Service adds to the rules of each captured family.
pub(super) type Shares = BTreeMap<Family, Share>;

/// All of them, by family.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    families: BTreeMap<Family, Rules>,
    // How many Services capture a cluster IP, which several may have at ports of their own.
    cluster_ips: HashMap<IpAddr, usize>,
}

impl Gathered {
    /// Adds those of a Service. What had the same addresses before is to be taken out first.
    pub(super) fn add(&mut self, shares: &Shares) {
        for (family, share) in shares {
            let rules = self.families.entry(*family);
            rules.or_insert_with(|| Rules::none(*family)).insert(share);
            for ip in share.cluster_ips() {
                *self.cluster_ips.entry(*ip).or_default() += 1;
            }
        }
    }

    /// Takes out those of a Service that were added.
    pub(super) fn remove(&mut self, shares: &Shares) {
        for (family, share) in shares {
            let Some(rules) = self.families.get_mut(family) else {
                continue;
            };
            rules.remove(share);
            for ip in share.cluster_ips() {
                let Some(services) = self.cluster_ips.get_mut(ip) else {
                    continue;
                };
                *services -= 1;
                if *services == 0 {
                    self.cluster_ips.remove(ip);
                    rules.cluster_ips.remove(ip);
                }
            }
        }
    }

    /// All rules of a family, on that node.
    pub(super) fn rules(&self, family: Family, node: Option<&NodeView>) -> Rules {
        let rules = self.families.get(&family).cloned();
        let mut rules = rules.unwrap_or_else(|| Rules::none(family));
        if let Some(node) = node {
            rules.local_addresses = of_family(&node.local_addresses, family);
            rules.node_addresses = of_family(&node.node_port_addresses, family);
            let pod_cidrs = node.pod_cidrs.iter().copied();
            rules.pod_cidrs = pod_cidrs
                .filter(|cidr| Family::of(cidr.addr()) == family)
                .collect();
        }
        rules
    }
}

/// Those of a family.
pub(super) fn of_family(addresses: &BTreeSet<IpAddr>, family: Family) -> BTreeSet<IpAddr> {
    let addresses = addresses.iter().copied();
    addresses.filter(|ip| Family::of(*ip) == family).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::routing::FrontendKind;
    use crate::testkit::{ip, port_key, route, tcp};

    // The share of a Service with a cluster IP, at one port of its own.
    fn shares(host: u8, port: u16) -> Shares {
        let frontend = tcp(&format!("10.96.0.{host}:{port}"));
        let mut route = route(port_key("web"));
        route.frontends = vec![(frontend, FrontendKind::ClusterIp)];
        let mut share = Share::default();
        share.add(&route, &BTreeSet::new(), |_| Some(40_000 + port));
        [(Family::V4, share)].into()
    }

    proptest! {
        /// In whatever order Services come and go, what is left is what those that are left add.
        #[test]
        fn what_is_left_is_of_those_that_are_left(
            turns in proptest::collection::vec((0..2u8, 1..4u16), 0..40)
        ) {
            let mut gathered = Gathered::default();
            let mut there = BTreeSet::new();
            for (host, port) in turns {
                if there.remove(&(host, port)) {
                    gathered.remove(&shares(host, port));
                } else {
                    there.insert((host, port));
                    gathered.add(&shares(host, port));
                }
                let mut expected = Rules::none(Family::V4);
                for (host, port) in &there {
                    expected.insert(&shares(*host, *port)[&Family::V4]);
                }
                prop_assert_eq!(gathered.rules(Family::V4, None), expected);
            }
        }
    }

    #[test]
    fn a_node_tells_each_family_its_own() {
        let node = NodeView {
            local_addresses: [ip("192.0.2.1"), ip("2001:db8::1")].into(),
            node_port_addresses: [ip("2001:db8::1")].into(),
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
            ..NodeView::default()
        };
        let gathered = Gathered::default();
        let v4 = gathered.rules(Family::V4, Some(&node));
        assert_eq!(v4.local_addresses, [ip("192.0.2.1")].into());
        assert!(v4.node_addresses.is_empty());
        assert_eq!(v4.pod_cidrs, node.pod_cidrs);
        let v6 = gathered.rules(Family::V6, Some(&node));
        assert_eq!(v6.node_addresses, [ip("2001:db8::1")].into());
        assert!(v6.pod_cidrs.is_empty());
        assert_eq!(v6.family, Family::V6);
    }
}
