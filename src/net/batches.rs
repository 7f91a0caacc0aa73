//! Batches of datagrams: up to [`SLOTS`] received or sent by one system call (`recvmmsg`, `sendmmsg`), with the address
//! each one came to or leaves from.
//!
//! A batch is an arena of slots, large enough for any datagram unless its owner wants less; a slot is filled by
//! [`Batch::receive`] and sent from where it lies, as it came or written anew. Nothing is ever merged, split or reordered. The caller says which socket and which slots.
#![allow(
    unsafe_code,
    reason = "recvmmsg and sendmmsg over one arena, without allocating"
)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use nix::libc;
use nix::sys::socket::{MsgFlags, recv, send};

use super::message_addresses::{Control, LocalAddress, Name, fitting};

/// Datagrams per batch.
pub const SLOTS: usize = 64;

/// Room for each: more than the largest UDP payload (65,507 over IPv4, 65,527 over IPv6).
const SLOT_BYTES: usize = 64 * 1024;

/// Slots for datagrams. 4 MiB of address space, of which only the pages that datagrams touched are ever backed.
pub struct Batch {
    bytes: Box<[u8]>,
    slot_bytes: usize,
    slots: Box<[Slot; SLOTS]>,
    // The kernel may be asked to cut long messages into datagrams.
    cuts: bool,
}

/// A longer datagram may be more than a path takes in one piece, and such a one the kernel does not cut for us.
const LONGEST_CUT: usize = 1400;

/// What one message may hold: the largest UDP payload over IPv4.
const MESSAGE: usize = 65_507;

/// How many consecutive slots go out as one message each.
struct Runs {
    lengths: [u8; SLOTS],
    n: usize,
}

impl Runs {
    // Every datagram by itself.
    fn single(slots: Range<usize>) -> Self {
        Self {
            lengths: [1; SLOTS],
            n: slots.len(),
        }
    }

    // Datagrams of one size to one place in one message; the last of them may be shorter.
    fn of(slots: &[Slot], range: Range<usize>) -> Self {
        let mut runs = Self {
            lengths: [1; SLOTS],
            n: 0,
        };
        let mut start = range.start;
        while start < range.end {
            let first = &slots[start];
            let mut run = 1;
            if (1..=LONGEST_CUT).contains(&first.len) {
                let most = (MESSAGE / first.len).min(range.end - start);
                while run < most {
                    let next = &slots[start + run];
                    if !(1..=first.len).contains(&next.len) || !first.goes_where(next) {
                        break;
                    }
                    run += 1;
                    if next.len < first.len {
                        break;
                    }
                }
            }
            runs.lengths[runs.n] = u8::try_from(run).unwrap_or(1);
            runs.n += 1;
            start += run;
        }
        runs
    }

    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.lengths[..self.n].iter().map(|run| usize::from(*run))
    }

    fn first(&self) -> usize {
        self.lengths().next().unwrap_or(0)
    }
}

impl Slot {
    fn address_to_peer(&mut self) {
        self.name.clear();
        self.control.clear();
    }

    fn goes_to_peer(&self) -> bool {
        self.name.is_none() && self.control.len() == 0
    }

    fn goes_where(&self, other: &Self) -> bool {
        self.name.is(&other.name) && self.control == other.control
    }
}

// Message headers for one call. On the stack, and only as many are ever written as are used: most calls are about one or
// two datagrams, and 5 KiB of zeroes would cost more than they do.
struct Headers {
    messages: [MaybeUninit<libc::mmsghdr>; SLOTS],
    parts: [MaybeUninit<libc::iovec>; SLOTS],
}

impl Headers {
    fn new() -> Self {
        Self {
            messages: [const { MaybeUninit::uninit() }; SLOTS],
            parts: [const { MaybeUninit::uninit() }; SLOTS],
        }
    }

    // One piece of payload.
    fn part(&mut self, at: usize, bytes: &mut [u8]) {
        self.parts[at].write(libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        });
    }

    // A message of `n` parts from `part` on, with the addresses of `slot`.
    fn message(&mut self, at: usize, part: usize, n: usize, slot: &mut Slot) {
        // SAFETY: zeroes (null pointers, zero lengths) are a valid value of this C structure.
        let header = self.messages[at].write(unsafe { mem::zeroed() });
        let header = &mut header.msg_hdr;
        header.msg_iov = self.parts[part..].as_mut_ptr().cast();
        header.msg_iovlen = fitting(n);
        (header.msg_name, header.msg_namelen) = slot.name.as_raw();
        let (control, control_len) = slot.control.as_raw();
        (header.msg_control, header.msg_controllen) = (control, fitting(control_len));
    }

    fn as_mut_ptr(&mut self) -> *mut libc::mmsghdr {
        self.messages.as_mut_ptr().cast()
    }

    // A message that has been written before.
    fn get(&self, at: usize) -> libc::mmsghdr {
        // SAFETY: callers ask for messages that they have written, as the kernel left them.
        unsafe { self.messages[at].assume_init() }
    }
}

/// What the kernel is asked to tell of each datagram.
#[derive(Clone, Copy)]
enum Asked {
    Everything,
    Payload,
}

fn refuses_to_cut(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP)
    )
}

#[derive(Clone, Copy)]
struct Slot {
    len: usize,
    name: Name,
    control: Control,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::with_slot_bytes(SLOT_BYTES)
    }

    /// An empty batch whose slots have `slot_bytes` each; longer datagrams are cut to it. Slots that lie closer together
    /// than the default's stay in the processor's caches: at 64 KiB apart, all their beginnings compete for one place.
    pub fn with_slot_bytes(slot_bytes: usize) -> Self {
        let slot = Slot {
            len: 0,
            name: Name::none(),
            control: Control::none(),
        };
        Self {
            bytes: vec![0; SLOTS * slot_bytes].into_boxed_slice(),
            slot_bytes,
            slots: Box::new([slot; SLOTS]),
            cuts: true,
        }
    }

    /// Receives into `slots` what the socket has, in order, and says how many. Fewer than asked for means that the
    /// socket has been emptied.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there; an error the socket had pending, such as `ConnectionRefused`.
    pub fn receive(&mut self, socket: impl AsFd, slots: Range<usize>) -> io::Result<usize> {
        self.receive_with(socket, slots, libc::MSG_DONTWAIT, Asked::Everything)
    }

    /// The same from a connected socket, whose datagrams all come from its peer: no addresses are asked for, and one slot
    /// costs a plain `recv`, about half of what a batch of one does.
    ///
    /// # Errors
    /// As [`Batch::receive`].
    pub fn receive_from_peer(
        &mut self,
        socket: impl AsFd,
        slots: Range<usize>,
    ) -> io::Result<usize> {
        if slots.len() != 1 {
            return self.receive_with(socket, slots, libc::MSG_DONTWAIT, Asked::Payload);
        }
        let slot = slots.start;
        self.slots[slot].address_to_peer();
        let fd = socket.as_fd().as_raw_fd();
        let len = recv(fd, self.room(slot), MsgFlags::MSG_DONTWAIT)?;
        self.set_len(slot, len);
        Ok(1)
    }

    /// The same, after waiting for the first of them as long as a blocking socket waits. A socket that is shut down for
    /// reading has an empty datagram from nowhere, again and again.
    ///
    /// # Errors
    /// As [`Batch::receive`]; `WouldBlock` when the socket's time-out is over, `Interrupted` by a signal.
    pub fn wait(&mut self, socket: impl AsFd, slots: Range<usize>) -> io::Result<usize> {
        self.receive_with(socket, slots, libc::MSG_WAITFORONE, Asked::Everything)
    }

    fn receive_with(
        &mut self,
        socket: impl AsFd,
        slots: Range<usize>,
        flags: libc::c_int,
        asked: Asked,
    ) -> io::Result<usize> {
        let fd = socket.as_fd().as_raw_fd();
        let slot_bytes = self.slot_bytes;
        let mut headers = Headers::new();
        let mut n = 0;
        for at in slots.clone() {
            let slot = &mut self.slots[at];
            match asked {
                Asked::Everything => {
                    slot.name.make_room();
                    slot.control.make_room();
                }
                Asked::Payload => slot.address_to_peer(),
            }
            let bytes = &mut self.bytes[at * slot_bytes..(at + 1) * slot_bytes];
            headers.part(n, bytes);
            headers.message(n, n, 1, slot);
            n += 1;
        }
        let wanted = libc::c_uint::try_from(n).unwrap_or(0);
        // SAFETY: the first `n` headers are initialised; what they point to are parts of `headers`, and bytes, names and
        // controls of slots, none of which moves before the call returns.
        let received = unsafe {
            let no_limit = ptr::null_mut();
            libc::recvmmsg(fd, headers.as_mut_ptr(), wanted, fitting(flags), no_limit)
        };
        let Ok(received) = usize::try_from(received) else {
            return Err(io::Error::last_os_error());
        };
        for (at, slot) in self.slots[slots].iter_mut().take(received).enumerate() {
            let header = headers.get(at);
            slot.len = usize::try_from(header.msg_len)
                .unwrap_or(slot_bytes)
                .min(slot_bytes);
            slot.name.filled(header.msg_hdr.msg_namelen);
            slot.control.filled(fitting(header.msg_hdr.msg_controllen));
        }
        Ok(received)
    }

    /// Sends the datagrams in `slots`, in order, each where [`Batch::address_to`] says, or to the peer of a connected
    /// socket after [`Batch::address_to_peer`]. Says how many went out.
    ///
    /// Runs of one size to one place go through the kernel as one message, which it cuts again (`UDP_SEGMENT`).
    ///
    /// # Errors
    /// What the first of them met; an error that comes later shows only by the number.
    pub fn send(&mut self, socket: impl AsFd, slots: Range<usize>) -> io::Result<usize> {
        if slots.len() == 1 && self.slots[slots.start].goes_to_peer() {
            // Most flows send one by one, and the headers of a batch are a tenth of what sending one costs.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            send(socket.as_fd().as_raw_fd(), self.bytes(slots.start), flags)?;
            return Ok(1);
        }
        let runs = if self.cuts {
            Runs::of(&self.slots[..], slots.clone())
        } else {
            Runs::single(slots.clone())
        };
        let first = runs.first();
        match self.send_runs(&socket, slots.start, &runs) {
            // A device that cannot, or a path with a smaller MTU: each by itself it may still go.
            Err(error) if first > 1 && refuses_to_cut(&error) => {
                // EIO: the device does not do checksums, and never will.
                self.cuts &= error.raw_os_error() != Some(libc::EIO);
                let singly = slots.start..slots.start + first;
                self.send_runs(&socket, slots.start, &Runs::single(singly))
            }
            outcome => outcome,
        }
    }

    fn send_runs(&mut self, socket: &impl AsFd, start: usize, runs: &Runs) -> io::Result<usize> {
        let fd = socket.as_fd().as_raw_fd();
        let mut headers = Headers::new();
        let mut slot = start;
        for (index, run) in runs.lengths().enumerate() {
            for at in slot..slot + run {
                let len = self.slots[at].len;
                let bytes = &mut self.bytes[at * self.slot_bytes..at * self.slot_bytes + len];
                headers.part(at - start, bytes);
            }
            let first = &mut self.slots[slot];
            let plain = first.control.len();
            if run > 1 {
                first
                    .control
                    .cut_into(u16::try_from(first.len).unwrap_or(u16::MAX));
            }
            headers.message(index, slot - start, run, first);
            first.control.uncut(plain);
            slot += run;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let n = libc::c_uint::try_from(runs.n).unwrap_or(0);
        // Not by the C library: musl's makes one call of each message.
        // SAFETY: as in `receive`; the lengths are as wide as the kernel reads them, see `fitting`.
        let sent = unsafe { libc::syscall(libc::SYS_sendmmsg, fd, headers.as_mut_ptr(), n, flags) };
        match usize::try_from(sent) {
            Ok(sent) => Ok(runs.lengths().take(sent).sum()),
            Err(_negative) => Err(io::Error::last_os_error()),
        }
    }

    /// How many datagrams the socket had lost for want of room by the time that the one in `slot` was queued, modulo
    /// 2^32; `None` if none so far.
    pub fn lost(&self, slot: usize) -> Option<u32> {
        self.slots[slot].control.lost()
    }

    /// How many bytes the datagram in `slot` has.
    pub fn len(&self, slot: usize) -> usize {
        self.slots[slot].len
    }

    /// The datagram in `slot`.
    pub fn bytes(&self, slot: usize) -> &[u8] {
        let start = slot * self.slot_bytes;
        &self.bytes[start..start + self.slots[slot].len]
    }

    /// All the room of `slot`, to write a datagram into; [`Batch::set_len`] then says how long it is.
    pub fn room(&mut self, slot: usize) -> &mut [u8] {
        let start = slot * self.slot_bytes;
        &mut self.bytes[start..start + self.slot_bytes]
    }

    /// The datagram in `slot` has `len` bytes, at most as many as there is room for. It must be addressed anew: what the
    /// kernel told about the received one is nothing to send.
    pub fn set_len(&mut self, slot: usize, len: usize) {
        self.slots[slot].len = len.min(self.slot_bytes);
    }

    /// Where the datagram in `slot` came from; `None` if it has no IP address.
    pub fn source(&self, slot: usize) -> Option<SocketAddr> {
        self.slots[slot].name.get()
    }

    /// Which local address the datagram in `slot` came to; `None` if the socket does not report it.
    pub fn local(&self, slot: usize) -> Option<LocalAddress> {
        self.slots[slot].control.get()
    }

    /// The datagram in `slot` goes to the peer of a connected socket.
    pub fn address_to_peer(&mut self, slot: usize) {
        self.slots[slot].address_to_peer();
    }

    /// The datagram in `slot` goes to `to`, and leaves from the local address if one is given.
    pub fn address_to(&mut self, slot: usize, to: SocketAddr, from: Option<LocalAddress>) {
        let slot = &mut self.slots[slot];
        slot.name.set(to);
        match from {
            Some(from) => slot.control.set(from),
            None => slot.control.clear(),
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, UdpSocket};
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
    fn a_reply_is_written_where_the_question_lies() {
        let server = receiver("127.0.0.1:0");
        server.set_nonblocking(false).unwrap();
        let client = client("127.0.0.1:0");
        let mut batch = Batch::with_slot_bytes(128);
        for payload in [&b"ping"[..], &[7; 300]] {
            client
                .send_to(payload, server.local_addr().unwrap())
                .unwrap();
        }
        assert_eq!(batch.wait(&server, 0..SLOTS).unwrap(), 2);
        assert_eq!(batch.bytes(0), b"ping");
        assert_eq!(batch.bytes(1), [7; 128], "cut to the slot");
        batch.room(1)[..5].copy_from_slice(b"reply");
        batch.set_len(1, 5);
        batch.address_to(1, client.local_addr().unwrap(), None);
        assert_eq!(batch.send(&server, 1..2).unwrap(), 1);
        let mut buffer = [0; 8];
        assert_eq!(client.recv(&mut buffer).unwrap(), 5);
        assert_eq!(&buffer[..5], b"reply");
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
    fn runs_of_one_size_arrive_as_they_were_in_one_message() {
        let server = receiver("127.0.0.1:0");
        let client = client("127.0.0.1:0");
        // A run with a short end, a lone one, an empty one, one that is too long to be cut, a run again.
        let sizes = [64, 64, 64, 10, 1400, 0, 1401, 1401, 500, 500, 0, 7];
        for (mark, size) in sizes.iter().enumerate() {
            let payload = vec![u8::try_from(mark).unwrap(); *size];
            client
                .send_to(&payload, server.local_addr().unwrap())
                .unwrap();
        }
        let mut batch = Batch::new();
        assert_eq!(batch.receive(&server, 0..SLOTS).unwrap(), sizes.len());
        for slot in 0..sizes.len() {
            batch.address_to(slot, client.local_addr().unwrap(), None);
        }
        let runs = Runs::of(&batch.slots[..], 0..sizes.len());
        assert_eq!(runs.lengths().collect::<Vec<_>>(), [4, 1, 1, 1, 1, 2, 1, 1]);
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
    fn datagrams_to_two_places_are_no_run() {
        let mut batch = Batch::new();
        for (slot, to) in ["127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:2"]
            .iter()
            .enumerate()
        {
            batch.slots[slot].len = 9;
            batch.address_to(slot, to.parse().unwrap(), None);
        }
        let from = LocalAddress {
            ip: "127.0.0.9".parse().unwrap(),
            interface: 0,
        };
        batch.slots[3].len = 9;
        batch.address_to(3, "127.0.0.1:2".parse().unwrap(), Some(from));
        let runs = Runs::of(&batch.slots[..], 0..4);
        assert_eq!(runs.lengths().collect::<Vec<_>>(), [2, 1, 1]);
    }

    #[test]
    fn what_the_kernel_had_no_room_for_is_counted() {
        let server = receiver("127.0.0.1:0");
        socket2::SockRef::from(&server)
            .set_recv_buffer_size(4096)
            .unwrap();
        let client = client("127.0.0.1:0");
        let send = |n| {
            for _ in 0..n {
                client
                    .send_to(&[0; 512], server.local_addr().unwrap())
                    .unwrap();
            }
        };
        send(60);
        let mut batch = Batch::new();
        let kept = batch.receive(&server, 0..SLOTS).unwrap();
        assert!((1..60).contains(&kept), "{kept}");
        assert_eq!(batch.lost(0), None, "nothing was lost before the first");
        send(1);
        assert_eq!(batch.receive(&server, 0..SLOTS).unwrap(), 1);
        assert_eq!(batch.lost(0), u32::try_from(60 - kept).ok());
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
