//! Round robin: each backend in turn, over the order that the route was shuffled into.
//!
//! The turn belongs to the service port: all data threads take theirs from one atomic counter, so the shares are exact
//! however flows spread over threads.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::routing::{Balancer, Choice};

/// Sets of different sizes take turns of their own. One counter for both sets of a route would let flows that
/// alternate between them step over the same backends for ever: with two candidates in each, either set would only see
/// even or only odd turns. The local set is a part of the cluster set, so sets of one size are the same set. Sizes that
/// differ by a multiple of 16 share a counter, and after 2^32 turns one begins again: that costs evenness only.
const COUNTERS: usize = 16;

/// After so many rounds the order moves on by one. Clients that call in step with each other would otherwise meet the
/// same backend for ever (two of them over two backends: each always its own). A round still takes every backend once,
/// so shares stay exact.
const ROUNDS_IN_ORDER: usize = 8;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    turns: [AtomicU32; COUNTERS],
}

impl Balancer for RoundRobin {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        if choice.passed_over.is_empty() {
            return self.in_turn(choice, choice.backends.len(), |nth| nth);
        }
        // The turns of those that are passed over are no neighbour's: the others share them.
        let others: Vec<usize> = (0..choice.backends.len())
            .filter(|index| !choice.is_passed_over(*index))
            .collect();
        self.in_turn(choice, others.len(), |nth| others[nth])
    }
}

impl RoundRobin {
    fn in_turn(
        &self,
        choice: &Choice<'_>,
        n: usize,
        index_of: impl Fn(usize) -> usize,
    ) -> Option<usize> {
        if n == 0 {
            return None;
        }
        let turn = self.turns[n % COUNTERS].fetch_add(1, Ordering::Relaxed) as usize;
        let first = turn % n + turn / (n * ROUNDS_IN_ORDER) % n;
        (0..n)
            .map(|step| index_of((first + step) % n))
            .find(|index| choice.is_open(*index))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use proptest::prelude::*;

    use super::*;
    use crate::testkit::{backends, choice};

    #[test]
    fn each_backend_is_picked_in_turn() {
        let balancer = RoundRobin::default();
        let backends = backends(3);
        let picks: Vec<_> = (0..7)
            .map(|_| balancer.pick(&choice(&backends, &[])).unwrap())
            .collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn clients_in_step_with_each_other_meet_every_backend() {
        let balancer = RoundRobin::default();
        let backends = backends(2);
        let mut seen = [[0; 2]; 2];
        for turn in 0..64 {
            seen[turn % 2][balancer.pick(&choice(&backends, &[])).unwrap()] += 1;
        }
        assert_eq!(seen, [[16, 16], [16, 16]]);
    }

    #[test]
    fn a_tried_backend_gives_its_turn_to_the_next() {
        let balancer = RoundRobin::default();
        let backends = backends(3);
        let tried = [backends[0].addr, backends[1].addr];
        assert_eq!(balancer.pick(&choice(&backends, &tried)), Some(2));
        assert_eq!(balancer.pick(&choice(&backends, &tried[..1])), Some(1));
    }

    #[test]
    fn the_turns_of_those_that_are_passed_over_are_shared_by_the_others() {
        let balancer = RoundRobin::default();
        let backends = backends(4);
        let choice = Choice {
            passed_over: &[false, true, false, false],
            ..choice(&backends, &[])
        };
        let mut shares = [0; 4];
        for _ in 0..30 {
            shares[balancer.pick(&choice).unwrap()] += 1;
        }
        assert_eq!(shares, [10, 0, 10, 10]);
    }

    #[test]
    fn flows_that_alternate_between_the_two_sets_still_reach_every_backend() {
        let balancer = RoundRobin::default();
        let cluster = backends(4);
        let local = &cluster[..2];
        let mut seen = [[0; 4]; 2];
        for _ in 0..8 {
            seen[0][balancer.pick(&choice(&cluster, &[])).unwrap()] += 1;
            seen[1][balancer.pick(&choice(local, &[])).unwrap()] += 1;
        }
        assert_eq!(seen, [[2, 2, 2, 2], [4, 4, 0, 0]]);
    }

    #[test]
    fn shares_are_exact_however_many_threads_pick() {
        const THREADS: usize = 4;
        const PICKS: usize = 3 * 500;
        let balancer = RoundRobin::default();
        let backends = backends(3);
        let start = Barrier::new(THREADS);
        let mut shares = [0; 3];
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        let mut shares = [0; 3];
                        for _ in 0..PICKS {
                            shares[balancer.pick(&choice(&backends, &[])).unwrap()] += 1;
                        }
                        shares
                    })
                })
                .collect();
            for thread in threads {
                for (total, share) in shares.iter_mut().zip(thread.join().unwrap()) {
                    *total += share;
                }
            }
        });
        assert_eq!(shares, [THREADS * PICKS / 3; 3]);
    }

    proptest! {
        /// The reference keeps one plain counter per size and walks on from it.
        #[test]
        fn it_agrees_with_a_plain_model(flows in prop::collection::vec((0usize..40, any::<u64>()), 1..200)) {
            let balancer = RoundRobin::default();
            let all = backends(40);
            let mut turns = [0usize; COUNTERS];
            for (n, tried_bits) in flows {
                let backends = &all[..n];
                let tried: Vec<_> = (0..n)
                    .filter(|i| tried_bits >> i & 1 == 1)
                    .map(|i| all[i].addr)
                    .collect();
                let expected = if n == 0 {
                    None
                } else {
                    let turn = turns[n % COUNTERS];
                    turns[n % COUNTERS] += 1;
                    let from = (turn % n + turn / (8 * n)) % n;
                    (from..n).chain(0..from).find(|i| tried_bits >> i & 1 == 0)
                };
                prop_assert_eq!(balancer.pick(&choice(backends, &tried)), expected);
            }
        }
    }
}
