//! Allocates node ports and health-check node ports: one pool, whatever the protocol.
//!
//! The first ports of the range are the static band, which dynamic allocation uses last. Source: KEP-3668.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use rand::{Rng, RngExt};

use super::object::ObjectKey;

/// Ports of the range and who holds them. Bounded by the range.
#[derive(Clone, Debug)]
pub(super) struct PortPool {
    range: RangeInclusive<u16>,
    held: BTreeMap<u16, ObjectKey>,
    /// Ports that somebody asks for or had before: others get them only when nothing else is left.
    preferred: BTreeMap<u16, ObjectKey>,
    /// The same by owner.
    wishes: HashMap<ObjectKey, Vec<u16>>,
}

/// Why a port was not allocated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PortError {
    /// Outside the range.
    #[error("provided port is not in the valid range. The range of valid ports is {}-{}", .0.start(), .0.end())]
    OutOfRange(RangeInclusive<u16>),
    /// Somebody has it, perhaps another port of the same Service.
    #[error("provided port is already allocated")]
    Taken,
    /// Nothing is left.
    #[error("range is full")]
    Full,
}

impl PortPool {
    /// A pool with nothing allocated.
    pub(super) fn new(range: RangeInclusive<u16>) -> Self {
        Self {
            range,
            held: BTreeMap::new(),
            preferred: BTreeMap::new(),
            wishes: HashMap::new(),
        }
    }

    /// Gives `port` to `owner`; unlike an address, a port is refused even to the one that holds it.
    pub(super) fn claim(&mut self, port: i32, owner: &ObjectKey) -> Result<u16, PortError> {
        let port = u16::try_from(port)
            .ok()
            .filter(|port| self.range.contains(port))
            .ok_or_else(|| PortError::OutOfRange(self.range.clone()))?;
        if self.held.contains_key(&port) {
            return Err(PortError::Taken);
        }
        self.held.insert(port, owner.clone());
        Ok(port)
    }

    /// Gives any free port to `owner`; `wanted` if that is free.
    pub(super) fn claim_any(
        &mut self,
        owner: &ObjectKey,
        wanted: Option<u16>,
        rng: &mut impl Rng,
    ) -> Result<u16, PortError> {
        let ours = |port: &u16| {
            self.range.contains(port)
                && !self.held.contains_key(port)
                && self.preferred.get(port).is_none_or(|who| who == owner)
        };
        let port = wanted
            .filter(ours)
            .or_else(|| self.pick(rng))
            .ok_or(PortError::Full)?;
        self.held.insert(port, owner.clone());
        Ok(port)
    }

    /// Everything that is held, and by whom.
    #[cfg(test)]
    pub(super) fn held(&self) -> &BTreeMap<u16, ObjectKey> {
        &self.held
    }

    /// Takes `port` back if `owner` holds it.
    pub(super) fn release(&mut self, port: u16, owner: &ObjectKey) {
        if self.held.get(&port) == Some(owner) {
            self.held.remove(&port);
        }
    }

    /// Whether `owner` holds `port`.
    pub(super) fn is_held_by(&self, port: i32, owner: &ObjectKey) -> bool {
        u16::try_from(port).is_ok_and(|port| self.held.get(&port) == Some(owner))
    }

    /// Keeps `port` for `owner` as long as there is any other choice for others.
    pub(super) fn prefer(&mut self, port: u16, owner: &ObjectKey) {
        if self.range.contains(&port) {
            if self.preferred.insert(port, owner.clone()).as_ref() == Some(owner) {
                return;
            }
            self.wishes.entry(owner.clone()).or_default().push(port);
        }
    }

    /// Forgets every preference of `owner`.
    pub(super) fn forget_preferences(&mut self, owner: &ObjectKey) {
        for port in self.wishes.remove(owner).unwrap_or_default() {
            if self.preferred.get(&port) == Some(owner) {
                self.preferred.remove(&port);
            }
        }
    }

    fn pick(&self, rng: &mut impl Rng) -> Option<u16> {
        // As u32, so that a range up to 65535 has an end past its last port.
        let first = u32::from(*self.range.start());
        let end = u32::from(*self.range.end()) + 1;
        let split = first + static_band(end.saturating_sub(first));
        let bands = [(split, end), (first, split)];
        let free = |port: &u16| !self.held.contains_key(port);
        let unwanted = |port: &u16| free(port) && !self.preferred.contains_key(port);
        bands
            .iter()
            .find_map(|band| scan(*band, rng, unwanted))
            .or_else(|| bands.iter().find_map(|band| scan(*band, rng, free)))
    }
}

fn static_band(size: u32) -> u32 {
    if size <= 16 {
        0
    } else {
        (size / 32).clamp(16, 128)
    }
}

fn scan((begin, end): (u32, u32), rng: &mut impl Rng, fits: impl Fn(&u16) -> bool) -> Option<u16> {
    if begin >= end {
        return None;
    }
    let start = rng.random_range(begin..end);
    (start..end)
        .chain(begin..start)
        .filter_map(|port| u16::try_from(port).ok())
        .find(fits)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::control::Kind;

    fn owner(name: &str) -> ObjectKey {
        ObjectKey {
            kind: Kind::Service,
            namespace: "default".into(),
            name: name.into(),
        }
    }

    #[test]
    fn static_bands_have_the_documented_sizes() {
        assert_eq!(static_band(2768), 86);
        assert_eq!(static_band(16), 0);
        assert_eq!(static_band(17), 16);
        assert_eq!(static_band(129), 16);
        assert_eq!(static_band(65_535), 128);
    }

    #[test]
    fn both_ends_of_the_range_are_in_it() {
        let mut pool = PortPool::new(30000..=32767);
        assert_eq!(pool.claim(30000, &owner("a")), Ok(30000));
        assert_eq!(pool.claim(32767, &owner("a")), Ok(32767));
        for outside in [-1, 1, 29999, 32768, 65536] {
            let error = pool.claim(outside, &owner("a")).unwrap_err();
            assert!(error.to_string().ends_with("30000-32767"), "{outside}");
        }
        assert_eq!(pool.claim(30000, &owner("a")), Err(PortError::Taken));
        pool.release(30000, &owner("b"));
        assert_eq!(pool.claim(30000, &owner("b")), Err(PortError::Taken));
        pool.release(30000, &owner("a"));
        assert_eq!(pool.claim(30000, &owner("b")), Ok(30000));
    }

    proptest! {
        #[test]
        fn the_upper_band_goes_first_then_the_lower_then_nothing(seed: u64, size in 1u16..300, at_the_top: bool) {
            let mut rng = StdRng::seed_from_u64(seed);
            let first = if at_the_top { u16::MAX - size + 1 } else { 1000 };
            let mut pool = PortPool::new(first..=first + (size - 1));
            let lower = u16::try_from(static_band(size.into())).unwrap();
            let mut given = Vec::new();
            for _ in 0..size {
                given.push(pool.claim_any(&owner("a"), None, &mut rng).unwrap());
            }
            prop_assert_eq!(pool.claim_any(&owner("a"), None, &mut rng), Err(PortError::Full));
            prop_assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), usize::from(size));
            let (upper, rest) = given.split_at(usize::from(size - lower));
            prop_assert!(upper.iter().all(|port| *port >= first + lower));
            prop_assert!(rest.iter().all(|port| *port < first + lower));
        }
    }
}
