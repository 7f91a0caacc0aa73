//! Addresses as Kubernetes accepts them: the standard syntax, but an octet may have leading zeros.
//!
//! Old objects contain `010.0.0.1` and mean 10.0.0.1 by it. C libraries read such octets as octal, which is why newer
//! parsers refuse them; kube-proxy reads them as decimal (`ParseIPSloppy`), and so does this.

use std::net::IpAddr;

use ipnet::IpNet;

/// Parses an address. Leading zeros are decimal, and an IPv4-mapped IPv6 address is its IPv4 address.
/// `None` if it is no address; blanks are not trimmed.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text
        .parse()
        .ok()
        .or_else(|| without_leading_zeros(text)?.parse().ok())?;
    Some(ip.to_canonical())
}

/// Parses `address/prefix length`, with blanks around it and bits set beyond the prefix, which do not count.
/// `None` if it is no network.
pub fn parse_net(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.trim().split_once('/')?;
    let prefix = prefix
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| prefix.parse().ok())??;
    let ip: IpAddr = address
        .parse()
        .ok()
        .or_else(|| without_leading_zeros(address)?.parse().ok())?;
    IpNet::new(ip, prefix).ok().map(|net| net.trunc())
}

/// `text` with the octets of its dotted part, if it has one, in their shortest form.
fn without_leading_zeros(text: &str) -> Option<String> {
    let start = text.rfind(':').map_or(0, |colon| colon + 1);
    let (head, dotted) = text.split_at(start);
    if !dotted.contains('.') {
        return None;
    }
    let octets: Vec<&str> = dotted
        .split('.')
        .map(|octet| match octet.trim_start_matches('0') {
            "" if octet.is_empty() => "",
            "" => "0",
            digits => digits,
        })
        .collect();
    Some(format!("{head}{}", octets.join(".")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    #[test]
    fn leading_zeros_are_decimal() {
        assert_eq!(parse_ip("10.0.00.001"), ip("10.0.0.1"));
        assert_eq!(parse_ip("010.010.010.010"), ip("10.10.10.10"));
        assert_eq!(parse_ip("000.0.0.0"), ip("0.0.0.0"));
        assert_eq!(parse_ip("64:ff9b::010.0.0.01"), ip("64:ff9b::10.0.0.1"));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(parse_ip("::ffff:10.0.0.1"), ip("10.0.0.1"));
        assert_eq!(parse_ip("FD00::0001"), ip("fd00::1"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            " ",
            "10.0.0",
            "10.0.0.",
            "10..0.1",
            "10.0.0.256",
            "0256.0.0.1",
            "10.0.0.1 ",
            "0x0a.0.0.1",
            "10.0.0.+1",
            "fe80::1%lo",
            "web",
        ] {
            assert_eq!(parse_ip(text), None, "{text:?}");
        }
    }

    #[test]
    fn networks_may_carry_blanks_and_host_bits() {
        let net = |text: &str| text.parse::<IpNet>().ok();
        assert_eq!(parse_net(" 10.1.2.3/8\t"), net("10.0.0.0/8"));
        assert_eq!(parse_net("010.0.0.0/08"), net("10.0.0.0/8"));
        assert_eq!(parse_net("::/0"), net("::/0"));
        assert_eq!(parse_net("fd00::1/128"), net("fd00::1/128"));
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "fd00::/129",
            "10.0.0.0/ 8",
        ] {
            assert_eq!(parse_net(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_read_reads_the_same_when_written(text in "[0-9a-f.:/ ]{0,40}") {
            if let Some(ip) = parse_ip(&text) {
                prop_assert_eq!(parse_ip(&ip.to_string()), Some(ip));
            }
            if let Some(net) = parse_net(&text) {
                prop_assert_eq!(parse_net(&net.to_string()), Some(net));
            }
        }

        #[test]
        fn zeros_in_front_change_nothing(octets: [u8; 4], zeros in prop::array::uniform4(0_usize..4)) {
            let parts: Vec<String> = octets.iter().zip(zeros).map(|(octet, n)| format!("{}{octet}", "0".repeat(n))).collect();
            prop_assert_eq!(parse_ip(&parts.join(".")), Some(IpAddr::from(octets)));
        }
    }
}
