//! Slow start around an algorithm: new backends get a share of new flows that grows, the others share the rest as the
//! algorithm says.
//!
//! A flow is given to a newcomer with the probability of that newcomer's share; all others are the algorithm's among
//! those that are warm. So a share is exact whatever the algorithm, also for one that would give everything to a backend
//! without flows. Where nobody warms up, it is the algorithm and nothing else.

use crate::routing::{Balancer, Choice};

use super::mixing::Draws;

/// See the module's description.
#[derive(Debug)]
pub(super) struct SlowStart<B> {
    inner: B,
    draws: Draws,
}

impl<B: Balancer> SlowStart<B> {
    pub(super) fn new(inner: B) -> Self {
        Self {
            inner,
            draws: Draws::default(),
        }
    }

    // `shares` of all candidates, some of which are below 1.
    fn pick_by(&self, shares: &[f64], choice: &Choice<'_>) -> Option<usize> {
        let is_new = |index: usize| shares[index] < 1.0;
        let open: Vec<usize> = (0..choice.backends.len())
            .filter(|index| choice.is_open(*index))
            .collect();
        // Nobody to spare the newcomers, or no newcomers to spare.
        if open.iter().all(|index| is_new(*index)) || !open.iter().any(|index| is_new(*index)) {
            return self.inner.pick(choice);
        }
        let total: f64 = open.iter().map(|index| shares[*index]).sum();
        let mut left = self.fraction() * total;
        for newcomer in open.iter().copied().filter(|index| is_new(*index)) {
            if left < shares[newcomer] {
                return Some(newcomer);
            }
            left -= shares[newcomer];
        }
        let passed_over: Vec<bool> = (0..choice.backends.len())
            .map(|index| is_new(index) || !choice.is_open(index))
            .collect();
        self.inner.pick(&Choice {
            passed_over: &passed_over,
            ..*choice
        })
    }

    // From 0 to below 1.
    #[allow(clippy::cast_precision_loss, reason = "53 bits")]
    fn fraction(&self) -> f64 {
        (self.draws.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl<B: Balancer> Balancer for SlowStart<B> {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let Some(warming) = &choice.warming else {
            return self.inner.pick(choice);
        };
        let shares = warming.shares(choice.backends, choice.now);
        if shares.is_empty() {
            return self.inner.pick(choice);
        }
        self.pick_by(&shares, choice)
    }
}

#[cfg(test)]
mod tests {
    use super::super::least_connection::LeastConnection;
    use super::super::round_robin::RoundRobin;
    use super::*;
    use crate::testkit::{backends, choice};

    const PICKS: usize = 10_000;

    fn shares_of(balancer: &SlowStart<impl Balancer>, shares: &[f64], open: &[bool]) -> Vec<usize> {
        let backends = backends(u8::try_from(shares.len()).unwrap());
        let passed_over: Vec<bool> = open.iter().map(|open| !open).collect();
        let choice = Choice {
            passed_over: &passed_over,
            ..choice(&backends, &[])
        };
        let mut seen = vec![0; shares.len()];
        for _ in 0..PICKS {
            seen[balancer.pick_by(shares, &choice).unwrap()] += 1;
        }
        seen
    }

    #[test]
    fn a_newcomer_gets_its_share_whatever_the_algorithm() {
        let wanted = [PICKS / 25 * 10, PICKS / 25 * 10, PICKS / 25 * 5];
        let all = [true; 3];
        let round_robin = SlowStart::new(RoundRobin::default());
        // Nobody has a flow here, so least connection alone would take turns.
        let least = SlowStart::new(LeastConnection::default());
        for seen in [
            shares_of(&round_robin, &[1.0, 1.0, 0.5], &all),
            shares_of(&least, &[1.0, 1.0, 0.5], &all),
        ] {
            for (seen, wanted) in seen.iter().zip(wanted) {
                assert!(seen.abs_diff(wanted) < PICKS / 50, "{seen} is not {wanted}");
            }
        }
    }

    #[test]
    fn an_idle_newcomer_does_not_get_every_flow_of_least_connection() {
        let balancer = SlowStart::new(LeastConnection::default());
        let backends = backends(3);
        for busy in &backends[..2] {
            (0..50).for_each(|_| busy.live.begin());
        }
        let choice = choice(&backends, &[]);
        let pick = |_: &usize| balancer.pick_by(&[1.0, 1.0, 0.1], &choice) == Some(2);
        let new = (0..PICKS).filter(pick).count();
        assert!(new.abs_diff(PICKS / 21) < PICKS / 100, "{new}");
    }

    #[test]
    fn newcomers_among_themselves_share_equally_when_no_other_is_open() {
        let balancer = SlowStart::new(RoundRobin::default());
        let seen = shares_of(&balancer, &[1.0, 0.1, 0.9], &[false, true, true]);
        assert_eq!(seen[0], 0);
        assert!(seen[1].abs_diff(PICKS / 2) < PICKS / 50, "{seen:?}");
    }

    #[test]
    fn where_nobody_may_be_picked_nobody_is() {
        let balancer = SlowStart::new(RoundRobin::default());
        let backends = backends(2);
        let tried = [backends[0].addr, backends[1].addr];
        assert_eq!(
            balancer.pick_by(&[1.0, 0.5], &choice(&backends, &tried)),
            None
        );
    }
}
