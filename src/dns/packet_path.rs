//! Any octets, through everything that reads what others send: the body of a fuzz target.
//!
//! A message is taken for a question as it comes over UDP and TCP, through the memo and without it, and for the reply of an
//! upstream. Nothing is sent. What comes out is held against the promises that every client relies on.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::Message;
use hickory_proto::rr::Name;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::ServiceName;
use crate::routing::{Published, RoutingTable};

use super::exchange::{Exchange, Step};
use super::forward::{Forwarder, Upstreams};
use super::health::Probes;
use super::lasting::Moment;
use super::memo::Memo;
use super::message::{FLAG_QR, Question, Transport};
use super::names::Zone;
use super::records::Authority;
use super::relayed::{Age, Relayed};
use super::simple::Simple;
use super::wire::{HEADER, MAX_UDP, layout};
use super::{Limits, Metrics, PodMode, UpstreamOrder};

/// Room for a question and its reply over UDP.
const SLOT: usize = 4096 + 192;

/// A server without sockets.
#[derive(Debug)]
pub struct PacketPath {
    exchange: Exchange,
    metrics: Arc<Metrics>,
    memo: Memo<()>,
    question: Simple,
}

impl PacketPath {
    /// Answers from `table`, names under `cluster.local`. `None` if its metrics cannot be made.
    pub fn new(table: RoutingTable) -> Option<Self> {
        let metrics = Arc::new(Metrics::new(&Registry::new()).ok()?);
        let limits = Arc::new(Limits::default());
        let probes = Probes {
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            metrics: metrics.clone(),
        };
        let nobody = Upstreams::new(&[], &[], &[]);
        let forwarder = Forwarder::new(nobody, UpstreamOrder::Random, &limits, probes);
        let authority = Authority {
            zones: vec![Zone::parse("cluster.local").ok()?],
            pods: PodMode::Insecure,
            dns_service: ServiceName::new("kube-system", "kube-dns"),
            own_addresses: vec![Ipv4Addr::LOCALHOST.into()],
            hide_empty: false,
            ttl: 5,
            negative_ttl: 5,
            max_aliases: limits.aliases,
            owned_ranges: Vec::new(),
        };
        let published = Published::default();
        published.publish(Arc::new(table));
        let forwarder = Arc::new(forwarder);
        Some(Self {
            exchange: Exchange::new(authority, published, forwarder, limits, metrics.clone()),
            metrics,
            memo: Memo::new(1 << 20),
            question: Simple::new(),
        })
    }

    /// Takes one message. Returns how many replies it led to.
    ///
    /// # Panics
    ///
    /// When a promise is broken: that is what it is for.
    pub fn take(&mut self, octets: &[u8]) -> usize {
        let mut n_replies = usize::from(self.remembered(octets));
        for transport in [Transport::Udp, Transport::Tcp] {
            let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 4000));
            match self.exchange.begin(octets, client, transport) {
                Step::Reply(reply) => {
                    check(octets, &reply.octets, transport);
                    n_replies += 1;
                    let plain = transport == Transport::Udp && self.question.read(octets, MAX_UDP);
                    if let Some(again) = reply.again.filter(|_| plain) {
                        let key = self.question.key();
                        self.memo.keep(key, &reply.octets, again.lasting, ());
                    }
                }
                Step::Silence | Step::Wait(_) => {}
            }
        }
        relay(octets);
        assert_eq!(self.metrics.panics.get(), 0, "it panicked");
        n_replies
    }

    /// The octets of the reply to one question over UDP, made anew: past the memo. For measuring.
    pub fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 4000));
        match self.exchange.begin(question, client, Transport::Udp) {
            Step::Reply(reply) => Some(reply.octets),
            Step::Silence | Step::Wait(_) => None,
        }
    }

    // Answers from the memo, if it can.
    fn remembered(&mut self, octets: &[u8]) -> bool {
        if octets.len() > SLOT || !self.question.read(octets, MAX_UDP) {
            return false;
        }
        let mut room = vec![0; SLOT];
        room[..octets.len()].copy_from_slice(octets);
        let table = self.exchange.table().load_full();
        let moment = Moment {
            table: &table,
            now: Instant::now(),
        };
        let mut rng = rand::rng();
        let answer = self
            .memo
            .answer(&self.question, &mut room, &moment, &mut rng);
        let Some((length, ())) = answer else {
            return false;
        };
        check(octets, &room[..length], Transport::Udp);
        true
    }
}

fn check(asked: &[u8], reply: &[u8], transport: Transport) {
    assert!(reply.len() >= HEADER, "shorter than a header");
    assert_eq!(reply[..2], asked[..2], "another id");
    assert!(reply[2] & FLAG_QR != 0, "no reply");
    let most = match transport {
        Transport::Udp => usize::from(MAX_UDP),
        Transport::Tcp => usize::from(u16::MAX),
    };
    assert!(reply.len() <= most, "{} octets", reply.len());
    let end = layout(reply).map(|layout| layout.end());
    assert_eq!(end.ok(), Some(reply.len()), "octets behind the records");
    assert!(Message::from_vec(reply).is_ok(), "nobody can read it");
}

// As what an upstream says, to a question of the usual kind and to the one that it holds itself.
fn relay(octets: &[u8]) {
    let Ok(relayed) = Relayed::read(octets.to_vec()) else {
        return;
    };
    let mut asked = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    asked.extend(&octets[layout(octets).map_or(0..0, |layout| layout.question)]);
    let plain = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03www\x04test\0\0\x01\0\x01";
    for message in [&asked[..], plain] {
        let Ok(question) = Question::parse(message, MAX_UDP) else {
            continue;
        };
        for transport in [Transport::Udp, Transport::Tcp] {
            for age in [Age::Seconds(3), Age::Stale] {
                if let Ok(reply) = question.relayed_reply(&relayed, age, transport) {
                    let most = question.limit(transport);
                    assert!(reply.octets.len() <= most, "{} octets", reply.octets.len());
                }
                let alias = question.about(Name::root());
                let _composed = alias.chased_reply(Vec::new(), &relayed, age, transport);
            }
        }
    }
}
