//! Questions read, replies of our own written. Pure, except that answers are shuffled.
//!
//! Reading narrows a datagram or stream message to one [`Question`], or says what its sender gets instead. Every reply
//! ends in `wire::finish`, which keeps the client's size. The question is echoed as it was spelled: resolvers that
//! randomise case insist. Replies that pass on an upstream's message are made in `relayed`.

use hickory_proto::op::{
    Message, MessageType, Metadata, OpCode, Query, ResponseCode, emit_message_parts,
};
use hickory_proto::rr::rdata::opt::EdnsCode;
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;
use rand::seq::SliceRandom;

use super::Identity;
use super::records::{End, Local};
use super::wire::{self, Cut, HEADER, Malformed, Opt, PLAIN_UDP};

// Of the third octet of the header, and of the fourth.
pub(super) const FLAG_QR: u8 = 0x80;
pub(super) const FLAG_RD: u8 = 0x01;
pub(super) const FLAG_RA: u8 = 0x80;
pub(super) const FLAG_CD: u8 = 0x10;
const OPCODE: u8 = 0x78;

/// How a question came, which decides how long the reply may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    /// As the metrics label it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// One question of a client, class IN.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The client's message id.
    pub(super) id: u16,
    /// The name, as the client spells it.
    pub(super) name: Name,
    /// The type.
    pub(super) kind: RecordType,
    /// What the client's EDNS record says, if it sent one.
    pub(super) edns: Option<ClientEdns>,
    pub(super) recursion_desired: bool,
    pub(super) checking_disabled: bool,
    /// The longest reply over UDP, whatever the client takes.
    pub(super) max_udp: u16,
    /// Who answers, for a client that asks.
    pub(super) identity: Option<Identity>,
    /// Wants to know whether an answer was validated (RFC 6840 section 5.7).
    pub(super) authentic_data: bool,
}

/// What matters of a client's EDNS record.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientEdns {
    pub(super) dnssec_ok: bool,
    payload: u16,
    // Wants to know which server answers (RFC 5001).
    asks_who: bool,
}

/// What becomes of a message that asks nothing answerable.
#[derive(Clone, Debug)]
pub(super) enum Rejected {
    /// Nothing is sent: it is no question, or there is not enough of it to tell.
    Silently,
    /// This reply is sent.
    With(Reply),
}

/// A finished reply.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    /// Its response code; of a relayed reply the lower four bits.
    pub(super) code: ResponseCode,
    /// The message.
    pub(super) octets: Vec<u8>,
    /// What had to be left out of it here.
    pub(super) cut: Cut,
}

impl Question {
    /// Reads a message that claims to be a question. Replies over UDP have at most `max_udp` octets.
    pub(super) fn parse(message: &[u8], max_udp: u16) -> Result<Self, Rejected> {
        if message.len() < HEADER || message[2] & FLAG_QR != 0 {
            return Err(Rejected::Silently);
        }
        let bare = |code: ResponseCode| Rejected::With(bare_reply(message, code));
        if message[2] & OPCODE != 0 {
            return Err(bare(ResponseCode::NotImp));
        }
        if message[4..6] != [0, 1] {
            return Err(bare(ResponseCode::FormErr));
        }
        let mut parsed = Message::from_vec(message).map_err(|_| bare(ResponseCode::FormErr))?;
        let query = parsed
            .queries
            .pop()
            .ok_or_else(|| bare(ResponseCode::FormErr))?;
        let question = Self {
            id: parsed.metadata.id,
            kind: query.query_type(),
            edns: parsed.edns.as_ref().map(|edns| ClientEdns {
                dnssec_ok: edns.flags().dnssec_ok,
                payload: edns.max_payload(),
                asks_who: edns.options().get(EdnsCode::NSID).is_some(),
            }),
            identity: None,
            recursion_desired: parsed.metadata.recursion_desired,
            checking_disabled: parsed.metadata.checking_disabled,
            authentic_data: parsed.metadata.authentic_data,
            max_udp,
            name: query.name().clone(),
        };
        let refuse = |code| Err(Rejected::With(question.error(code, query.query_class())));
        if parsed.edns.is_some_and(|edns| edns.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        let transfer = matches!(question.kind, RecordType::AXFR | RecordType::IXFR);
        if query.query_class() != DNSClass::IN || transfer {
            return refuse(ResponseCode::Refused);
        }
        Ok(question)
    }

    /// Tells the client which server answers, if it asks.
    pub(super) fn answered_by(mut self, identity: Identity) -> Self {
        self.identity = Some(identity).filter(|_| self.edns.is_some_and(|edns| edns.asks_who));
        self
    }

    /// The option with which server answers; nothing for most clients.
    pub(super) fn identity_option(&self) -> Vec<u8> {
        let Some(Identity(octets)) = self.identity else {
            return Vec::new();
        };
        let mut option = u16::from(EdnsCode::NSID).to_be_bytes().to_vec();
        option.extend([0, 8]);
        option.extend(octets);
        option
    }

    /// The same question about another name.
    pub(super) fn about(&self, name: Name) -> Self {
        Self {
            name,
            ..self.clone()
        }
    }

    /// A reply without records.
    pub(super) fn failure(&self, code: ResponseCode) -> Reply {
        self.error(code, DNSClass::IN)
    }

    /// The reply with an answer of our own.
    pub(super) fn local_reply(&self, local: Local, transport: Transport) -> Reply {
        let Local { aliases, end } = local;
        let mut authorities = Vec::new();
        let mut additionals = Vec::new();
        let mut answers = aliases;
        let code = match end {
            End::Records {
                answers: mut last,
                additionals: extra,
            } => {
                last.shuffle(&mut rand::rng());
                answers.append(&mut last);
                additionals = extra;
                ResponseCode::NoError
            }
            End::NoData(soa) => {
                authorities.push(soa);
                ResponseCode::NoError
            }
            End::NxDomain(soa) => {
                authorities.push(soa);
                ResponseCode::NXDomain
            }
            // Whoever could have followed the alias has failed to.
            End::Unsynced | End::Outside(_) => {
                answers.clear();
                ResponseCode::ServFail
            }
        };
        self.compose(code, &answers, &authorities, &additionals, transport)
    }

    /// The question section, as it is sent.
    pub(super) fn encode_question(&self, class: DNSClass) -> Vec<u8> {
        let mut octets = Vec::with_capacity(64);
        for label in self.name.iter() {
            // Labels were read from a message, so none is longer than 63 octets.
            octets.push(u8::try_from(label.len()).unwrap_or(0));
            octets.extend_from_slice(label);
        }
        octets.push(0);
        octets.extend(u16::from(self.kind).to_be_bytes());
        octets.extend(u16::from(class).to_be_bytes());
        octets
    }

    /// Whether DNSSEC records are welcome.
    pub(super) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The longest reply that the client takes.
    pub(super) fn limit(&self, transport: Transport) -> usize {
        match (transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => PLAIN_UDP,
            (Transport::Udp, Some(edns)) => {
                PLAIN_UDP.max(usize::from(edns.payload.min(self.max_udp)))
            }
        }
    }

    /// Encodes a reply of ours, cut to the client's size.
    pub(super) fn compose(
        &self,
        code: ResponseCode,
        answers: &[Record],
        authorities: &[Record],
        additionals: &[Record],
        transport: Transport,
    ) -> Reply {
        let mut metadata = Metadata::new(self.id, MessageType::Response, OpCode::Query);
        metadata.authoritative = true;
        metadata.recursion_desired = self.recursion_desired;
        metadata.recursion_available = true;
        metadata.checking_disabled = self.checking_disabled;
        metadata.response_code = code;
        let mut octets = Vec::with_capacity(PLAIN_UDP);
        let mut encoder = BinEncoder::new(&mut octets);
        let query = Query::query(self.name.clone(), self.kind);
        let emitted = emit_message_parts(
            &metadata,
            &mut [query].iter(),
            &mut answers.iter(),
            &mut authorities.iter(),
            &mut additionals.iter(),
            None,
            None,
            &mut encoder,
        );
        let limit = self.limit(transport);
        let finished = emitted.map_err(|_| Malformed).and_then(|header| {
            // What is too long for any message is cut by the encoder, which leaves a piece of the next record behind.
            if header.metadata.truncation {
                octets.truncate(wire::layout(&octets)?.end());
            }
            wire::finish(&mut octets, self.opt(code), limit)
        });
        match finished {
            Ok(cut) => Reply { code, octets, cut },
            Err(Malformed) => self.failure(ResponseCode::ServFail),
        }
    }

    fn opt(&self, code: ResponseCode) -> Option<Opt> {
        self.edns.map(|edns| Opt {
            extended_rcode: code.high(),
            dnssec_ok: edns.dnssec_ok,
            options: self.identity_option(),
        })
    }

    fn error(&self, code: ResponseCode, class: DNSClass) -> Reply {
        let mut octets = Vec::with_capacity(64);
        octets.extend(self.id.to_be_bytes());
        octets.push(FLAG_QR | flag(self.recursion_desired, FLAG_RD));
        octets.push(FLAG_RA | flag(self.checking_disabled, FLAG_CD) | code.low());
        octets.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        octets.extend(self.encode_question(class));
        // A header and one question always fit.
        let cut = wire::finish(&mut octets, self.opt(code), PLAIN_UDP).unwrap_or(Cut::Nothing);
        Reply { code, octets, cut }
    }
}

/// `bit`, if it is to be set.
pub(super) fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

/// The header alone, for messages whose question cannot be told. `message` has a header.
pub(super) fn bare_reply(message: &[u8], code: ResponseCode) -> Reply {
    let flags = FLAG_QR | message[2] & (OPCODE | FLAG_RD);
    let mut octets = vec![0; HEADER];
    octets[..2].copy_from_slice(&message[..2]);
    octets[2] = flags;
    octets[3] = FLAG_RA | message[3] & FLAG_CD | code.low();
    Reply {
        code,
        octets,
        cut: Cut::Nothing,
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
