//! One message in, one message out: who answers it, and with what. Opens no sockets.
//!
//! [`Exchange::begin`] never waits: names of the cluster, rejections and remembered answers are finished there. What
//! needs an upstream becomes a [`Pending`], which its transport drives without holding up anybody else.

use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures_util::FutureExt;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use prometheus::IntCounter;

use crate::routing::{NodeView, Published, RoutingTable};

use super::cache::{Kept, Key};
use super::clients::may_ask;
use super::completion::{is_completed, namespace_of, next_names};
use super::forward::{ForwardError, Forwarder, Seat};
use super::labels::{code_label, family_label, type_label};
use super::lasting::Lasting;
use super::limits::Limits;
use super::message::{Question, Rejected, Reply, Transport, bare_reply};
use super::metrics::{Metrics, Tally};
use super::records::{Answer, Authority, End, Local};
use super::serial::SerialClock;
use super::wire::Cut;
use super::{ExplainedName, Identity};

/// Everything that an answer is made of. Shared by all sockets.
#[derive(Debug)]
pub(super) struct Exchange {
    authority: Authority,
    table: Published,
    forwarder: Arc<Forwarder>,
    limits: Arc<Limits>,
    // Domains of nodes, where the search lists of Pods are followed.
    node_domains: Option<Vec<Name>>,
    serial: SerialClock,
    warned_of_loop: AtomicBool,
    identity: Identity,
    metrics: Arc<Metrics>,
}

/// What a message leads to.
#[derive(Debug)]
pub(super) enum Step {
    /// This is sent back.
    Reply(Answered),
    /// Nothing is sent back.
    Silence,
    /// An upstream has to be asked first.
    Wait(Box<Pending>),
}

/// A reply, and whether it would be the same again.
#[derive(Debug)]
pub(super) struct Answered {
    /// The message.
    pub(super) octets: Vec<u8>,
    /// For how long the same question gets the same reply; `None` if that is not known.
    pub(super) again: Option<Again>,
}

/// What is needed to give a reply again without asking here.
#[derive(Debug)]
pub(super) struct Again {
    /// For how long.
    pub(super) lasting: Lasting,
    /// What is counted each time.
    pub(super) tally: Tally,
}

/// A question that waits for an upstream.
#[derive(Debug)]
pub(super) struct Pending {
    request: Request,
    key: Key,
    // Ours, in front of the upstream's answer; the key is about the last one's target.
    aliases: Vec<Record>,
    seat: Arc<Seat>,
    search: Option<Search>,
}

// The search list of a Pod: what is still to be asked, and the reply if none of it exists.
#[derive(Clone, Debug)]
struct Search {
    names: std::vec::IntoIter<Name>,
    otherwise: Reply,
}

// A question, who asked it, how and when.
#[derive(Clone, Debug)]
struct Request {
    question: Question,
    client: IpAddr,
    transport: Transport,
    started: Instant,
}

impl Exchange {
    /// Answers from `table` what `authority` covers, everything else through `forwarder`.
    pub(super) fn new(
        authority: Authority,
        table: Published,
        forwarder: Arc<Forwarder>,
        limits: Arc<Limits>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            authority,
            table,
            forwarder,
            limits,
            node_domains: None,
            serial: SerialClock::default(),
            warned_of_loop: AtomicBool::new(false),
            identity: Identity(rand::random()),
            metrics,
        }
    }

    /// Follows the search lists of Pods, which end with these domains of their nodes.
    pub(super) fn completing(mut self, node_domains: Option<Vec<Name>>) -> Self {
        self.node_domains = node_domains;
        self
    }

    /// Answers `message`, or says what its answer waits for.
    pub(super) fn begin(&self, message: &[u8], client: SocketAddr, transport: Transport) -> Step {
        let started = Instant::now();
        self.guarded(message, started, || {
            match Question::parse(message, self.limits.max_udp) {
                Ok(question) => self.decide(Request {
                    question: question.answered_by(self.identity),
                    client: client.ip().to_canonical(),
                    transport,
                    started,
                }),
                Err(rejected) => self.reject(rejected, client.ip(), transport, started),
            }
        })
    }

    // Nothing that one message does may end the service for all others. Only what had a header gets as far as a panic.
    fn guarded(&self, message: &[u8], started: Instant, step: impl FnOnce() -> Step) -> Step {
        catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|_| {
            self.metrics.panics.inc();
            self.send(bare_reply(message, ResponseCode::ServFail), started, None)
        })
    }

    /// Finishes a question that had to wait.
    pub(super) async fn finish(self: Arc<Self>, mut pending: Box<Pending>) -> Step {
        loop {
            let answered = AssertUnwindSafe(self.complete(&pending))
                .catch_unwind()
                .await;
            match answered {
                Ok(Step::Wait(next)) => pending = next,
                Ok(step @ (Step::Reply(_) | Step::Silence)) => return step,
                Err(_) => {
                    self.metrics.panics.inc();
                    return self.fail(&pending.request, ResponseCode::ServFail);
                }
            }
        }
    }

    /// The routing tables that are answered from.
    pub(super) fn table(&self) -> &Published {
        &self.table
    }

    /// How a name is answered at this moment.
    pub(super) fn explain(&self, name: &Name) -> ExplainedName {
        let table = self.table.load_full();
        let upstreams = self.forwarder.upstreams();
        let asked = upstreams.of(&Key::about(name, RecordType::A));
        let asked: Vec<String> = asked.iter().map(|upstream| upstream.describe()).collect();
        self.authority.explain(&table, name, &asked)
    }

    /// What it calls itself where clients ask.
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// What it answers for.
    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What is counted here.
    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The longest reply over UDP.
    pub(super) fn max_udp(&self) -> u16 {
        self.limits.max_udp
    }

    /// Whether this client gets answers.
    pub(super) fn admits(&self, client: IpAddr, node: &NodeView) -> bool {
        let client = client.to_canonical();
        may_ask(client, node, &self.authority.own_addresses) || self.limits.allows(client)
    }

    fn decide(&self, request: Request) -> Step {
        let question = &request.question;
        let table = self.table.load();
        if !self.admits(request.client, &table.node) {
            self.count(&request, "refused");
            return self.fail(&request, ResponseCode::Refused);
        }
        let serial = self.serial.at(&table);
        let answer = self
            .authority
            .answer(&table, serial, &question.name, question.kind);
        let lasting = match &answer {
            Answer::Cluster(local) => {
                let (name, kind) = (&question.name, question.kind);
                Lasting::of(local, &self.authority, &table, name, kind)
            }
            Answer::Reverse(_) | Answer::Forward => Lasting::Table(table.generation),
        };
        let next = self.next_names(&table, &request, &answer);
        drop(table);
        let (local, zone) = match answer {
            Answer::Cluster(local) => (local, "cluster"),
            Answer::Reverse(local) => (local, "reverse"),
            Answer::Forward => {
                self.count(&request, "forward");
                let key = Key::of(question);
                return self.elsewhere(request, key, Vec::new());
            }
        };
        self.count(&request, zone);
        match local {
            Local {
                aliases,
                end: End::Outside(target),
            } => {
                let key = Key::of(&question.about(target));
                self.elsewhere(request, key, aliases)
            }
            local => {
                let reply = question.local_reply(local, request.transport);
                if let Some(names) = next {
                    let search = Search {
                        names: names.into_iter(),
                        otherwise: reply,
                    };
                    return self.search(request, search, None);
                }
                // One Pod's missing name may be the beginning of another one's search.
                let depends_on_client =
                    self.node_domains.is_some() && reply.code == ResponseCode::NXDomain;
                let again = if depends_on_client {
                    None
                } else {
                    self.again(&request, &reply, zone, lasting, None)
                };
                self.send(reply, request.started, again)
            }
        }
    }

    fn elsewhere(&self, request: Request, key: Key, aliases: Vec<Record>) -> Step {
        if let Some(kept) = self.forwarder.remembered(&key) {
            // Behind an alias of the cluster, both a table and the time would have to be watched.
            let is_whole = aliases.is_empty();
            let reply = compose(&request, aliases, &kept);
            let lasting = kept.lasting().filter(|_| is_whole);
            let hits = Some(self.metrics.cache_hits.clone());
            let again =
                lasting.and_then(|lasting| self.again(&request, &reply, "forward", lasting, hits));
            return self.send(reply, request.started, again);
        }
        self.wait(request, key, aliases, None, None)
    }

    fn wait(
        &self,
        request: Request,
        key: Key,
        aliases: Vec<Record>,
        seat: Option<Arc<Seat>>,
        search: Option<Search>,
    ) -> Step {
        let take = || self.forwarder.take_seat(request.client).map(Arc::new);
        match seat.or_else(take) {
            Some(seat) => Step::Wait(Box::new(Pending {
                request,
                key,
                aliases,
                seat,
                search,
            })),
            None => self.fail(&request, ResponseCode::Refused),
        }
    }

    // What the client would ask next, if it is a Pod and the name it asked for is missing.
    fn next_names(
        &self,
        table: &RoutingTable,
        request: &Request,
        answer: &Answer,
    ) -> Option<Vec<Name>> {
        let node_domains = self.node_domains.as_deref()?;
        let question = &request.question;
        match answer {
            Answer::Cluster(Local {
                aliases,
                end: End::NxDomain(_),
            }) if aliases.is_empty() && is_completed(question.kind) => {
                let lower = question.name.to_lowercase();
                let (zone, _) = self.authority.asked(&lower)?;
                let namespace = namespace_of(table, request.client)?;
                next_names(zone, &question.name, namespace, node_domains)
            }
            Answer::Cluster(_) | Answer::Reverse(_) | Answer::Forward => None,
        }
    }

    // Answers with the next name of the list that exists, behind an alias. Such an answer holds for one client only, so
    // it is not given again.
    fn search(&self, request: Request, mut search: Search, seat: Option<Arc<Seat>>) -> Step {
        while let Some(name) = search.names.next() {
            let question = &request.question;
            let alias = Record::from_rdata(
                question.name.clone(),
                self.authority.ttl,
                RData::CNAME(CNAME(name.clone())),
            );
            let answer = {
                let table = self.table.load();
                let serial = self.serial.at(&table);
                self.authority.answer(&table, serial, &name, question.kind)
            };
            match answer {
                Answer::Cluster(Local {
                    end: End::NxDomain(_),
                    ..
                })
                | Answer::Reverse(Local {
                    end: End::NxDomain(_),
                    ..
                }) => {}
                Answer::Cluster(mut local) | Answer::Reverse(mut local) => {
                    self.metrics.completed_searches.inc();
                    local.aliases.insert(0, alias);
                    return match local {
                        Local {
                            aliases,
                            end: End::Outside(target),
                        } => {
                            let key = Key::of(&question.about(target));
                            self.elsewhere(request, key, aliases)
                        }
                        local => {
                            let reply = question.local_reply(local, request.transport);
                            self.send(reply, request.started, None)
                        }
                    };
                }
                Answer::Forward => {
                    let key = Key::of(&question.about(name));
                    match self.forwarder.remembered(&key) {
                        Some(kept) if kept.is_missing() => {}
                        Some(kept) => {
                            self.metrics.completed_searches.inc();
                            let reply = compose(&request, vec![alias], &kept);
                            return self.send(reply, request.started, None);
                        }
                        None => return self.wait(request, key, vec![alias], seat, Some(search)),
                    }
                }
            }
        }
        self.send(search.otherwise, request.started, None)
    }

    async fn complete(&self, pending: &Pending) -> Step {
        let Pending {
            request,
            key,
            aliases,
            seat,
            search,
        } = pending;
        match self.forwarder.ask(request.question.id, key, seat).await {
            Ok(kept) => {
                if let Some(search) = search {
                    if kept.is_missing() {
                        return self.search(request.clone(), search.clone(), Some(seat.clone()));
                    }
                    self.metrics.completed_searches.inc();
                }
                let reply = compose(request, aliases.clone(), &kept);
                self.send(reply, request.started, None)
            }
            Err(ForwardError::OwnLoop) => {
                self.metrics.drop_one("own_loop");
                // Once: it will come again with every question.
                if !self.warned_of_loop.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        from = %request.client,
                        "a forwarded DNS question came back: an upstream resolver asks us; give another --dns-upstream"
                    );
                }
                Step::Silence
            }
            Err(ForwardError::Exchange(error)) => {
                tracing::debug!(name = %request.question.name, %error, "question not answered");
                self.fail(request, ResponseCode::ServFail)
            }
        }
    }

    fn reject(
        &self,
        rejected: Rejected,
        client: IpAddr,
        transport: Transport,
        started: Instant,
    ) -> Step {
        match rejected {
            Rejected::Silently => {
                self.metrics.drop_one("not_a_query");
                Step::Silence
            }
            Rejected::With(reply) => {
                let labels = [transport.as_str(), family_label(client), "other", "refused"];
                self.metrics.requests.with_label_values(&labels).inc();
                self.send(reply, started, None)
            }
        }
    }

    fn count(&self, request: &Request, zone: &str) {
        self.requests(request, zone).inc();
    }

    fn requests(&self, request: &Request, zone: &str) -> IntCounter {
        let labels = [
            request.transport.as_str(),
            family_label(request.client),
            type_label(request.question.kind),
            zone,
        ];
        self.metrics.requests.with_label_values(&labels)
    }

    // Only over UDP are replies given again, and only those that lost nothing to the client's size.
    fn again(
        &self,
        request: &Request,
        reply: &Reply,
        zone: &str,
        lasting: Lasting,
        cache_hits: Option<IntCounter>,
    ) -> Option<Again> {
        if request.transport != Transport::Udp || reply.cut != Cut::Nothing {
            return None;
        }
        let tally = Tally {
            requests: self.requests(request, zone),
            responses: self.responses(reply.code),
            cache_hits,
        };
        Some(Again { lasting, tally })
    }

    fn responses(&self, code: ResponseCode) -> IntCounter {
        self.metrics
            .responses
            .with_label_values(&[code_label(code)])
    }

    fn fail(&self, request: &Request, code: ResponseCode) -> Step {
        self.send(request.question.failure(code), request.started, None)
    }

    fn send(&self, reply: Reply, started: Instant, again: Option<Again>) -> Step {
        self.responses(reply.code).inc();
        self.metrics
            .duration
            .observe(started.elapsed().as_secs_f64());
        if reply.cut == Cut::Needed {
            self.metrics.truncated.inc();
        }
        let octets = reply.octets;
        Step::Reply(Answered { octets, again })
    }
}

fn compose(request: &Request, aliases: Vec<Record>, kept: &Kept) -> Reply {
    let (question, transport) = (&request.question, request.transport);
    let reply = if aliases.is_empty() {
        question.relayed_reply(&kept.relayed, kept.age, transport)
    } else {
        question.chased_reply(aliases, &kept.relayed, kept.age, transport)
    };
    reply.unwrap_or_else(|_| question.failure(ResponseCode::ServFail))
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
