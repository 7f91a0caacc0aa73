//! Addresses of our own on the loopback interface, over rtnetlink.
//!
//! What is added here carries a mark (a label for IPv4, `IFA_PROTO` for both where the kernel knows it), so that it can
//! be told from what others have put there, and removed by a later process. The byte format is that of the kernel's
//! `linux/rtnetlink.h` and `linux/if_addr.h`; numbers are native.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::netlink::{Message, error_of, messages};

/// The mark of IPv4 addresses; it must begin with the interface's name.
const LABEL: &[u8] = b"lo:viaduct\0";

/// The mark of both families, from Linux 5.18 on. The values above 3 are free for programs.
const PROTOCOL: u8 = 0x76;

/// The kernel fills at most 32 KiB at a time when it lists.
const RECEIVE_BUFFER: usize = 64 << 10;

const HEADER: usize = 16;
const IFADDRMSG: usize = 8;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;

const REQUEST: u16 = 0x001;
const ACK: u16 = 0x004;
const DUMP: u16 = 0x300;
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
    let loopback = if_nametoindex("lo")?;
    let socket = Socket::open()?;
    socket.send(&address_message(kind, REQUEST | ACK | flags, ip, loopback))?;
    let mut buffer = [0; 4096];
    let length = socket.receive(&mut buffer)?;
    for message in messages(&buffer[..length]) {
        if message.kind == ERROR
            && let Some(error) = error_of(message.body)
        {
            return Err(error);
        }
    }
    Ok(())
}

// The addresses with our mark.
fn listed() -> io::Result<Vec<IpAddr>> {
    let socket = Socket::open()?;
    let mut request = header(GET_ADDRESS, REQUEST | DUMP, IFADDRMSG);
    request.extend([0; IFADDRMSG]);
    socket.send(&request)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; RECEIVE_BUFFER];
    loop {
        let length = socket.receive(&mut buffer)?;
        for Message { kind, body } in messages(&buffer[..length]) {
            match kind {
                DONE => return Ok(found),
                ERROR => {
                    let unknown = || io::ErrorKind::InvalidData.into();
                    return Err(error_of(body).unwrap_or_else(unknown));
                }
                _ => found.extend(parse_marked(body)),
            }
        }
    }
}

// The address in a message, if it has our mark.
fn parse_marked(body: &[u8]) -> Option<IpAddr> {
    let mut rest = body.get(IFADDRMSG..)?;
    let mut address = None;
    let mut marked = false;
    while let Some((fixed, _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([fixed[0], fixed[1]]));
        let kind = u16::from_ne_bytes([fixed[2], fixed[3]]);
        let value = rest.get(4..length)?;
        match kind {
            // IPv6 addresses have only the first of these; where both are, they are the same on this interface.
            IFA_ADDRESS | IFA_LOCAL => address = parse_ip(value).or(address),
            IFA_LABEL => marked |= value == LABEL,
            IFA_PROTO => marked |= value == [PROTOCOL],
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
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

fn address_message(kind: u16, flags: u16, ip: IpAddr, interface: u32) -> Vec<u8> {
    let (family, bits, octets, label) = match ip {
        IpAddr::V4(v4) => (2, 32, v4.octets().to_vec(), Some(LABEL)),
        IpAddr::V6(v6) => (10, 128, v6.octets().to_vec(), None),
    };
    let mut attributes = Vec::new();
    for (kind, value) in [
        (IFA_LOCAL, Some(&octets[..])),
        (IFA_ADDRESS, Some(&octets[..])),
        (IFA_LABEL, label),
        (IFA_PROTO, Some(&[PROTOCOL][..])),
    ] {
        if let Some(value) = value {
            let length = u16::try_from(4 + value.len()).expect("at most an address");
            attributes.extend(length.to_ne_bytes());
            attributes.extend(kind.to_ne_bytes());
            attributes.extend(value);
            attributes.resize(attributes.len().next_multiple_of(4), 0);
        }
    }
    let mut message = header(kind, flags, IFADDRMSG + attributes.len());
    message.extend([family, bits, IFA_F_NODAD, 0]);
    message.extend(interface.to_ne_bytes());
    message.extend(attributes);
    message
}

fn header(kind: u16, flags: u16, body: usize) -> Vec<u8> {
    let length = u32::try_from(HEADER + body).expect("a few dozen octets");
    let mut message = Vec::with_capacity(HEADER + body);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port: one request at a time on a socket of its own needs neither.
    message.extend([0; 8]);
    message
}

struct Socket(OwnedFd);

impl Socket {
    fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
        Ok(Self(fd))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_add_is_known_again_by_its_mark() {
        for ip in ["169.254.20.10", "fd00:10:96::a"] {
            let ip: IpAddr = ip.parse().unwrap();
            let message = address_message(NEW_ADDRESS, REQUEST, ip, 1);
            assert_eq!(message.len() % 4, 0);
            assert_eq!(parse_marked(&message[HEADER..]), Some(ip));
        }
    }

    #[test]
    fn what_others_have_added_is_left_alone() {
        let ip: IpAddr = "169.254.20.10".parse().unwrap();
        let message = address_message(NEW_ADDRESS, REQUEST, ip, 1);
        let mut foreign = message[HEADER..].to_vec();
        let at = foreign.len() - 4;
        foreign[at] = 3;
        let label = foreign
            .windows(7)
            .position(|part| part == b"viaduct")
            .unwrap();
        foreign[label] = b'x';
        assert_eq!(parse_marked(&foreign), None);
        for cut in 0..message.len() - HEADER {
            let _ = parse_marked(&message[HEADER..HEADER + cut]);
        }
    }
}
