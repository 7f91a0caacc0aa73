//! Forgetting UDP flows of the kernel's connection tracking, over ctnetlink.
//!
//! Lists the flows of one IP version, and deletes those UDP flows whose original destination the caller names. Nothing
//! else of connection tracking is read or changed. The byte format is that of the kernel's
//! `linux/netfilter/nfnetlink_conntrack.h`; numbers are in network order inside attributes, native outside.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::SockProtocol;

use super::netlink::{self, ACK, DUMP, IpVersion, REQUEST, Socket, aligned, attributes};

/// A UDP flow as connection tracking knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpFlow {
    /// Where the client sends.
    pub to: SocketAddr,
    /// Where that really goes; differs from `to` if the destination is translated.
    pub arrives_at: SocketAddr,
}

/// Forgets the UDP flows of that version that `is_stale` accepts. Returns how many there were.
/// Holds as many flows in memory as match, which `net.netfilter.nf_conntrack_max` bounds. Blocks; the kernel's
/// answers are awaited for at most two seconds each.
///
/// # Errors
/// The kernel has no ctnetlink, or does not let us; some flows may have been forgotten.
pub fn forget_udp(version: IpVersion, is_stale: impl Fn(UdpFlow) -> bool) -> io::Result<usize> {
    let socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
    let stale = list(&socket, version, is_stale)?;
    for flow in &stale {
        delete(&socket, version, flow)?;
    }
    Ok(stale.len())
}

/// What deletes a flow: the attributes that identify it, as the kernel sent them.
#[derive(Debug, PartialEq, Eq)]
struct Identity(Vec<u8>);

fn list(
    socket: &Socket,
    version: IpVersion,
    is_stale: impl Fn(UdpFlow) -> bool,
) -> io::Result<Vec<Identity>> {
    let mut found = Vec::new();
    socket.dump(&request(CT_GET, REQUEST | DUMP, version, &[]), |body| {
        let flow = parse_flow(body);
        let stale = flow.filter(|(flow, _)| is_stale(*flow));
        found.extend(stale.map(|(_, identity)| identity));
    })?;
    Ok(found)
}

fn delete(socket: &Socket, version: IpVersion, flow: &Identity) -> io::Result<()> {
    match socket.ask(&request(CT_DELETE, REQUEST | ACK, version, &flow.0)) {
        // It may have ended by itself in the meantime.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

const NFGENMSG: usize = 4;

const CT_GET: u16 = 0x0101;
const CT_DELETE: u16 = 0x0102;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;

// The header that every request of ctnetlink begins with: the family; version and resource are zero.
fn request(kind: u16, flags: u16, version: IpVersion, attributes: &[u8]) -> Vec<u8> {
    let body = [&[version.family(), 0, 0, 0], attributes].concat();
    netlink::message(kind, flags, &body)
}

/// A UDP flow and what identifies it; `None` for anything else.
fn parse_flow(body: &[u8]) -> Option<(UdpFlow, Identity)> {
    let (mut to, mut arrives_at) = (None, None);
    let mut identity = Vec::new();
    for attribute in attributes(body.get(NFGENMSG..)?) {
        match attribute.kind {
            CTA_TUPLE_ORIG => to = parse_end(attribute.value, End::Destination),
            CTA_TUPLE_REPLY => {
                arrives_at = parse_end(attribute.value, End::Source);
                continue;
            }
            CTA_ID | CTA_ZONE => {}
            _ => continue,
        }
        identity.extend(attribute.whole);
        identity.resize(aligned(identity.len()), 0);
    }
    let flow = UdpFlow {
        to: to?,
        arrives_at: arrives_at?,
    };
    Some((flow, Identity(identity)))
}

#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

fn parse_end(tuple: &[u8], end: End) -> Option<SocketAddr> {
    let (v4, v6, port_kind) = match end {
        End::Source => (CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT),
        End::Destination => (CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT),
    };
    let (mut ip, mut port, mut protocol) = (None, None, None);
    for part in attributes(tuple) {
        for field in attributes(part.value) {
            if part.kind == CTA_TUPLE_IP && field.kind == v4 {
                let octets: [u8; 4] = field.value.try_into().ok()?;
                ip = Some(IpAddr::V4(Ipv4Addr::from(octets)));
            } else if part.kind == CTA_TUPLE_IP && field.kind == v6 {
                let octets: [u8; 16] = field.value.try_into().ok()?;
                ip = Some(IpAddr::V6(Ipv6Addr::from(octets)));
            } else if part.kind == CTA_TUPLE_PROTO && field.kind == CTA_PROTO_NUM {
                protocol = field.value.first().copied();
            } else if part.kind == CTA_TUPLE_PROTO && field.kind == port_kind {
                port = Some(u16::from_be_bytes(field.value.try_into().ok()?));
            }
        }
    }
    (protocol == Some(UDP)).then_some(SocketAddr::new(ip?, port?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::netlink::{attribute, error_of, messages};
    use super::*;

    fn tuple(protocol: u8, source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Vec<u8> {
        let nested = 0x8000;
        let ip = [
            attribute(CTA_IP_V4_SRC, &source.0),
            attribute(CTA_IP_V4_DST, &destination.0),
        ]
        .concat();
        let proto = [
            attribute(CTA_PROTO_NUM, &[protocol]),
            attribute(CTA_PROTO_SRC_PORT, &source.1.to_be_bytes()),
            attribute(CTA_PROTO_DST_PORT, &destination.1.to_be_bytes()),
        ]
        .concat();
        [
            attribute(CTA_TUPLE_IP | nested, &ip),
            attribute(CTA_TUPLE_PROTO | nested, &proto),
        ]
        .concat()
    }

    /// From 192.0.2.1:1234 to 10.96.0.10:53, redirected to 192.0.2.2:40000.
    fn flow(protocol: u8) -> Vec<u8> {
        let (client, service) = (([192, 0, 2, 1], 1234), ([10, 96, 0, 10], 53));
        let original = tuple(protocol, client, service);
        let reply = tuple(protocol, ([192, 0, 2, 2], 40000), client);
        let mut body = vec![2, 0, 0, 0];
        body.extend(attribute(CTA_TUPLE_ORIG | 0x8000, &original));
        body.extend(attribute(CTA_TUPLE_REPLY | 0x8000, &reply));
        body.extend(attribute(CTA_ID, &7u32.to_be_bytes()));
        body
    }

    fn redirected() -> UdpFlow {
        UdpFlow {
            to: "10.96.0.10:53".parse().unwrap(),
            arrives_at: "192.0.2.2:40000".parse().unwrap(),
        }
    }

    #[test]
    fn a_udp_flow_is_known_by_where_it_goes() {
        let (parsed, identity) = parse_flow(&flow(UDP)).unwrap();
        assert_eq!(parsed, redirected());
        let kinds: Vec<u16> = attributes(&identity.0).map(|a| a.kind).collect();
        assert_eq!(kinds, [CTA_TUPLE_ORIG, CTA_ID]);
    }

    #[test]
    fn a_tcp_flow_is_left_alone() {
        assert_eq!(parse_flow(&flow(6)), None);
    }

    #[test]
    fn a_request_carries_its_own_length() {
        let request = request(CT_DELETE, REQUEST | ACK, IpVersion::V6, &[0; 8]);
        let message = messages(&request).next().unwrap();
        assert_eq!(message.kind, CT_DELETE);
        assert_eq!(message.body, [10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = error_of(message.body);
                let _ = parse_flow(message.body);
            }
            let _ = parse_flow(&bytes);
        }

        #[test]
        fn a_cut_flow_is_a_flow_or_nothing(cut in 0usize..140) {
            let whole = flow(UDP);
            if let Some((parsed, _)) = parse_flow(&whole[..cut.min(whole.len())]) {
                prop_assert_eq!(parsed, redirected());
            }
        }
    }
}
