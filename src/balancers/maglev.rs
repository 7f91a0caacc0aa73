//! Maglev: the backend that a hash of the client's address names. A client keeps its backend without being remembered,
//! on every node alike, and when one of n backends goes or comes about 1/n of the clients move.
//!
//! Source: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::routing::{Backend, Balancer, Choice};

use super::mixing::{hash_addr, hash_ip};

/// Places of a table for up to [`FEW`] backends: a prime, a hundred for each, so that shares differ by a few percent.
/// 32 KB.
const SMALL: usize = 16_381;

/// Up to so many backends a small table does.
const FEW: usize = 163;

/// Places of a table for more. Past 1,300 backends shares differ by more, up to 65,536 backends are told apart. The step
/// from one size to the other moves most clients, once. 256 KB.
const LARGE: usize = 131_071;

/// Of a candidate set, at most so many backends are used: as many as a place can name.
const MAX_BACKENDS: usize = 1 << 16;

/// The hashes by which a backend prefers places, and the one of clients.
const OFFSET: u64 = 1;
const SKIP: u64 = 2;
const CLIENT: u64 = 3;

/// Keeps the tables of the two sets that flows of one service port choose from. A table is made by the first pick after
/// the set has changed, which takes a millisecond or two.
#[derive(Debug, Default)]
pub(super) struct Maglev {
    made: ArcSwap<Vec<Arc<Made>>>,
}

/// The cluster set and the local one.
const SETS: usize = 2;

// A table with the very candidates that it was made for; holding them keeps their addresses in memory from being used
// for others.
#[derive(Debug)]
struct Made {
    candidates: Vec<Arc<Backend>>,
    // The candidate behind each number in the table.
    index_of: Vec<usize>,
    table: Arc<Table>,
}

/// The backend of each place, as a number in the order of their addresses.
#[derive(Debug, PartialEq, Eq)]
struct Table {
    addrs: Vec<SocketAddr>,
    places: Vec<u16>,
}

impl Balancer for Maglev {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        if !(0..choice.backends.len()).any(|index| choice.is_open(index)) {
            return None;
        }
        let made = self.made_for(choice.backends);
        let places = &made.table.places;
        let first = remainder(hash_ip(choice.client, CLIENT), places.len());
        // The place's own backend, or that of the next place whose backend is open: the same for the same client.
        let from_there = places[first..].iter().chain(&places[..first]);
        let mut indices = from_there.map(|number| made.index_of[usize::from(*number)]);
        indices.find(|index| choice.is_open(*index))
    }
}

impl Maglev {
    fn made_for(&self, candidates: &[Arc<Backend>]) -> Arc<Made> {
        let known = self.made.load();
        if let Some(made) = known.iter().find(|made| made.is_for(candidates)) {
            return made.clone();
        }
        let made = Arc::new(Made::new(candidates, &known));
        let with_it = |known: &Arc<Vec<Arc<Made>>>| {
            let others = known.iter().filter(|other| !other.is_for(candidates));
            let all = std::iter::once(&made).chain(others);
            all.take(SETS).cloned().collect::<Vec<_>>()
        };
        self.made.rcu(with_it);
        made
    }
}

impl Made {
    fn new(candidates: &[Arc<Backend>], known: &[Arc<Self>]) -> Self {
        let mut index_of: Vec<usize> = (0..candidates.len()).collect();
        index_of.sort_by_key(|index| candidates[*index].addr);
        index_of.truncate(MAX_BACKENDS);
        let addrs: Vec<SocketAddr> = index_of.iter().map(|i| candidates[*i].addr).collect();
        // A route is made anew for many reasons; the set is often the same.
        let same = known.iter().find(|made| made.table.addrs == addrs);
        let table = match same {
            Some(made) => made.table.clone(),
            None => Arc::new(Table::new(addrs)),
        };
        Self {
            candidates: candidates.to_vec(),
            index_of,
            table,
        }
    }

    fn is_for(&self, candidates: &[Arc<Backend>]) -> bool {
        let both = self.candidates.iter().zip(candidates);
        self.candidates.len() == candidates.len()
            && both.into_iter().all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl Table {
    /// Of addresses in order, none of them twice. Each backend in turn takes the next place that it prefers and that
    /// is free, until none is.
    fn new(addrs: Vec<SocketAddr>) -> Self {
        let n_places = if addrs.len() <= FEW { SMALL } else { LARGE };
        let mut preferences: Vec<Preference> = addrs
            .iter()
            .map(|addr| Preference::new(*addr, n_places))
            .collect();
        let mut places: Vec<Option<u16>> = vec![None; n_places];
        let mut free = if addrs.is_empty() { 0 } else { n_places };
        while free > 0 {
            for (number, preference) in (0..=u16::MAX).zip(&mut preferences).take(free) {
                let place = preference.next_free(&places);
                places[place] = Some(number);
                free -= 1;
                if free == 0 {
                    break;
                }
            }
        }
        Self {
            addrs,
            places: places.into_iter().flatten().collect(),
        }
    }
}

/// A walk over all places in an order of the backend's own: the number of places is prime, so no step misses any.
#[derive(Debug)]
struct Preference {
    next: usize,
    skip: usize,
    n_places: usize,
}

impl Preference {
    fn new(addr: SocketAddr, n_places: usize) -> Self {
        Self {
            next: remainder(hash_addr(addr, OFFSET), n_places),
            skip: 1 + remainder(hash_addr(addr, SKIP), n_places - 1),
            n_places,
        }
    }

    fn next_free(&mut self, places: &[Option<u16>]) -> usize {
        loop {
            let place = self.next;
            self.next = (place + self.skip) % self.n_places;
            if places[place].is_none() {
                return place;
            }
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "below n")]
fn remainder(hash: u64, n: usize) -> usize {
    (hash % n as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::testkit::{backends, choice};

    const CLIENTS: u32 = 20_000;

    fn client(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n))
    }

    fn pick(
        balancer: &Maglev,
        backends: &[Arc<Backend>],
        tried: &[SocketAddr],
        n: u32,
    ) -> SocketAddr {
        let choice = Choice {
            client: client(n),
            ..choice(backends, tried)
        };
        backends[balancer.pick(&choice).unwrap()].addr
    }

    fn mapping(backends: &[Arc<Backend>]) -> Vec<SocketAddr> {
        let balancer = Maglev::default();
        (0..CLIENTS)
            .map(|n| pick(&balancer, backends, &[], n))
            .collect()
    }

    #[test]
    fn the_sizes_are_prime() {
        for n in [SMALL, LARGE] {
            assert!((2..n).take_while(|d| d * d <= n).all(|d| n % d != 0), "{n}");
        }
    }

    #[test]
    fn every_node_maps_a_client_alike_whatever_the_order_of_the_backends() {
        let backends = backends(9);
        let mut shuffled = backends.clone();
        shuffled.reverse();
        assert_eq!(mapping(&backends), mapping(&shuffled));
    }

    #[test]
    fn shares_differ_by_a_few_percent() {
        for n in [2u8, 10, 100] {
            let backends = backends(n);
            let table = Table::new(backends.iter().map(|b| b.addr).collect());
            let mut shares = vec![0usize; usize::from(n)];
            for number in &table.places {
                shares[usize::from(*number)] += 1;
            }
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(
                most - least <= 1,
                "each takes a place in turn: {least} to {most}"
            );
        }
    }

    #[test]
    fn about_one_of_n_clients_moves_when_one_of_n_backends_goes_or_comes() {
        for n in [3u8, 10, 50] {
            let all = backends(n);
            let before = mapping(&all);
            let gone = all[1].addr;
            let mut fewer = all.clone();
            fewer.remove(1);
            let after = mapping(&fewer);
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            let orphans = before.iter().filter(|addr| **addr == gone).count();
            let fair = CLIENTS as usize / usize::from(n);
            assert!(
                orphans.abs_diff(fair) < fair / 5,
                "{orphans} of {CLIENTS} had it"
            );
            // Those that had it must move; the paper finds a few percent of the others do.
            assert!(
                moved - orphans < CLIENTS as usize / 25,
                "{n}: {moved} moved, {orphans} had to"
            );
            assert_eq!(mapping(&all), before, "and all come back with it");
        }
    }

    #[test]
    fn a_client_whose_backend_is_passed_over_has_one_other_and_returns() {
        let balancer = Maglev::default();
        let backends = backends(5);
        for n in 0..200 {
            let own = pick(&balancer, &backends, &[], n);
            let other = pick(&balancer, &backends, &[own], n);
            assert_ne!(own, other);
            assert_eq!(pick(&balancer, &backends, &[own], n), other);
            assert_eq!(pick(&balancer, &backends, &[], n), own);
        }
    }

    #[test]
    fn both_sets_keep_their_tables_and_a_new_route_over_the_same_set_does() {
        let balancer = Maglev::default();
        let cluster = backends(4);
        let local = &cluster[..2];
        let (first, second) = (balancer.made_for(&cluster), balancer.made_for(local));
        assert!(Arc::ptr_eq(&first, &balancer.made_for(&cluster)));
        assert!(Arc::ptr_eq(&second, &balancer.made_for(local)));
        let again = backends(4);
        let third = balancer.made_for(&again);
        assert!(!Arc::ptr_eq(&third, &first));
        assert!(Arc::ptr_eq(&third.table, &first.table), "the same set");
        assert_eq!(balancer.made.load().len(), SETS);
    }

    proptest! {
        /// The reference is the paper's algorithm, written plainly, with every preference in full.
        #[test]
        fn a_table_is_that_of_a_plain_model(ports in prop::collection::btree_set(1u16..500, 1..6)) {
            let addrs: Vec<SocketAddr> = ports.iter().map(|p| SocketAddr::from(([10, 0, 0, 1], *p))).collect();
            let m = SMALL as u64;
            let permutation: Vec<Vec<u64>> = addrs
                .iter()
                .map(|addr| {
                    let offset = hash_addr(*addr, OFFSET) % m;
                    let skip = hash_addr(*addr, SKIP) % (m - 1) + 1;
                    (0..m).map(|j| (offset + j * skip) % m).collect()
                })
                .collect();
            let mut entry = vec![None; SMALL];
            let mut next = vec![0usize; addrs.len()];
            let mut filled = 0;
            'fill: loop {
                for i in 0..addrs.len() {
                    while entry[usize::try_from(permutation[i][next[i]]).unwrap()].is_some() {
                        next[i] += 1;
                    }
                    entry[usize::try_from(permutation[i][next[i]]).unwrap()] = Some(u16::try_from(i).unwrap());
                    next[i] += 1;
                    filled += 1;
                    if filled == SMALL {
                        break 'fill;
                    }
                }
            }
            let expected: Vec<u16> = entry.into_iter().flatten().collect();
            prop_assert_eq!(Table::new(addrs).places, expected);
        }
    }
}
