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

/// What a datagram may hold where the client says nothing (RFC 1035, 4.2.1).
const PLAIN_UDP: u16 = 512;

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
    fit(&queries, &mut message, room);
    let response = response(&queries, &message);
    if let Err(error) = responses.send_response(response).await {
        tracing::debug!(%error, "DNS reply not sent");
    }
}

// The library writes a name in full before it compresses it, so its encoding needs a little more room than ours; and
// where it has to cut, it leaves half a record behind. What does not fit goes here: additional records first, without a
// word, then answers, with TC.
fn fit(queries: &Queries, message: &mut Message, room: u16) {
    while !fits(queries, message, room) {
        if message.additionals.pop().is_some() {
            continue;
        }
        message.metadata.truncation = true;
        if message.answers.pop().is_none() && message.authorities.pop().is_none() {
            return;
        }
    }
}

fn fits(queries: &Queries, message: &Message, room: u16) -> bool {
    let mut octets = Vec::with_capacity(usize::from(room));
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_max_size(room);
    let written = response(queries, message).destructive_emit(&mut encoder);
    let opt = usize::from(message.edns.is_some());
    written.is_ok_and(|info| {
        let counts = info.counts();
        usize::from(counts.answers) == message.answers.len()
            && usize::from(counts.authorities) == message.authorities.len()
            && usize::from(counts.additionals) == message.additionals.len() + opt
    })
}

fn response<'a>(
    queries: &'a Queries,
    message: &'a Message,
) -> MessageResponse<
    'a,
    'a,
    impl Iterator<Item = &'a Record> + Send + 'a,
    impl Iterator<Item = &'a Record> + Send + 'a,
    impl Iterator<Item = &'a Record> + Send + 'a,
    impl Iterator<Item = &'a Record> + Send + 'a,
> {
    MessageResponseBuilder::new(queries, message.edns.as_ref()).build(
        message.metadata,
        &message.answers,
        &message.authorities,
        std::iter::empty(),
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
