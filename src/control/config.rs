//! What the standalone control plane is told at construction, and what is wrong with it.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::model::Family;

/// The largest number of endpoints that a slice may be configured to have.
const MAX_ENDPOINTS_PER_SLICE: usize = 1000;
/// IPv6 service ranges larger than a /64 are refused, as kube-apiserver does.
const SHORTEST_V6_PREFIX: u8 = 64;

/// How the cluster is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Ranges of cluster IPs: one or two, of different families; the first is the primary.
    pub service_cidrs: Vec<IpNet>,
    /// Node ports and health-check node ports come from here.
    pub node_port_range: RangeInclusive<u16>,
    /// Where Services of type LoadBalancer get an address from; without it they stay pending.
    pub load_balancer_range: Option<IpNet>,
    /// Where simulated Pods without an address get one from.
    pub pod_cidr: Option<IpNet>,
    /// Whether endpoints that users write may have loopback addresses.
    pub allow_loopback_endpoints: bool,
    /// The node we are; Pods of manifests that name no node are placed on it.
    pub own_node: Option<OwnNode>,
    /// How many endpoints a slice has at most: 1 to 1000, 100 by default in Kubernetes.
    pub max_endpoints_per_slice: usize,
    /// Everything random comes from here: the same seed and the same calls give the same state.
    pub seed: u64,
}

/// A Node object that is supplied unless a manifest gives one of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnNode {
    /// Its name.
    pub name: String,
    /// Its addresses, the primary first.
    pub addresses: Vec<IpAddr>,
}

/// A configuration that no cluster can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// None, or more than two.
    #[error("one or two service ranges are needed, not {0}")]
    ServiceRangeCount(usize),
    /// Two of one family.
    #[error("the service ranges {0} and {1} are of the same family")]
    SameFamily(IpNet, IpNet),
    /// An IPv6 range that is too large.
    #[error("the service range {0} is too large: IPv6 needs at least a /64")]
    RangeTooLarge(IpNet),
    /// No port at all, or port 0.
    #[error("the node-port range {}-{} is empty or begins with 0", .0.start(), .0.end())]
    NodePortRange(RangeInclusive<u16>),
    /// Outside 1 to 1000.
    #[error("{0} endpoints per slice: 1 to 1000 are possible")]
    EndpointsPerSlice(usize),
}

impl Config {
    /// Says what is wrong with the configuration.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match self.service_cidrs.as_slice() {
            [_] => {}
            [one, two] => {
                if Family::of(one.addr()) == Family::of(two.addr()) {
                    return Err(ConfigError::SameFamily(*one, *two));
                }
            }
            ranges => return Err(ConfigError::ServiceRangeCount(ranges.len())),
        }
        for range in &self.service_cidrs {
            if matches!(range, IpNet::V6(_)) && range.prefix_len() < SHORTEST_V6_PREFIX {
                return Err(ConfigError::RangeTooLarge(*range));
            }
        }
        if self.node_port_range.is_empty() || *self.node_port_range.start() == 0 {
            return Err(ConfigError::NodePortRange(self.node_port_range.clone()));
        }
        if !(1..=MAX_ENDPOINTS_PER_SLICE).contains(&self.max_endpoints_per_slice) {
            return Err(ConfigError::EndpointsPerSlice(self.max_endpoints_per_slice));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            node_port_range: 30000..=32767,
            load_balancer_range: None,
            pod_cidr: None,
            allow_loopback_endpoints: false,
            own_node: None,
            max_endpoints_per_slice: 100,
            seed: 0,
        }
    }

    #[test]
    fn limits_hold_on_both_sides() {
        let slices = |max_endpoints_per_slice| {
            Config {
                max_endpoints_per_slice,
                ..config()
            }
            .check()
        };
        assert_eq!(slices(1), Ok(()));
        assert_eq!(slices(1000), Ok(()));
        assert_eq!(slices(0), Err(ConfigError::EndpointsPerSlice(0)));
        assert_eq!(slices(1001), Err(ConfigError::EndpointsPerSlice(1001)));
        let ranges = |texts: &[&str]| {
            let service_cidrs = texts.iter().map(|text| text.parse().unwrap()).collect();
            Config {
                service_cidrs,
                ..config()
            }
            .check()
            .is_ok()
        };
        assert!(ranges(&["fd00::/64"]) && ranges(&["fd00::/112", "10.0.0.0/8"]));
        assert!(!ranges(&["fd00::/63"]));
        assert!(!ranges(&[]) && !ranges(&["10.0.0.0/8", "10.0.0.0/16"]));
        let ports = |node_port_range| {
            Config {
                node_port_range,
                ..config()
            }
            .check()
            .is_ok()
        };
        assert!(ports(1..=1) && ports(30000..=u16::MAX));
        #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
        let reversed = 2..=1;
        assert!(!ports(0..=5) && !ports(reversed));
    }
}
