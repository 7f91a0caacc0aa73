//! Talking to the kernel over netlink: one socket, one request at a time, and the format that all of its families share.
//!
//! Knows no family's own messages (`conntrack`, `local_routes`). Numbers are in the machine's order; what a family wants
//! otherwise is its affair. Source: netlink(7).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// An IP version, as the kernel keeps them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpVersion {
    /// Its number in messages: `AF_INET`, `AF_INET6`.
    pub(super) fn family(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// A request.
pub(super) const REQUEST: u16 = 0x001;
/// That the kernel shall acknowledge.
pub(super) const ACK: u16 = 0x004;
/// That asks for everything there is.
pub(super) const DUMP: u16 = 0x300;

/// An answer that [`error_of`] reads.
pub(super) const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;

/// The upper two bits say "nested" and "network order".
const TYPE_MASK: u16 = 0x3fff;

/// The kernel fills at most 32 KiB at a time when it lists.
const RECEIVE_BUFFER: usize = 64 << 10;

/// A netlink socket for one request at a time. The kernel's answers are awaited for at most two seconds each.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
        Ok(Self(fd))
    }

    /// Sends a request made with [`DUMP`] and hands every answer's body to `take`.
    pub(super) fn dump(&self, request: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(request)?;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            let length = self.receive(&mut buffer)?;
            for message in messages(&buffer[..length]) {
                match message.kind {
                    DONE => return Ok(()),
                    ERROR => {
                        return Err(
                            error_of(message.body).unwrap_or(io::ErrorKind::InvalidData.into())
                        );
                    }
                    _ => take(message.body),
                }
            }
        }
    }

    /// Sends a request made with [`ACK`] and waits for the kernel to say that it is done.
    pub(super) fn ask(&self, request: &[u8]) -> io::Result<()> {
        self.send(request)?;
        let mut buffer = [0; 1024];
        let length = self.receive(&mut buffer)?;
        let mut answers = messages(&buffer[..length]).filter(|message| message.kind == ERROR);
        let refused = answers.find_map(|message| error_of(message.body));
        refused.map_or(Ok(()), Err)
    }

    /// Sends requests that the caller awaits the answers of by [`Self::receive`].
    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.0.as_raw_fd(), message, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    /// The next datagram's length.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
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

/// A request: the header and `body`. One request at a time on a socket of its own needs no number.
pub(super) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    numbered(0, kind, flags, body)
}

/// One of several requests that are sent together: answers name it by its number.
pub(super) fn numbered(number: u32, kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let whole = HEADER + body.len();
    let length = u32::try_from(whole).expect("a request is a few hundred bytes");
    let mut message = Vec::with_capacity(whole);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(number.to_ne_bytes());
    // The port: the kernel knows which socket of ours it is.
    message.extend([0; 4]);
    message.extend(body);
    message
}

/// One message of a datagram.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    /// That of the request which it answers.
    pub(super) number: u32,
    pub(super) body: &'a [u8],
}

/// The messages in one datagram; ends at the first that does not fit.
pub(super) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?);
        let length = usize::try_from(length).ok()?;
        let body = rest.get(HEADER..length)?;
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        let number = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]);
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some(Message { kind, number, body })
    })
}

/// What an error message says; `None` is an acknowledgement.
pub(super) fn error_of(body: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(*body.first_chunk()?);
    (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
}

/// One attribute of a message.
pub(super) struct Attribute<'a> {
    pub(super) kind: u16,
    pub(super) value: &'a [u8],
    /// With its header.
    pub(super) whole: &'a [u8],
}

/// The attributes in `rest`; ends at the first that does not fit.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
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

/// An attribute, padded so that another may follow.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("an attribute is an address or a number");
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

/// Where the next attribute or message begins.
pub(super) fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_no_error() {
        assert!(error_of(&0i32.to_ne_bytes()).is_none());
        let refused = error_of(&(-1i32).to_ne_bytes()).unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}
