//! Between hickory-server and our answers: the library owns the UDP sockets and decodes, `exchange` decides.
//!
//! A question that waits for an upstream gets a task of its own, which shutdown waits for; the library's would be cut.
//! The library sends records, not octets, so a reply is taken apart once more on its way out.

use std::sync::Arc;

use async_trait::async_trait;
use hickory_proto::op::{Header, HeaderCounts, Message, MessageType, Metadata, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncoder};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::{MessageResponse, MessageResponseBuilder, Queries};
use tokio_util::task::TaskTracker;

use super::exchange::{Exchange, Step};
use super::message::Transport;
use super::wire::MAX_UDP;

/// What a datagram may hold where the client says nothing (RFC 1035 section 4.2.1).
const PLAIN_UDP: u16 = 512;

/// Octets of a name (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 255;

/// Answers what hickory-server has received.
#[derive(Debug)]
pub(super) struct Handler {
    exchange: Arc<Exchange>,
    tasks: TaskTracker,
}

impl Handler {
    /// Waiting questions run on `tasks`; the forwarder bounds how many there are.
    pub(super) fn new(exchange: Arc<Exchange>, tasks: TaskTracker) -> Self {
        Self { exchange, tasks }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        responses: R,
    ) -> ResponseInfo {
        // What a datagram may hold; the library takes it from the OPT record of the reply.
        let room = request.edns.as_ref().map_or(PLAIN_UDP, |edns| {
            edns.max_payload().clamp(PLAIN_UDP, MAX_UDP)
        });
        match self
            .exchange
            .begin(request.as_slice(), request.src(), Transport::Udp)
        {
            Step::Reply(reply) => send(&reply, room, responses).await,
            Step::Silence => {}
            Step::Wait(pending) => {
                let finish = self.exchange.clone().finish(pending);
                self.tasks.spawn(async move {
                    match finish.await {
                        Step::Reply(reply) => send(&reply, room, responses).await,
                        Step::Silence | Step::Wait(_) => {}
                    }
                });
            }
        }
        // The library logs this and nothing else; replies are counted where they are made.
        info(request.metadata)
    }
}

async fn send<R: ResponseHandler>(reply: &[u8], room: u16, mut responses: R) {
    let Some((queries, mut message)) = take_apart(reply) else {
        // Only an upstream writes what cannot be read; its records cannot be sent through the library.
        if let Some((queries, metadata)) = take_question(reply) {
            let failure = MessageResponseBuilder::new(&queries, None)
                .error_msg(&metadata, ResponseCode::ServFail);
            if let Err(error) = responses.send_response(failure).await {
                tracing::debug!(%error, "DNS reply not sent");
            }
        }
        return;
    };
    if let Some(edns) = &mut message.edns {
        edns.set_max_payload(room);
    }
    shorten(&queries, &mut message, reply.len(), room);
    if let Err(error) = responses.send_response(response(&queries, &message)).await {
        tracing::debug!(%error, "DNS reply not sent");
    }
}

// Takes off what the library's encoder would not get into `room` octets. It needs more room than the message: it writes
// each owner in full before it finds it elsewhere. And it must not cut by itself: it leaves pieces of the record behind.
fn shorten(queries: &Queries, message: &mut Message, length: usize, room: u16) {
    if length + queries.as_bytes().len() + LONGEST_NAME <= usize::from(room) {
        return;
    }
    while !is_encodable(queries, message, room) {
        if message.additionals.pop().is_some() {
            continue;
        }
        let proofs_wanted = message
            .edns
            .as_ref()
            .is_some_and(|edns| edns.flags().dnssec_ok);
        if !message.answers.is_empty() && message.authorities.pop().is_some() {
            message.metadata.truncation |= proofs_wanted;
            continue;
        }
        message.metadata.truncation = true;
        if message.answers.pop().is_none() && message.authorities.pop().is_none() {
            return;
        }
    }
}

fn is_encodable(queries: &Queries, message: &Message, room: u16) -> bool {
    let mut octets = Vec::with_capacity(usize::from(room));
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_max_size(room);
    let encoded = response(queries, message).destructive_emit(&mut encoder);
    let wanted = message.answers.len()
        + message.authorities.len()
        + message.additionals.len()
        + usize::from(message.edns.is_some());
    encoded.is_ok_and(|info| {
        let counts = info.counts();
        let written = [counts.answers, counts.authorities, counts.additionals];
        written.into_iter().map(usize::from).sum::<usize>() == wanted
    })
}

type Records<'a> = std::slice::Iter<'a, Record>;

fn response<'a>(
    queries: &'a Queries,
    message: &'a Message,
) -> MessageResponse<'a, 'a, Records<'a>, Records<'a>, Records<'a>, Records<'a>> {
    MessageResponseBuilder::new(queries, message.edns.as_ref()).build(
        message.metadata,
        &message.answers,
        &message.authorities,
        &[],
        &message.additionals,
    )
}

fn take_apart(reply: &[u8]) -> Option<(Queries, Message)> {
    let (queries, _) = take_question(reply)?;
    Some((queries, Message::from_vec(reply).ok()?))
}

// The question stays as it was spelled: it is carried over as octets.
fn take_question(reply: &[u8]) -> Option<(Queries, Metadata)> {
    let mut decoder = BinDecoder::new(reply);
    let header = Header::read(&mut decoder).ok()?;
    let queries = Queries::read(&mut decoder, usize::from(header.counts.queries)).ok()?;
    Some((queries, header.metadata))
}

fn info(request: Metadata) -> ResponseInfo {
    let mut metadata = Metadata::new(request.id, MessageType::Response, request.op_code);
    metadata.response_code = ResponseCode::NoError;
    ResponseInfo::from(Header {
        metadata,
        counts: HeaderCounts::default(),
    })
}
