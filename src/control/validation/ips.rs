//! Addresses and CIDRs as users write them: what parses, what is refused in new values, what only earns a warning.
//!
//! The API server once read addresses sloppily (leading zeros as decimal) and must still read what it stored then.
//! New values are read strictly. Source: KEP-4858 and `IsValidIPForLegacyField`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::control::rejection::{Cause, Warning};

const NO_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NO_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// Reads an address as the API server has always done: leading zeros in IPv4 are decimal, IPv4-mapped IPv6 is IPv4,
/// zones are no addresses.
pub(in crate::control) fn parse_sloppily(value: &str) -> Option<IpAddr> {
    if value.contains(':') {
        let address: Ipv6Addr = value.parse().ok().or_else(|| {
            // Leading zeros may hide in an embedded IPv4 part too.
            let (head, tail) = value.rsplit_once(':')?;
            let tail = parse_ipv4_sloppily(tail)?;
            format!("{head}:{tail}").parse().ok()
        })?;
        return Some(IpAddr::V6(address).to_canonical());
    }
    parse_ipv4_sloppily(value).map(IpAddr::V4)
}

/// The family Kubernetes sees in a text: what has a colon and parses is IPv6, even an IPv4-mapped address is not.
pub(in crate::control) fn is_ipv6_text(value: &str) -> bool {
    parse_sloppily(value).is_some_and(|ip| ip.is_ipv6())
}

/// Judges an address of a field that has been lax: values among `stored` are only parsed, new ones read strictly.
pub(in crate::control) fn judge_ip(field: &str, value: &str, stored: &[String]) -> Vec<Cause> {
    if parse_sloppily(value).is_none() {
        return vec![Cause::invalid(field, &value, NO_IP)];
    }
    if stored.iter().any(|old| old == value) {
        return Vec::new();
    }
    match value.parse::<IpAddr>() {
        Err(_) => vec![Cause::invalid(field, &value, "must not have leading 0s")],
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => vec![Cause::invalid(
            field,
            &value,
            "must not be an IPv4-mapped IPv6 address",
        )],
        Ok(_) => Vec::new(),
    }
}

/// Judges an address of a field that has always been strict: it must also be in canonical form.
pub(in crate::control) fn judge_strict_ip(field: &str, value: &str) -> Vec<Cause> {
    let wrong = judge_ip(field, value, &[]);
    if !wrong.is_empty() {
        return wrong;
    }
    match parse_sloppily(value).map(|ip| ip.to_string()) {
        Some(canonical) if canonical != value => {
            let detail = format!("must be in canonical form (\"{canonical}\")");
            vec![Cause::invalid(field, &value, &detail)]
        }
        Some(_) | None => Vec::new(),
    }
}

/// Judges a CIDR of a field that has been lax.
pub(in crate::control) fn judge_cidr(field: &str, value: &str, stored: &[String]) -> Vec<Cause> {
    if parse_cidr_sloppily(value).is_none() {
        return vec![Cause::invalid(field, &value, NO_CIDR)];
    }
    if stored.iter().any(|old| old == value) {
        return Vec::new();
    }
    let detail = match parse_cidr_strictly(value) {
        None => "must not have leading 0s in IP or prefix length",
        Some(net) if is_mapped(net.addr()) => "must not have an IPv4-mapped IPv6 address",
        Some(net) if net.addr() != net.network() => {
            "must not have bits set beyond the prefix length"
        }
        Some(_) => return Vec::new(),
    };
    vec![Cause::invalid(field, &value, detail)]
}

/// Refuses what cannot be reached from another machine. Source: `ValidateEndpointIP`.
///
/// With `loopback_allowed` the loopback range passes: backends of a local tool live there.
pub(in crate::control) fn judge_endpoint_ip(
    field: &str,
    value: &str,
    loopback_allowed: bool,
) -> Vec<Cause> {
    let Some(ip) = parse_sloppily(value) else {
        return vec![Cause::invalid(field, &value, "must be a valid IP address")];
    };
    let mut wrong = Vec::new();
    let mut refuse = |detail: &str| wrong.push(Cause::invalid(field, &value, detail));
    if ip.is_unspecified() {
        refuse(&format!("may not be unspecified ({value})"));
    }
    if ip.is_loopback() && !loopback_allowed {
        refuse("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (
            ip.is_unicast_link_local(),
            ip.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    if link_local {
        refuse("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_local_multicast {
        refuse("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
    wrong
}

/// Warns about an address that is not spelled as it should be.
pub(in crate::control) fn odd_ip(field: &str, value: &str) -> Option<Warning> {
    let ip = parse_sloppily(value)?;
    match value.parse::<IpAddr>() {
        Ok(strict) if !is_mapped(strict) => {
            let canonical = strict.to_string();
            (strict.is_ipv6() && canonical != value).then(|| {
                Warning::on(
                    field,
                    format!(
                        "IPv6 address \"{value}\" should be in RFC 5952 canonical format (\"{canonical}\")"
                    ),
                )
            })
        }
        Ok(_) | Err(_) => Some(Warning::on(
            field,
            format!("non-standard IP address \"{value}\" is invalid: use \"{ip}\""),
        )),
    }
}

/// Warns about a CIDR that is not spelled as it should be.
pub(in crate::control) fn odd_cidr(field: &str, value: &str) -> Vec<Warning> {
    let Some(net) = parse_cidr_sloppily(value) else {
        return Vec::new();
    };
    let network = net.trunc();
    let mut warnings = Vec::new();
    if net.addr() != net.network() {
        let single = format!("{}/{}", net.addr(), net.max_prefix_len());
        warnings.push(Warning::on(
            field,
            format!(
                "CIDR value \"{value}\" is ambiguous in this context (should be \"{network}\" or \"{single}\"?)"
            ),
        ));
    }
    match parse_cidr_strictly(value) {
        Some(strict) if !is_mapped(strict.addr()) => {
            let canonical = strict.to_string();
            if strict.addr().is_ipv6() && canonical != value {
                warnings.push(Warning::on(
                    field,
                    format!(
                        "IPv6 CIDR value \"{value}\" should be in RFC 5952 canonical format (\"{canonical}\")"
                    ),
                ));
            }
        }
        Some(_) | None => warnings.push(Warning::on(
            field,
            format!("non-standard CIDR value \"{value}\" is invalid: use \"{network}\""),
        )),
    }
    warnings
}

fn parse_ipv4_sloppily(value: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = value.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|c| c.is_ascii_digit()) {
            return None;
        }
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or_else(|error| {
                if part.bytes().all(|c| c == b'0') {
                    Ok(0)
                } else {
                    Err(error)
                }
            })
            .ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

fn parse_cidr_sloppily(value: &str) -> Option<IpNet> {
    let (address, length) = value.split_once('/')?;
    if length.is_empty() || !length.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let length: u8 = length.parse().ok()?;
    if !address.contains(':') {
        return IpNet::new(parse_ipv4_sloppily(address)?.into(), length).ok();
    }
    // The length counts the bits of the written family, also for an IPv4-mapped address.
    match parse_sloppily(address)? {
        IpAddr::V4(ip) => {
            (length <= 128).then_some(())?;
            IpNet::new(ip.into(), length.saturating_sub(96)).ok()
        }
        IpAddr::V6(ip) => IpNet::new(ip.into(), length).ok(),
    }
}

fn parse_cidr_strictly(value: &str) -> Option<IpNet> {
    let (address, length) = value.split_once('/')?;
    if length.len() > 1 && length.starts_with('0') {
        return None;
    }
    IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sloppy_reading_takes_leading_zeros_and_mapped_addresses_but_no_zones() {
        let read = |text| parse_sloppily(text).map(|ip| ip.to_string());
        assert_eq!(read("010.1.02.000"), Some("10.1.2.0".to_owned()));
        assert_eq!(read("::ffff:10.1.2.3"), Some("10.1.2.3".to_owned()));
        assert_eq!(read("::ffff:10.1.2.03"), Some("10.1.2.3".to_owned()));
        assert_eq!(read("FD00:0::1"), Some("fd00::1".to_owned()));
        for bad in [
            "",
            "10.1.2",
            "10.1.2.256",
            "10.1.2.3 ",
            "fe80::1%eth0",
            "1.2.3.4.5",
            "+1.2.3.4",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_stored_bad_address_is_tolerated_a_new_one_is_not() {
        let stored = vec!["10.96.0.050".to_owned()];
        assert!(judge_ip("f", "10.96.0.050", &stored).is_empty());
        assert_eq!(judge_ip("f", "10.96.0.051", &stored).len(), 1);
        assert_eq!(judge_ip("f", "::ffff:10.0.0.1", &[]).len(), 1);
        assert!(judge_ip("f", "FD00::1", &[]).is_empty());
        assert_eq!(judge_strict_ip("f", "FD00::1").len(), 1);
    }

    #[test]
    fn host_bits_and_zeros_in_cidrs_are_told_apart() {
        let detail = |value| {
            judge_cidr("f", value, &[])
                .first()
                .map(|c| c.message.clone())
        };
        assert_eq!(detail("10.0.0.0/8"), None);
        assert!(detail("10.0.0.1/8").unwrap().contains("beyond the prefix"));
        assert!(detail("010.0.0.0/8").unwrap().contains("leading 0s"));
        assert!(detail("10.0.0.0/08").unwrap().contains("leading 0s"));
        assert!(detail("10.0.0.0/33").unwrap().contains("valid CIDR"));
        assert!(detail("::ffff:10.0.0.0/104").unwrap().contains("mapped"));
        assert_eq!(odd_cidr("f", "10.0.0.1/8").len(), 1);
        assert!(odd_cidr("f", "10.0.0.0/8").is_empty());
    }
}
