//! Routes that make an address the machine's own (`ip route add local ADDRESS dev lo`), over rtnetlink.
//!
//! Every route of ours carries one protocol number, by which it is recognised: others are neither listed nor removed.
//! Source: rtnetlink(7), `linux/rtnetlink.h`.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;

use super::netlink::{ACK, DUMP, IpVersion, REQUEST, Socket, attribute, attributes, message};

/// Local routes under one protocol number. Each call blocks for as long as the kernel takes.
#[derive(Debug)]
pub struct LocalRoutes {
    version: IpVersion,
    protocol: u8,
    socket: Socket,
}

impl LocalRoutes {
    /// Those of `version` that carry `protocol` (`rtm_protocol`).
    ///
    /// # Errors
    /// Those of `socket(2)`: a kernel without rtnetlink.
    pub fn open(version: IpVersion, protocol: u8) -> io::Result<Self> {
        Ok(Self {
            version,
            protocol,
            socket: Socket::open(SockProtocol::NetlinkRoute)?,
        })
    }

    /// The addresses that there are routes of ours for.
    ///
    /// # Errors
    /// The kernel refuses to list.
    pub fn list(&self) -> io::Result<BTreeSet<IpAddr>> {
        let mut found = BTreeSet::new();
        let header = [self.version.family(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let request = message(GET_ROUTE, REQUEST | DUMP, &header);
        self.socket.dump(&request, |body| {
            found.extend(parse_route(body, self.protocol));
        })?;
        Ok(found)
    }

    /// Makes `ip` the machine's own, also for sockets here that have sent there before. True if it was not, by whatever route.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_ADMIN`; `ENETDOWN` while `lo` is down.
    pub fn add(&self, ip: IpAddr) -> io::Result<bool> {
        let is_new = self.add_to(TABLE_LOCAL, ip)?;
        // A connected IPv6 socket keeps the route that it has found until something changes in that route's table, which
        // is `main` for most.
        if matches!(self.version, IpVersion::V6) {
            self.add_to(TABLE_MAIN, ip)?;
            self.remove_from(TABLE_MAIN, ip)?;
        }
        Ok(is_new)
    }

    /// Takes our route for `ip` away. One that is not there is no error.
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn remove(&self, ip: IpAddr) -> io::Result<()> {
        self.remove_from(TABLE_LOCAL, ip)?;
        // Left by a process that was killed while it added.
        if matches!(self.version, IpVersion::V6) {
            self.remove_from(TABLE_MAIN, ip)?;
        }
        Ok(())
    }

    fn add_to(&self, table: u8, ip: IpAddr) -> io::Result<bool> {
        match self.ask(NEW_ROUTE, CREATE | EXCLUSIVE, table, ip) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    fn remove_from(&self, table: u8, ip: IpAddr) -> io::Result<()> {
        match self.ask(DELETE_ROUTE, 0, table, ip) {
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
            outcome => outcome,
        }
    }

    fn ask(&self, kind: u16, flags: u16, table: u8, ip: IpAddr) -> io::Result<()> {
        let body = route(table, ip, self.protocol, if_nametoindex("lo")?);
        self.socket
            .ask(&message(kind, REQUEST | ACK | flags, &body))
    }
}

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;

const ROUTE_HEADER: usize = 12;
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;
const SCOPE_HOST: u8 = 254;
const TYPE_LOCAL: u8 = 2;
const DESTINATION: u16 = 1;
const OUT_INTERFACE: u16 = 4;

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

// `struct rtmsg`, the destination and the interface.
fn route(table: u8, ip: IpAddr, protocol: u8, lo: u32) -> Vec<u8> {
    let (version, bits) = match ip {
        IpAddr::V4(_) => (IpVersion::V4, 32),
        IpAddr::V6(_) => (IpVersion::V6, 128),
    };
    let header = [
        version.family(),
        bits,
        0,
        0,
        table,
        protocol,
        SCOPE_HOST,
        TYPE_LOCAL,
        0,
        0,
        0,
        0,
    ];
    let mut body = header.to_vec();
    body.extend(attribute(DESTINATION, &octets(ip)));
    body.extend(attribute(OUT_INTERFACE, &lo.to_ne_bytes()));
    body
}

// The address of a listed route, if it is one of ours.
fn parse_route(body: &[u8], protocol: u8) -> Option<IpAddr> {
    let header: &[u8; ROUTE_HEADER] = body.first_chunk()?;
    let ours = [TABLE_LOCAL, TABLE_MAIN].contains(&header[4]);
    if !ours || header[5] != protocol || header[7] != TYPE_LOCAL {
        return None;
    }
    let mut attributes = attributes(&body[ROUTE_HEADER..]);
    let destination = attributes.find(|attribute| attribute.kind == DESTINATION)?;
    match (header[1], destination.value.len()) {
        (32, 4) => Some(Ipv4Addr::from(*destination.value.first_chunk::<4>()?).into()),
        (128, 16) => Some(Ipv6Addr::from(*destination.value.first_chunk::<16>()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_route_is_read_as_it_was_written() {
        for ip in ["10.96.0.10", "fd00:10:96::10"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(parse_route(&route(TABLE_LOCAL, ip, 86, 1), 86), Some(ip));
            assert_eq!(
                parse_route(&route(TABLE_LOCAL, ip, 86, 1), 2),
                None,
                "not ours"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse_route(&bytes, 86);
        }
    }
}
