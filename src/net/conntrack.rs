//! Forgetting UDP flows of the kernel's connection tracking, over ctnetlink.
//!
//! Lists the flows of one IP version, and deletes those UDP flows whose original destination the caller names. Nothing
//! else of connection tracking is read or changed. The byte format is that of the kernel's
//! `linux/netfilter/nfnetlink_conntrack.h`; numbers are in network order inside attributes, native outside.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// An IP version, as connection tracking keeps them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

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
    let socket = Socket::open()?;
    let stale = socket.list(version, is_stale)?;
    for flow in &stale {
        socket.delete(version, flow)?;
    }
    Ok(stale.len())
}

struct Socket(OwnedFd);

/// What deletes a flow: the attributes that identify it, as the kernel sent them.
#[derive(Debug, PartialEq, Eq)]
struct Identity(Vec<u8>);

impl Socket {
    fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
        Ok(Self(fd))
    }

    fn list(
        &self,
        version: IpVersion,
        is_stale: impl Fn(UdpFlow) -> bool,
    ) -> io::Result<Vec<Identity>> {
        self.send(&request(CT_GET, REQUEST | DUMP, version, &[]))?;
        let mut found = Vec::new();
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            let length = self.receive(&mut buffer)?;
            for message in messages(&buffer[..length]) {
                match message.kind {
                    DONE => return Ok(found),
                    ERROR => {
                        return Err(
                            error_of(message.body).unwrap_or(io::ErrorKind::InvalidData.into())
                        );
                    }
                    _ => {
                        let flow = parse_flow(message.body);
                        let stale = flow.filter(|(flow, _)| is_stale(*flow));
                        found.extend(stale.map(|(_, identity)| identity));
                    }
                }
            }
        }
    }

    fn delete(&self, version: IpVersion, flow: &Identity) -> io::Result<()> {
        self.send(&request(CT_DELETE, REQUEST | ACK, version, &flow.0))?;
        let mut buffer = [0; 1024];
        let length = self.receive(&mut buffer)?;
        for message in messages(&buffer[..length]) {
            if message.kind == ERROR
                && let Some(error) = error_of(message.body)
                // It may have ended by itself in the meantime.
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        Ok(())
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.0.as_raw_fd(), message, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => return Ok(length),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The kernel fills at most 32 KiB at a time when it lists.
const RECEIVE_BUFFER: usize = 64 << 10;

const HEADER: usize = 16;
const NFGENMSG: usize = 4;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const CT_GET: u16 = 0x0101;
const CT_DELETE: u16 = 0x0102;

const REQUEST: u16 = 0x001;
const ACK: u16 = 0x004;
const DUMP: u16 = 0x300;

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

/// The upper two bits say "nested" and "network order".
const TYPE_MASK: u16 = 0x3fff;

fn request(kind: u16, flags: u16, version: IpVersion, attributes: &[u8]) -> Vec<u8> {
    let family: u8 = match version {
        IpVersion::V4 => 2,
        IpVersion::V6 => 10,
    };
    let length = u32::try_from(HEADER + NFGENMSG + attributes.len())
        .expect("attributes come from one datagram");
    let mut message = Vec::with_capacity(HEADER + NFGENMSG + attributes.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port: one request at a time on a socket of its own needs neither.
    message.extend([0; 8]);
    message.extend([family, 0, 0, 0]);
    message.extend(attributes);
    message
}

/// One message of netlink.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) body: &'a [u8],
}

/// The messages in one datagram; ends at the first that does not fit.
pub(super) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?);
        let length = usize::try_from(length).ok()?;
        let body = rest.get(HEADER..length)?;
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some(Message { kind, body })
    })
}

/// What an error message says; `None` is an acknowledgement.
pub(super) fn error_of(body: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(*body.first_chunk()?);
    (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
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

struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
    whole: &'a [u8],
}

/// The attributes in `rest`; ends at the first that does not fit.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let whole = rest.get(..length)?;
        let value = whole.get(4..)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some(Attribute {
            kind: u16::from_ne_bytes([k0, k1]) & TYPE_MASK,
            value,
            whole,
        })
    })
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

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

    #[test]
    fn an_acknowledgement_is_no_error() {
        assert!(error_of(&0i32.to_ne_bytes()).is_none());
        let refused = error_of(&(-1i32).to_ne_bytes()).unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
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
