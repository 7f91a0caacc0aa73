//! Who answers: a random number per process, told to clients that ask for it with the option NSID (RFC 5001).
//!
//! A reply alone does not say which server it came from, and several may be configured. With this, whoever knows the
//! number of the running process can tell whether a resolver's address really leads to it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use serde::{Deserialize, Serialize};

use super::names::parse_absolute;

/// The number of one running DNS server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity(pub(super) [u8; 8]);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl FromStr for Identity {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u64::from_str_radix(text, 16).map(|number| Self(number.to_be_bytes()))
    }
}

/// What is needed to find out who reaches a running DNS server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// Its number.
    pub identity: Identity,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    /// The main cluster domain, with its final dot.
    pub domain: String,
    /// The Service that leads to it: `NAMESPACE/NAME`.
    pub service: String,
    /// That Service's cluster IPs; none if there is no such Service.
    pub service_ips: Vec<IpAddr>,
}

/// Why nobody said who he is.
#[derive(Debug, thiserror::Error)]
pub enum AskWhoError {
    /// The domain is no name, or the question could not be written.
    #[error("{0:?} is not a domain name")]
    Domain(String),
    /// Nothing came back in time, or the kernel says no.
    #[error("no answer: {0}")]
    Io(#[from] io::Error),
}

/// Asks `server` over UDP which one it is, with a question about `domain` that every DNS server of a cluster answers.
/// `None` = it answers, and is none of ours. Blocks, for `patience` at most; opens its socket on the calling thread.
///
/// # Errors
///
/// See [`AskWhoError`].
pub fn ask_who(
    server: SocketAddr,
    domain: &str,
    patience: Duration,
) -> Result<Option<Identity>, AskWhoError> {
    let invalid = || AskWhoError::Domain(domain.to_owned());
    let id = rand::random();
    let query = question(id, domain).ok_or_else(invalid)?;
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connected, so what comes from elsewhere is not heard.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.send(&query)?;
    let deadline = Instant::now() + patience;
    let mut buffer = vec![0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let reply = Message::from_vec(&buffer[..length]).ok();
        if let Some(reply) = reply.filter(|reply| reply.metadata.id == id) {
            return Ok(identity_in(&reply));
        }
    }
}

fn question(id: u16, domain: &str) -> Option<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(parse_absolute(domain)?, RecordType::SOA));
    let mut edns = Edns::new();
    edns.options_mut()
        .insert(EdnsOption::Unknown(EdnsCode::NSID.into(), Vec::new()));
    message.set_edns(edns);
    message.to_vec().ok()
}

fn identity_in(reply: &Message) -> Option<Identity> {
    let option = reply.edns.as_ref()?.options().get(EdnsCode::NSID)?;
    let octets = if let EdnsOption::NSID(payload) = option {
        payload.as_ref()
    } else if let EdnsOption::Unknown(_, octets) = option {
        octets
    } else {
        return None;
    };
    octets.try_into().ok().map(Identity)
}
