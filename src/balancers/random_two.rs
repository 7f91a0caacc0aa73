//! Random of two choices: of two candidates at random the one with fewer flows. Nearly as even as least connection, but
//! it looks at two backends only, and threads that pick at the same moment do not run to the same one.
//!
//! Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing".

use crate::routing::{Balancer, Choice};

use super::mixing::{Draws, below};

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct RandomTwo {
    draws: Draws,
}

impl Balancer for RandomTwo {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        if choice.are_all_open() {
            return self.of_two(choice, choice.backends.len(), |nth| nth);
        }
        let open = (0..choice.backends.len()).filter(|index| choice.is_open(*index));
        let open: Vec<usize> = open.collect();
        self.of_two(choice, open.len(), |nth| open[nth])
    }
}

impl RandomTwo {
    fn of_two(
        &self,
        choice: &Choice<'_>,
        n: usize,
        index_of: impl Fn(usize) -> usize,
    ) -> Option<usize> {
        if n < 2 {
            return (n == 1).then(|| index_of(0));
        }
        let [a, b, c, d, e, f, g, h] = self.draws.next().to_be_bytes();
        let first = below(n, u32::from_be_bytes([a, b, c, d]));
        let distance = 1 + below(n - 1, u32::from_be_bytes([e, f, g, h]));
        let second = (first + distance) % n;
        let active = |nth: usize| choice.backends[index_of(nth)].live.active();
        let fewer = if active(second) < active(first) {
            second
        } else {
            first
        };
        Some(index_of(fewer))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testkit::{backends, choice};

    #[test]
    fn of_two_candidates_the_one_with_fewer_flows_is_picked() {
        let balancer = RandomTwo::default();
        let backends = backends(2);
        backends[0].live.begin();
        for _ in 0..20 {
            assert_eq!(balancer.pick(&choice(&backends, &[])), Some(1));
        }
    }

    #[test]
    fn the_busiest_of_all_is_never_picked_and_every_other_one_is() {
        let balancer = RandomTwo::default();
        let backends = backends(5);
        backends[3].live.begin();
        let mut shares = [0; 5];
        for _ in 0..1_000 {
            shares[balancer.pick(&choice(&backends, &[])).unwrap()] += 1;
        }
        assert_eq!(shares[3], 0);
        let others = [0, 1, 2, 4].map(|i| shares[i]);
        assert!(others.iter().all(|n| (190..310).contains(n)), "{shares:?}");
    }

    #[test]
    fn lasting_flows_spread_far_more_evenly_than_at_random() {
        let balancer = RandomTwo::default();
        let backends = backends(50);
        for _ in 0..5_000 {
            backends[balancer.pick(&choice(&backends, &[])).unwrap()]
                .live
                .begin();
        }
        let most = backends.iter().map(|b| b.live.active()).max().unwrap();
        // At random it is about 100 + 3 * sqrt(100); of two choices, 100 + ln ln 50 / ln 2.
        assert!(most <= 105, "{most}");
    }

    proptest! {
        /// Whatever is tried and passed over: an open candidate, and not the single busiest where there are others.
        #[test]
        fn it_picks_an_open_candidate_that_is_not_the_busiest(
            flows in prop::collection::vec(0u64..5, 1..12),
            tried_bits in any::<u16>(),
            out_bits in any::<u16>(),
        ) {
            let balancer = RandomTwo::default();
            let backends = backends(u8::try_from(flows.len()).unwrap());
            for (backend, n) in backends.iter().zip(&flows) {
                (0..*n).for_each(|_| backend.live.begin());
            }
            let is_set = |bits: u16, i: usize| bits >> i & 1 == 1;
            let tried: Vec<_> = (0..flows.len()).filter(|i| is_set(tried_bits, *i)).map(|i| backends[i].addr).collect();
            let passed_over: Vec<bool> = (0..flows.len()).map(|i| is_set(out_bits, i)).collect();
            let choice = Choice { passed_over: &passed_over, ..choice(&backends, &tried) };
            let open: Vec<usize> = (0..flows.len()).filter(|i| !is_set(tried_bits | out_bits, *i)).collect();
            match balancer.pick(&choice) {
                None => prop_assert!(open.is_empty()),
                Some(picked) => {
                    prop_assert!(open.contains(&picked));
                    let busier = open.iter().filter(|i| **i != picked && flows[**i] >= flows[picked]);
                    prop_assert!(open.len() == 1 || busier.count() > 0);
                }
            }
        }
    }
}
