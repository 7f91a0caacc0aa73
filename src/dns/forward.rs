//! Questions about other names: who is asked, how many at once, and what is remembered.
//!
//! Identical questions that wait at the same time are asked upstream once. The waiting clients are bounded, in all and
//! each: past the bound the answer is "refused", at once, so that a slow upstream never takes the server with it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use hickory_proto::rr::Name;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::cache::{Cache, Kept, Key};
use super::metrics::Metrics;
use super::relayed::Relayed;
use super::upstream::{ExchangeError, OwnIds, Upstream, exchange};

/// Clients that may wait at the same time; about 2 KB each.
const MAX_WAITING: usize = 1000;

/// Of one client.
const MAX_WAITING_OF_ONE: usize = 200;

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

    fn of(&self, key: &Key) -> &[Arc<Upstream>] {
        self.domains
            .iter()
            .find(|(domain, _)| key.is_under(domain))
            .map_or(&self.others, |(_, list)| list)
    }
}

impl Forwarder {
    /// A forwarder with an empty cache. Its work is spawned on `tasks`.
    pub(super) fn new(upstreams: Upstreams, tasks: TaskTracker, metrics: Arc<Metrics>) -> Self {
        Self {
            upstreams: ArcSwap::from_pointee(upstreams),
            cache: Mutex::new(Cache::new()),
            flights: Mutex::new(HashMap::new()),
            waiting: Mutex::new(Waiting::default()),
            tasks,
            metrics,
        }
    }

    /// Asks others from now on. What is under way goes on.
    pub(super) fn replace_upstreams(&self, upstreams: Upstreams) {
        self.upstreams.store(Arc::new(upstreams));
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
    ) -> Result<Arc<Relayed>, ForwardError> {
        let mut flight = self.join(id, key)?;
        let landed = flight.landed.wait_for(Option::is_some).await;
        // The sender goes without a word only if its task died.
        let outcome = landed.ok().and_then(|outcome| outcome.clone());
        Ok(outcome.unwrap_or(Err(ExchangeError::Unanswered))?)
    }

    fn join(self: &Arc<Self>, id: u16, key: &Key) -> Result<Flight, ForwardError> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(key) {
            return if flight.ids.contains(id) {
                Err(ForwardError::OwnLoop)
            } else {
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
            let metrics = &forwarder.metrics;
            let outcome = exchange(upstreams.of(&key), &key, &ids, started, metrics)
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
        let entries = cache.len();
        drop(cache);
        self.metrics
            .cache_evictions
            .inc_by(u64::try_from(evicted).unwrap_or(0));
        self.metrics
            .cache_entries
            .set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// Lets a client wait, unless too many do already.
    pub(super) fn take_seat(self: &Arc<Self>, client: IpAddr) -> Option<Seat> {
        let mut waiting = lock(&self.waiting);
        let of_client = waiting.by_client.get(&client).copied().unwrap_or(0);
        if waiting.total >= MAX_WAITING || of_client >= MAX_WAITING_OF_ONE {
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
