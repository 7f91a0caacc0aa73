//! Single elements of sets and maps in nf_tables: put in and taken out by transactions over a netlink socket that stays open.
//!
//! Tables and sets are there already, and hold no intervals; nothing is listed here. Where a socket is closed after something
//! was taken out, the kernel makes its process wait for a grace period of RCU (`nft_rcv_nl_event`), which is why this one
//! stays. The byte format is that of the kernel's `linux/netfilter/nf_tables.h` and `nfnetlink.h`; numbers are in network
//! order inside attributes, native outside.

use std::fmt;
use std::io;
use std::net::IpAddr;

use nix::sys::socket::SockProtocol;

use super::netlink::{
    ACK, ERROR, IpVersion, REQUEST, Socket, aligned, attribute, error_of, messages, numbered,
};

/// Edits in one transaction, at most: 512 take less than 100 KiB, and a socket sends 208 KiB at once unless it is told
/// otherwise (`net.core.wmem_default`).
pub const MAX_EDITS: usize = 512;

/// One element that comes or goes. Shown as `nft` would be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// What becomes of it.
    pub verb: Verb,
    /// The name of its set or map.
    pub set: &'static str,
    /// Its key, part by part.
    pub key: Vec<Datum>,
    /// What a map has under the key; `None` in a set, and where the element goes.
    pub value: Option<Datum>,
}

/// What becomes of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// It comes. One that is there already is no error, unless the map has something else there.
    Add,
    /// It goes.
    Delete,
}

/// A part of a key, or what a map has under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datum {
    /// `ipv4_addr`, `ipv6_addr`.
    Address(IpAddr),
    /// `inet_proto`, by its number.
    Protocol(u8),
    /// `inet_service`.
    Port(u16),
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.verb {
            Verb::Add => "add",
            Verb::Delete => "delete",
        };
        write!(f, "{verb} element {} {{ ", self.set)?;
        for (place, part) in self.key.iter().enumerate() {
            let separator = if place == 0 { "" } else { " . " };
            write!(f, "{separator}{part}")?;
        }
        if let Some(value) = self.value {
            write!(f, " : {value}")?;
        }
        f.write_str(" }")
    }
}

impl fmt::Display for Datum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Protocol(number) => number.fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

/// Why a transaction was not committed, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The kernel refuses one of its edits, and so does none.
    #[error("{edit}: {source}")]
    Edit {
        /// The first that it refuses.
        edit: Edit,
        /// Why.
        source: io::Error,
    },
    /// It could not be sent, was refused as a whole, or not answered within two seconds.
    #[error("transaction: {0}")]
    Transaction(#[from] io::Error),
    /// More than [`MAX_EDITS`].
    #[error("{0} elements are more than one transaction takes")]
    TooMany(usize),
}

/// A socket to nf_tables, in the network namespace of whoever opened it. After an error it may have answers to what
/// failed still to come, so it is to be dropped.
#[derive(Debug)]
pub struct Transactions(Socket);

impl Transactions {
    /// Opens the socket.
    ///
    /// # Errors
    /// Those of `socket(2)`: a kernel without nfnetlink.
    pub fn open() -> io::Result<Self> {
        Ok(Self(Socket::open(SockProtocol::NetlinkNetFilter)?))
    }

    /// Carries out `edits` of sets of `table`, in their order, all or none. Blocks until the kernel has.
    ///
    /// # Errors
    /// Nothing was changed; after [`CommitError::Transaction`] that is not certain.
    pub fn commit(
        &self,
        version: IpVersion,
        table: &str,
        edits: Vec<Edit>,
    ) -> Result<(), CommitError> {
        if edits.len() > MAX_EDITS {
            return Err(CommitError::TooMany(edits.len()));
        }
        let Some(last) = edits.len().checked_sub(1) else {
            return Ok(());
        };
        self.0.send(&batch(version, table, &edits))?;
        let mut buffer = [0; RECEIVE_BUFFER];
        loop {
            let length = self.0.receive(&mut buffer)?;
            for answer in messages(&buffer[..length]).filter(|answer| answer.kind == ERROR) {
                let place = answer.number.checked_sub(FIRST_EDIT);
                let place = place.and_then(|place| usize::try_from(place).ok());
                match (error_of(answer.body), place) {
                    (None, place) if place == Some(last) => return Ok(()),
                    (None, _) => {}
                    (Some(source), Some(place)) if place <= last => {
                        let edit = edits[place].clone();
                        return Err(CommitError::Edit { edit, source });
                    }
                    (Some(source), _) => return Err(source.into()),
                }
            }
        }
    }
}

/// An answer repeats the request that it is about, which is at most 200 bytes.
const RECEIVE_BUFFER: usize = 4096;

/// The beginning and the end of a transaction have a number of their own, so edits are counted from here.
const FIRST_EDIT: u32 = 1;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 12;
const DELETE_ELEMENT: u16 = SUBSYSTEM << 8 | 14;
const CREATE: u16 = 0x400;

const NESTED: u16 = 0x8000;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;

// The whole transaction. Only the last edit is acknowledged: the kernel answers after it has committed all.
fn batch(version: IpVersion, table: &str, edits: &[Edit]) -> Vec<u8> {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    // `struct nfgenmsg`: no family, version 0, and whose transaction it is.
    let subsystem = [0, 0, high, low];
    let mut batch = numbered(0, BATCH_BEGIN, REQUEST, &subsystem);
    for (number, (edit, left)) in (FIRST_EDIT..).zip(edits.iter().zip((0..edits.len()).rev())) {
        let (kind, create) = match edit.verb {
            Verb::Add => (NEW_ELEMENT, CREATE),
            Verb::Delete => (DELETE_ELEMENT, 0),
        };
        let acknowledge = if left == 0 { ACK } else { 0 };
        let body = element_list(version, table, edit);
        batch.extend(numbered(
            number,
            kind,
            REQUEST | create | acknowledge,
            &body,
        ));
    }
    batch.extend(numbered(0, BATCH_END, REQUEST, &subsystem));
    batch
}

fn element_list(version: IpVersion, table: &str, edit: &Edit) -> Vec<u8> {
    let data = |kind, value: &[u8]| attribute(kind | NESTED, &attribute(DATA_VALUE, value));
    let mut element = data(ELEMENT_KEY, &key_octets(&edit.key));
    if let Some(value) = edit.value {
        element.extend(data(ELEMENT_DATA, &octets(value)));
    }
    let element = attribute(LIST_ELEMENT | NESTED, &element);
    let mut body = vec![version.family(), 0, 0, 0];
    body.extend(attribute(LIST_TABLE, &terminated(table)));
    body.extend(attribute(LIST_SET, &terminated(edit.set)));
    body.extend(attribute(LIST_ELEMENTS | NESTED, &element));
    body
}

// A key of one part is as long as that, of several a whole number of registers each.
fn key_octets(key: &[Datum]) -> Vec<u8> {
    if let [part] = key {
        return octets(*part);
    }
    let mut whole = Vec::new();
    for part in key {
        whole.extend(octets(*part));
        whole.resize(aligned(whole.len()), 0);
    }
    whole
}

fn octets(datum: Datum) -> Vec<u8> {
    match datum {
        Datum::Address(IpAddr::V4(v4)) => v4.octets().to_vec(),
        Datum::Address(IpAddr::V6(v6)) => v6.octets().to_vec(),
        Datum::Protocol(number) => vec![number],
        Datum::Port(port) => port.to_be_bytes().to_vec(),
    }
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(verb: Verb, set: &'static str, key: &[Datum], value: Option<u16>) -> Edit {
        Edit {
            verb,
            set,
            key: key.to_vec(),
            value: value.map(Datum::Port),
        }
    }

    fn address(ip: &str) -> Datum {
        Datum::Address(ip.parse().unwrap())
    }

    fn redirect(ip: &str, protocol: u8, port: u16, to: u16) -> Edit {
        let key = [address(ip), Datum::Protocol(protocol), Datum::Port(port)];
        edit(Verb::Add, "redirects", &key, Some(to))
    }

    // The bytes that nft 1.0.6 sends (`strace -xx nft add element ...`), but for the acknowledgement, and for the number that
    // it gives a set (`NFTA_SET_ELEM_LIST_SET_ID`), which only a set of the same transaction needs.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_transaction_is_what_nft_sends() {
        let edits = [
            redirect("10.96.0.10", 6, 80, 40001),
            edit(Verb::Delete, "cluster_ips", &[address("10.96.0.10")], None),
        ];
        let expected = [
            &b"\x14\0\0\0\x10\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\x0a"[..],
            b"\x58\0\0\0\x0c\x0a\x01\x04\x01\0\0\0\0\0\0\0\x02\0\0\0",
            b"\x0c\0\x01\0viaduct\0\x0e\0\x02\0redirects\0\0\0",
            b"\x28\0\x03\x80\x24\0\x01\x80\x14\0\x01\x80\x10\0\x01\0\x0a\x60\0\x0a\x06\0\0\0\0\x50\0\0",
            b"\x0c\0\x02\x80\x06\0\x01\0\x9c\x41\0\0",
            b"\x44\0\0\0\x0e\x0a\x05\0\x02\0\0\0\0\0\0\0\x02\0\0\0",
            b"\x0c\0\x01\0viaduct\0\x10\0\x02\0cluster_ips\0",
            b"\x14\0\x03\x80\x10\0\x01\x80\x0c\0\x01\x80\x08\0\x01\0\x0a\x60\0\x0a",
            b"\x14\0\0\0\x11\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\x0a",
        ]
        .concat();
        assert_eq!(batch(IpVersion::V4, "viaduct", &edits), expected);
    }

    #[test]
    fn a_key_of_ipv6_takes_six_registers() {
        let of = redirect("fd00::1", 17, 53, 40002);
        let mut expected = vec![0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        expected.extend([17, 0, 0, 0, 0, 53, 0, 0]);
        assert_eq!(key_octets(&of.key), expected);
        assert_eq!(key_octets(&[Datum::Port(40002)]), [0x9c, 0x42]);
    }

    #[test]
    fn an_edit_is_shown_as_nft_would_be_told() {
        assert_eq!(
            redirect("10.96.0.10", 6, 80, 40001).to_string(),
            "add element redirects { 10.96.0.10 . 6 . 80 : 40001 }"
        );
        let gone = edit(Verb::Delete, "guarded", &[Datum::Port(40002)], None);
        assert_eq!(gone.to_string(), "delete element guarded { 40002 }");
    }

    #[test]
    fn the_longest_transaction_fits_into_what_a_socket_sends() {
        let widest = Edit {
            set: "a_name_of_thirty_one_characters",
            ..redirect("fd00:10:96:ffff:ffff:ffff:ffff:ffff", 17, 65535, 65535)
        };
        let whole = batch(IpVersion::V6, "viaduct_tproxy", &vec![widest; MAX_EDITS]);
        assert!(whole.len() < 100 << 10, "{}", whole.len());
    }
}
