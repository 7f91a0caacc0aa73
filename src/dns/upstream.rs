//! Asking other resolvers: one question, several attempts, one budget.
//!
//! Every attempt has its own socket, so a random port, and a random id. An earlier attempt stays open while the next
//! one runs: a resolver that is merely slow still answers. Connections are kept for a while. Which resolvers are asked
//! is decided by `forward`'s configuration, which of them are thought dead by `health`, whether an answer is kept by
//! `cache`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::ResponseCode;
use rand::seq::SliceRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::cache::Key;
use super::health::{Health, Probes};
use super::labels::code_label;
use super::relayed::Relayed;
use super::wire::{HEADER, MAX_UDP, Malformed, layout, read_u16, write_u16};

/// All attempts together. glibc gives up on a server after 5 s, and must hear of a failure before that.
const BUDGET: Duration = Duration::from_millis(4500);

/// How long an attempt may stay alone. musl resends after 2.5 s; two attempts fit before.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(1100);

/// Attempts that wait for time-outs: at 0, 1.1, 2.2 and 3.3 s.
const MIN_ATTEMPTS: usize = 4;

/// How long a connection is kept without a question, and how many are.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_IDLE: usize = 4;

/// Octets of the OPT record, which ends every question of ours.
const OPT_LENGTH: usize = 11;

/// One resolver.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) addr: SocketAddr,
    pub(super) health: Health,
    // It asks us, so it is not asked any more.
    looping: AtomicBool,
    // Open connections, and since when each is idle.
    idle: Mutex<Vec<(TcpStream, Instant)>>,
}

/// Which of several resolvers is asked first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamOrder {
    /// Any of them.
    #[default]
    Random,
    /// The one that was named first, as long as it answers.
    Sequential,
}

impl FromStr for UpstreamOrder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "random" => Ok(Self::Random),
            "sequential" => Ok(Self::Sequential),
            _ => Err(format!("{text} is not random or sequential")),
        }
    }
}

impl fmt::Display for UpstreamOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Random => "random",
            Self::Sequential => "sequential",
        })
    }
}

/// Why nobody answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("no upstream resolver is configured")]
    NoUpstream,
    #[error("no upstream resolver answered")]
    Unanswered,
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the reply does not fit the question")]
    Mismatch,
}

impl AskError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Malformed(_) | Self::Mismatch => "malformed",
        }
    }
}

impl Upstream {
    /// A resolver that nothing is known of yet.
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            health: Health::default(),
            looping: AtomicBool::new(false),
            idle: Mutex::default(),
        }
    }

    /// Its address, and what is wrong with it.
    pub(super) fn describe(&self) -> String {
        let standing = if self.looping.load(Ordering::Relaxed) {
            " (sends questions back to us, so it is not asked)"
        } else if self.health.is_dead() {
            " (does not answer at the moment)"
        } else {
            ""
        };
        format!("{}{standing}", self.addr)
    }

    /// Never asks it again: its questions come back to us.
    pub(super) fn give_up(&self) {
        self.looping.store(true, Ordering::Relaxed);
    }

    // A connection that was idle for less than the other side allows.
    fn take_idle(&self) -> Option<TcpStream> {
        let mut idle = self.idle.lock().ok()?;
        idle.retain(|(_, since)| since.elapsed() < IDLE_TIMEOUT);
        idle.pop().map(|(stream, _)| stream)
    }

    fn put_idle(&self, stream: TcpStream) {
        if let Ok(mut idle) = self.idle.lock()
            && idle.len() < MAX_IDLE
        {
            idle.push((stream, Instant::now()));
        }
    }
}

/// The ids of the attempts under way for one question: a question that comes in with one of them is our own.
#[derive(Debug, Default)]
pub(super) struct OwnIds(Mutex<Vec<u16>>);

impl OwnIds {
    /// Whether one of our attempts has this id.
    pub(super) fn contains(&self, id: u16) -> bool {
        self.0.lock().is_ok_and(|ids| ids.contains(&id))
    }

    fn add(&self) -> u16 {
        let id = rand::random();
        if let Ok(mut ids) = self.0.lock() {
            ids.push(id);
        }
        id
    }
}

/// Asks `upstreams` until one gives a usable answer.
///
/// An answer that says the resolver itself failed (SERVFAIL, REFUSED and the like) is used only when nobody has a
/// better one. Attempts are bounded by their number and by the budget.
pub(super) async fn exchange(
    upstreams: &[Arc<Upstream>],
    key: &Key,
    ids: &OwnIds,
    started: Instant,
    policy: UpstreamOrder,
    probes: &Probes,
) -> Result<Relayed, ExchangeError> {
    let metrics = &probes.metrics;
    let order = order(upstreams, policy);
    match order.first() {
        None => return Err(ExchangeError::NoUpstream),
        Some(first) if first.health.is_dead() => metrics.all_upstreams_down.inc(),
        Some(_) => {}
    }
    let deadline = started + BUDGET;
    let max_attempts = order.len().max(MIN_ATTEMPTS);
    let mut attempts = FuturesUnordered::new();
    let mut second_best = None;
    let mut n_started = 0;
    let mut next_at = started;
    loop {
        let now = Instant::now();
        if now >= next_at && n_started < max_attempts {
            let upstream = order[n_started % order.len()].clone();
            n_started += 1;
            next_at = now + ATTEMPT_INTERVAL;
            metrics.upstream_requests.inc();
            let id = ids.add();
            attempts.push(async move {
                let reply = ask(&upstream, key, id, deadline).await;
                (upstream, reply)
            });
        }
        let wake = if n_started < max_attempts {
            next_at.min(deadline)
        } else {
            deadline
        };
        tokio::select! {
            Some((upstream, reply)) = attempts.next() => {
                if let Ok(reply) = &reply {
                    upstream.health.replied();
                    let code = reply.code().map_or("other", code_label);
                    let took = started.elapsed().as_secs_f64();
                    let labels = [&*upstream.addr.to_string(), code];
                    metrics.upstream_duration.with_label_values(&labels).observe(took);
                }
                let failure = match reply {
                    Ok(reply) if is_usable(&reply) => return Ok(reply),
                    Ok(reply) => {
                        // It lives, and has nothing to say: that is no reason to wait for it longer.
                        second_best = Some(reply);
                        "rcode"
                    }
                    Err(error) => {
                        tracing::debug!(upstream = %upstream.addr, %error, "upstream resolver failed");
                        probes.failed(&upstream);
                        error.reason()
                    }
                };
                metrics.upstream_failures.with_label_values(&[failure]).inc();
                let all_asked = n_started >= order.len();
                if attempts.is_empty() && all_asked {
                    return second_best.ok_or(ExchangeError::Unanswered);
                }
                if !all_asked {
                    next_at = Instant::now();
                }
            }
            () = sleep_until(wake) => {
                // It may still answer; whoever is asked next time should not be this one.
                if let Some(last) = n_started.checked_sub(1) {
                    probes.failed(&order[last % order.len()]);
                    metrics.upstream_failures.with_label_values(&["timeout"]).inc();
                }
                if wake >= deadline {
                    return second_best.ok_or(ExchangeError::Unanswered);
                }
            }
        }
    }
}

fn is_usable(reply: &Relayed) -> bool {
    !reply.is_truncated() && reply.is_conclusive()
}

// Those thought dead come behind the others: when all are, one of them is asked all the same.
fn order(upstreams: &[Arc<Upstream>], policy: UpstreamOrder) -> Vec<Arc<Upstream>> {
    let alike = upstreams
        .iter()
        .filter(|upstream| !upstream.looping.load(Ordering::Relaxed));
    let mut order: Vec<Arc<Upstream>> = alike.cloned().collect();
    match policy {
        UpstreamOrder::Random => order.shuffle(&mut rand::rng()),
        UpstreamOrder::Sequential => {}
    }
    order.sort_by_key(|upstream| upstream.health.is_dead());
    order
}

async fn ask(
    upstream: &Upstream,
    key: &Key,
    id: u16,
    deadline: Instant,
) -> Result<Relayed, AskError> {
    let addr = upstream.addr;
    let mut query = encode_query(key, id);
    let mut reply = ask_udp(addr, &query).await?;
    if matches!(
        reply.code(),
        Some(ResponseCode::FormErr | ResponseCode::NotImp)
    ) {
        // It may be older than EDNS (RFC 6891 section 7).
        query.truncate(query.len() - OPT_LENGTH);
        write_u16(&mut query, 10, 0);
        reply = ask_udp(addr, &query).await?;
    }
    if !reply.is_truncated() {
        return Ok(reply);
    }
    // Half an answer is better than none, should TCP not work there.
    match timeout_at(deadline, ask_tcp(upstream, &query)).await {
        Ok(Ok(whole)) => Ok(whole),
        Ok(Err(_)) | Err(_) => Ok(reply),
    }
}

/// Asks over UDP, and waits for a reply that fits the question for as long as the caller does.
pub(super) async fn ask_udp(addr: SocketAddr, query: &[u8]) -> Result<Relayed, AskError> {
    let any: IpAddr = match addr {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connected: the kernel drops what comes from elsewhere, and tells when nobody listens there.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(addr).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // A forged or stray datagram must not end the wait for the real one.
        if answers(query, &buffer[..length]) {
            return Ok(Relayed::read(buffer[..length].to_vec())?);
        }
    }
}

async fn ask_tcp(upstream: &Upstream, query: &[u8]) -> Result<Relayed, AskError> {
    // The other side may have closed an idle connection; then there is no reply, and a new one shows what is true.
    if let Some(mut stream) = upstream.take_idle()
        && let Ok(reply) = converse(&mut stream, query).await
    {
        upstream.put_idle(stream);
        return Ok(reply);
    }
    let mut stream = TcpStream::connect(upstream.addr).await?;
    let reply = converse(&mut stream, query).await?;
    upstream.put_idle(stream);
    Ok(reply)
}

async fn converse(stream: &mut TcpStream, query: &[u8]) -> Result<Relayed, AskError> {
    let mut framed = Vec::with_capacity(query.len() + 2);
    framed.extend(u16::try_from(query.len()).unwrap_or(0).to_be_bytes());
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    if !answers(query, &reply) {
        return Err(AskError::Mismatch);
    }
    Ok(Relayed::read(reply)?)
}

// Id, direction, name (in any case), type and class. A refusal may leave the question out: it costs only the attempt.
fn answers(query: &[u8], reply: &[u8]) -> bool {
    if reply.len() < HEADER || reply[..2] != query[..2] || reply[2] & 0x80 == 0 {
        return false;
    }
    if read_u16(reply, 4) == Ok(0) {
        return reply[3] & 0x0F != 0 && reply[6..HEADER] == [0; 6];
    }
    let question = |message: &[u8]| layout_question(message).map(<[u8]>::to_ascii_lowercase);
    question(reply).is_some_and(|asked| Some(asked) == question(query))
}

fn layout_question(message: &[u8]) -> Option<&[u8]> {
    message.get(layout(message).ok()?.question)
}

/// A question as it is sent to a resolver.
pub(super) fn encode_query(key: &Key, id: u16) -> Vec<u8> {
    const RD: u8 = 0x01;
    const AD: u8 = 0x20;
    const CD: u8 = 0x10;
    let mut query = Vec::with_capacity(HEADER + key.name.len() + 4 + OPT_LENGTH);
    query.extend(id.to_be_bytes());
    // AD asks for the upstream's opinion (RFC 6840 section 5.7); whether a client sees it is decided per client.
    query.extend([RD, AD | if key.checking_disabled { CD } else { 0 }]);
    query.extend([0, 1, 0, 0, 0, 0, 0, 1]);
    query.extend_from_slice(&key.name);
    query.extend(key.kind.to_be_bytes());
    query.extend([0, 1]);
    let [size_high, size_low] = MAX_UDP.to_be_bytes();
    let dnssec_ok = if key.dnssec_ok { 0x80 } else { 0 };
    query.extend([0, 0, 41, size_high, size_low, 0, 0, dnssec_ok, 0, 0, 0]);
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_come_last_and_stay_askable() {
        let upstreams: Vec<_> = (1..=3)
            .map(|port| Arc::new(Upstream::new(SocketAddr::from(([127, 0, 0, 1], port)))))
            .collect();
        let ports = |order: Vec<Arc<Upstream>>| -> Vec<u16> {
            order.iter().map(|upstream| upstream.addr.port()).collect()
        };
        let in_order = || ports(order(&upstreams, UpstreamOrder::Sequential));
        assert_eq!(in_order(), [1, 2, 3]);
        let kill = |upstream: &Upstream| {
            while !upstream.health.is_dead() {
                upstream.health.failed();
            }
        };
        kill(&upstreams[0]);
        assert_eq!(in_order(), [2, 3, 1]);
        kill(&upstreams[1]);
        kill(&upstreams[2]);
        assert_eq!(in_order(), [1, 2, 3], "all are dead, and one is asked");
        upstreams[2].health.replied();
        assert_eq!(in_order(), [3, 1, 2]);
        // One that asks us is not asked even then.
        upstreams[2].give_up();
        assert_eq!(in_order(), [1, 2]);
        let firsts: std::collections::BTreeSet<u16> = (0..200)
            .map(|_| ports(order(&upstreams, UpstreamOrder::Random))[0])
            .collect();
        assert_eq!(firsts, [1, 2].into());
    }
}
