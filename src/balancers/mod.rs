//! The balancing algorithms: which candidate serves a new flow. Pure.
//!
//! An algorithm is one file here, one variant of `model::Algorithm` and one line in [`Algorithms::make`]. Affinity and
//! slow start are no algorithms: they wrap one. Who may be picked at all was decided before, in `routing::eligible`, and
//! who is passed over for failing, in `routing::held_back`.

mod affinity;
mod least_connection;
mod maglev;
mod mixing;
mod random_two;
mod round_robin;
mod slow_start;

use std::sync::Arc;
use std::time::Duration;

use crate::model::Algorithm;
use crate::routing::{Balancer, BalancerFactory};

use affinity::ClientIp;
use least_connection::LeastConnection;
use maglev::Maglev;
use random_two::RandomTwo;
use round_robin::RoundRobin;
use slow_start::SlowStart;

/// Makes the balancers of all service ports.
#[derive(Clone, Copy, Debug)]
pub struct Algorithms {
    /// Clients that one service port with affinity remembers; at least 1. At the bound the expired and then the
    /// longest unseen are forgotten, which is counted.
    pub max_affinity_entries: usize,
}

impl Default for Algorithms {
    /// 65,536 clients per service port: under 10 MB where a port really sees that many within its timeout.
    fn default() -> Self {
        Self {
            max_affinity_entries: 65_536,
        }
    }
}

impl BalancerFactory for Algorithms {
    fn make(&self, algorithm: Algorithm, affinity: Option<Duration>) -> Arc<dyn Balancer> {
        let plain: Arc<dyn Balancer> = match algorithm {
            Algorithm::RoundRobin => Arc::new(SlowStart::new(RoundRobin::default())),
            Algorithm::LeastConnection => Arc::new(SlowStart::new(LeastConnection::default())),
            Algorithm::RandomTwoChoices => Arc::new(SlowStart::new(RandomTwo::default())),
            // A hash has no share that could grow: a client belongs to the new backend at once or not at all.
            Algorithm::Maglev => Arc::new(Maglev::default()),
        };
        match affinity {
            Some(timeout) => Arc::new(ClientIp::new(plain, timeout, self.max_affinity_entries)),
            None => plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{backends, choice};

    /// Whatever the algorithm, with affinity or without.
    fn all() -> Vec<Arc<dyn Balancer>> {
        let factory = Algorithms::default();
        Algorithm::ALL
            .into_iter()
            .flat_map(|(_, algorithm)| {
                [None, Some(Duration::from_secs(10))].map(|a| factory.make(algorithm, a))
            })
            .collect()
    }

    #[test]
    fn every_algorithm_tries_each_backend_once_and_then_gives_up() {
        for balancer in all() {
            let backends = backends(5);
            let mut tried = Vec::new();
            while let Some(index) = balancer.pick(&choice(&backends, &tried)) {
                assert!(!tried.contains(&backends[index].addr), "{balancer:?}");
                tried.push(backends[index].addr);
            }
            assert_eq!(tried.len(), 5, "{balancer:?}");
        }
    }

    #[test]
    fn every_algorithm_picks_nothing_from_nothing() {
        for balancer in all() {
            assert_eq!(balancer.pick(&choice(&[], &[])), None, "{balancer:?}");
        }
    }

    #[test]
    fn only_affinity_remembers_clients() {
        let backends = backends(2);
        let remembered: Vec<usize> = all()
            .iter()
            .map(|balancer| {
                balancer.pick(&choice(&backends, &[]));
                balancer.memory().clients
            })
            .collect();
        assert_eq!(remembered, [0, 1, 0, 1, 0, 1, 0, 1]);
    }
}
