//! Addresses of our own on the loopback interface, over rtnetlink.
//!
//! What is added here carries a mark (a label for IPv4, `IFA_PROTO` for both where the kernel knows it), so that it can
//! be told from what others have put there, and removed by a later process. The byte format is that of the kernel's
//! `linux/rtnetlink.h` and `linux/if_addr.h`; numbers are native.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;

use super::netlink::{
    ACK, Attribute, DUMP, IpVersion, REQUEST, Socket, attribute, attributes, message,
};

/// The mark of IPv4 addresses; it must begin with the interface's name.
const LABEL: &[u8] = b"lo:viaduct\0";

/// The mark of both families, from Linux 5.18 on. The values above 3 are free for programs.
const PROTOCOL: u8 = 0x76;

const IFADDRMSG: usize = 8;

const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;

const CREATE_EXCLUSIVELY: u16 = 0x600;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_PROTO: u16 = 11;
/// No duplicate address detection: nobody else is on this interface.
const IFA_F_NODAD: u8 = 0x02;

/// An address that is local for as long as this value lives.
#[derive(Debug)]
pub struct LocalAddress(IpAddr);

impl LocalAddress {
    /// Adds the address to the loopback interface. `None` if the interface has it already: then it is not ours to remove,
    /// unless an earlier process of ours left it.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_ADMIN`; whatever else rtnetlink says.
    pub fn add(ip: IpAddr) -> io::Result<Option<Self>> {
        match change(NEW_ADDRESS, CREATE_EXCLUSIVELY, ip) {
            Ok(()) => Ok(Some(Self(ip))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let is_ours = listed()?.contains(&ip);
                Ok(is_ours.then_some(Self(ip)))
            }
            Err(error) => Err(error),
        }
    }

    /// Leaves it where it is, for another process that needs it.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// The address.
    pub fn ip(&self) -> IpAddr {
        self.0
    }
}

impl Drop for LocalAddress {
    fn drop(&mut self) {
        // Fails only if somebody else has removed it meanwhile.
        let _gone_already = change(DELETE_ADDRESS, 0, self.0);
    }
}

/// Removes every address that an earlier process of ours has left. Returns how many there were.
///
/// # Errors
/// Those of rtnetlink, above all `PermissionDenied`.
pub fn remove_leftovers() -> io::Result<usize> {
    let found = listed()?;
    for ip in &found {
        change(DELETE_ADDRESS, 0, *ip)?;
    }
    Ok(found.len())
}

fn change(kind: u16, flags: u16, ip: IpAddr) -> io::Result<()> {
    let body = address(ip, if_nametoindex("lo")?);
    let socket = Socket::open(SockProtocol::NetlinkRoute)?;
    socket.ask(&message(kind, REQUEST | ACK | flags, &body))
}

// The addresses with our mark.
fn listed() -> io::Result<Vec<IpAddr>> {
    let socket = Socket::open(SockProtocol::NetlinkRoute)?;
    let mut found = Vec::new();
    let request = message(GET_ADDRESS, REQUEST | DUMP, &[0; IFADDRMSG]);
    socket.dump(&request, |body| found.extend(parse_marked(body)))?;
    Ok(found)
}

// The address in a message, if it has our mark.
fn parse_marked(body: &[u8]) -> Option<IpAddr> {
    let mut address = None;
    let mut marked = false;
    for Attribute { kind, value, .. } in attributes(body.get(IFADDRMSG..)?) {
        match kind {
            // IPv6 addresses have only the first of these; where both are, they are the same on this interface.
            IFA_ADDRESS | IFA_LOCAL => address = parse_ip(value).or(address),
            IFA_LABEL => marked |= value == LABEL,
            IFA_PROTO => marked |= value == [PROTOCOL],
            _ => {}
        }
    }
    address.filter(|_| marked)
}

fn parse_ip(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => octets
            .first_chunk()
            .map(|four: &[u8; 4]| Ipv4Addr::from(*four).into()),
        16 => octets
            .first_chunk()
            .map(|all: &[u8; 16]| Ipv6Addr::from(*all).into()),
        _ => None,
    }
}

// `struct ifaddrmsg` and its attributes.
fn address(ip: IpAddr, interface: u32) -> Vec<u8> {
    let (version, bits, octets, label) = match ip {
        IpAddr::V4(v4) => (IpVersion::V4, 32, v4.octets().to_vec(), Some(LABEL)),
        IpAddr::V6(v6) => (IpVersion::V6, 128, v6.octets().to_vec(), None),
    };
    let mut body = vec![version.family(), bits, IFA_F_NODAD, 0];
    body.extend(interface.to_ne_bytes());
    body.extend(attribute(IFA_LOCAL, &octets));
    body.extend(attribute(IFA_ADDRESS, &octets));
    body.extend(
        label
            .into_iter()
            .flat_map(|label| attribute(IFA_LABEL, label)),
    );
    body.extend(attribute(IFA_PROTO, &[PROTOCOL]));
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_add_is_known_again_by_its_mark() {
        for ip in ["169.254.20.10", "fd00:10:96::a"] {
            let ip: IpAddr = ip.parse().unwrap();
            let body = address(ip, 1);
            assert_eq!(body.len() % 4, 0);
            assert_eq!(parse_marked(&body), Some(ip));
        }
    }

    #[test]
    fn what_others_have_added_is_left_alone() {
        let ip: IpAddr = "169.254.20.10".parse().unwrap();
        let whole = address(ip, 1);
        let mut foreign = whole.clone();
        let at = foreign.len() - 4;
        foreign[at] = 3;
        let label = foreign
            .windows(7)
            .position(|part| part == b"viaduct")
            .unwrap();
        foreign[label] = b'x';
        assert_eq!(parse_marked(&foreign), None);
        for cut in 0..whole.len() {
            let _ = parse_marked(&whole[..cut]);
        }
    }
}
