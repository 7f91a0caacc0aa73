//! DNS questions over UDP: one name again and again, each time with an id of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;

use super::client::{Answer, failure_of};
use super::tally::Failure;
use super::udp::flow;

/// Bytes of an answer over UDP without EDNS, and some more.
const MAX_ANSWER: usize = 4096;

/// A text that makes no question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuestion {
    /// No domain name.
    #[error("{0:?} is no domain name: {1}")]
    Name(String, String),
    /// No record type.
    #[error("{0:?} is no record type; A, AAAA, SRV and PTR are")]
    Type(String),
}

impl InvalidQuestion {
    /// The flag that is to blame.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::Name(..) => "name",
            Self::Type(_) => "type",
        }
    }
}

/// Questions over DNS, all the same but for their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsWork {
    target: SocketAddr,
    question: Arc<[u8]>,
}

impl DnsWork {
    /// Asks the server at `target` for a name, which is taken as complete, and a record type as `A`.
    ///
    /// # Errors
    ///
    /// Either of them is none.
    pub fn new(target: SocketAddr, name: &str, record_type: &str) -> Result<Self, InvalidQuestion> {
        let bad_name = |error: String| InvalidQuestion::Name(name.to_owned(), error);
        let mut fqdn: Name = name
            .parse()
            .map_err(|error: hickory_proto::ProtoError| bad_name(error.to_string()))?;
        fqdn.set_fqdn(true);
        let record_type: RecordType = record_type
            .to_ascii_uppercase()
            .parse()
            .map_err(|_| InvalidQuestion::Type(record_type.to_owned()))?;
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(fqdn, record_type));
        let question = message
            .to_vec()
            .map_err(|error| bad_name(error.to_string()))?;
        Ok(Self {
            target,
            question: question.into(),
        })
    }

    /// The server.
    pub fn target(&self) -> SocketAddr {
        self.target
    }
}

/// One flow.
#[derive(Debug)]
pub(super) struct DnsClient {
    target: SocketAddr,
    origin: Option<SocketAddr>,
    socket: Option<UdpSocket>,
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl DnsClient {
    pub(super) fn new(work: &DnsWork, origin: Option<SocketAddr>) -> Self {
        Self {
            target: work.target,
            origin,
            socket: None,
            question: work.question.to_vec(),
            answer: vec![0; MAX_ANSWER],
        }
    }

    /// A late answer to an earlier question is passed over.
    pub(super) async fn exchange(&mut self, number: u64) -> Result<Answer<'_>, Failure> {
        let failed = |error| failure_of(&error);
        let [.., high, low] = number.to_be_bytes();
        let id = [high, low];
        self.question[..2].copy_from_slice(&id);
        if self.socket.is_none() {
            self.socket = Some(flow(self.target, self.origin).await?);
        }
        let socket = self.socket.as_ref().ok_or(Failure::Unreachable)?;
        socket.send(&self.question).await.map_err(failed)?;
        loop {
            let n = socket.recv(&mut self.answer).await.map_err(failed)?;
            if let Some(code) = answer_to(id, &self.answer[..n]) {
                return if code == ResponseCode::NoError || code == ResponseCode::NXDomain {
                    Ok(Answer {
                        sent: self.question.len(),
                        received: n,
                        backend: None,
                    })
                } else {
                    Err(Failure::Status)
                };
            }
        }
    }
}

// The response code, if these bytes are the answer to the question with that id.
//
// Source: RFC 1035, 4.1.1.
fn answer_to(id: [u8; 2], bytes: &[u8]) -> Option<ResponseCode> {
    let header = bytes.get(..12)?;
    let is_answer = header[..2] == id && header[2] & 0x80 != 0;
    is_answer.then(|| ResponseCode::from(0, header[3] & 0x0F))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_by_its_id_and_bit() {
        let mut header = [0u8; 12];
        header[..4].copy_from_slice(&[1, 2, 0x80, 3]);
        assert_eq!(answer_to([1, 2], &header), Some(ResponseCode::NXDomain));
        assert_eq!(answer_to([1, 3], &header), None);
        header[2] = 0;
        assert_eq!(answer_to([1, 2], &header), None);
        assert_eq!(answer_to([1, 2], &header[..11]), None);
    }

    #[test]
    fn a_question_can_be_read_back() {
        let server = ([127, 0, 0, 1], 53).into();
        let work = DnsWork::new(server, "web.default.svc.cluster.local", "aaaa").unwrap();
        let message = Message::from_vec(&work.question).unwrap();
        let query = &message.queries[0];
        assert_eq!(query.name().to_ascii(), "web.default.svc.cluster.local.");
        assert_eq!(query.query_type(), RecordType::AAAA);
        for (name, record_type, part) in [("a..b", "A", "a..b"), ("a", "XYZ", "XYZ")] {
            let error = DnsWork::new(server, name, record_type).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
