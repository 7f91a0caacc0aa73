//! Questions about other names: who is asked, how many at once, and what is remembered.
//!
//! Identical questions that wait at the same time are asked upstream once. The waiting clients are bounded, in all and
//! each: past the bound the answer is "refused", at once, so that a slow upstream never takes the server with it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::rr::Name;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::cache::{Cache, Kept, Key};
use super::health::Probes;
use super::limits::Limits;
use super::metrics::Metrics;
use super::relayed::Relayed;
use super::upstream::{
    ExchangeError, OwnIds, Upstream, UpstreamOrder, ask_udp, encode_query, exchange,
};

/// How long a newer answer is waited for while there is an old one (RFC 8767 section 5: under 1.8 s).
const PATIENCE_WITH_STALE: Duration = Duration::from_millis(1500);

/// How long a question that shows whether a resolver asks us may take to come back.
const LOOP_PROBE_TIME: Duration = Duration::from_secs(5);

/// Why a question could not be answered from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("the question is our own")]
    OwnLoop,
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

/// The resolvers, by the domains they are asked about.
#[derive(Debug, Default)]
pub(super) struct Upstreams {
    /// Longest domain first.
    domains: Vec<(Name, Vec<Arc<Upstream>>)>,
    others: Vec<Arc<Upstream>>,
}

/// Answers from elsewhere. Owned by the server; shared by its sockets.
#[derive(Debug)]
pub(super) struct Forwarder {
    upstreams: ArcSwap<Upstreams>,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Key, Flight>>,
    waiting: Mutex<Waiting>,
    // Names of questions that only ever come back from a resolver that asks us.
    loop_probes: Mutex<HashMap<Arc<[u8]>, Arc<Upstream>>>,
    order: UpstreamOrder,
    max_waiting: usize,
    max_waiting_of_one: usize,
    probes: Probes,
    tasks: TaskTracker,
    metrics: Arc<Metrics>,
}

// One question under way, and who waits for it.
#[derive(Clone, Debug)]
struct Flight {
    landed: watch::Receiver<Option<Outcome>>,
    ids: Arc<OwnIds>,
}

type Outcome = Result<Arc<Relayed>, ExchangeError>;

#[derive(Debug, Default)]
struct Waiting {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// The place of a client that waits; free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    forwarder: Arc<Forwarder>,
    client: IpAddr,
}

impl Upstreams {
    /// Sorts out who is asked about what. `own` addresses are left out: asking them would be asking ourselves.
    pub(super) fn new(
        domains: &[(Name, SocketAddr)],
        others: &[SocketAddr],
        own: &[SocketAddr],
    ) -> Self {
        let foreign = |addr: &SocketAddr| {
            let is_own = own.contains(addr);
            if is_own {
                tracing::warn!(upstream = %addr, "upstream resolver is this server itself; left out");
            }
            !is_own
        };
        let mut by_domain: Vec<(Name, Vec<Arc<Upstream>>)> = Vec::new();
        for (domain, addr) in domains.iter().filter(|(_, addr)| foreign(addr)) {
            let upstream = Arc::new(Upstream::new(*addr));
            match by_domain.iter_mut().find(|(known, _)| known == domain) {
                Some((_, list)) => list.push(upstream),
                None => by_domain.push((domain.clone(), vec![upstream])),
            }
        }
        by_domain.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.iter().len()));
        let others = others
            .iter()
            .filter(|addr| foreign(addr))
            .map(|addr| Arc::new(Upstream::new(*addr)))
            .collect();
        Self {
            domains: by_domain,
            others,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        let of_domains = self.domains.iter().flat_map(|(_, list)| list);
        of_domains.chain(&self.others)
    }

    /// Who is asked about `key`.
    pub(super) fn of(&self, key: &Key) -> &[Arc<Upstream>] {
        self.domains
            .iter()
            .find(|(domain, _)| key.is_under(domain))
            .map_or(&self.others, |(_, list)| list)
    }
}

impl Forwarder {
    /// A forwarder with an empty cache. Its work runs where its `probes` do, and what waits for nobody ends with them.
    pub(super) fn new(
        upstreams: Upstreams,
        order: UpstreamOrder,
        limits: &Limits,
        probes: Probes,
    ) -> Self {
        Self {
            upstreams: ArcSwap::from_pointee(upstreams),
            cache: Mutex::new(Cache::new(limits.cache_octets, limits.serve_stale)),
            flights: Mutex::new(HashMap::new()),
            waiting: Mutex::new(Waiting::default()),
            loop_probes: Mutex::default(),
            order,
            max_waiting: limits.forwards,
            max_waiting_of_one: limits.forwards_of_one,
            tasks: probes.tasks.clone(),
            metrics: probes.metrics.clone(),
            probes,
        }
    }

    /// Asks others from now on. What is under way goes on.
    pub(super) fn replace_upstreams(self: &Arc<Self>, upstreams: Upstreams) {
        self.upstreams.store(Arc::new(upstreams));
        self.probe_for_loops();
    }

    /// Who is asked.
    pub(super) fn upstreams(&self) -> Arc<Upstreams> {
        self.upstreams.load_full()
    }

    /// Sends every resolver a question with a name of chance. Whoever sends it back to us is not asked any more.
    pub(super) fn probe_for_loops(self: &Arc<Self>) {
        for upstream in self.upstreams.load().all() {
            let key = Key::random();
            lock(&self.loop_probes).insert(key.name.clone(), upstream.clone());
            let (forwarder, upstream) = (self.clone(), upstream.clone());
            self.tasks.spawn(async move {
                let query = encode_query(&key, rand::random());
                let asking = timeout(LOOP_PROBE_TIME, ask_udp(upstream.addr, &query));
                tokio::select! {
                    // What it says does not matter, only whether it asks.
                    _reply = asking => {}
                    () = forwarder.probes.stop.cancelled() => {}
                }
                lock(&forwarder.loop_probes).remove(&key.name);
            });
        }
    }

    // Whether this is one of those questions. Then the resolver that sent it on asks us, and is given up.
    fn is_loop_probe(&self, key: &Key) -> bool {
        let Some(upstream) = lock(&self.loop_probes).remove(&key.name) else {
            return false;
        };
        upstream.give_up();
        tracing::error!(
            upstream = %upstream.addr,
            "upstream resolver sends its questions back to this server and is not asked any more; give another one with --dns-upstream"
        );
        true
    }

    /// What is remembered of a question. Never waits.
    pub(super) fn remembered(&self, key: &Key) -> Option<Kept> {
        let now = std::time::Instant::now();
        let kept = lock(&self.cache).find(key, now);
        match &kept {
            Some(_) => self.metrics.cache_hits.inc(),
            None => self.metrics.cache_misses.inc(),
        }
        kept
    }

    /// Asks upstream, or waits for whoever has asked the same already. `id` is the client's; `_seat` says that it may
    /// wait, and is its to give back.
    pub(super) async fn ask(
        self: &Arc<Self>,
        id: u16,
        key: &Key,
        _seat: &Seat,
    ) -> Result<Kept, ForwardError> {
        if self.is_loop_probe(key) {
            return Err(ForwardError::OwnLoop);
        }
        let stale = lock(&self.cache).find_stale(key, std::time::Instant::now());
        if let Some(stale) = &stale
            && stale.failed_lately
        {
            self.metrics.cache_stale.inc();
            return Ok(stale.kept.clone());
        }
        let mut flight = self.join(id, key)?;
        let landing = async {
            let landed = flight.landed.wait_for(Option::is_some).await;
            // The sender goes without a word only if its task died.
            let outcome = landed.ok().and_then(|outcome| outcome.clone());
            outcome.unwrap_or(Err(ExchangeError::Unanswered))
        };
        let Some(stale) = stale else {
            return Ok(Kept::fresh(landing.await?));
        };
        // The question goes on without us; what comes of it is remembered for the next one.
        match timeout(PATIENCE_WITH_STALE, landing).await {
            Ok(Ok(relayed)) if relayed.is_conclusive() => Ok(Kept::fresh(relayed)),
            Ok(Ok(_) | Err(_)) | Err(_) => {
                lock(&self.cache).failed(key, std::time::Instant::now());
                self.metrics.cache_stale.inc();
                Ok(stale.kept)
            }
        }
    }

    fn join(self: &Arc<Self>, id: u16, key: &Key) -> Result<Flight, ForwardError> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(key) {
            return if flight.ids.contains(id) {
                Err(ForwardError::OwnLoop)
            } else {
                self.metrics.coalesced.inc();
                Ok(flight.clone())
            };
        }
        let (land, landed) = watch::channel(None);
        let ids = Arc::new(OwnIds::default());
        let flight = Flight {
            landed,
            ids: ids.clone(),
        };
        flights.insert(key.clone(), flight.clone());
        drop(flights);
        let upstreams = self.upstreams.load_full();
        let key = key.clone();
        let forwarder = self.clone();
        // Not the client's task: others may wait for the answer when this client has gone.
        self.tasks.spawn(async move {
            let _cleared = ClearOnDrop(&forwarder, &key);
            let started = Instant::now();
            let upstreams = upstreams.of(&key);
            let (order, probes) = (forwarder.order, &forwarder.probes);
            let outcome = exchange(upstreams, &key, &ids, started, order, probes)
                .await
                .map(Arc::new);
            if let Ok(relayed) = &outcome {
                forwarder.remember(&key, relayed);
            }
            land.send_replace(Some(outcome));
        });
        Ok(flight)
    }

    pub(super) fn remember(&self, key: &Key, relayed: &Arc<Relayed>) {
        let now = std::time::Instant::now();
        let mut cache = lock(&self.cache);
        let evicted = cache.keep(key, relayed, now);
        let (entries, octets) = (cache.len(), cache.octets());
        drop(cache);
        self.metrics
            .cache_evictions
            .inc_by(u64::try_from(evicted).unwrap_or(0));
        self.metrics
            .cache_entries
            .set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.metrics
            .cache_octets
            .set(i64::try_from(octets).unwrap_or(i64::MAX));
    }

    /// Lets a client wait, unless too many do already.
    pub(super) fn take_seat(self: &Arc<Self>, client: IpAddr) -> Option<Seat> {
        let mut waiting = lock(&self.waiting);
        let of_client = waiting.by_client.get(&client).copied().unwrap_or(0);
        if waiting.total >= self.max_waiting || of_client >= self.max_waiting_of_one {
            self.metrics.forwards_rejected.inc();
            return None;
        }
        waiting.total += 1;
        waiting.by_client.insert(client, of_client + 1);
        self.metrics.forwards_in_flight.inc();
        Some(Seat {
            forwarder: self.clone(),
            client,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut waiting = lock(&self.forwarder.waiting);
        waiting.total -= 1;
        if let Some(count) = waiting.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                waiting.by_client.remove(&self.client);
            }
        }
        self.forwarder.metrics.forwards_in_flight.dec();
    }
}

// Ends a flight whatever becomes of its task.
struct ClearOnDrop<'a>(&'a Forwarder, &'a Key);

impl Drop for ClearOnDrop<'_> {
    fn drop(&mut self) {
        lock(&self.0.flights).remove(self.1);
    }
}

// A panic under one of these locks leaves whole values behind: each is changed by single calls.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
