//! Batches of datagrams: up to [`SLOTS`] received or sent by one system call (`recvmmsg`, `sendmmsg`), with the address
//! each one came to or leaves from.
//!
//! A batch is an arena of slots, large enough for any datagram; a slot is filled by [`Batch::receive`] and sent from
//! where it lies. Nothing is ever merged, split or reordered. The caller says which socket and which slots.
#![allow(
    unsafe_code,
    reason = "recvmmsg and sendmmsg over one arena, without allocating"
)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use nix::libc;

/// Datagrams per batch.
pub const SLOTS: usize = 64;

/// Room for each: more than the largest UDP payload (65,507 over IPv4, 65,527 over IPv6).
const SLOT_BYTES: usize = 64 * 1024;

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

/// Slots for datagrams. 4 MiB of address space, of which only the pages that datagrams touched are ever backed.
pub struct Batch {
    bytes: Box<[u8]>,
    slots: Box<[Slot; SLOTS]>,
}

#[derive(Clone, Copy)]
struct Slot {
    len: usize,
    name: Name,
    name_len: libc::socklen_t,
    control: Control,
    control_len: usize,
}

#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

// Control messages start at an address aligned for `cmsghdr`; 64 bytes hold either packet info with room to spare.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        // SAFETY: all zeroes is a valid value of each member of the union (integers only).
        let name = unsafe { mem::zeroed::<Name>() };
        let slot = Slot {
            len: 0,
            name,
            name_len: 0,
            control: Control([0; 64]),
            control_len: 0,
        };
        Self {
            bytes: vec![0; SLOTS * SLOT_BYTES].into_boxed_slice(),
            slots: Box::new([slot; SLOTS]),
        }
    }

    /// Receives into `slots` what the socket has, in order, and says how many. Fewer than asked for means that the
    /// socket has been emptied.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there; an error the socket had pending, such as `ConnectionRefused`.
    pub fn receive(&mut self, socket: impl AsFd, slots: Range<usize>) -> io::Result<usize> {
        for slot in &mut self.slots[slots.clone()] {
            slot.len = SLOT_BYTES;
            slot.name_len = socklen(size_of::<Name>());
            slot.control_len = size_of::<Control>();
        }
        let (n, lengths) = self.transfer(slots.clone(), |headers, n| {
            // SAFETY: `transfer` hands over `n` valid headers whose pointers outlive the call.
            unsafe {
                libc::recvmmsg(
                    socket.as_fd().as_raw_fd(),
                    headers,
                    n,
                    libc::MSG_DONTWAIT,
                    ptr::null_mut(),
                )
            }
        })?;
        for (slot, header) in self.slots[slots].iter_mut().zip(&lengths[..n]) {
            slot.len = usize::try_from(header.msg_len)
                .unwrap_or(SLOT_BYTES)
                .min(SLOT_BYTES);
            slot.name_len = header.msg_hdr.msg_namelen;
            slot.control_len = header.msg_hdr.msg_controllen;
        }
        Ok(n)
    }

    /// Sends the datagrams in `slots`, in order, each where its slot's [address](Self::address_to) says; to the peer
    /// of a connected socket after [`Batch::address_to_peer`]. Says how many went out.
    ///
    /// # Errors
    /// What the first of them met; those before an error that comes later are reported as sent.
    pub fn send(&mut self, socket: impl AsFd, slots: Range<usize>) -> io::Result<usize> {
        let (n, _) = self.transfer(slots, |headers, n| {
            // SAFETY: `transfer` hands over `n` valid headers whose pointers outlive the call.
            unsafe {
                libc::sendmmsg(
                    socket.as_fd().as_raw_fd(),
                    headers,
                    n,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            }
        })?;
        Ok(n)
    }

    /// How many bytes the datagram in `slot` has.
    pub fn len(&self, slot: usize) -> usize {
        self.slots[slot].len
    }

    /// Where the datagram in `slot` came from; `None` on a connected socket of an unknown family.
    pub fn source(&self, slot: usize) -> Option<SocketAddr> {
        let slot = &self.slots[slot];
        if slot.name_len == 0 {
            return None;
        }
        // SAFETY: every member is made of integers only, and all of them have been initialised by `new` or the kernel.
        match i32::from(unsafe { slot.name.family }) {
            libc::AF_INET => {
                // SAFETY: as above.
                let name = unsafe { slot.name.v4 };
                let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let name = unsafe { slot.name.v6 };
                let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
                let port = u16::from_be(name.sin6_port);
                Some(SocketAddrV6::new(ip, port, name.sin6_flowinfo, name.sin6_scope_id).into())
            }
            _other => None,
        }
    }

    /// Which local address the datagram in `slot` came to; `None` if the socket does not report it.
    pub fn local(&self, slot: usize) -> Option<LocalAddress> {
        let slot = &self.slots[slot];
        let header_len = size_of::<libc::cmsghdr>();
        if slot.control_len < header_len {
            return None;
        }
        let control = slot.control.0.as_ptr();
        // SAFETY: the buffer is aligned for `cmsghdr` and longer than one.
        let header = unsafe { ptr::read(control.cast::<libc::cmsghdr>()) };
        let payload_at = data_offset();
        let has = |bytes: usize| {
            header.cmsg_len >= payload_at + bytes && slot.control_len >= payload_at + bytes
        };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if has(size_of::<libc::in_pktinfo>()) => {
                // SAFETY: `has` checked that the structure lies within the buffer; the read is unaligned.
                let info = unsafe {
                    ptr::read_unaligned(control.add(payload_at).cast::<libc::in_pktinfo>())
                };
                let ip = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                Some(LocalAddress {
                    ip: ip.into(),
                    interface: 0,
                })
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if has(size_of::<libc::in6_pktinfo>()) => {
                // SAFETY: as above.
                let info = unsafe {
                    ptr::read_unaligned(control.add(payload_at).cast::<libc::in6_pktinfo>())
                };
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

    /// The datagram in `slot` goes to the peer of a connected socket.
    pub fn address_to_peer(&mut self, slot: usize) {
        let slot = &mut self.slots[slot];
        slot.name_len = 0;
        slot.control_len = 0;
    }

    /// The datagram in `slot` goes to `to`, and leaves from the local address if one is given.
    pub fn address_to(&mut self, slot: usize, to: SocketAddr, from: Option<LocalAddress>) {
        let slot = &mut self.slots[slot];
        slot.name_len = socklen(match to {
            SocketAddr::V4(to) => {
                slot.name.v4 = libc::sockaddr_in {
                    sin_family: family(libc::AF_INET),
                    sin_port: to.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from(*to.ip()).to_be(),
                    },
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(to) => {
                slot.name.v6 = libc::sockaddr_in6 {
                    sin6_family: family(libc::AF_INET6),
                    sin6_port: to.port().to_be(),
                    sin6_flowinfo: to.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: to.ip().octets(),
                    },
                    sin6_scope_id: to.scope_id(),
                };
                size_of::<libc::sockaddr_in6>()
            }
        });
        slot.control_len = match from {
            None => 0,
            Some(LocalAddress {
                ip: IpAddr::V4(ip), ..
            }) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from(ip).to_be(),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                slot.control.put(libc::IPPROTO_IP, libc::IP_PKTINFO, info)
            }
            Some(LocalAddress {
                ip: IpAddr::V6(ip),
                interface,
            }) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: ip.octets(),
                    },
                    ipi6_ifindex: interface,
                };
                slot.control
                    .put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
            }
        };
    }

    // Lays out the headers of `slots` for the kernel, calls it, and returns how many it handled and the headers as it
    // left them. The headers live on the stack: 5 KiB that need no lifetime beyond the call.
    fn transfer(
        &mut self,
        slots: Range<usize>,
        call: impl FnOnce(*mut libc::mmsghdr, libc::c_uint) -> libc::c_int,
    ) -> io::Result<(usize, [libc::mmsghdr; SLOTS])> {
        // SAFETY: zeroes (null pointers, zero lengths) are valid values of these C structures.
        let (mut headers, mut parts) = unsafe {
            (
                mem::zeroed::<[libc::mmsghdr; SLOTS]>(),
                mem::zeroed::<[libc::iovec; SLOTS]>(),
            )
        };
        let bytes = self.bytes[slots.start * SLOT_BYTES..slots.end * SLOT_BYTES]
            .chunks_exact_mut(SLOT_BYTES);
        let prepared = headers.iter_mut().zip(&mut parts);
        for ((slot, bytes), (header, part)) in self.slots[slots.clone()]
            .iter_mut()
            .zip(bytes)
            .zip(prepared)
        {
            part.iov_base = bytes.as_mut_ptr().cast();
            part.iov_len = slot.len;
            let header = &mut header.msg_hdr;
            header.msg_iov = part;
            header.msg_iovlen = 1;
            if slot.name_len > 0 {
                header.msg_name = ptr::from_mut(&mut slot.name).cast();
                header.msg_namelen = slot.name_len;
            }
            if slot.control_len > 0 {
                header.msg_control = slot.control.0.as_mut_ptr().cast();
                header.msg_controllen = slot.control_len;
            }
        }
        let n = libc::c_uint::try_from(slots.len()).unwrap_or(0);
        match usize::try_from(call(headers.as_mut_ptr(), n)) {
            Ok(handled) => Ok((handled, headers)),
            Err(_negative) => Err(io::Error::last_os_error()),
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Control {
    // Writes one control message and returns how long the control data is then.
    fn put<T>(&mut self, level: libc::c_int, kind: libc::c_int, payload: T) -> usize {
        let bytes = u32::try_from(size_of::<T>()).unwrap_or(0);
        // SAFETY: these two only compute.
        let (len, space) = unsafe { (libc::CMSG_LEN(bytes), libc::CMSG_SPACE(bytes)) };
        let (len, space) = (
            usize::try_from(len).unwrap_or(0),
            usize::try_from(space).unwrap_or(0),
        );
        assert!(space <= size_of::<Self>(), "packet info fits");
        // SAFETY: zeroes are a valid header.
        let mut header = unsafe { mem::zeroed::<libc::cmsghdr>() };
        header.cmsg_len = len;
        header.cmsg_level = level;
        header.cmsg_type = kind;
        let control = self.0.as_mut_ptr();
        // SAFETY: the assertion above keeps both writes within the buffer; header and payload need no destructor, and
        // unaligned writes have no alignment to keep.
        unsafe {
            ptr::write_unaligned(control.cast(), header);
            ptr::write_unaligned(control.add(data_offset()).cast(), payload);
        }
        space
    }
}

// Where the payload of a control message starts.
fn data_offset() -> usize {
    // SAFETY: only computes.
    usize::try_from(unsafe { libc::CMSG_LEN(0) }).unwrap_or(0)
}

fn socklen(bytes: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes).unwrap_or(0)
}

fn family(family: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use crate::net::sockets::{Bound, Sharing, Transport};

    use super::*;

    fn receiver(addr: &str) -> UdpSocket {
        let bound = Bound::new(Transport::Udp, addr.parse().unwrap(), Sharing::First).unwrap();
        bound.receive().unwrap()
    }

    fn client(addr: &str) -> UdpSocket {
        let client = UdpSocket::bind(addr).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        client
    }

    // Loopback delivers within the sending call, so what was sent is there.
    #[test]
    fn sizes_order_and_sources_are_kept() {
        let server = receiver("127.0.0.1:0");
        let client = client("127.0.0.1:0");
        let sizes = [0, 1, 1400, 65_507, 0, 3];
        for (mark, size) in sizes.iter().enumerate() {
            let payload = vec![u8::try_from(mark).unwrap(); *size];
            client
                .send_to(&payload, server.local_addr().unwrap())
                .unwrap();
        }
        let mut batch = Batch::new();
        assert_eq!(batch.receive(&server, 0..SLOTS).unwrap(), sizes.len());
        for (slot, size) in sizes.iter().enumerate() {
            assert_eq!(batch.len(slot), *size);
            assert_eq!(batch.source(slot), Some(client.local_addr().unwrap()));
            assert_eq!(batch.local(slot), None, "bound to one address");
            batch.address_to(slot, client.local_addr().unwrap(), None);
        }
        let empty = batch.receive(&server, 10..SLOTS).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);

        assert_eq!(batch.send(&server, 0..sizes.len()).unwrap(), sizes.len());
        let mut buffer = vec![0; 70_000];
        for (mark, size) in sizes.iter().enumerate() {
            assert_eq!(client.recv(&mut buffer).unwrap(), *size);
            assert!(
                buffer[..*size]
                    .iter()
                    .all(|byte| usize::from(*byte) == mark)
            );
        }
    }

    #[test]
    fn replies_of_a_wildcard_socket_leave_from_the_address_that_was_asked() {
        let server = receiver("0.0.0.0:0");
        let port = server.local_addr().unwrap().port();
        let client = client("127.0.0.1:0");
        client.connect(("127.9.8.7", port)).unwrap();
        client.send(b"ping").unwrap();
        let mut batch = Batch::new();
        assert_eq!(batch.receive(&server, 0..SLOTS).unwrap(), 1);
        let local = batch.local(0).unwrap();
        assert_eq!(local.ip, "127.9.8.7".parse::<IpAddr>().unwrap());
        let source = batch.source(0).unwrap();
        batch.address_to(0, source, Some(local));
        assert_eq!(batch.send(&server, 0..1).unwrap(), 1);
        let mut buffer = [0; 8];
        assert_eq!(
            client.recv(&mut buffer).unwrap(),
            4,
            "a connected client takes it"
        );
    }

    #[test]
    fn ipv6_packet_info_works_the_same() {
        let Ok(bound) = Bound::new(Transport::Udp, "[::]:0".parse().unwrap(), Sharing::First)
        else {
            return; // no IPv6 here
        };
        let server = bound.receive().unwrap();
        let client = client("[::1]:0");
        client
            .connect(("::1", server.local_addr().unwrap().port()))
            .unwrap();
        client.send(b"ping").unwrap();
        let mut batch = Batch::new();
        assert_eq!(batch.receive(&server, 0..SLOTS).unwrap(), 1);
        let local = batch.local(0).unwrap();
        assert_eq!(local.ip, "::1".parse::<IpAddr>().unwrap());
        let source = batch.source(0).unwrap();
        batch.address_to(0, source, Some(local));
        batch.send(&server, 0..1).unwrap();
        assert_eq!(client.recv(&mut [0; 8]).unwrap(), 4);
    }

    #[test]
    fn an_error_after_some_were_sent_leaves_those_counted() {
        let server = receiver("127.0.0.1:0");
        let client = client("127.0.0.1:0");
        for _ in 0..2 {
            client.send_to(b"x", server.local_addr().unwrap()).unwrap();
        }
        let mut batch = Batch::new();
        assert_eq!(batch.receive(&server, 0..SLOTS).unwrap(), 2);
        batch.address_to(0, client.local_addr().unwrap(), None);
        batch.address_to(1, "[::1]:9".parse().unwrap(), None);
        assert_eq!(batch.send(&server, 0..2).unwrap(), 1);
        batch.send(&server, 1..2).unwrap_err();
    }
}
