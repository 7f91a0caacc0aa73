//! Least connection: the backend with the fewest flows at this moment, exactly and not by sampling.
//!
//! The figures are the live ones that the data path keeps for each backend, shared by all data threads. It never counts
//! anything itself, so a flow that ends is seen by the very next pick.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::routing::{Balancer, Choice};

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct LeastConnection {
    // Whose turn it is among equals; without it the first in the list would get every flow of an idle service.
    turn: AtomicUsize,
}

impl Balancer for LeastConnection {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let figures = || {
            choice
                .backends
                .iter()
                .enumerate()
                .filter(|(index, _)| choice.is_open(*index))
                .map(|(index, backend)| (index, backend.live.active()))
        };
        let mut fewest = u64::MAX;
        let (mut first, mut equals) = (None, 0);
        for (index, active) in figures() {
            if first.is_none() || active < fewest {
                (fewest, first, equals) = (active, Some(index), 1);
            } else if active == fewest {
                equals += 1;
            }
        }
        let first = first?;
        if equals == 1 {
            return Some(first);
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % equals;
        // The figures move while they are read; where the equals are no longer that many, the first of them is as good.
        figures()
            .filter(|(_, active)| *active <= fewest)
            .nth(turn)
            .map_or(Some(first), |(index, _)| Some(index))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testkit::{backends, choice};

    #[test]
    fn the_backend_with_the_fewest_flows_is_picked() {
        let balancer = LeastConnection::default();
        let backends = backends(3);
        backends[0].live.begin();
        backends[0].live.begin();
        backends[1].live.begin();
        assert_eq!(balancer.pick(&choice(&backends, &[])), Some(2));
        backends[2].live.begin();
        backends[2].live.begin();
        assert_eq!(balancer.pick(&choice(&backends, &[])), Some(1));
        backends[0].live.end();
        backends[0].live.end();
        assert_eq!(
            balancer.pick(&choice(&backends, &[])),
            Some(0),
            "a flow that ended counts no more"
        );
    }

    #[test]
    fn a_tried_backend_is_left_out_even_if_it_has_the_fewest() {
        let balancer = LeastConnection::default();
        let backends = backends(3);
        backends[1].live.begin();
        let tried = [backends[0].addr, backends[2].addr];
        assert_eq!(balancer.pick(&choice(&backends, &tried)), Some(1));
    }

    #[test]
    fn equal_backends_share_equally_beside_busier_ones() {
        let balancer = LeastConnection::default();
        let backends = backends(5);
        for busy in [1, 2, 4] {
            backends[busy].live.begin();
        }
        let mut shares = [0; 5];
        for _ in 0..100 {
            shares[balancer.pick(&choice(&backends, &[])).unwrap()] += 1;
        }
        assert_eq!(shares, [50, 0, 0, 50, 0]);
    }

    proptest! {
        /// Flows begin and end at random; a pick is right if nobody untried has fewer flows by the model's own count.
        #[test]
        fn nobody_untried_has_fewer_flows(
            n in 1usize..20,
            steps in prop::collection::vec((any::<bool>(), any::<usize>(), any::<u32>()), 1..300),
        ) {
            let balancer = LeastConnection::default();
            let backends = backends(u8::try_from(n).unwrap());
            let mut active = vec![0u64; n];
            for (ends, which, tried_bits) in steps {
                if ends {
                    let which = which % n;
                    if active[which] > 0 {
                        active[which] -= 1;
                        backends[which].live.end();
                    }
                    continue;
                }
                let untried = |i: &usize| tried_bits >> i & 1 == 0;
                let tried: Vec<_> = (0..n).filter(|i| !untried(i)).map(|i| backends[i].addr).collect();
                let picked = balancer.pick(&choice(&backends, &tried));
                let fewest = (0..n).filter(untried).map(|i| active[i]).min();
                prop_assert_eq!(picked.map(|i| active[i]), fewest);
                if let Some(picked) = picked {
                    prop_assert!(untried(&picked));
                    active[picked] += 1;
                    backends[picked].live.begin();
                }
            }
        }

        /// With flows that never end, any order of picks leaves the backends within one flow of each other.
        #[test]
        fn lasting_flows_spread_evenly(n in 1usize..20, flows in 0usize..200) {
            let balancer = LeastConnection::default();
            let backends = backends(u8::try_from(n).unwrap());
            for _ in 0..flows {
                backends[balancer.pick(&choice(&backends, &[])).unwrap()].live.begin();
            }
            let active = backends.iter().map(|b| b.live.active());
            prop_assert!(active.clone().max().unwrap() - active.min().unwrap() <= 1);
        }
    }
}
