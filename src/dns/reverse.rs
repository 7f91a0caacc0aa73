//! Reverse names: `in-addr.arpa` and `ip6.arpa`, read and written. Pure.
//!
//! Knows only the names. Which Service or endpoint has an address is looked up in `records`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What a reverse name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reverse {
    /// One address: four octets or 32 nibbles.
    Address(IpAddr),
    /// Fewer labels: the range whose reverse names are below it.
    Range(IpNet),
    /// Labels in front of an address's name: nothing exists there.
    Below(IpAddr),
}

/// Reads `name`, which is in lower case; `None` if it is not a reverse name, or one that means no address.
pub(super) fn parse(name: &Name) -> Option<Reverse> {
    let mut labels = name.iter().rev();
    if labels.next()? != b"arpa" {
        return None;
    }
    match labels.next()? {
        b"in-addr" => parse_v4(labels),
        b"ip6" => parse_v6(labels),
        _ => None,
    }
}

fn parse_v4<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Option<Reverse> {
    let mut octets = [0; 4];
    let mut count: u8 = 0;
    for label in labels {
        let Some(octet) = octets.get_mut(usize::from(count)) else {
            return Some(Reverse::Below(Ipv4Addr::from(octets).into()));
        };
        *octet = parse_octet(label)?;
        count += 1;
    }
    let ip = Ipv4Addr::from(octets);
    if count == 4 {
        return Some(Reverse::Address(ip.into()));
    }
    let range = Ipv4Net::new(ip, count * 8).ok()?;
    Some(Reverse::Range(range.into()))
}

// One spelling per octet: a leading zero would be a second name for the same address.
fn parse_octet(label: &[u8]) -> Option<u8> {
    if label.len() > 1 && label.first() == Some(&b'0') || !label.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(label).ok()?.parse().ok()
}

fn parse_v6<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Option<Reverse> {
    let mut bits: u128 = 0;
    let mut count: u8 = 0;
    for label in labels {
        if count == 32 {
            return Some(Reverse::Below(Ipv6Addr::from(bits).into()));
        }
        let [nibble] = label else {
            return None;
        };
        let nibble = char::from(*nibble).to_digit(16)?;
        bits |= u128::from(nibble) << (124 - u32::from(count) * 4);
        count += 1;
    }
    let ip = Ipv6Addr::from(bits);
    if count == 32 {
        return Some(Reverse::Address(ip.into()));
    }
    let range = Ipv6Net::new(ip, count * 4).ok()?;
    Some(Reverse::Range(range.into()))
}

/// The reverse zone that an address inside `owned` belongs to: the range, rounded to whole labels towards the address,
/// so that the zone never covers more than what is ours.
pub(super) fn zone_of(ip: IpAddr, owned: IpNet) -> Option<Name> {
    let labels: Vec<String> = match ip {
        IpAddr::V4(v4) => {
            let count = usize::from(owned.prefix_len().div_ceil(8));
            let octets = v4.octets();
            octets.iter().take(count).rev().map(u8::to_string).collect()
        }
        IpAddr::V6(v6) => {
            let count = usize::from(owned.prefix_len().div_ceil(4));
            let nibbles = format!("{:032x}", u128::from(v6));
            nibbles
                .chars()
                .take(count)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .map(String::from)
                .collect()
        }
    };
    let suffix: [&str; 2] = match ip {
        IpAddr::V4(_) => ["in-addr", "arpa"],
        IpAddr::V6(_) => ["ip6", "arpa"],
    };
    let all = labels.iter().map(String::as_str).chain(suffix);
    Name::from_labels(all.map(str::as_bytes)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::names::parse_absolute;
    use super::*;

    fn read(text: &str) -> Option<Reverse> {
        parse(&parse_absolute(text).unwrap())
    }

    #[test]
    fn only_whole_names_are_addresses() {
        let address = |ip: &str| Some(Reverse::Address(ip.parse().unwrap()));
        let range = |net: &str| Some(Reverse::Range(net.parse().unwrap()));
        let below = |ip: &str| Some(Reverse::Below(ip.parse().unwrap()));
        let six = "6.a.b.9.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.7.7.0.0.0.0.d.f.ip6.arpa";
        let rows = [
            ("100.1.96.10.in-addr.arpa", address("10.96.1.100")),
            ("0.0.0.0.in-addr.arpa", address("0.0.0.0")),
            ("96.10.in-addr.arpa", range("10.96.0.0/16")),
            ("in-addr.arpa", range("0.0.0.0/0")),
            ("x.100.1.96.10.in-addr.arpa", below("10.96.1.100")),
            ("256.1.96.10.in-addr.arpa", None),
            ("01.1.96.10.in-addr.arpa", None),
            (six, address("fd00:77:30::2:9ba6")),
            ("0.0.d.f.ip6.arpa", range("fd00::/16")),
            ("ff.ip6.arpa", None),
            ("g.ip6.arpa", None),
            ("arpa", None),
            ("example.com", None),
        ];
        for (text, expected) in rows {
            assert_eq!(read(text), expected, "{text}");
        }
        assert_eq!(read(&format!("1.{six}")), below("fd00:77:30::2:9ba6"));
        assert_eq!(parse_octet(b"+1"), None);
    }

    #[test]
    fn zones_are_rounded_towards_the_address() {
        let zone = |ip: &str, net: &str| {
            zone_of(ip.parse().unwrap(), net.parse().unwrap())
                .unwrap()
                .to_ascii()
        };
        assert_eq!(zone("10.96.1.2", "10.96.0.0/16"), "96.10.in-addr.arpa.");
        assert_eq!(zone("10.98.1.2", "10.96.0.0/12"), "98.10.in-addr.arpa.");
        assert_eq!(zone("10.0.0.1", "10.0.0.1/32"), "1.0.0.10.in-addr.arpa.");
        assert_eq!(
            zone("fd00:10:96::7", "fd00:10:96::/110"),
            "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa."
        );
    }

    proptest! {
        #[test]
        fn every_address_is_read_back(four in any::<u32>(), six in any::<u128>()) {
            for ip in [IpAddr::from(Ipv4Addr::from(four)), IpAddr::from(Ipv6Addr::from(six))] {
                let mut name = Name::from(ip);
                name.set_fqdn(true);
                prop_assert_eq!(parse(&name), Some(Reverse::Address(ip)));
            }
        }
    }
}
