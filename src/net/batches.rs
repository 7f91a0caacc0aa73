//! Batches of datagrams: up to [`SLOTS`] received or sent by one system call (`recvmmsg`, `sendmmsg`), with the address
//! each one came to or leaves from.
//!
//! A batch is an arena of slots, large enough for any datagram unless its owner wants less; a slot is filled by
//! [`Batch::receive`] and sent from where it lies, as it came or written anew. What the kernel has gathered into one
//! message is told apart again, so a slot is always one datagram. The caller says which socket and which slots.
#![allow(
    unsafe_code,
    reason = "recvmmsg and sendmmsg over one arena, without allocating"
)]

mod runs;

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use nix::libc;
use nix::sys::socket::{MsgFlags, recv, send};

use super::message_addresses::{Control, LocalAddress, Name, fitting};
use runs::Runs;

/// Messages per batch, and datagrams as long as the kernel gathers none.
pub const SLOTS: usize = 64;

/// Room for each: more than the largest UDP payload (65,507 over IPv4, 65,527 over IPv6).
const SLOT_BYTES: usize = 64 * 1024;

/// Slots for datagrams. 4 MiB of address space, of which only the pages that datagrams touched are ever backed.
pub struct Batch {
    bytes: Box<[u8]>,
    slot_bytes: usize,
    // As many as there is room for datagrams of full size; more once gathered ones were told apart, which lie in the
    // room of one. The kernel gathers at most 128 (`UDP_MAX_SEGMENTS`), so there are below 8,256, a mebibyte.
    slots: Vec<Slot>,
    // The kernel may be asked to cut long messages into datagrams.
    cuts: bool,
}

/// What one call has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// How many messages. Fewer than there were slots for means that the socket has been emptied.
    pub messages: usize,
    /// How many slots are filled, from the first one given: more than messages if the kernel has gathered some, and
    /// then maybe more than were given.
    pub datagrams: usize,
}

#[derive(Clone, Copy)]
struct Slot {
    // Where in the arena.
    start: usize,
    len: usize,
    name: Name,
    control: Control,
}

impl Slot {
    // An empty one, with room from there on.
    fn at(start: usize) -> Self {
        Self {
            start,
            len: 0,
            name: Name::none(),
            control: Control::none(),
        }
    }

    // The size of all but the last of those that it has been gathered from, if it has.
    fn gathered(&self) -> Option<usize> {
        self.control.gathered().filter(|size| *size < self.len)
    }

    fn datagrams(&self) -> usize {
        self.gathered().map_or(1, |size| self.len.div_ceil(size))
    }

    // One of those.
    fn datagram(&self, index: usize) -> Self {
        let size = self.gathered().unwrap_or(self.len);
        let offset = index * size;
        Self {
            start: self.start + offset,
            len: size.min(self.len - offset),
            ..*self
        }
    }

    fn lies_behind(&self, before: &Self) -> bool {
        self.start == before.start + before.len
    }

    fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

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
    Sizes,
    Payload,
}

fn refuses_to_cut(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP)
    )
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::with_slot_bytes(SLOT_BYTES)
    }

    /// An empty batch whose slots have `slot_bytes` each; longer datagrams are cut to it. Slots that lie closer together
    /// than the default's stay in the processor's caches: at 64 KiB apart, all their beginnings compete for one place.
    pub fn with_slot_bytes(slot_bytes: usize) -> Self {
        Self {
            bytes: vec![0; SLOTS * slot_bytes].into_boxed_slice(),
            slot_bytes,
            slots: (0..SLOTS).map(|at| Slot::at(at * slot_bytes)).collect(),
            cuts: true,
        }
    }

    /// Receives into `slots`, all below [`SLOTS`], what the socket has, in order.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there; an error the socket had pending, such as `ConnectionRefused`.
    pub fn receive(&mut self, socket: impl AsFd, slots: Range<usize>) -> io::Result<Received> {
        self.receive_with(socket, slots, libc::MSG_DONTWAIT, Asked::Everything)
    }

    /// The same from a connected socket, whose datagrams all come from its peer: no addresses are asked for, and one slot
    /// costs a plain `recv`, about half of what a batch of one does. The kernel must not gather datagrams of this socket.
    ///
    /// # Errors
    /// As [`Batch::receive`].
    pub fn receive_from_peer(
        &mut self,
        socket: impl AsFd,
        slots: Range<usize>,
    ) -> io::Result<Received> {
        if slots.len() != 1 {
            return self.receive_with(socket, slots, libc::MSG_DONTWAIT, Asked::Payload);
        }
        let slot = slots.start;
        self.slots[slot].start = slot * self.slot_bytes;
        self.slots[slot].address_to_peer();
        let fd = socket.as_fd().as_raw_fd();
        let len = recv(fd, self.room(slot), MsgFlags::MSG_DONTWAIT)?;
        self.set_len(slot, len);
        Ok(Received {
            messages: 1,
            datagrams: 1,
        })
    }

    /// The same from a connected socket whose datagrams the kernel gathers.
    ///
    /// # Errors
    /// As [`Batch::receive`].
    pub fn receive_gathered_from_peer(
        &mut self,
        socket: impl AsFd,
        slots: Range<usize>,
    ) -> io::Result<Received> {
        self.receive_with(socket, slots, libc::MSG_DONTWAIT, Asked::Sizes)
    }

    /// The same, after waiting for the first of them as long as a blocking socket waits. A socket that is shut down for
    /// reading has an empty datagram from nowhere, again and again.
    ///
    /// # Errors
    /// As [`Batch::receive`]; `WouldBlock` when the socket's time-out is over, `Interrupted` by a signal.
    pub fn wait(&mut self, socket: impl AsFd, slots: Range<usize>) -> io::Result<Received> {
        self.receive_with(socket, slots, libc::MSG_WAITFORONE, Asked::Everything)
    }

    fn receive_with(
        &mut self,
        socket: impl AsFd,
        slots: Range<usize>,
        flags: libc::c_int,
        asked: Asked,
    ) -> io::Result<Received> {
        let fd = socket.as_fd().as_raw_fd();
        let slot_bytes = self.slot_bytes;
        let mut headers = Headers::new();
        let mut n = 0;
        for at in slots.clone() {
            let slot = &mut self.slots[at];
            slot.start = at * slot_bytes;
            slot.address_to_peer();
            match asked {
                Asked::Everything => {
                    slot.name.make_room();
                    slot.control.make_room();
                }
                Asked::Sizes => slot.control.make_room(),
                Asked::Payload => {}
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
        let first = slots.start;
        for (at, slot) in self.slots[slots].iter_mut().take(received).enumerate() {
            let header = headers.get(at);
            slot.len = usize::try_from(header.msg_len)
                .unwrap_or(slot_bytes)
                .min(slot_bytes);
            slot.name.filled(header.msg_hdr.msg_namelen);
            slot.control.filled(fitting(header.msg_hdr.msg_controllen));
        }
        Ok(Received {
            messages: received,
            datagrams: self.tell_apart(first, received),
        })
    }

    // Gives a slot to each datagram of the messages in slots from `first` on, and says how many these are.
    fn tell_apart(&mut self, first: usize, messages: usize) -> usize {
        let received = &self.slots[first..first + messages];
        let datagrams = received.iter().map(Slot::datagrams).sum();
        if datagrams == messages {
            return messages;
        }
        let mut end = first + datagrams;
        if end > self.slots.len() {
            self.slots.resize(end, Slot::at(0));
        }
        // From the last one on: each goes behind where it was, or stays.
        for at in (first..first + messages).rev() {
            let message = self.slots[at];
            for index in (0..message.datagrams()).rev() {
                end -= 1;
                self.slots[end] = message.datagram(index);
            }
        }
        datagrams
    }

    /// Sends the datagrams in `slots`, in order, each where [`Batch::address_to`] says, or to the peer of a connected
    /// socket after [`Batch::address_to_peer`]. Says how many went out, which may be less than all.
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
            Runs::of(&self.slots, slots.clone())
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
        let (mut slot, mut parts) = (start, 0);
        for (index, run) in runs.lengths().enumerate() {
            let first_part = parts;
            for together in self.slots[slot..slot + run].chunk_by(|one, next| next.lies_behind(one))
            {
                let len = together.iter().map(|slot| slot.len).sum::<usize>();
                let begin = together[0].start;
                headers.part(parts, &mut self.bytes[begin..begin + len]);
                parts += 1;
            }
            let first = &mut self.slots[slot];
            let plain = first.control.len();
            if run > 1 {
                first
                    .control
                    .cut_into(u16::try_from(first.len).unwrap_or(u16::MAX));
            }
            headers.message(index, first_part, parts - first_part, first);
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
        &self.bytes[self.slots[slot].range()]
    }

    /// All the room of `slot`, to write a datagram into; [`Batch::set_len`] then says how long it is. Datagrams that were
    /// gathered with this one lie in it too.
    pub fn room(&mut self, slot: usize) -> &mut [u8] {
        let room = self.room_of(slot);
        &mut self.bytes[room]
    }

    fn room_of(&self, slot: usize) -> Range<usize> {
        let start = self.slots[slot].start;
        start..(start / self.slot_bytes + 1) * self.slot_bytes
    }

    /// The datagram in `slot` has `len` bytes, at most as many as there is room for. It must be addressed anew: what the
    /// kernel told about the received one is nothing to send.
    pub fn set_len(&mut self, slot: usize, len: usize) {
        self.slots[slot].len = len.min(self.room_of(slot).len());
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
mod tests;
