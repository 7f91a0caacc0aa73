//! The policy route that delivers marked packets here: a rule (`ip rule add fwmark MARK/MARK lookup TABLE`) and, in that
//! table, everything as local (`ip route add local default dev lo table TABLE`), over rtnetlink.
//!
//! Both carry a protocol number by which they are recognised. Source: rtnetlink(7), `linux/fib_rules.h`.

use std::io;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;

use super::netlink::{ACK, DUMP, IpVersion, REQUEST, Socket, attribute, attributes, message};

/// One policy route. Each call blocks for as long as the kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyRoute {
    /// The IP version.
    pub version: IpVersion,
    /// The mark that packets must have, beside whatever others they have.
    pub mark: u32,
    /// The table; also the rule's place among all rules, which are asked by number.
    pub table: u32,
    /// The protocol number that says that it is ours.
    pub protocol: u8,
}

impl PolicyRoute {
    /// Makes it. What is there already stays.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_ADMIN`; `Unsupported` by a kernel without policy routing.
    pub fn add(self) -> io::Result<()> {
        let socket = Socket::open(SockProtocol::NetlinkRoute)?;
        let new = REQUEST | ACK | CREATE | EXCLUSIVE;
        let lo = if_nametoindex("lo")?;
        // The route first: a rule without it would have packets looked up in vain.
        for request in [
            message(NEW_ROUTE, new, &self.route(lo)),
            message(NEW_RULE, new, &self.rule()),
        ] {
            match socket.ask(&request) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Takes it away. What is not there is no error.
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn remove(self) -> io::Result<()> {
        let socket = Socket::open(SockProtocol::NetlinkRoute)?;
        let lo = if_nametoindex("lo")?;
        for request in [
            message(DELETE_RULE, REQUEST | ACK, &self.rule()),
            message(DELETE_ROUTE, REQUEST | ACK, &self.route(lo)),
        ] {
            match socket.ask(&request) {
                Err(error) if is_absent(&error) => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Whether it is there, whole.
    ///
    /// # Errors
    /// The kernel refuses to list.
    pub fn is_there(self) -> io::Result<bool> {
        let socket = Socket::open(SockProtocol::NetlinkRoute)?;
        let header = [self.version.family(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut there = [false; 2];
        for (kind, found) in [GET_RULE, GET_ROUTE].into_iter().zip(&mut there) {
            let request = message(kind, REQUEST | DUMP, &header);
            socket.dump(&request, |body| {
                *found |= match kind {
                    GET_RULE => self.is_rule(body),
                    _ => self.is_route(body),
                };
            })?;
        }
        Ok(there == [true; 2])
    }

    // `struct fib_rule_hdr` and its attributes.
    fn rule(self) -> Vec<u8> {
        let header = [
            self.version.family(),
            0,
            0,
            0,
            0,
            0,
            0,
            TO_TABLE,
            0,
            0,
            0,
            0,
        ];
        let mut body = header.to_vec();
        for (kind, value) in [
            (RULE_PRIORITY, self.table),
            (RULE_MARK, self.mark),
            (RULE_TABLE, self.table),
            (RULE_MASK, self.mark),
        ] {
            body.extend(attribute(kind, &value.to_ne_bytes()));
        }
        body.extend(attribute(RULE_PROTOCOL, &[self.protocol]));
        body
    }

    fn is_rule(self, body: &[u8]) -> bool {
        body.get(7) == Some(&TO_TABLE)
            && body.get(HEADER..).is_some_and(|rest| {
                let has = |kind, value: u32| {
                    attributes(rest).any(|found| {
                        found.kind == kind && found.value == value.to_ne_bytes().as_slice()
                    })
                };
                has(RULE_PRIORITY, self.table)
                    && has(RULE_MARK, self.mark)
                    && has(RULE_MASK, self.mark)
                    && has(RULE_TABLE, self.table)
            })
    }

    // `struct rtmsg` and its attributes.
    fn route(self, lo: u32) -> Vec<u8> {
        let header = [
            self.version.family(),
            0,
            0,
            0,
            0,
            self.protocol,
            SCOPE_HOST,
            TYPE_LOCAL,
            0,
            0,
            0,
            0,
        ];
        let mut body = header.to_vec();
        body.extend(attribute(ROUTE_TABLE, &self.table.to_ne_bytes()));
        body.extend(attribute(ROUTE_OUT, &lo.to_ne_bytes()));
        body
    }

    fn is_route(self, body: &[u8]) -> bool {
        body.get(1) == Some(&0)
            && body.get(5) == Some(&self.protocol)
            && body.get(7) == Some(&TYPE_LOCAL)
            && body.get(HEADER..).is_some_and(|rest| {
                attributes(rest).any(|found| {
                    found.kind == ROUTE_TABLE && found.value == self.table.to_ne_bytes().as_slice()
                })
            })
    }
}

const HEADER: usize = 12;

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;

const TO_TABLE: u8 = 1;
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_TABLE: u16 = 15;
const RULE_MASK: u16 = 16;
const RULE_PROTOCOL: u16 = 21;

const SCOPE_HOST: u8 = 254;
const TYPE_LOCAL: u8 = 2;
const ROUTE_OUT: u16 = 4;
const ROUTE_TABLE: u16 = 15;

// The kernel has several words for it, and none at all for a table that was never used.
fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::ESRCH, Errno::ENOENT, Errno::EAFNOSUPPORT];
    absent
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: PolicyRoute = PolicyRoute {
        version: IpVersion::V4,
        mark: 0x1000,
        table: 8600,
        protocol: 86,
    };

    #[test]
    fn what_is_written_is_recognised_and_nothing_else() {
        assert!(OURS.is_rule(&OURS.rule()));
        assert!(OURS.is_route(&OURS.route(1)));
        for other in [
            PolicyRoute { mark: 1, ..OURS },
            PolicyRoute { table: 9, ..OURS },
        ] {
            assert!(!OURS.is_rule(&other.rule()));
        }
        let foreign = PolicyRoute {
            protocol: 2,
            ..OURS
        };
        assert!(!OURS.is_route(&foreign.route(1)));
        for cut in 0..HEADER {
            assert!(!OURS.is_rule(&OURS.rule()[..cut]));
            assert!(!OURS.is_route(&OURS.route(1)[..cut]));
        }
    }
}
