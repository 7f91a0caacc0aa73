//! The question as nearly all clients ask it, read where it lies. Pure, and without allocating.
//!
//! Only the plain shape is read here: one question of class IN without compression, at most one EDNS record of version
//! 0. Everything else, and everything malformed, is left to `message`, so there is one place that judges it. What the
//! reply to a plain question depends on, besides the table and the cache, is all in its [`Simple::key`] and its limit.

use super::message::{FLAG_CD, FLAG_QR, FLAG_RD};
use super::wire::{HEADER, PLAIN_UDP, TYPE_OPT, read_u16};

/// Octets of the longest name (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 255;

/// The longest key: a name, a type and one octet of flags.
const LONGEST_KEY: usize = LONGEST_NAME + 3;

const FLAG_AD: u8 = 0x20;

// In the last octet of a key, beside RD, AD and CD at the places of the header.
const KEY_EDNS: u8 = 0x40;
const KEY_DO: u8 = 0x80;

/// An option that changes no answer here, and that `dig` always sends (RFC 7873).
const OPTION_COOKIE: u16 = 10;

/// A plain question.
#[derive(Clone, Debug)]
pub(super) struct Simple {
    key: [u8; LONGEST_KEY],
    key_length: usize,
    /// Where the question ends in the message.
    pub(super) end: usize,
    /// The longest reply that the client takes over UDP.
    pub(super) limit: usize,
}

impl Simple {
    /// Nothing read yet.
    pub(super) fn new() -> Self {
        Self {
            key: [0; LONGEST_KEY],
            key_length: 0,
            end: 0,
            limit: 0,
        }
    }

    /// The name in lower case, the type, and the flags that are answered or matter to the answer.
    pub(super) fn key(&self) -> &[u8] {
        &self.key[..self.key_length]
    }

    /// Reads `message`; whether it has the plain shape.
    pub(super) fn read(&mut self, message: &[u8], max_udp: u16) -> bool {
        self.try_read(message, max_udp).is_some()
    }

    fn try_read(&mut self, message: &[u8], max_udp: u16) -> Option<()> {
        let header: &[u8; HEADER] = message.first_chunk()?;
        let [_, _, high, low, 0, 1, 0, 0, 0, 0, 0, n_additional] = *header else {
            return None;
        };
        // Neither a reply, nor another opcode, nor anything that only replies have.
        if high & !FLAG_RD != 0 || low & !(FLAG_AD | FLAG_CD) != 0 {
            return None;
        }
        debug_assert_eq!(high & FLAG_QR, 0);
        let name = name_at(message, HEADER)?;
        let fields = message.get(HEADER + name..HEADER + name + 4)?;
        let [kind_high, kind_low, 0, 1] = *fields else {
            return None;
        };
        self.end = HEADER + name + 4;
        let mut flags = high & FLAG_RD | low;
        self.limit = PLAIN_UDP;
        match n_additional {
            0 if message.len() == self.end => {}
            1 => {
                let (payload, dnssec_ok) = edns(message.get(self.end..)?)?;
                self.limit = PLAIN_UDP.max(usize::from(payload.min(max_udp)));
                flags |= KEY_EDNS | if dnssec_ok { KEY_DO } else { 0 };
            }
            _ => return None,
        }
        let key = &mut self.key[..name + 3];
        key[..name].copy_from_slice(&message[HEADER..HEADER + name]);
        // Lengths of labels are below every letter.
        key[..name].make_ascii_lowercase();
        key[name..].copy_from_slice(&[kind_high, kind_low, flags]);
        self.key_length = name + 3;
        Some(())
    }
}

// How many octets the uncompressed name at `start` has.
fn name_at(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1 + length;
        if length == 0 {
            break;
        }
        if length > 63 {
            return None;
        }
    }
    (at - start <= LONGEST_NAME).then_some(at - start)
}

// The payload size and the DO flag of an OPT record that is all of `record`.
fn edns(record: &[u8]) -> Option<(u16, bool)> {
    let (fixed, mut options) = record.split_first_chunk::<11>()?;
    let [
        0,
        kind_high,
        kind_low,
        size_high,
        size_low,
        0,
        0,
        flags,
        0,
        length_high,
        length_low,
    ] = *fixed
    else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    if u16::from_be_bytes([kind_high, kind_low]) != TYPE_OPT
        || flags & 0x7F != 0
        || options.len() != length
    {
        return None;
    }
    while !options.is_empty() {
        let length = usize::from(read_u16(options, 2).ok()?);
        if read_u16(options, 0) != Ok(OPTION_COOKIE) {
            return None;
        }
        options = options.get(4 + length..)?;
    }
    Some((u16::from_be_bytes([size_high, size_low]), flags & 0x80 != 0))
}

#[cfg(test)]
mod tests {
    use super::super::wire::MAX_UDP;
    use super::*;

    fn read(message: &[u8]) -> Option<(Vec<u8>, usize, usize)> {
        let mut simple = Simple::new();
        simple
            .read(message, MAX_UDP)
            .then(|| (simple.key().to_vec(), simple.end, simple.limit))
    }

    fn question(flags: [u8; 2], additional: &[u8]) -> Vec<u8> {
        let n = u8::from(!additional.is_empty());
        let mut message = vec![0xAB, 0xCD, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, n];
        message.extend_from_slice(b"\x03WwW\x02nS\x00\x00\x1c\x00\x01");
        message.extend_from_slice(additional);
        message
    }

    const OPT: [u8; 11] = [0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 0];

    #[test]
    fn a_plain_question_becomes_its_key() {
        let (key, end, limit) = read(&question([1, 0x30], &[])).unwrap();
        assert_eq!(key, b"\x03www\x02ns\x00\x00\x1c\x31");
        assert_eq!((end, limit), (24, 512));
        let (key, end, limit) = read(&question([1, 0], &OPT)).unwrap();
        assert_eq!(key, b"\x03www\x02ns\x00\x00\x1c\xc1");
        assert_eq!((end, limit), (24, 1232), "capped");
        let mut small = OPT;
        small[3..5].copy_from_slice(&[0, 100]);
        assert_eq!(read(&question([0, 0], &small)).unwrap().2, 512, "raised");
        let mut cookie = OPT.to_vec();
        cookie[10] = 12;
        cookie.extend([0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(read(&question([1, 0], &cookie)).is_some());
    }

    #[test]
    fn everything_else_is_left_to_others() {
        let plain = question([1, 0], &[]);
        assert!(read(&plain).is_some());
        for cut in 0..plain.len() {
            assert_eq!(read(&plain[..cut]), None, "{cut} octets");
        }
        let with = |at: usize, value: u8| {
            let mut message = plain.clone();
            message[at] = value;
            message
        };
        // A reply, another opcode, TC, RA, Z, a code, counts, class CH, a pointer, a long label.
        for (at, value) in [
            (2, 0x81),
            (2, 0x29),
            (2, 0x03),
            (3, 0x80),
            (3, 0x40),
            (3, 0x01),
            (5, 2),
            (7, 1),
            (9, 1),
            (11, 1),
            (23, 3),
            (12, 0xC0),
            (12, 64),
        ] {
            assert_eq!(read(&with(at, value)), None, "octet {at} = {value}");
        }
        let mut trailing = plain.clone();
        trailing.push(0);
        assert_eq!(read(&trailing), None);
        for (at, value) in [(0, 1), (2, 40), (5, 1), (6, 1), (7, 0x40), (8, 1), (10, 1)] {
            let mut opt = OPT;
            opt[at] = value;
            assert_eq!(
                read(&question([1, 0], &opt)),
                None,
                "OPT octet {at} = {value}"
            );
        }
        let mut subnet = OPT.to_vec();
        subnet[10] = 4;
        subnet.extend([0, 8, 0, 0]);
        assert_eq!(read(&question([1, 0], &subnet)), None);
    }

    #[test]
    fn names_end_at_255_octets() {
        for (last, expected) in [(61, true), (62, false)] {
            let mut message = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for length in [63, 63, 63, last] {
                message.push(length);
                message.extend(vec![b'a'; usize::from(length)]);
            }
            message.extend([0, 0, 1, 0, 1]);
            assert_eq!(read(&message).is_some(), expected);
        }
    }
}
