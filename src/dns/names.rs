//! Names under the cluster domain, read from the right. Pure.
//!
//! Says what a name asks for, never whether it exists: that is `records`. At most five labels stand in front of the
//! cluster domain, so a long name of search-list debris costs no more than a short one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

/// The cluster domain.
#[derive(Clone, Debug)]
pub(super) struct Zone {
    /// As an absolute name, in lower case.
    pub(super) apex: Name,
}

/// A domain that is no DNS name.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0:?} is not a domain name")]
pub struct InvalidDomain(pub String);

/// What a name under the cluster domain asks for. Labels are in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked<'a> {
    /// The cluster domain itself.
    Apex,
    /// `svc`, `pod` or `dns`: names that exist only because others are below them.
    Branch,
    /// `dns-version`.
    Version,
    /// `ns.dns`: this server.
    NameServer,
    /// `NAMESPACE.svc`.
    ServiceNamespace(&'a str),
    /// `NAMESPACE.pod`.
    PodNamespace(&'a str),
    /// `LABEL.NAMESPACE.pod`.
    PodAddress {
        /// The namespace.
        namespace: &'a str,
        /// The address, its dots or colons written as dashes.
        label: &'a str,
    },
    /// `SERVICE.NAMESPACE.svc` and what is below it.
    Service {
        /// The namespace.
        namespace: &'a str,
        /// The Service.
        service: &'a str,
        /// What of it.
        part: Part<'a>,
    },
    /// A name that no object can have.
    Nothing,
}

/// What is asked of one Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// The Service itself.
    Whole,
    /// `HOST.SERVICE`: one endpoint.
    Endpoint(&'a str),
    /// `_PROTOCOL.SERVICE`, without its underscore.
    Protocol(&'a str),
    /// `_PORT._PROTOCOL.SERVICE`, without their underscores.
    Port {
        /// The port's name.
        port: &'a str,
        /// `tcp`, `udp` or `sctp`.
        protocol: &'a str,
    },
}

impl Zone {
    /// Reads the cluster domain, with or without its final dot.
    pub(super) fn parse(domain: &str) -> Result<Self, InvalidDomain> {
        let apex = parse_absolute(domain).ok_or_else(|| InvalidDomain(domain.to_owned()))?;
        if apex.is_root() {
            return Err(InvalidDomain(domain.to_owned()));
        }
        Ok(Self { apex })
    }

    /// What `name`, absolute and in lower case, asks for; `None` if it is not under the cluster domain.
    pub(super) fn asked<'a>(&self, name: &'a Name) -> Option<Asked<'a>> {
        let mut labels = name.iter().rev();
        for own in self.apex.iter().rev() {
            if labels.next() != Some(own) {
                return None;
            }
        }
        let mut rest = [""; 5];
        let mut count = 0;
        for label in labels {
            // A label that is not UTF-8, or one too many: nothing is called that.
            let (Some(slot), Ok(label)) = (rest.get_mut(count), std::str::from_utf8(label)) else {
                return Some(Asked::Nothing);
            };
            *slot = label;
            count += 1;
        }
        Some(Self::classify(&rest[..count]))
    }

    // `labels` from the right, the cluster domain taken off.
    fn classify<'a>(labels: &[&'a str]) -> Asked<'a> {
        match *labels {
            [] => Asked::Apex,
            ["svc" | "pod" | "dns"] => Asked::Branch,
            ["dns-version"] => Asked::Version,
            ["dns", "ns"] => Asked::NameServer,
            ["pod", namespace] => Asked::PodNamespace(namespace),
            ["pod", namespace, label] => Asked::PodAddress { namespace, label },
            ["svc", namespace] => Asked::ServiceNamespace(namespace),
            ["svc", namespace, service, ref below @ ..] => match Self::part(below) {
                Some(part) => Asked::Service {
                    namespace,
                    service,
                    part,
                },
                None => Asked::Nothing,
            },
            _ => Asked::Nothing,
        }
    }

    fn part<'a>(below: &[&'a str]) -> Option<Part<'a>> {
        match *below {
            [] => Some(Part::Whole),
            [label] => Some(match label.strip_prefix('_') {
                Some(protocol) => Part::Protocol(protocol),
                None => Part::Endpoint(label),
            }),
            [protocol, port] => Some(Part::Port {
                port: port.strip_prefix('_')?,
                protocol: protocol.strip_prefix('_')?,
            }),
            _ => None,
        }
    }

    /// `SERVICE.NAMESPACE.svc` as a name; `None` if it does not fit in one.
    pub(super) fn service_name(&self, namespace: &str, service: &str) -> Option<Name> {
        self.under(&[service, namespace, "svc"])
    }

    /// Labels, leftmost first, in front of the cluster domain; `None` if that is too long.
    pub(super) fn under(&self, labels: &[&str]) -> Option<Name> {
        Name::from_labels(labels.iter().map(|label| label.as_bytes()))
            .ok()?
            .append_domain(&self.apex)
            .ok()
    }
}

/// An absolute name in lower case from text with or without its final dot.
pub(super) fn parse_absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?.to_lowercase();
    name.set_fqdn(true);
    Some(name)
}

/// The label of an address: dots and colons become dashes, and a final dash gets a zero behind it.
///
/// Source: CoreDNS `endpointHostname`.
pub(super) fn dashed(ip: IpAddr) -> String {
    let mut label = ip.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

/// The address that a label stands for. Three dashes and no double dash mean IPv4, everything else is IPv6.
pub(super) fn undashed(label: &str) -> Option<IpAddr> {
    let dashes = label.bytes().filter(|byte| *byte == b'-').count();
    if dashes == 3 && !label.contains("--") {
        label
            .replace('-', ".")
            .parse::<Ipv4Addr>()
            .ok()
            .map(IpAddr::V4)
    } else {
        // A dot would make the last part an IPv4 address, which no label of ours has.
        if label.contains(['.', ':']) {
            return None;
        }
        label
            .replace('-', ":")
            .parse::<Ipv6Addr>()
            .ok()
            .map(IpAddr::V6)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn zone() -> Zone {
        Zone::parse("Cluster.Local").unwrap()
    }

    fn name(text: &str) -> Name {
        parse_absolute(text).unwrap()
    }

    #[test]
    fn names_are_told_apart_by_their_labels() {
        let service = |part| Asked::Service {
            namespace: "ns",
            service: "web",
            part,
        };
        let rows = [
            ("cluster.local", Some(Asked::Apex)),
            ("svc.cluster.local", Some(Asked::Branch)),
            ("pod.cluster.local", Some(Asked::Branch)),
            ("dns.cluster.local", Some(Asked::Branch)),
            ("dns-version.cluster.local", Some(Asked::Version)),
            ("x.dns-version.cluster.local", Some(Asked::Nothing)),
            ("ns.dns.cluster.local", Some(Asked::NameServer)),
            ("ns2.dns.cluster.local", Some(Asked::Nothing)),
            ("ns.svc.cluster.local", Some(Asked::ServiceNamespace("ns"))),
            ("ns.pod.cluster.local", Some(Asked::PodNamespace("ns"))),
            (
                "10-1-2-3.ns.pod.cluster.local",
                Some(Asked::PodAddress {
                    namespace: "ns",
                    label: "10-1-2-3",
                }),
            ),
            ("x.10-1-2-3.ns.pod.cluster.local", Some(Asked::Nothing)),
            ("web.ns.svc.cluster.local", Some(service(Part::Whole))),
            (
                "a.web.ns.svc.cluster.local",
                Some(service(Part::Endpoint("a"))),
            ),
            (
                "_tcp.web.ns.svc.cluster.local",
                Some(service(Part::Protocol("tcp"))),
            ),
            (
                "_http._tcp.web.ns.svc.cluster.local",
                Some(service(Part::Port {
                    port: "http",
                    protocol: "tcp",
                })),
            ),
            ("http.tcp.web.ns.svc.cluster.local", Some(Asked::Nothing)),
            (
                "a._http._tcp.web.ns.svc.cluster.local",
                Some(Asked::Nothing),
            ),
            ("web.ns.cluster.local", Some(Asked::Nothing)),
            ("www.example.com.ns.svc.cluster.local", Some(Asked::Nothing)),
            ("xcluster.local", None),
            ("local", None),
            ("example.com", None),
            (".", None),
        ];
        for (text, expected) in rows {
            assert_eq!(zone().asked(&name(text)), expected, "{text}");
        }
    }

    #[test]
    fn a_label_that_is_not_text_names_nothing() {
        let odd =
            Name::from_labels([&b"\xff\xfe"[..], b"ns", b"svc", b"cluster", b"local"]).unwrap();
        assert_eq!(zone().asked(&odd), Some(Asked::Nothing));
    }

    #[test]
    fn domains_are_checked() {
        assert!(Zone::parse("cluster.local.").is_ok());
        for bad in ["", ".", "a..b", &"x".repeat(64)] {
            assert!(Zone::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_become_labels_and_back() {
        let rows = [
            ("10.1.2.3", "10-1-2-3"),
            ("fd00::12", "fd00--12"),
            ("fd00:10:244:31::", "fd00-10-244-31--0"),
            ("5678:abcd::1", "5678-abcd--1"),
        ];
        for (ip, label) in rows {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(dashed(ip), label);
            assert_eq!(undashed(label), Some(ip));
        }
        for bad in [
            "256-1-1-1",
            "01-2-3-4",
            "1-2-3",
            "blah",
            "",
            "-",
            "1--2-3-4-5-6-7-8-9",
            "1-2-3-4.5",
        ] {
            assert_eq!(undashed(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_address_survives_its_label(bits in any::<u128>(), four in any::<u32>()) {
            let v4 = IpAddr::from(Ipv4Addr::from(four));
            prop_assert_eq!(undashed(&dashed(v4)), Some(v4));
            let v6 = Ipv6Addr::from(bits);
            // Mapped and compatible addresses are shown with dots and are in no EndpointSlice.
            prop_assume!(!v6.to_string().contains('.'));
            prop_assert_eq!(undashed(&dashed(v6.into())), Some(IpAddr::from(v6)));
        }
    }
}
