//! What upstreams say, and how it reaches a client. Pure, except that addresses are shuffled.
//!
//! A relayed message stays octets: id, flags, question, TTLs and the OPT record are replaced in place, everything else
//! passes as it came. Only behind an alias of ours is it decoded, since its records then follow others.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Record};

use super::message::{FLAG_CD, FLAG_QR, FLAG_RA, FLAG_RD, Question, Reply, Transport, flag};
use super::wire::{self, FLAG_TC, Layout, Malformed, Opt, Span, TYPE_A, TYPE_AAAA};

const FLAG_AD: u8 = 0x20;
const RCODE: u8 = 0x0F;

/// How old an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// It came that many seconds ago, and lives.
    Seconds(u32),
    /// Its time is over, and nobody has a newer one.
    Stale,
}

/// For how long a client may keep an answer whose time is over (RFC 8767 section 5).
const STALE_TTL: u32 = 30;

/// What an upstream answered, without its OPT record. Never shorter than a header.
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
        // An address of another length would pass for a whole one where lengths are not looked at.
        let is_sound = |span: &Span| match span.kind {
            TYPE_A => span.data.len() == 4,
            TYPE_AAAA => span.data.len() == 16,
            _ => true,
        };
        if !layout.records.iter().all(is_sound) {
            return Err(Malformed);
        }
        // What follows the last record is nobody's.
        octets.truncate(layout.end());
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
        (self.opt.extended_rcode == 0).then(|| ResponseCode::from(0, self.octets[3] & RCODE))
    }

    /// Whether it answers the question, if only by saying that there is nothing.
    pub(super) fn is_conclusive(&self) -> bool {
        matches!(
            self.code(),
            Some(ResponseCode::NoError | ResponseCode::NXDomain)
        )
    }

    /// Whether the upstream had more to say.
    pub(super) fn is_truncated(&self) -> bool {
        self.octets[2] & FLAG_TC != 0
    }

    // The message at that age, its addresses in another order.
    fn copy(&self, age: Age) -> Vec<u8> {
        let mut octets = self.octets.clone();
        match age {
            Age::Seconds(seconds) => wire::age(&mut octets, &self.layout, seconds),
            Age::Stale => wire::set_ttls(&mut octets, &self.layout, STALE_TTL),
        }
        wire::shuffle_addresses(&mut octets, &self.layout, &mut rand::rng());
        octets
    }
}

impl Question {
    /// The reply that passes on what an upstream said, at that age.
    pub(super) fn relayed_reply(
        &self,
        relayed: &Relayed,
        age: Age,
        transport: Transport,
    ) -> Result<Reply, Malformed> {
        let mut octets = relayed.copy(age);
        let wants_authenticated = self.authentic_data || self.dnssec_ok();
        let authentic = octets[3] & FLAG_AD != 0 && wants_authenticated;
        octets[..2].copy_from_slice(&self.id.to_be_bytes());
        octets[2] = FLAG_QR | octets[2] & FLAG_TC | flag(self.recursion_desired, FLAG_RD);
        octets[3] = FLAG_RA
            | flag(authentic, FLAG_AD)
            | flag(self.checking_disabled, FLAG_CD)
            | octets[3] & RCODE;
        // The same name in the client's spelling: names further down that point here are respelled with it.
        let question = self.encode_question(DNSClass::IN);
        let place = octets
            .get_mut(relayed.layout.question.clone())
            .filter(|place| place.len() == question.len())
            .ok_or(Malformed)?;
        place.copy_from_slice(&question);
        let opt = self.edns.map(|edns| Opt {
            dnssec_ok: edns.dnssec_ok,
            options: [&*self.identity_option(), &relayed.opt.options].concat(),
            ..relayed.opt.clone()
        });
        if opt.is_none() && relayed.opt.extended_rcode != 0 {
            // Half of a response code would be another one.
            octets[3] = octets[3] & !RCODE | ResponseCode::ServFail.low();
        }
        let cut = wire::finish(&mut octets, opt, self.limit(transport))?;
        Ok(Reply {
            code: ResponseCode::from(0, octets[3] & RCODE),
            octets,
            cut,
        })
    }

    /// The reply to a question whose aliases of ours lead to what `relayed` answers.
    pub(super) fn chased_reply(
        &self,
        aliases: Vec<Record>,
        relayed: &Relayed,
        age: Age,
        transport: Transport,
    ) -> Result<Reply, Malformed> {
        let rest = Message::from_vec(&relayed.copy(age)).map_err(|_| Malformed)?;
        let code = rest.metadata.response_code;
        if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return Ok(self.failure(ResponseCode::ServFail));
        }
        let mut answers = aliases;
        answers.extend(rest.answers);
        let mut reply = self.compose(
            code,
            &answers,
            &rest.authorities,
            &rest.additionals,
            transport,
        );
        if rest.metadata.truncation {
            reply.octets[2] |= FLAG_TC;
        }
        Ok(reply)
    }
}
