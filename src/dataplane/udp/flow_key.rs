//! What tells the flows of a UDP listener apart: the client, and the address it sent to. Pure.
//!
//! A table belongs to one listener on one thread, so the listener is no part of it. The key is one flat value of both
//! families, hashed by the standard library's keyed hash in one piece: clients choose their ports and, in IPv6, much of
//! their address, and must not be able to choose whom they collide with.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::net::message_addresses::LocalAddress;

/// One flow's client and local address. IPv4 addresses are held in their mapped form, which no IPv6 socket of ours ever
/// hears of: all are bound to one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowKey {
    client_ip: Ipv6Addr,
    client_port: u16,
    client_scope: u32,
    // The unspecified address where the listener has but one, which is not reported.
    local_ip: Ipv6Addr,
    local_interface: u32,
}

/// The bytes of all fields.
const BYTES: usize = 16 + 2 + 4 + 16 + 4;

impl FlowKey {
    /// The key of a datagram from `client` to `local`, `None` if the listener has but one address.
    pub(super) fn new(client: SocketAddr, local: Option<LocalAddress>) -> Self {
        let client_scope = match client {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(client) => client.scope_id(),
        };
        Self {
            client_ip: mapped(client.ip()),
            client_port: client.port(),
            client_scope,
            local_ip: local.map_or(Ipv6Addr::UNSPECIFIED, |local| mapped(local.ip)),
            local_interface: local.map_or(0, |local| local.interface),
        }
    }

    /// Where replies go.
    pub(super) fn client(&self) -> SocketAddr {
        match self.client_ip.to_canonical() {
            IpAddr::V4(ip) => SocketAddr::from((ip, self.client_port)),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, self.client_port, 0, self.client_scope).into(),
        }
    }

    /// Where they leave from; `None` if the listener has but one address.
    pub(super) fn local(&self) -> Option<LocalAddress> {
        (!self.local_ip.is_unspecified()).then(|| LocalAddress {
            ip: self.local_ip.to_canonical(),
            interface: self.local_interface,
        })
    }
}

impl Hash for FlowKey {
    // Field by field, with a length or a kind before each, takes half as long again.
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let mut bytes = [0; BYTES];
        bytes[..16].copy_from_slice(&self.client_ip.octets());
        bytes[16..32].copy_from_slice(&self.local_ip.octets());
        bytes[32..34].copy_from_slice(&self.client_port.to_ne_bytes());
        bytes[34..38].copy_from_slice(&self.client_scope.to_ne_bytes());
        bytes[38..].copy_from_slice(&self.local_interface.to_ne_bytes());
        hasher.write(&bytes);
    }
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::RandomState;
    use std::hash::BuildHasher;

    use proptest::prelude::*;

    use super::*;

    fn local(ip: &str, interface: u32) -> Option<LocalAddress> {
        let ip = ip.parse().unwrap();
        Some(LocalAddress { ip, interface })
    }

    #[test]
    fn each_part_tells_flows_apart_in_equality_and_in_the_hash() {
        let client = |text: &str| text.parse().unwrap();
        let keys = [
            FlowKey::new(client("10.0.0.1:53"), None),
            FlowKey::new(client("10.0.0.1:54"), None),
            FlowKey::new(client("10.0.0.2:53"), None),
            FlowKey::new(client("10.0.0.1:53"), local("10.0.0.1", 0)),
            FlowKey::new(client("10.0.0.1:53"), local("10.0.0.2", 0)),
            FlowKey::new(client("[::10.0.0.1]:53"), None),
            FlowKey::new(client("[fe80::1%1]:53"), local("fe80::9", 1)),
            FlowKey::new(client("[fe80::1%2]:53"), local("fe80::9", 1)),
            FlowKey::new(client("[fe80::1%1]:53"), local("fe80::9", 2)),
        ];
        let state = RandomState::new();
        for (i, one) in keys.iter().enumerate() {
            for (j, other) in keys.iter().enumerate() {
                assert_eq!(one == other, i == j);
                assert_eq!(state.hash_one(one) == state.hash_one(other), i == j);
            }
        }
    }

    #[test]
    fn what_the_kernel_says_of_traffic_classes_makes_no_other_flow() {
        let client = |flow_info| SocketAddrV6::new(Ipv6Addr::LOCALHOST, 7, flow_info, 0).into();
        assert_eq!(FlowKey::new(client(1), None), FlowKey::new(client(2), None));
    }

    fn ip() -> impl Strategy<Value = IpAddr> {
        let v4 = any::<[u8; 4]>().prop_map(IpAddr::from);
        // Sockets of one family report no mapped addresses.
        let v6 = any::<[u8; 16]>().prop_map(|octets| IpAddr::from(octets).to_canonical());
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn replies_go_where_the_datagram_came_from(
            client in (ip(), any::<u16>()),
            to in proptest::option::of((ip(), any::<u32>())),
        ) {
            let client = SocketAddr::from(client);
            let local = to.map(|(ip, interface)| LocalAddress { ip, interface });
            let key = FlowKey::new(client, local);
            prop_assert_eq!(key.client(), client);
            prop_assert_eq!(key.local(), local.filter(|local| mapped(local.ip) != Ipv6Addr::UNSPECIFIED));
            prop_assert_eq!(key, FlowKey::new(key.client(), key.local()));
        }
    }
}
