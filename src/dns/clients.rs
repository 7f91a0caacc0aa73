//! Who may ask without being named in the configuration. Pure. An open resolver would serve attacks on others.

use std::net::IpAddr;

use crate::routing::NodeView;

/// Whether a client gets answers: everybody on this node or in the cluster does. `own` are the server's addresses.
pub(super) fn may_ask(client: IpAddr, node: &NodeView, own: &[IpAddr]) -> bool {
    let near = match client {
        IpAddr::V4(v4) => {
            // 100.64.0.0/10 (RFC 6598) is where several providers take pod addresses from.
            let [first, second, ..] = v4.octets();
            let shared = first == 100 && second & 0xC0 == 64;
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    };
    near || own.contains(&client)
        || node.local_addresses.contains(&client)
        || node.pod_cidrs.iter().any(|cidr| cidr.contains(&client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clients_nearby_may_ask() {
        let node = NodeView {
            pod_cidrs: vec!["198.51.100.0/24".parse().unwrap()],
            local_addresses: ["203.0.113.1".parse().unwrap()].into(),
            ..NodeView::default()
        };
        let own = ["203.0.113.2".parse().unwrap()];
        let rows = [
            ("127.0.0.1", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("172.16.0.1", true),
            ("172.32.0.1", false),
            ("192.168.1.1", true),
            ("169.254.1.1", true),
            ("100.64.0.1", true),
            ("100.127.255.255", true),
            ("100.128.0.0", false),
            ("198.51.100.7", true),
            ("203.0.113.1", true),
            ("203.0.113.2", true),
            ("203.0.113.3", false),
            ("8.8.8.8", false),
            ("::1", true),
            ("fd00::1", true),
            ("fe80::1", true),
            ("2001:db8::1", false),
        ];
        for (client, expected) in rows {
            assert_eq!(
                may_ask(client.parse().unwrap(), &node, &own),
                expected,
                "{client}"
            );
        }
    }
}
