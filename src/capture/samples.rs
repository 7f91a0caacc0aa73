//! Rules that the tests of every mode render, and the comparison with the golden files. Test code only.
//!
//! `UPDATE_GOLDEN=1 cargo test --lib capture` writes the files anew.

use std::net::IpAddr;
use std::path::PathBuf;

use proptest::prelude::*;

use crate::model::{Family, Frontend, Protocol};

use super::plan::{Rules, Silence};

/// One of everything.
pub(super) fn one_of_everything(family: Family) -> Rules {
    let of = |v4: &'static str, v6: &'static str| match family {
        Family::V4 => v4,
        Family::V6 => v6,
    };
    let frontend = |ip: &str, port, protocol| Frontend {
        ip: ip.parse().unwrap(),
        port,
        protocol,
    };
    let (web, dns) = (
        of("10.96.0.10", "fd00:10:96::a"),
        of("10.96.1.10", "fd00:10:96::100"),
    );
    let balancer = of("203.0.113.7", "2001:db8:7::7");
    let node: IpAddr = of("172.18.0.2", "fd00:18::2").parse().unwrap();
    let loopback: IpAddr = of("127.0.0.1", "::1").parse().unwrap();
    let mut rules = Rules::none(family);
    rules.redirects = [
        (frontend(web, 80, Protocol::Tcp), 40001_u16),
        (frontend(dns, 53, Protocol::Udp), 40002),
        (frontend(dns, 53, Protocol::Tcp), 40003),
        (frontend(balancer, 443, Protocol::Tcp), 40004),
        (frontend(balancer, 443, Protocol::Udp), 40005),
    ]
    .into_iter()
    .collect();
    rules.cluster_ips = [web, dns]
        .map(|ip| ip.parse::<IpAddr>().unwrap())
        .into_iter()
        .collect();
    rules.node_ports = [
        ((Protocol::Tcp, 30080), 40001_u16),
        ((Protocol::Udp, 30053), 40006),
    ]
    .into_iter()
    .collect();
    rules.node_addresses = match family {
        Family::V4 => [node, loopback].into(),
        Family::V6 => [node].into(),
    };
    rules.silent = [
        (frontend(web, 80, Protocol::Tcp), Silence::Everyone),
        (frontend(balancer, 443, Protocol::Udp), Silence::Outside),
    ]
    .into_iter()
    .collect();
    rules.silent_node_ports = [(Protocol::Tcp, 30080)].into_iter().collect();
    let ranges = [
        of("192.0.2.0/25", "2001:db8::/80"),
        of("198.51.100.1/32", "2001:db8:1::1/128"),
    ];
    let ranges: Vec<_> = ranges.iter().map(|range| range.parse().unwrap()).collect();
    rules.source_ranges = [
        (frontend(balancer, 443, Protocol::Tcp), ranges.clone()),
        (frontend(balancer, 443, Protocol::Udp), ranges),
    ]
    .into_iter()
    .collect();
    rules.guarded_udp_ports = [40002_u16, 40005, 40006].into_iter().collect();
    rules.local_addresses = [node, loopback].into();
    rules.pod_cidrs = vec![of("10.244.0.0/24", "fd00:10:244::/64").parse().unwrap()];
    rules
}

/// Another service port comes, one moves to another proxy port, one goes.
pub(super) fn a_little_later(family: Family) -> Rules {
    let mut rules = one_of_everything(family);
    let mut frontends = rules.redirects.keys().copied();
    let (gone, moved) = (frontends.next().unwrap(), frontends.next().unwrap());
    let come = Frontend { port: 81, ..gone };
    rules.redirects.insert(moved, 41002);
    rules.redirects.remove(&gone);
    rules.silent.remove(&gone);
    rules.redirects.insert(come, 40007);
    rules
}

/// Compares `text` with `tests/golden/NAME`.
pub(super) fn assert_golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == text,
        "{} differs; UPDATE_GOLDEN=1 writes it anew. It is now:\n{text}",
        path.display()
    );
}

/// `services` service ports with a cluster address each.
pub(super) fn many(services: u16) -> Rules {
    let mut rules = Rules::none(Family::V4);
    for number in 0..services {
        let [high, low] = number.to_be_bytes();
        let frontend = Frontend {
            ip: IpAddr::from([10, 96, high, low]),
            port: 80,
            protocol: Protocol::Tcp,
        };
        rules.redirects.insert(frontend, 40000);
    }
    rules
}

/// Rules over so few addresses and ports that two of them have much in common.
pub(super) fn any_rules() -> impl Strategy<Value = Rules> {
    let protocol = || prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let ip = || (0..3u8, 1..3u8).prop_map(|(net, host)| IpAddr::from([10, 96, net, host]));
    let frontend = move || {
        (ip(), 80..82u16, protocol()).prop_map(|(ip, port, protocol)| Frontend {
            ip,
            port,
            protocol,
        })
    };
    let silence = prop_oneof![Just(Silence::Everyone), Just(Silence::Outside)];
    let networks = || {
        proptest::collection::vec(
            (0..4u8, 22..=32u8).prop_map(|(net, length)| {
                ipnet::IpNet::new(IpAddr::from([10, 244, net, 1]), length).unwrap()
            }),
            1..3,
        )
    };
    // Sometimes the very port that is led there.
    let target = || prop_oneof![40000..40003u16, Just(80)];
    let redirects = proptest::collection::btree_map(frontend(), target(), 0..8);
    let node_ports =
        proptest::collection::btree_map((protocol(), 30000..30003u16), 40000..40003u16, 0..3);
    let addresses = proptest::collection::btree_set(ip(), 0..3);
    let silent = proptest::collection::btree_map(frontend(), silence, 0..4);
    let ranges = proptest::collection::btree_map(frontend(), networks(), 0..3);
    let guarded = proptest::collection::btree_set(target(), 0..3);
    (
        redirects,
        node_ports,
        addresses,
        silent,
        ranges,
        guarded,
        networks(),
        proptest::collection::btree_set(ip(), 0..3),
    )
        .prop_map(
            |(
                redirects,
                node_ports,
                addresses,
                silent,
                source_ranges,
                guarded_udp_ports,
                pod_cidrs,
                cluster_ips,
            )| Rules {
                silent_node_ports: node_ports.keys().take(1).copied().collect(),
                node_addresses: addresses.clone(),
                local_addresses: addresses,
                redirects: redirects.into(),
                cluster_ips: cluster_ips.into(),
                node_ports: node_ports.into(),
                silent: silent.into(),
                source_ranges: source_ranges.into(),
                guarded_udp_ports: guarded_udp_ports.into(),
                pod_cidrs,
                ..Rules::none(Family::V4)
            },
        )
}
