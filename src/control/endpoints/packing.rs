//! Distributes endpoints over slices so that as few slices as possible are written.
//!
//! Endpoints stay where they are, even where that leaves slices half empty: every written slice is sent to every node.
//! Source: KEP-752, `reconcileByPortMapping`.

use std::collections::HashMap;

use k8s_openapi::api::discovery::v1::Endpoint;

/// A slice as packing sees it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// The slice's name.
    pub(super) name: String,
    /// What it holds.
    pub(super) endpoints: Vec<Endpoint>,
    /// It must be written whatever happens to its endpoints.
    pub(super) written: bool,
}

/// Where the endpoints go.
#[derive(Debug, Default)]
pub(super) struct Packed {
    /// Slices that stay, with their new endpoints; some are as they were.
    pub(super) kept: Vec<Held>,
    /// Endpoints of new slices.
    pub(super) created: Vec<Vec<Endpoint>>,
    /// Names of slices that nothing is left of.
    pub(super) emptied: Vec<String>,
}

/// Packs `wanted` into `existing` slices and new ones of at most `max` endpoints.
pub(super) fn pack(existing: Vec<Held>, wanted: Vec<Endpoint>, max: usize) -> Packed {
    let max = max.max(1);
    let mut packed = Packed::default();
    let mut left = Remaining::new(wanted);
    for slice in existing {
        let before = slice.endpoints.len();
        let mut changed = false;
        let mut endpoints = Vec::with_capacity(before);
        for old in &slice.endpoints {
            if let Some(new) = left.take(old) {
                changed |= !same_apart_from_hints(&new, old);
                // Hints are given later; until then the old ones keep an unchanged slice unchanged.
                endpoints.push(Endpoint {
                    hints: old.hints.clone(),
                    ..new
                });
            }
        }
        if endpoints.is_empty() && before > 0 {
            packed.emptied.push(slice.name);
            continue;
        }
        packed.kept.push(Held {
            written: slice.written || changed || endpoints.len() != before,
            name: slice.name,
            endpoints,
        });
    }
    let mut rest = left.into_rest();
    fill_written(&mut packed.kept, &mut rest, max);
    while !rest.is_empty() {
        if rest.len() < max
            && let Some(slice) = best_fit(&mut packed.kept, rest.len(), max)
        {
            slice.endpoints.append(&mut rest);
            slice.written = true;
        } else {
            let count = rest.len().min(max);
            packed.created.push(rest.drain(..count).collect());
        }
    }
    packed
}

// Slices that are written anyway take new endpoints first, the fullest before the others.
fn fill_written(slices: &mut [Held], rest: &mut Vec<Endpoint>, max: usize) {
    let mut written: Vec<_> = slices.iter_mut().filter(|slice| slice.written).collect();
    written.sort_by_key(|slice| std::cmp::Reverse(slice.endpoints.len()));
    for slice in written {
        let room = max.saturating_sub(slice.endpoints.len()).min(rest.len());
        slice.endpoints.extend(rest.drain(..room));
    }
}

// The slice that becomes fullest without overflowing.
fn best_fit(slices: &mut [Held], count: usize, max: usize) -> Option<&mut Held> {
    slices
        .iter_mut()
        .filter(|slice| !slice.written && slice.endpoints.len() + count <= max)
        .max_by_key(|slice| slice.endpoints.len())
}

/// Wanted endpoints that have no place yet, in their order.
struct Remaining {
    endpoints: Vec<Option<Endpoint>>,
    by_identity: HashMap<Identity, usize>,
}

type Identity = (
    Vec<String>,
    Option<String>,
    Option<(Option<String>, Option<String>)>,
);

// Two Pods with one address are two endpoints; a Pod made anew under its old name and address is the same one.
fn identity(endpoint: &Endpoint) -> Identity {
    let target = endpoint.target_ref.as_ref();
    (
        endpoint.addresses.clone(),
        endpoint.hostname.clone(),
        target.map(|target| (target.namespace.clone(), target.name.clone())),
    )
}

impl Remaining {
    fn new(wanted: Vec<Endpoint>) -> Self {
        let mut by_identity = HashMap::with_capacity(wanted.len());
        let mut endpoints = Vec::with_capacity(wanted.len());
        for endpoint in wanted {
            by_identity.entry(identity(&endpoint)).or_insert_with(|| {
                endpoints.push(Some(endpoint));
                endpoints.len() - 1
            });
        }
        Self {
            endpoints,
            by_identity,
        }
    }

    fn take(&mut self, old: &Endpoint) -> Option<Endpoint> {
        let index = *self.by_identity.get(&identity(old))?;
        self.endpoints[index].take()
    }

    fn into_rest(self) -> Vec<Endpoint> {
        self.endpoints.into_iter().flatten().collect()
    }
}

fn same_apart_from_hints(new: &Endpoint, old: &Endpoint) -> bool {
    new.conditions == old.conditions
        && new.node_name == old.node_name
        && new.zone == old.zone
        && new.target_ref == old.target_ref
        && new.addresses == old.addresses
        && new.hostname == old.hostname
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoints(range: std::ops::Range<usize>) -> Vec<Endpoint> {
        range
            .map(|n| Endpoint {
                addresses: vec![format!("10.{}.{}.{}", n / 65536, n / 256 % 256, n % 256)],
                ..Endpoint::default()
            })
            .collect()
    }

    fn held(name: &str, range: std::ops::Range<usize>) -> Held {
        Held {
            name: name.to_owned(),
            endpoints: endpoints(range),
            written: false,
        }
    }

    fn sizes(packed: &Packed) -> (Vec<usize>, Vec<usize>) {
        (
            packed
                .kept
                .iter()
                .map(|slice| slice.endpoints.len())
                .collect(),
            packed.created.iter().map(Vec::len).collect(),
        )
    }

    #[test]
    fn the_documented_examples() {
        let fresh = pack(vec![], endpoints(0..250), 100);
        assert_eq!(sizes(&fresh), (vec![], vec![100, 100, 50]));
        let existing = vec![held("a", 0..62), held("b", 62..123)];
        let filled = pack(existing, endpoints(0..250), 100);
        assert_eq!(sizes(&filled), (vec![89, 61], vec![100]));
        let existing = vec![held("a", 0..74), held("b", 74..148)];
        let none_fits = pack(existing, endpoints(0..300), 100);
        assert_eq!(sizes(&none_fits), (vec![74, 74], vec![100, 52]));
    }

    #[test]
    fn both_sides_of_the_maximum() {
        assert_eq!(sizes(&pack(vec![], endpoints(0..100), 100)).1, [100]);
        assert_eq!(sizes(&pack(vec![], endpoints(0..101), 100)).1, [100, 1]);
        let overfull = pack(vec![held("a", 0..150)], endpoints(0..150), 100);
        assert_eq!(sizes(&overfull), (vec![150], vec![]));
        assert!(!overfull.kept[0].written);
    }

    #[test]
    fn a_slice_that_loses_all_its_endpoints_goes_and_second_copies_too() {
        let twice = vec![held("a", 0..10), held("b", 0..10), held("c", 5..15)];
        let packed = pack(twice, endpoints(0..15), 100);
        assert_eq!(packed.emptied, ["b"]);
        assert_eq!(sizes(&packed), (vec![10, 5], vec![]));
        assert!(!packed.kept[0].written && packed.kept[1].written);
    }

    #[test]
    fn a_written_slice_takes_new_endpoints_before_others() {
        let existing = vec![held("a", 0..50), held("b", 50..100)];
        let wanted = [endpoints(0..60), endpoints(200..260)].concat();
        let packed = pack(existing, wanted, 100);
        assert_eq!(sizes(&packed), (vec![50, 70], vec![]));
    }

    proptest! {
        #[test]
        fn everything_wanted_is_in_exactly_one_slice_and_nothing_is_written_in_vain(
            old_sizes in prop::collection::vec(0usize..15, 0..5), kept in 0usize..60, new in 0usize..60, max in 1usize..12,
        ) {
            let mut existing = Vec::new();
            let mut next = 0;
            for (n, size) in old_sizes.iter().enumerate() {
                existing.push(held(&n.to_string(), next..next + size));
                next += size;
            }
            let wanted = [endpoints(0..kept.min(next)), endpoints(1000..1000 + new)].concat();
            let packed = pack(existing.clone(), wanted.clone(), max);
            let after = packed.kept.iter().map(|slice| &slice.endpoints).chain(&packed.created);
            let mut placed: Vec<_> = after.flatten().map(|endpoint| endpoint.addresses.clone()).collect();
            let mut all: Vec<_> = wanted.iter().map(|endpoint| endpoint.addresses.clone()).collect();
            placed.sort();
            all.sort();
            prop_assert_eq!(placed, all);
            for slice in &packed.kept {
                let before = existing.iter().find(|old| old.name == slice.name).unwrap();
                prop_assert!(slice.endpoints.len() <= max.max(before.endpoints.len()));
                if !slice.written {
                    prop_assert_eq!(&slice.endpoints, &before.endpoints);
                }
            }
            prop_assert!(packed.created.iter().all(|created| !created.is_empty() && created.len() <= max));
            prop_assert!(packed.created.iter().rev().skip(1).all(|created| created.len() == max));
        }
    }
}
