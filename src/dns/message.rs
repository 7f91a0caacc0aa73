//! Questions read, replies written. Pure, except that answers are shuffled.
//!
//! Reading narrows a datagram or stream message to one [`Question`], or says what its sender gets instead. Writing
//! makes the reply to that question from local records or from an upstream's message; both end in `wire::finish`,
//! which keeps the client's size. The question is echoed as it was spelled: resolvers that randomise case insist.

use hickory_proto::op::{
    Message, MessageType, Metadata, OpCode, Query, ResponseCode, emit_message_parts,
};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;
use rand::seq::SliceRandom;

use super::records::{End, Local};
use super::wire::{self, HEADER, Layout, MAX_UDP, Malformed, Opt, PLAIN_UDP};

const FLAG_QR: u8 = 0x80;
const FLAG_TC: u8 = 0x02;
const FLAG_RD: u8 = 0x01;
const FLAG_RA: u8 = 0x80;
const FLAG_AD: u8 = 0x20;
const FLAG_CD: u8 = 0x10;
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
    // Wants to know whether an answer was validated (RFC 6840 section 5.7).
    authentic_data: bool,
}

/// What matters of a client's EDNS record.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientEdns {
    pub(super) dnssec_ok: bool,
    payload: u16,
}

/// What becomes of a message that asks nothing answerable.
#[derive(Clone, Debug)]
pub(super) enum Rejected {
    /// Nothing is sent: it is no question, or there is not enough of it to tell.
    Silently,
    /// This reply is sent.
    With(ResponseCode, Vec<u8>),
}

impl Question {
    /// Reads a message that claims to be a question.
    pub(super) fn parse(message: &[u8]) -> Result<Self, Rejected> {
        if message.len() < HEADER || message[2] & FLAG_QR != 0 {
            return Err(Rejected::Silently);
        }
        let bare = |code: ResponseCode| Rejected::With(code, bare_reply(message, code));
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
            }),
            recursion_desired: parsed.metadata.recursion_desired,
            checking_disabled: parsed.metadata.checking_disabled,
            authentic_data: parsed.metadata.authentic_data,
            name: query.name().clone(),
        };
        let refuse = |code| {
            let reply = question.error(code, query.query_class());
            Err(Rejected::With(code, reply))
        };
        if parsed.edns.is_some_and(|edns| edns.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        let transfer = matches!(question.kind, RecordType::AXFR | RecordType::IXFR);
        if query.query_class() != DNSClass::IN || transfer {
            return refuse(ResponseCode::Refused);
        }
        Ok(question)
    }

    /// The same question about another name.
    pub(super) fn about(&self, name: Name) -> Self {
        Self {
            name,
            ..self.clone()
        }
    }

    /// A reply without records.
    pub(super) fn failure(&self, code: ResponseCode) -> Vec<u8> {
        self.error(code, DNSClass::IN)
    }

    /// The reply with an answer of our own, and whether it had to be truncated.
    pub(super) fn local_reply(&self, local: Local, transport: Transport) -> (Reply, bool) {
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

    /// The reply to a question whose aliases of ours lead to what `relayed` answers.
    pub(super) fn chased_reply(
        &self,
        aliases: Vec<Record>,
        relayed: &Relayed,
        age: u32,
        transport: Transport,
    ) -> (Reply, bool) {
        let failed = || {
            let code = ResponseCode::ServFail;
            let reply = Reply {
                code,
                octets: self.failure(code),
            };
            (reply, false)
        };
        let Ok(rest) = relayed
            .aged(age)
            .and_then(|octets| Message::from_vec(&octets).map_err(|_| Malformed))
        else {
            return failed();
        };
        let code = rest.metadata.response_code;
        if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return failed();
        }
        let mut answers = aliases;
        answers.extend(rest.answers);
        let (mut reply, truncated) = self.compose(
            code,
            &answers,
            &rest.authorities,
            &rest.additionals,
            transport,
        );
        if rest.metadata.truncation {
            reply.octets[2] |= FLAG_TC;
        }
        (reply, truncated)
    }

    /// The reply that passes on what an upstream said `age` seconds ago.
    pub(super) fn relayed_reply(
        &self,
        relayed: &Relayed,
        age: u32,
        transport: Transport,
    ) -> Result<(Reply, bool), Malformed> {
        let mut octets = relayed.aged(age)?;
        let wants_authenticated = self.authentic_data || self.dnssec_ok();
        let authentic = octets[3] & FLAG_AD != 0 && wants_authenticated;
        octets[..2].copy_from_slice(&self.id.to_be_bytes());
        octets[2] = FLAG_QR | octets[2] & FLAG_TC | flag(self.recursion_desired, FLAG_RD);
        octets[3] = FLAG_RA
            | flag(authentic, FLAG_AD)
            | flag(self.checking_disabled, FLAG_CD)
            | octets[3] & 0x0F;
        // The same name in the client's spelling: names further down that point here are respelled with it.
        let question = self.encode_question(DNSClass::IN);
        let place = octets
            .get_mut(relayed.layout.question.clone())
            .filter(|place| place.len() == question.len())
            .ok_or(Malformed)?;
        place.copy_from_slice(&question);
        let opt = self.edns.map(|edns| Opt {
            extended_rcode: relayed.opt.extended_rcode,
            dnssec_ok: edns.dnssec_ok,
            options: relayed.opt.options.clone(),
        });
        if opt.is_none() && relayed.opt.extended_rcode != 0 {
            // Half of a response code would be another one.
            octets[3] = octets[3] & 0xF0 | ResponseCode::ServFail.low();
        }
        wire::shuffle_addresses(&mut octets, &relayed.layout, &mut rand::rng());
        let truncated = wire::finish(&mut octets, opt, self.limit(transport))?;
        let code = ResponseCode::from(0, octets[3] & 0x0F);
        Ok((Reply { code, octets }, truncated))
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

    fn limit(&self, transport: Transport) -> usize {
        match (transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => PLAIN_UDP,
            (Transport::Udp, Some(edns)) => PLAIN_UDP.max(usize::from(edns.payload.min(MAX_UDP))),
        }
    }

    fn compose(
        &self,
        code: ResponseCode,
        answers: &[Record],
        authorities: &[Record],
        additionals: &[Record],
        transport: Transport,
    ) -> (Reply, bool) {
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
        // What is too long for any message has been cut by the encoder, which says so in the header.
        let finished = emitted
            .map_err(|_| Malformed)
            .and_then(|_| wire::finish(&mut octets, self.opt(code), self.limit(transport)));
        match finished {
            Ok(truncated) => (Reply { code, octets }, truncated),
            Err(Malformed) => {
                let code = ResponseCode::ServFail;
                let octets = self.failure(code);
                (Reply { code, octets }, false)
            }
        }
    }

    fn opt(&self, code: ResponseCode) -> Option<Opt> {
        self.edns.map(|edns| Opt {
            extended_rcode: code.high(),
            dnssec_ok: edns.dnssec_ok,
            options: Vec::new(),
        })
    }

    fn error(&self, code: ResponseCode, class: DNSClass) -> Vec<u8> {
        let mut octets = Vec::with_capacity(64);
        octets.extend(self.id.to_be_bytes());
        octets.push(FLAG_QR | flag(self.recursion_desired, FLAG_RD));
        octets.push(FLAG_RA | flag(self.checking_disabled, FLAG_CD) | code.low());
        octets.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        octets.extend(self.encode_question(class));
        // A header and one question always fit.
        let _ = wire::finish(&mut octets, self.opt(code), PLAIN_UDP);
        octets
    }
}

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

// The header alone: for messages whose question cannot be told.
fn bare_reply(message: &[u8], code: ResponseCode) -> Vec<u8> {
    let flags = FLAG_QR | message[2] & (OPCODE | FLAG_RD);
    let mut octets = vec![0; HEADER];
    octets[..2].copy_from_slice(&message[..2]);
    octets[2] = flags;
    octets[3] = FLAG_RA | message[3] & FLAG_CD | code.low();
    octets
}

/// A finished reply.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    /// Its response code; of a relayed reply the lower four bits.
    pub(super) code: ResponseCode,
    /// The message.
    pub(super) octets: Vec<u8>,
}

/// What an upstream answered, without its OPT record.
#[derive(Clone, Debug)]
pub(super) struct Relayed {
    octets: Vec<u8>,
    layout: Layout,
    opt: Opt,
}

impl Relayed {
    /// Reads an upstream's reply.
    pub(super) fn read(mut octets: Vec<u8>) -> Result<Self, Malformed> {
        let mut layout = wire::layout(&octets)?;
        let opt = wire::take_opt(&mut octets, &mut layout).unwrap_or(Opt {
            extended_rcode: 0,
            dnssec_ok: false,
            options: Vec::new(),
        });
        // What follows the last record is nobody's.
        let end = layout
            .records
            .last()
            .map_or(layout.question.end, |span| span.data.end);
        octets.truncate(end);
        Ok(Self {
            octets,
            layout,
            opt,
        })
    }

    /// The message.
    pub(super) fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// Where its parts are.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The lower four bits of its response code, if the upper ones are zero.
    pub(super) fn code(&self) -> Option<ResponseCode> {
        (self.opt.extended_rcode == 0).then(|| ResponseCode::from(0, self.octets[3] & 0x0F))
    }

    /// Whether the upstream had more to say.
    pub(super) fn is_truncated(&self) -> bool {
        self.octets[2] & FLAG_TC != 0
    }

    fn aged(&self, seconds: u32) -> Result<Vec<u8>, Malformed> {
        let mut octets = self.octets.clone();
        wire::age(&mut octets, &self.layout, seconds);
        if octets.len() < HEADER {
            Err(Malformed)
        } else {
            Ok(octets)
        }
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
