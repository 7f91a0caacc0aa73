//! Who holds which address: the oldest Service that claims it, until it lets go.
//!
//! Source: kube-proxy logs the second claimant of a node port or external address and serves whichever comes first; ours
//! is the older one, and the next in age takes over.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use crate::model::{Family, Frontend, Protocol, ServiceName, ServicePortKey};

/// Something that only one service port can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Claim {
    /// An address and port of its own.
    Frontend(Frontend),
    /// A port on all node-port addresses of a family.
    NodePort(Family, Protocol, u16),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frontend(frontend) => frontend.fmt(f),
            Self::NodePort(family, protocol, port) => {
                write!(f, "node port {port}/{protocol} ({family})")
            }
        }
    }
}

/// Two service ports claim one address; the older one keeps it until it lets go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is held by {owner}; {loser} takes over when it goes")]
pub struct Conflict {
    /// The address or node port, as users write it.
    pub address: String,
    /// Who has it.
    pub owner: ServicePortKey,
    /// Who waits for it.
    pub loser: ServicePortKey,
}

/// All claims of all service ports. A service port claims with the age of its Service: the smaller, the older.
#[derive(Debug, Default)]
pub(super) struct Claims {
    // In order, so that the first holds the claim; none is empty. Nearly all have one claimant, so no tree: its first
    // node would cost ten times as much.
    claimants: HashMap<Claim, Vec<(u64, ServicePortKey)>>,
}

impl Claims {
    /// Replaces what `key` claims: `before` is what it claimed last. Returns the Services of other service ports that
    /// gained or lost a claim by that.
    pub(super) fn set(
        &mut self,
        key: &ServicePortKey,
        age: u64,
        before: &BTreeSet<Claim>,
        wanted: &BTreeSet<Claim>,
    ) -> BTreeSet<ServiceName> {
        let mut affected = BTreeSet::new();
        for claim in before.union(wanted) {
            let claimants = self.claimants.entry(*claim).or_default();
            let held_by = claimants.first().cloned();
            claimants.retain(|(_, claimant)| claimant != key);
            if wanted.contains(claim) {
                let new = (age, key.clone());
                let place = claimants.partition_point(|earlier| *earlier < new);
                claimants.reserve_exact(1);
                claimants.insert(place, new);
            }
            let goes_to = claimants.first().cloned();
            if claimants.is_empty() {
                self.claimants.remove(claim);
            }
            if held_by != goes_to {
                let others = held_by.into_iter().chain(goes_to).map(|(_, other)| other);
                affected.extend(others.filter(|o| o != key).map(|other| other.service));
            }
        }
        affected
    }

    /// Whether `key` claims it and nobody older does.
    pub(super) fn holds(&self, key: &ServicePortKey, claim: Claim) -> bool {
        self.holder(claim) == Some(key)
    }

    /// What of its `wanted` claims `key` has in vain, in order.
    pub(super) fn conflicts(
        &self,
        key: &ServicePortKey,
        wanted: &BTreeSet<Claim>,
    ) -> Vec<Conflict> {
        let waits = |claim: &Claim| {
            let owner = self.holder(*claim).filter(|owner| *owner != key)?;
            Some(Conflict {
                address: claim.to_string(),
                owner: owner.clone(),
                loser: key.clone(),
            })
        };
        wanted.iter().filter_map(waits).collect()
    }

    fn holder(&self, claim: Claim) -> Option<&ServicePortKey> {
        let (_, holder) = self.claimants.get(&claim)?.first()?;
        Some(holder)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::testkit::port_key;

    /// Claims, and what each service port said last.
    #[derive(Default)]
    struct Told {
        claims: Claims,
        wanted: BTreeMap<ServicePortKey, BTreeSet<Claim>>,
    }

    impl Told {
        fn set(
            &mut self,
            key: &ServicePortKey,
            age: u64,
            wanted: BTreeSet<Claim>,
        ) -> BTreeSet<ServiceName> {
            let before = self.wanted.insert(key.clone(), wanted.clone());
            let before = before.unwrap_or_default();
            self.claims.set(key, age, &before, &wanted)
        }

        fn conflicts(&self, key: &ServicePortKey) -> Vec<Conflict> {
            self.claims.conflicts(key, &self.wanted[key])
        }
    }

    fn node_ports(numbers: impl IntoIterator<Item = u16>) -> BTreeSet<Claim> {
        let claim = |number| Claim::NodePort(Family::V4, Protocol::Tcp, number);
        numbers.into_iter().map(claim).collect()
    }

    fn affected(names: &[&str]) -> BTreeSet<ServiceName> {
        names.iter().map(|n| port_key(n).service).collect()
    }

    fn holder(told: &Told, number: u16) -> Option<String> {
        let holder = told
            .claims
            .holder(Claim::NodePort(Family::V4, Protocol::Tcp, number));
        holder.map(|key| key.service.name.to_string())
    }

    #[test]
    fn the_oldest_claimant_holds_and_the_next_in_age_takes_over() {
        let [a, b, c] = ["a", "b", "c"].map(port_key);
        let mut claims = Told::default();
        assert_eq!(claims.set(&b, 2, node_ports([80])), affected(&[]));
        assert_eq!(claims.set(&c, 3, node_ports([80])), affected(&[]));
        assert_eq!(
            claims.set(&a, 1, node_ports([80])),
            affected(&["b"]),
            "an older one displaces"
        );
        assert_eq!(holder(&claims, 80).as_deref(), Some("a"));
        assert_eq!(
            claims.set(&b, 2, node_ports([])),
            affected(&[]),
            "one that waits vanishes"
        );
        assert_eq!(claims.set(&a, 1, node_ports([])), affected(&["c"]));
        assert_eq!(holder(&claims, 80).as_deref(), Some("c"));
        assert_eq!(claims.set(&c, 3, node_ports([])), affected(&[]));
        assert_eq!(holder(&claims, 80), None);
        assert!(claims.claims.claimants.is_empty());
    }

    #[test]
    fn claiming_again_is_no_conflict_and_affects_nobody() {
        let [a, b] = ["a", "b"].map(port_key);
        let mut claims = Told::default();
        claims.set(&a, 1, node_ports([80, 81]));
        claims.set(&b, 2, node_ports([80]));
        assert_eq!(claims.set(&a, 1, node_ports([80, 82])), affected(&[]));
        assert_eq!(claims.conflicts(&a), []);
        let [conflict] = claims.conflicts(&b).try_into().unwrap();
        assert_eq!(
            conflict.to_string(),
            "node port 80/TCP (IPv4) is held by default/a; default/b takes over when it goes"
        );
    }

    #[test]
    fn a_holder_that_comes_back_younger_gives_way() {
        let [a, b] = ["a", "b"].map(port_key);
        let mut claims = Told::default();
        claims.set(&a, 1, node_ports([80]));
        claims.set(&b, 2, node_ports([80]));
        assert_eq!(claims.set(&a, 3, node_ports([80])), affected(&["b"]));
        assert_eq!(holder(&claims, 80).as_deref(), Some("b"));
        assert_eq!(claims.conflicts(&a).len(), 1);
    }

    proptest! {
        /// The reference asks every service port for its claims and takes the oldest.
        #[test]
        fn it_agrees_with_a_plain_model(
            steps in prop::collection::vec((0usize..5, 0u64..3, prop::collection::btree_set(0u16..4, 0..4)), 1..60),
        ) {
            let keys = ["a", "b", "c", "d", "e"].map(port_key);
            let mut claims = Told::default();
            let mut model: BTreeMap<usize, (u64, BTreeSet<u16>)> = BTreeMap::new();
            let held = |model: &BTreeMap<usize, (u64, BTreeSet<u16>)>, number: u16| {
                let of = model.iter().filter(|(_, (_, wanted))| wanted.contains(&number));
                of.map(|(who, (age, _))| (*age, *who)).min().map(|(_, who)| who)
            };
            for (who, age, wanted) in steps {
                let before: Vec<_> = (0..4).map(|n| held(&model, n)).collect();
                model.insert(who, (age, wanted.clone()));
                let affected = claims.set(&keys[who], age, node_ports(wanted));
                let mut expected = BTreeSet::new();
                for number in 0..4 {
                    let (old, new) = (before[usize::from(number)], held(&model, number));
                    prop_assert_eq!(holder(&claims, number), new.map(|w| keys[w].service.name.to_string()));
                    if old != new {
                        expected.extend([old, new].into_iter().flatten().filter(|w| *w != who).map(|w| keys[w].service.clone()));
                    }
                }
                prop_assert_eq!(affected, expected);
            }
        }
    }
}
