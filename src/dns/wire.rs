//! DNS messages as octets: where their records are, and what may be changed in place. Pure.
//!
//! A relayed message is never interpreted and encoded again, so types nobody here knows pass through unharmed. Names
//! point only backwards, which is why a message may be cut behind any record and stay valid.
//!
//! Source: RFC 1035 section 4; RFC 6891 for the OPT record; RFC 2181 section 9 for what truncation may take.

use std::ops::Range;

use rand::seq::SliceRandom;

/// Octets of the fixed header.
pub(super) const HEADER: usize = 12;

/// What a UDP reply may have without EDNS (RFC 1035 section 2.3.4).
pub(super) const PLAIN_UDP: usize = 512;

/// The largest message over UDP that we send or ask for: it passes every common path unfragmented (DNS flag day 2020).
pub(super) const MAX_UDP: u16 = 1232;

pub(super) const TYPE_A: u16 = 1;
pub(super) const TYPE_SOA: u16 = 6;
pub(super) const TYPE_AAAA: u16 = 28;
pub(super) const TYPE_OPT: u16 = 41;

/// In the third octet of the header: there was more to say.
pub(super) const FLAG_TC: u8 = 0x02;
const FLAG_DO: u16 = 0x8000;

/// The EDNS option of extended errors (RFC 8914), the only one that is relayed: all others are between neighbours.
const OPTION_EXTENDED_ERROR: u16 = 15;

/// A message that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message")]
pub(super) struct Malformed;

/// The section a record is in, in the order of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// Where one record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) section: Section,
    /// The owner name, as it stands there.
    pub(super) owner: Range<usize>,
    pub(super) kind: u16,
    /// Its class: of an OPT record, the size its sender can take.
    pub(super) class: u16,
    /// The four octets of its TTL start here; of an OPT record, they are extended rcode, version and flags.
    pub(super) ttl_at: usize,
    pub(super) data: Range<usize>,
}

/// Where everything in a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The question section: one name, its type and class. Empty if there is no question.
    pub(super) question: Range<usize>,
    pub(super) records: Vec<Span>,
}

/// The EDNS record of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opt {
    /// The upper eight bits of the response code.
    pub(super) extended_rcode: u8,
    /// DNSSEC records are welcome.
    pub(super) dnssec_ok: bool,
    /// Options, as they are sent.
    pub(super) options: Vec<u8>,
}

/// What a message lost to the client's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cut {
    /// Nothing.
    Nothing,
    /// What the client can do without; nobody tells it.
    Extras,
    /// Some of what it asked for: TC is set.
    Needed,
}

/// Finds the parts of `message`. At most one question is accepted; what follows the last record is ignored.
pub(super) fn layout(message: &[u8]) -> Result<Layout, Malformed> {
    let count = |at| read_u16(message, at).map(usize::from);
    let questions = count(4)?;
    let sections = [
        (Section::Answer, count(6)?),
        (Section::Authority, count(8)?),
        (Section::Additional, count(10)?),
    ];
    let mut at = HEADER;
    match questions {
        0 => {}
        1 => at = skip_name(message, at)?.checked_add(4).ok_or(Malformed)?,
        _ => return Err(Malformed),
    }
    if at > message.len() {
        return Err(Malformed);
    }
    let question = HEADER..at;
    let mut records = Vec::new();
    for (section, count) in sections {
        for _ in 0..count {
            let owner = at..skip_name(message, at)?;
            let fixed = owner.end;
            let data_at = fixed + 10;
            let data = data_at..data_at + usize::from(read_u16(message, fixed + 8)?);
            if data.end > message.len() {
                return Err(Malformed);
            }
            at = data.end;
            records.push(Span {
                section,
                owner,
                kind: read_u16(message, fixed)?,
                class: read_u16(message, fixed + 2)?,
                ttl_at: fixed + 4,
                data,
            });
        }
    }
    Ok(Layout { question, records })
}

// The end of the name that starts at `at`. A pointer must lead backwards, so following one always ends.
fn skip_name(message: &[u8], start: usize) -> Result<usize, Malformed> {
    let mut at = start;
    loop {
        let length = *message.get(at).ok_or(Malformed)?;
        match length {
            0 => return Ok(at + 1),
            1..=63 => at += 1 + usize::from(length),
            0xC0.. => {
                let target = usize::from(read_u16(message, at)? & 0x3FFF);
                return if (HEADER..start).contains(&target) {
                    Ok(at + 2)
                } else {
                    Err(Malformed)
                };
            }
            64..=0xBF => return Err(Malformed),
        }
        if at - start > 255 {
            return Err(Malformed);
        }
    }
}

pub(super) fn read_u16(message: &[u8], at: usize) -> Result<u16, Malformed> {
    let octets = at.checked_add(2).and_then(|end| message.get(at..end));
    octets
        .and_then(|octets| octets.try_into().ok())
        .map(u16::from_be_bytes)
        .ok_or(Malformed)
}

pub(super) fn read_u32(message: &[u8], at: usize) -> Result<u32, Malformed> {
    let octets = at.checked_add(4).and_then(|end| message.get(at..end));
    octets
        .and_then(|octets| octets.try_into().ok())
        .map(u32::from_be_bytes)
        .ok_or(Malformed)
}

pub(super) fn write_u16(message: &mut [u8], at: usize, value: u16) {
    message[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Takes the OPT record, and what stands behind it, out of a message and its layout; returns the record's contents.
/// Data behind an OPT record is additional, which a relay may leave out.
pub(super) fn take_opt(message: &mut Vec<u8>, layout: &mut Layout) -> Option<Opt> {
    let index = layout
        .records
        .iter()
        .position(|span| span.kind == TYPE_OPT && span.section == Section::Additional)?;
    let span = &layout.records[index];
    let fields = read_u32(message, span.ttl_at).ok()?.to_be_bytes();
    let opt = Opt {
        extended_rcode: fields[0],
        dnssec_ok: u16::from_be_bytes([fields[2], fields[3]]) & FLAG_DO != 0,
        options: relayed_options(&message[span.data.clone()]),
    };
    message.truncate(span.owner.start);
    layout.records.truncate(index);
    set_counts(message, layout);
    Some(opt)
}

// The options that may be passed on.
fn relayed_options(mut options: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    while let (Ok(code), Ok(length)) = (read_u16(options, 0), read_u16(options, 2)) {
        let end = 4 + usize::from(length);
        let Some(option) = options.get(..end) else {
            break;
        };
        if code == OPTION_EXTENDED_ERROR {
            kept.extend_from_slice(option);
        }
        options = &options[end..];
    }
    kept
}

fn set_counts(message: &mut [u8], layout: &Layout) {
    for (at, section) in [
        (6, Section::Answer),
        (8, Section::Authority),
        (10, Section::Additional),
    ] {
        let count = layout
            .records
            .iter()
            .filter(|span| span.section == section)
            .count();
        // There were never more of them than the sixteen bits of the header could say.
        write_u16(message, at, u16::try_from(count).unwrap_or(u16::MAX));
    }
}

/// Lowers every TTL by `seconds`, to nothing less than zero.
pub(super) fn age(message: &mut [u8], layout: &Layout, seconds: u32) {
    for span in &layout.records {
        if let Ok(ttl) = read_u32(message, span.ttl_at) {
            let left = ttl.saturating_sub(seconds);
            message[span.ttl_at..span.ttl_at + 4].copy_from_slice(&left.to_be_bytes());
        }
    }
}

/// Sets every TTL to `seconds`.
pub(super) fn set_ttls(message: &mut [u8], layout: &Layout, seconds: u32) {
    for span in &layout.records {
        message[span.ttl_at..span.ttl_at + 4].copy_from_slice(&seconds.to_be_bytes());
    }
}

/// Puts the addresses of the answer in a new order, each family on its own. Aliases stay where they are.
pub(super) fn shuffle_addresses(message: &mut [u8], layout: &Layout, rng: &mut impl rand::Rng) {
    for (kind, length) in [(TYPE_A, 4), (TYPE_AAAA, 16)] {
        let of_kind: Vec<&Span> = layout
            .records
            .iter()
            .filter(|span| {
                span.section == Section::Answer && span.kind == kind && span.data.len() == length
            })
            .collect();
        let Some(first) = of_kind.first() else {
            continue;
        };
        let owner = &message[first.owner.clone()];
        let places: Vec<Range<usize>> = of_kind
            .iter()
            .filter(|span| message[span.owner.clone()] == *owner)
            .map(|span| span.data.clone())
            .collect();
        let mut data: Vec<Vec<u8>> = places
            .iter()
            .map(|at| message[at.clone()].to_vec())
            .collect();
        data.shuffle(rng);
        for (at, octets) in places.into_iter().zip(data) {
            message[at].copy_from_slice(&octets);
        }
    }
}

/// Makes `message`, which has no OPT record yet, fit into `limit` octets together with `opt`.
///
/// Additional data goes first, unannounced. Then the authority section of an answer that does not need it. When more
/// must go, TC is set, and as many answers stay as fit: a client without TCP is better off with some addresses than
/// with none. Returns what had to go.
pub(super) fn finish(
    message: &mut Vec<u8>,
    opt: Option<Opt>,
    limit: usize,
) -> Result<Cut, Malformed> {
    let wants_proofs = opt.as_ref().is_some_and(|opt| opt.dnssec_ok);
    let mut tail = opt.as_ref().map(Opt::encode).unwrap_or_default();
    let room = limit.saturating_sub(tail.len());
    let mut cut = Cut::Nothing;
    if message.len() > room {
        let mut layout = layout(message)?;
        let keep;
        (keep, cut) = layout.fitting(room, wants_proofs);
        message.truncate(layout.end_of(keep));
        layout.records.truncate(keep);
        set_counts(message, &layout);
        if cut == Cut::Needed {
            message[2] |= FLAG_TC;
        }
        // Only the text of an extended error can still be too long.
        if let Some(opt) = opt
            && message.len() > room
        {
            tail = Opt {
                options: Vec::new(),
                ..opt
            }
            .encode();
        }
    }
    if !tail.is_empty() {
        message.extend_from_slice(&tail);
        let count = read_u16(message, 10)?;
        write_u16(message, 10, count.saturating_add(1));
    }
    Ok(cut)
}

impl Layout {
    /// Where the last record ends, or the question without any.
    pub(super) fn end(&self) -> usize {
        self.end_of(self.records.len())
    }

    // How many records to keep for the message to end within `room`, and what is lost.
    fn fitting(&self, room: usize, wants_proofs: bool) -> (usize, Cut) {
        let up_to = |section: Section| {
            self.records
                .iter()
                .filter(|span| span.section <= section)
                .count()
        };
        let answers = up_to(Section::Answer);
        let with_authority = up_to(Section::Authority);
        // What is missing is proved by the authority section; what is there speaks for itself, unless in DNSSEC.
        let needed = if answers == 0 || wants_proofs {
            with_authority
        } else {
            answers
        };
        if self.end_of(with_authority) <= room {
            return (with_authority, Cut::Extras);
        }
        let fits = (0..=needed)
            .rev()
            .find(|keep| self.end_of(*keep) <= room)
            .unwrap_or(0);
        let cut = if fits < needed {
            Cut::Needed
        } else {
            Cut::Extras
        };
        (fits, cut)
    }

    // Where the message ends that has only the first `keep` records.
    fn end_of(&self, keep: usize) -> usize {
        match keep.checked_sub(1) {
            Some(last) => self.records[last].data.end,
            None => self.question.end,
        }
    }
}

impl Opt {
    fn encode(&self) -> Vec<u8> {
        let [size_high, size_low] = MAX_UDP.to_be_bytes();
        let dnssec_ok = if self.dnssec_ok { 0x80 } else { 0 };
        let mut octets = vec![
            0,
            0,
            41,
            size_high,
            size_low,
            self.extended_rcode,
            0,
            dnssec_ok,
            0,
        ];
        let length = u16::try_from(self.options.len());
        match length {
            Ok(length) => {
                octets.extend(length.to_be_bytes());
                octets.extend_from_slice(&self.options);
            }
            Err(_) => octets.extend([0, 0]),
        }
        octets
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
