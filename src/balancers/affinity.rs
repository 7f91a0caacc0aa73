//! Client-IP affinity: sends a client back to the backend that served it last, around any other balancer.
//!
//! A memory of the data path: written by every data thread, bounded, never consulted by anybody else.
//!
//! Source: `sessionAffinity: ClientIP`. The key is the address without the port, the timer runs from the client's last
//! new flow, and at `elapsed >= timeout` the choice is made afresh.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::routing::{Balancer, Choice, ClientMemory};

/// Locks of one service port's map. A flow holds one for well under a microsecond, so a few do for many threads, and a
/// port that sees no client costs little.
const SHARDS: usize = 16;

/// Remembers at most `max_clients` clients. At the bound one thread forgets the expired and, if these are too few, the
/// longest unseen until an eighth is free, so the cost of the search is shared by that many new clients. A client that
/// comes meanwhile is served and not remembered.
#[derive(Debug)]
pub(super) struct ClientIp {
    inner: Arc<dyn Balancer>,
    timeout: Duration,
    max_clients: usize,
    pins: DashMap<IpAddr, Pin>,
    // Places taken in `pins`: reserved before an entry is inserted, freed after it is gone. Its own `len` takes every
    // lock.
    n_pins: AtomicUsize,
    evicted_total: AtomicU64,
    // Held by the thread that makes room.
    making_room: Mutex<()>,
}

#[derive(Clone, Copy, Debug)]
struct Pin {
    backend: SocketAddr,
    last_flow: Instant,
}

impl ClientIp {
    /// Affinity for `timeout` around `inner`.
    pub(super) fn new(inner: Arc<dyn Balancer>, timeout: Duration, max_clients: usize) -> Self {
        Self {
            inner,
            timeout,
            max_clients: max_clients.max(1),
            pins: DashMap::with_shard_amount(SHARDS),
            n_pins: AtomicUsize::new(0),
            evicted_total: AtomicU64::new(0),
            making_room: Mutex::new(()),
        }
    }

    fn is_expired(&self, pin: &Pin, now: Instant) -> bool {
        // Threads read the clock before they queue for the lock, so `now` may lie before the pin.
        now.saturating_duration_since(pin.last_flow) >= self.timeout
    }

    fn remembered(&self, pin: &Pin, choice: &Choice<'_>) -> Option<usize> {
        if self.is_expired(pin, choice.now) {
            return None;
        }
        let index = choice.backends.iter().position(|b| b.addr == pin.backend)?;
        choice.is_open(index).then_some(index)
    }

    // Takes one of the places; false if there is none.
    fn reserve(&self) -> bool {
        let one_more = |n| (n < self.max_clients).then_some(n + 1);
        let reserved = self
            .n_pins
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok();
        if !reserved {
            self.evicted_total.fetch_add(1, Ordering::Relaxed);
        }
        reserved
    }

    // Returns how many it forgot. Their places are free only when all of them are really gone.
    fn retain(&self, keeps: impl Fn(&Pin) -> bool) -> usize {
        let mut forgotten = 0;
        self.pins.retain(|_, pin| {
            let kept = keeps(pin);
            forgotten += usize::from(!kept);
            kept
        });
        self.n_pins.fetch_sub(forgotten, Ordering::Relaxed);
        forgotten
    }

    // Never call this with an entry in hand: it takes every lock of the map in turn.
    fn make_room(&self, now: Instant) {
        let _held = match self.making_room.try_lock() {
            Ok(held) => held,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let target = self.max_clients - self.max_clients.div_ceil(8);
        self.retain(|pin| !self.is_expired(pin, now));
        let mut ages: Vec<Instant> = self.pins.iter().map(|pin| pin.last_flow).collect();
        let Some(excess) = ages.len().checked_sub(target).filter(|n| *n > 0) else {
            return;
        };
        let newest_to_go = *ages.select_nth_unstable(excess - 1).1;
        let evicted = self.retain(|pin| pin.last_flow > newest_to_go);
        self.evicted_total
            .fetch_add(evicted as u64, Ordering::Relaxed);
    }
}

impl Balancer for ClientIp {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let client = choice.client.to_canonical();
        let full = self.n_pins.load(Ordering::Relaxed) >= self.max_clients;
        if full && !self.pins.contains_key(&client) {
            self.make_room(choice.now);
        }
        // The entry stays locked over the choice: the first flows of a client may come at once, on several threads, and
        // have to meet at one backend.
        match self.pins.entry(client) {
            Entry::Occupied(mut entry) => {
                let pin = entry.get_mut();
                let index = match self.remembered(pin, choice) {
                    Some(index) => index,
                    None => self.inner.pick(choice)?,
                };
                *pin = Pin {
                    backend: choice.backends[index].addr,
                    last_flow: pin.last_flow.max(choice.now),
                };
                Some(index)
            }
            Entry::Vacant(entry) => {
                let index = self.inner.pick(choice)?;
                if self.reserve() {
                    entry.insert(Pin {
                        backend: choice.backends[index].addr,
                        last_flow: choice.now,
                    });
                }
                Some(index)
            }
        }
    }

    fn sweep(&self, now: Instant, keeps: &dyn Fn(SocketAddr) -> bool) {
        self.retain(|pin| !self.is_expired(pin, now) && keeps(pin.backend));
        self.inner.sweep(now, keeps);
    }

    fn memory(&self) -> ClientMemory {
        ClientMemory {
            clients: self.n_pins.load(Ordering::Relaxed),
            evicted_total: self.evicted_total.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;
    use std::sync::Barrier;

    use proptest::prelude::*;

    use super::super::round_robin::RoundRobin;
    use super::*;
    use crate::routing::Backend;
    use crate::testkit::{backends, start};

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn affinity(max_clients: usize) -> ClientIp {
        ClientIp::new(Arc::new(RoundRobin::default()), TIMEOUT, max_clients)
    }

    fn client(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n))
    }

    /// The pick of a client after so many milliseconds.
    fn pick(
        balancer: &ClientIp,
        backends: &[Arc<Backend>],
        tried: &[SocketAddr],
        who: u32,
        at: u64,
    ) -> Option<SocketAddr> {
        let choice = Choice {
            client: client(who),
            backends,
            tried,
            passed_over: &[],
            warming: None,
            now: start() + Duration::from_millis(at),
        };
        balancer
            .pick(&choice)
            .map(|index| choice.backends[index].addr)
    }

    #[test]
    fn a_client_returns_until_the_timeout_has_passed_since_its_last_new_flow() {
        let balancer = affinity(10);
        let backends = backends(2);
        let at = |at| pick(&balancer, &backends, &[], 1, at).unwrap();
        let first = at(0);
        assert_eq!(at(9_999), first);
        assert_eq!(at(19_998), first, "each new flow renews it");
        assert_ne!(at(29_998), first, "elapsed == timeout is a new choice");
    }

    #[test]
    fn clients_are_told_apart_by_address_and_mapped_addresses_are_ipv4() {
        let balancer = affinity(10);
        let backends = backends(2);
        let one = pick(&balancer, &backends, &[], 1, 0);
        assert_ne!(pick(&balancer, &backends, &[], 2, 0), one);
        let mapped = Choice {
            client: "::ffff:10.0.0.1".parse().unwrap(),
            backends: &backends,
            tried: &[],
            passed_over: &[],
            warming: None,
            now: start(),
        };
        let index = balancer.pick(&mapped).unwrap();
        assert_eq!(Some(backends[index].addr), one);
        assert_eq!(balancer.memory().clients, 2);
    }

    #[test]
    fn a_tried_backend_is_replaced_for_good() {
        let balancer = affinity(10);
        let backends = backends(2);
        let first = pick(&balancer, &backends, &[], 1, 0).unwrap();
        let second = pick(&balancer, &backends, &[first], 1, 0).unwrap();
        assert_ne!(second, first);
        assert_eq!(pick(&balancer, &backends, &[], 1, 1), Some(second));
    }

    #[test]
    fn a_backend_that_is_passed_over_is_replaced_for_good() {
        let balancer = affinity(10);
        let backends = backends(2);
        let first = pick(&balancer, &backends, &[], 1, 0).unwrap();
        let passed_over: Vec<bool> = backends.iter().map(|b| b.addr == first).collect();
        let choice = Choice {
            client: client(1),
            backends: &backends,
            tried: &[],
            passed_over: &passed_over,
            warming: None,
            now: start(),
        };
        let second = backends[balancer.pick(&choice).unwrap()].addr;
        assert_ne!(second, first);
        assert_eq!(pick(&balancer, &backends, &[], 1, 1), Some(second));
    }

    #[test]
    fn a_client_whose_every_backend_failed_keeps_its_last_one() {
        let balancer = affinity(10);
        let backends = backends(1);
        let only = pick(&balancer, &backends, &[], 1, 0).unwrap();
        assert_eq!(pick(&balancer, &backends, &[only], 1, 1), None);
        assert_eq!(pick(&balancer, &backends, &[], 1, 2), Some(only));
    }

    #[test]
    fn a_backend_outside_the_set_is_forgotten_and_the_new_one_remembered() {
        let balancer = affinity(10);
        let all = backends(3);
        assert_eq!(pick(&balancer, &all, &[], 1, 0), Some(all[0].addr));
        let moved = pick(&balancer, &all[1..], &[], 1, 1).unwrap();
        assert_ne!(moved, all[0].addr);
        assert_eq!(
            pick(&balancer, &all, &[], 1, 2),
            Some(moved),
            "the old one coming back changes nothing"
        );
    }

    #[test]
    fn sweeping_forgets_the_expired_and_those_of_backends_that_went() {
        let balancer = affinity(10);
        let backends = backends(2);
        let gone = pick(&balancer, &backends, &[], 1, 5_000).unwrap();
        pick(&balancer, &backends, &[], 2, 5_000);
        pick(&balancer, &backends, &[], 3, 0);
        pick(&balancer, &backends, &[], 4, 1);
        assert_eq!(balancer.memory().clients, 4);
        balancer.sweep(start() + TIMEOUT, &|_| true);
        assert_eq!(balancer.memory().clients, 3, "only the third has expired");
        balancer.sweep(start() + TIMEOUT, &|backend| backend != gone);
        assert_eq!(balancer.memory().clients, 2);
        balancer.sweep(start() + TIMEOUT, &|_| false);
        assert_eq!(
            balancer.memory(),
            ClientMemory::default(),
            "nothing of this is an eviction"
        );
    }

    #[test]
    fn at_the_bound_the_longest_unseen_are_forgotten_and_counted() {
        let balancer = affinity(16);
        let backends = backends(3);
        for who in 0..16 {
            pick(&balancer, &backends, &[], who, u64::from(who));
        }
        let full = ClientMemory {
            clients: 16,
            evicted_total: 0,
        };
        pick(&balancer, &backends, &[], 0, 0);
        assert_eq!(
            balancer.memory(),
            full,
            "at the bound nobody is lost before somebody new comes"
        );
        pick(&balancer, &backends, &[], 99, 100);
        let after = ClientMemory {
            clients: 15,
            evicted_total: 2,
        };
        assert_eq!(balancer.memory(), after, "an eighth went, one came");
        let known = |who| balancer.pins.contains_key(&client(who));
        assert!(!known(0) && !known(1) && known(2) && known(15) && known(99));
    }

    #[test]
    fn at_the_bound_expired_clients_go_first_and_are_no_evictions() {
        let balancer = affinity(8);
        let backends = backends(3);
        for who in 0..8 {
            pick(
                &balancer,
                &backends,
                &[],
                who,
                if who < 4 { 0 } else { 5_000 },
            );
        }
        pick(&balancer, &backends, &[], 99, 10_000);
        let after = ClientMemory {
            clients: 5,
            evicted_total: 0,
        };
        assert_eq!(balancer.memory(), after);
    }

    #[test]
    fn a_memory_of_one_client_serves_everybody() {
        let balancer = affinity(0);
        let backends = backends(2);
        for who in 0..10 {
            assert!(pick(&balancer, &backends, &[], who, 0).is_some());
            assert_eq!(balancer.memory().clients, 1);
        }
        assert_eq!(balancer.memory().evicted_total, 9);
    }

    #[test]
    fn the_first_flows_of_a_client_meet_at_one_backend_and_the_bound_holds_across_threads() {
        const THREADS: u32 = 4;
        const CLIENTS: u32 = 2_000;
        const BOUND: usize = 100;
        let roomy = affinity(CLIENTS as usize);
        let tight = affinity(BOUND);
        let backends = backends(7);
        let starts = Barrier::new(THREADS as usize);
        let picks: Vec<Vec<_>> = std::thread::scope(|scope| {
            let work = || {
                starts.wait();
                (0..CLIENTS)
                    .map(|who| {
                        assert!(pick(&tight, &backends, &[], who, u64::from(who)).is_some());
                        assert!(tight.memory().clients <= BOUND);
                        pick(&roomy, &backends, &[], who, 0)
                    })
                    .collect()
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(picks.iter().all(|thread| *thread == picks[0]));
        assert_eq!(roomy.memory().clients, CLIENTS as usize);
        assert_eq!(tight.memory().clients, tight.pins.len());
    }

    proptest! {
        /// The reference is one plain map without a bound.
        #[test]
        fn it_agrees_with_a_plain_model(
            flows in prop::collection::vec((0u32..6, 0u64..6_000, 1usize..=5, any::<u8>(), any::<bool>()), 1..120),
        ) {
            let balancer = affinity(100);
            let all = backends(5);
            let mut model: HashMap<u32, (SocketAddr, u64)> = HashMap::new();
            let mut now = 0;
            for (who, pause, size, tried_bits, sweeps) in flows {
                now += pause;
                if sweeps {
                    let keeps = |addr: SocketAddr| all[..size].iter().any(|b| b.addr == addr);
                    balancer.sweep(start() + Duration::from_millis(now), &keeps);
                    model.retain(|_, (addr, last)| now - *last < 10_000 && keeps(*addr));
                    prop_assert_eq!(balancer.memory().clients, model.len());
                }
                let tried: Vec<_> = (0..5).filter(|i| tried_bits >> i & 1 == 1).map(|i| all[i].addr).collect();
                let allowed: Vec<_> = all[..size].iter().map(|b| b.addr).filter(|a| !tried.contains(a)).collect();
                let expected = model
                    .get(&who)
                    .filter(|(addr, last)| now - last < 10_000 && allowed.contains(addr))
                    .map(|(addr, _)| *addr);
                let picked = pick(&balancer, &all[..size], &tried, who, now);
                match (expected, picked) {
                    (Some(expected), picked) => prop_assert_eq!(picked, Some(expected)),
                    (None, Some(picked)) => prop_assert!(allowed.contains(&picked)),
                    (None, None) => prop_assert!(allowed.is_empty()),
                }
                if let Some(picked) = picked {
                    model.insert(who, (picked, now));
                }
            }
        }
    }
}
