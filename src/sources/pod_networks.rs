//! The networks of this node's Pods, as the routes behind its Pod interfaces tell them, and word when they change.
//!
//! A network plugin attaches Pods to a bridge, or to interfaces with names of its own; what the kernel would send there
//! is where Pods are. Read from `/proc/net/route` and `/proc/net/ipv6_route`: the main table, which is where plugins
//! write.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::interfaces::{POLL, announcements, drain};

/// Bits of the multicast groups that announce IPv4 and IPv6 routes (linux/rtnetlink.h).
const ROUTE_GROUPS: u32 = 0x40 | 0x400;

/// Networks that are taken from the routes; a node has a few hundred Pods. What is past it counts as outside.
const MAX_NETWORKS: usize = 4096;

/// Flags of a route (linux/route.h, linux/ipv6_route.h): through a gateway, refused, to the node itself.
const GATEWAY: u32 = 0x2;
const REJECT: u32 = 0x200;
const LOCAL: u32 = 0x8000_0000;

/// Behind which interfaces Pods are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodInterfaces {
    /// This bridge.
    Bridge(String),
    /// Every interface whose name begins so.
    Prefix(String),
}

impl PodInterfaces {
    fn include(&self, name: &str) -> bool {
        match self {
            Self::Bridge(bridge) => name == bridge,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

/// The networks behind the interfaces at this moment.
///
/// # Errors
///
/// The routes cannot be read. Without IPv6 there are none of it.
pub fn pod_networks(interfaces: &PodInterfaces) -> io::Result<BTreeSet<IpNet>> {
    let v4 = fs::read_to_string("/proc/net/route")?;
    let v6 = match fs::read_to_string("/proc/net/ipv6_route") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let lines = v4.lines().skip(1).filter_map(parse_v4);
    let routes = lines.chain(v6.lines().filter_map(parse_v6));
    let behind = routes.filter(|(interface, _)| interfaces.include(interface));
    Ok(behind
        .map(|(_, network)| network)
        .take(MAX_NETWORKS)
        .collect())
}

/// Sends the networks whenever they differ from what `networks` holds, until `stop`.
pub async fn watch_pod_networks(
    interfaces: PodInterfaces,
    networks: watch::Sender<BTreeSet<IpNet>>,
    stop: CancellationToken,
) {
    let announced = match announcements(ROUTE_GROUPS) {
        Ok(socket) => Some(socket),
        Err(error) => {
            warn!(%error, "route changes are not announced here; reading them every {POLL:?}");
            None
        }
    };
    loop {
        match pod_networks(&interfaces) {
            Ok(now) => {
                networks.send_if_modified(|before| {
                    let differs = *before != now;
                    if differs {
                        info!(n_networks = now.len(), "networks of Pods changed");
                        *before = now;
                    }
                    differs
                });
            }
            Err(error) => warn!(%error, "routes cannot be read; keeping the last ones"),
        }
        let changed = async {
            match &announced {
                Some(socket) => drain(socket).await,
                None => tokio::time::sleep(POLL).await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = stop.cancelled() => return,
        }
    }
}

// Interface, destination, gateway, flags, three counters, mask: addresses as the kernel's own words, in hex.
fn parse_v4(line: &str) -> Option<(&str, IpNet)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let word = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok();
    let (destination, flags, mask) = (word(1)?, word(3)?, word(7)?);
    let address = |word: u32| IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes()));
    let network = IpNet::with_netmask(address(destination), address(mask)).ok()?;
    (flags & (GATEWAY | REJECT) == 0 && network.prefix_len() > 0)
        .then(|| Some((*fields.first()?, network)))?
}

// Destination and prefix length, source and its, next hop, three counters, flags, interface; all in hex.
fn parse_v6(line: &str) -> Option<(&str, IpNet)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let ip = Ipv6Addr::from(u128::from_str_radix(fields.first()?, 16).ok()?);
    let prefix = u8::from_str_radix(fields.get(1)?, 16).ok()?;
    let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
    let network = IpNet::new(IpAddr::V6(ip), prefix).ok()?;
    let elsewhere = ip.is_unicast_link_local() || ip.is_multicast() || prefix == 0;
    (flags & (GATEWAY | REJECT | LOCAL) == 0 && !elsewhere)
        .then(|| Some((*fields.get(9)?, network)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_over_an_interface_are_networks_behind_it() {
        let word = |text: &str| u32::from_ne_bytes(text.parse::<Ipv4Addr>().unwrap().octets());
        let line = |interface: &str, to: &str, flags: &str, mask: &str| {
            let (to, mask) = (word(to), word(mask));
            format!("{interface}\t{to:08X}\t00000000\t{flags}\t0\t0\t0\t{mask:08X}\t0\t0\t0  ")
        };
        let read = |line: &str| parse_v4(line).map(|(name, net)| format!("{name} {net}"));
        assert_eq!(
            read(&line("cni0", "10.244.1.0", "0001", "255.255.255.0")),
            Some("cni0 10.244.1.0/24".to_owned())
        );
        assert_eq!(
            read(&line("cali1", "10.244.1.7", "0005", "255.255.255.255")),
            Some("cali1 10.244.1.7/32".to_owned())
        );
        for (to, flags, mask) in [
            ("0.0.0.0", "0003", "0.0.0.0"),
            ("10.244.2.0", "0003", "255.255.255.0"),
            ("10.244.2.0", "0201", "255.255.255.0"),
            ("10.244.2.0", "0001", "255.0.255.0"),
        ] {
            assert_eq!(read(&line("cni0", to, flags, mask)), None, "{to} {flags}");
        }
        assert_eq!(read("nonsense"), None);
    }

    #[test]
    fn routes_of_ipv6_are_read_too() {
        let line = |to: &str, prefix: &str, flags: &str| {
            let to = u128::from(to.parse::<Ipv6Addr>().unwrap());
            format!(
                "{to:032x} {prefix} {0:032x} 00 {0:032x} 00000100 00000001 00000000 {flags}     cni0",
                0
            )
        };
        let read = |line: &str| parse_v6(line).map(|(name, net)| format!("{name} {net}"));
        assert_eq!(
            read(&line("fd00:10:244::", "40", "00000001")),
            Some("cni0 fd00:10:244::/64".to_owned())
        );
        for (to, prefix, flags) in [
            ("fe80::", "40", "00000001"),
            ("ff00::", "08", "00000001"),
            ("::", "00", "00000001"),
            ("fd00::1", "80", "80200001"),
            ("fd01::", "40", "00000003"),
        ] {
            assert_eq!(read(&line(to, prefix, flags)), None, "{to} {flags}");
        }
    }

    #[test]
    fn interfaces_are_known_by_name_or_by_its_beginning() {
        let bridge = PodInterfaces::Bridge("cni0".to_owned());
        assert!(bridge.include("cni0") && !bridge.include("cni01"));
        let prefix = PodInterfaces::Prefix("cali".to_owned());
        assert!(prefix.include("cali12ab") && !prefix.include("eth0"));
        // Nothing is behind an interface that is not there.
        let nobody = PodInterfaces::Bridge("none-such".to_owned());
        assert_eq!(pod_networks(&nobody).unwrap(), BTreeSet::new());
    }

    #[tokio::test]
    async fn the_watch_begins_with_what_is_there_and_ends_when_told_to() {
        let (sender, receiver) = watch::channel(BTreeSet::from(["10.0.0.0/8".parse().unwrap()]));
        let stop = CancellationToken::new();
        stop.cancel();
        watch_pod_networks(PodInterfaces::Bridge("none-such".to_owned()), sender, stop).await;
        assert!(receiver.borrow().is_empty());
    }
}
