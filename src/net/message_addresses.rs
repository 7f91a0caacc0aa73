//! The addresses of a datagram as `recvmsg(2)` and `sendmsg(2)` want them: the peer in a `sockaddr`, the local one in a
//! control message. Fixed in size, so that a batch holds them without allocating.
#![allow(unsafe_code, reason = "C structures are read and written in place")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::{mem, ptr};

use nix::libc;

/// The address of this host that a datagram came to, and that its reply must come from.
///
/// Source: ip(7) `IP_PKTINFO`, RFC 3542 section 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalAddress {
    /// The address.
    pub ip: IpAddr,
    /// The interface index; only kept for link-local IPv6 addresses, which mean nothing without, else 0.
    pub interface: u32,
}

/// A peer's address.
#[derive(Clone, Copy)]
pub(super) struct Name {
    raw: RawName,
    len: libc::socklen_t,
}

#[derive(Clone, Copy)]
#[repr(C)]
union RawName {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    /// No address.
    pub(super) fn none() -> Self {
        Self {
            // SAFETY: all members consist of integers, for which zeroes are valid.
            raw: unsafe { mem::zeroed() },
            len: 0,
        }
    }

    /// Forgets the address.
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Whether there is no address.
    pub(super) fn is_none(&self) -> bool {
        self.len == 0
    }

    /// Offers the kernel all room there is.
    pub(super) fn make_room(&mut self) {
        self.len = socklen(size_of::<RawName>());
    }

    /// The kernel has written that many bytes.
    pub(super) fn filled(&mut self, len: libc::socklen_t) {
        self.len = len;
    }

    /// For a message header; null without an address.
    pub(super) fn as_raw(&mut self) -> (*mut libc::c_void, libc::socklen_t) {
        match self.len {
            0 => (ptr::null_mut(), 0),
            len => (ptr::from_mut(&mut self.raw).cast(), len),
        }
    }

    /// Whether both are the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.len == other.len && self.get() == other.get()
    }

    pub(super) fn set(&mut self, addr: SocketAddr) {
        self.len = socklen(match addr {
            SocketAddr::V4(addr) => {
                self.raw.v4 = libc::sockaddr_in {
                    sin_family: family(libc::AF_INET),
                    sin_port: addr.port().to_be(),
                    sin_addr: in_addr(*addr.ip()),
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(addr) => {
                self.raw.v6 = libc::sockaddr_in6 {
                    sin6_family: family(libc::AF_INET6),
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: addr.flowinfo(),
                    sin6_addr: in6_addr(*addr.ip()),
                    sin6_scope_id: addr.scope_id(),
                };
                size_of::<libc::sockaddr_in6>()
            }
        });
    }

    pub(super) fn get(&self) -> Option<SocketAddr> {
        if self.len == 0 {
            return None;
        }
        // SAFETY: all members consist of integers, and all bytes have been initialised by `none`.
        match i32::from(unsafe { self.raw.family }) {
            libc::AF_INET => {
                // SAFETY: as above.
                let name = unsafe { self.raw.v4 };
                let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let name = unsafe { self.raw.v6 };
                let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
                let port = u16::from_be(name.sin6_port);
                Some(SocketAddrV6::new(ip, port, name.sin6_flowinfo, name.sin6_scope_id).into())
            }
            _other => None,
        }
    }
}

/// Control messages: a local address, how the payload is cut, how many were lost. Starts where `cmsghdr` may; 88 bytes hold
/// either family's address (40) and two figures (24 each).
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control {
    bytes: [u8; 88],
    len: usize,
}

// Bytes past the length are what earlier messages have left.
impl PartialEq for Control {
    fn eq(&self, other: &Self) -> bool {
        self.bytes[..self.len] == other.bytes[..other.len]
    }
}

impl Control {
    /// No address.
    pub(super) fn none() -> Self {
        Self {
            bytes: [0; 88],
            len: 0,
        }
    }

    /// Forgets all messages.
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Offers the kernel all room there is.
    pub(super) fn make_room(&mut self) {
        self.len = self.bytes.len();
    }

    /// The kernel has written that many bytes.
    pub(super) fn filled(&mut self, len: usize) {
        self.len = len.min(self.bytes.len());
    }

    /// For a message header; null without an address.
    pub(super) fn as_raw(&mut self) -> (*mut libc::c_void, usize) {
        match self.len {
            0 => (ptr::null_mut(), 0),
            len => (self.bytes.as_mut_ptr().cast(), len),
        }
    }

    pub(super) fn set(&mut self, from: LocalAddress) {
        match from.ip {
            IpAddr::V4(ip) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr(ip),
                    ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
                };
                self.put(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            IpAddr::V6(ip) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: in6_addr(ip),
                    ipi6_ifindex: from.interface,
                };
                self.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
    }

    /// Which local address the kernel named.
    pub(super) fn get(&self) -> Option<LocalAddress> {
        self.messages().find_map(|at| self.local_at(at))
    }

    /// How many datagrams the socket had lost for want of room when this one was queued; `None` if the kernel does not
    /// say, which means none since the socket was made.
    ///
    /// Source: socket(7) `SO_RXQ_OVFL`.
    pub(super) fn lost(&self) -> Option<u32> {
        self.find(libc::SOL_SOCKET, libc::SO_RXQ_OVFL)
    }

    /// How long each datagram was that the payload has been gathered from, except that the last one may have been
    /// shorter; `None` if the kernel gathered nothing.
    ///
    /// Source: udp(7) `UDP_GRO`.
    pub(super) fn gathered(&self) -> Option<usize> {
        let size: libc::c_int = self.find(libc::SOL_UDP, libc::UDP_GRO)?;
        usize::try_from(size).ok().filter(|size| *size > 0)
    }

    fn find<T: Plain>(&self, level: libc::c_int, kind: libc::c_int) -> Option<T> {
        self.messages().find_map(|at| {
            let header: libc::cmsghdr = self.read(at)?;
            let is_it = (header.cmsg_level, header.cmsg_type) == (level, kind);
            is_it.then(|| self.read(at + payload_offset())).flatten()
        })
    }

    /// Adds that the message is to be cut into datagrams of `size` bytes, until [`Control::uncut`].
    ///
    /// Source: udp(7) `UDP_SEGMENT`.
    pub(super) fn cut_into(&mut self, size: u16) {
        let start = self.len;
        self.put_at(start, libc::SOL_UDP, libc::UDP_SEGMENT, size);
    }

    /// Takes back what [`Control::cut_into`] added to a message that had `len` bytes.
    pub(super) fn uncut(&mut self, len: usize) {
        self.len = len;
    }

    /// How many bytes it has.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    // Where the messages begin.
    fn messages(&self) -> impl Iterator<Item = usize> {
        let align = size_of::<usize>();
        std::iter::successors(Some(0), move |at| {
            let header: libc::cmsghdr = self.read(*at)?;
            // A length below its own header would have us look at the same place for ever.
            let len = fitting::<_, usize>(header.cmsg_len).max(size_of::<libc::cmsghdr>());
            Some(at + len.next_multiple_of(align))
        })
        .take_while(|at| at + size_of::<libc::cmsghdr>() <= self.len)
    }

    fn local_at(&self, at: usize) -> Option<LocalAddress> {
        let header: libc::cmsghdr = self.read(at)?;
        match (header.cmsg_level, header.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let info: libc::in_pktinfo = self.read(at + payload_offset())?;
                Some(LocalAddress {
                    ip: Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into(),
                    interface: 0,
                })
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let info: libc::in6_pktinfo = self.read(at + payload_offset())?;
                let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let interface = if ip.is_unicast_link_local() {
                    info.ipi6_ifindex
                } else {
                    0
                };
                Some(LocalAddress {
                    ip: ip.into(),
                    interface,
                })
            }
            _unknown => None,
        }
    }

    // One of the C structures above; `None` if the kernel wrote less.
    fn read<T: Plain>(&self, offset: usize) -> Option<T> {
        if offset + size_of::<T>() > self.len {
            return None;
        }
        // SAFETY: the value lies within the buffer, any bytes are a valid `Plain`, and the read is unaligned.
        Some(unsafe { ptr::read_unaligned(self.bytes.as_ptr().add(offset).cast()) })
    }

    fn put<T: Plain>(&mut self, level: libc::c_int, kind: libc::c_int, payload: T) {
        self.put_at(0, level, kind, payload);
    }

    fn put_at<T: Plain>(&mut self, at: usize, level: libc::c_int, kind: libc::c_int, payload: T) {
        let bytes = u32::try_from(size_of::<T>()).unwrap_or(0);
        // SAFETY: these only compute; and zeroes are a valid `Plain`.
        let (len, space, mut header) = unsafe {
            (
                libc::CMSG_LEN(bytes),
                libc::CMSG_SPACE(bytes),
                mem::zeroed::<libc::cmsghdr>(),
            )
        };
        header.cmsg_len = fitting(len);
        header.cmsg_level = level;
        header.cmsg_type = kind;
        let end = at.saturating_add(usize::try_from(space).unwrap_or(usize::MAX));
        assert!(end <= self.bytes.len(), "both messages fit");
        self.len = end;
        let start = self.bytes[at..].as_mut_ptr();
        // SAFETY: the assertion keeps both unaligned writes within the buffer.
        unsafe {
            ptr::write_unaligned(start.cast(), header);
            ptr::write_unaligned(start.add(payload_offset()).cast(), payload);
        }
    }
}

// C structures of integers only: any bytes are a value, and nothing happens on drop.
trait Plain: Copy {}
impl Plain for libc::cmsghdr {}
impl Plain for libc::in_pktinfo {}
impl Plain for libc::in6_pktinfo {}
impl Plain for libc::c_int {}
impl Plain for u16 {}
impl Plain for u32 {}

// Where the payload of a control message starts.
fn payload_offset() -> usize {
    // SAFETY: only computes.
    usize::try_from(unsafe { libc::CMSG_LEN(0) }).unwrap_or(0)
}

fn in_addr(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr {
        s_addr: u32::from(ip).to_be(),
    }
}

fn in6_addr(ip: Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr {
        s6_addr: ip.octets(),
    }
}

/// A number in the type that the C library at hand has for it. musl's lengths are shorter than glibc's, with room beside
/// them up to what the kernel reads, which is zero in a structure that began as zeroes.
pub(super) fn fitting<T: TryInto<U>, U: Default>(number: T) -> U {
    number.try_into().unwrap_or_default()
}

fn socklen(bytes: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes).unwrap_or(0)
}

fn family(family: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_way_through_c() {
        for addr in ["192.0.2.1:53", "[fd00::1]:65535", "[fe80::1%3]:80"] {
            let mut name = Name::none();
            assert_eq!(name.get(), None);
            name.set(addr.parse().unwrap());
            assert_eq!(name.get(), Some(addr.parse().unwrap()));
        }
    }

    #[test]
    fn what_is_no_packet_info_is_no_address() {
        let mut control = Control::none();
        assert_eq!(control.get(), None);
        control.make_room();
        assert_eq!(control.get(), None, "nothing but zeroes");
        control.set(LocalAddress {
            ip: "fe80::1".parse().unwrap(),
            interface: 3,
        });
        assert_eq!(control.get().unwrap().interface, 3);
        control.filled(20);
        assert_eq!(control.get(), None, "cut short");
    }

    #[test]
    fn messages_are_told_apart() {
        let mut control = Control::none();
        let local = LocalAddress {
            ip: "fd00::1".parse().unwrap(),
            interface: 0,
        };
        control.set(local);
        let len = control.len();
        control.cut_into(1200);
        assert!(control.len() > len);
        assert_eq!((control.get(), control.lost()), (Some(local), None));
        control.uncut(len);
        let start = control.len();
        control.put_at(start, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 7u32);
        assert_eq!((control.get(), control.lost()), (Some(local), Some(7)));
        assert_eq!(control.gathered(), None);
        let start = control.len();
        control.put_at(start, libc::SOL_UDP, libc::UDP_GRO, 1200);
        assert_eq!((control.lost(), control.gathered()), (Some(7), Some(1200)));
        control.uncut(start);
        control.put_at(start, libc::SOL_UDP, libc::UDP_GRO, 0);
        assert_eq!(control.gathered(), None, "no size at all");
    }

    #[test]
    fn a_message_that_claims_no_length_ends_the_search() {
        let mut control = Control::none();
        control.make_room();
        assert_eq!(control.lost(), None);
    }
}
