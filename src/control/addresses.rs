//! Allocates addresses of one CIDR: cluster IPs, and with other bounds load-balancer and pod addresses.
//!
//! Explicit requests may take any usable address; dynamic ones start at a random place in the upper band and use the
//! lower, static band last, so that people can pick small numbers without racing the allocator. Source: KEP-3070.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use rand::{Rng, RngExt};

use super::object::ObjectKey;

/// Addresses of one range and who holds them. Bounded by the range.
#[derive(Clone, Debug)]
pub(super) struct AddressPool {
    range: IpNet,
    /// First and last usable address, as numbers; `None` if there are none.
    usable: Option<(u128, u128)>,
    /// How many of the first usable ones are given out last.
    static_band: u128,
    held: BTreeMap<IpAddr, ObjectKey>,
    /// Addresses that somebody asks for or had before: others get them only when nothing else is left.
    preferred: BTreeMap<IpAddr, ObjectKey>,
    /// The same by owner, the latest last.
    wishes: HashMap<ObjectKey, Vec<IpAddr>>,
    /// An address that only one owner may ever have.
    reserved: Option<(IpAddr, ObjectKey)>,
}

/// Why an address was not allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressError {
    /// Outside the range, or its network or broadcast address.
    #[error("the provided network does not match the current range")]
    OutOfRange,
    /// Somebody has it.
    #[error("provided IP is already allocated")]
    Taken,
    /// Nothing is left.
    #[error("range is full")]
    Full,
}

impl AddressPool {
    /// A pool with nothing allocated for addresses that are no subnet of any network: a range of one or two addresses
    /// has no address to spare, so all of it is usable.
    pub(super) fn of_single_addresses(range: IpNet) -> Self {
        let mut pool = Self::new(range);
        let (first, last) = (number(range.network()), number(range.broadcast()));
        if last - first < 2 {
            pool.usable = Some((first, last));
        }
        pool
    }

    /// A pool with nothing allocated. The usable addresses are those of a service range.
    pub(super) fn new(range: IpNet) -> Self {
        let range = range.trunc();
        let first = number(range.network());
        let last = number(range.broadcast());
        let usable = match range {
            IpNet::V4(_) if last - first >= 2 => Some((first + 1, last - 1)),
            IpNet::V6(_) if last > first => Some((first + 1, last)),
            IpNet::V4(_) | IpNet::V6(_) => None,
        };
        // An IPv6 /0 would have 2^128 addresses; the band is at its ceiling long before.
        let size = (last - first).saturating_add(1);
        Self {
            range,
            usable,
            static_band: if size <= 16 {
                0
            } else {
                (size / 16).clamp(16, 256)
            },
            held: BTreeMap::new(),
            preferred: BTreeMap::new(),
            wishes: HashMap::new(),
            reserved: None,
        }
    }

    /// Keeps the first usable address for `owner`, whether or not it ever comes.
    pub(super) fn reserve_first(&mut self, owner: &ObjectKey) {
        if let Some((first, _)) = self.usable {
            let ip = self.address(first);
            self.reserved = Some((ip, owner.clone()));
            self.prefer(ip, owner);
        }
    }

    /// The range.
    pub(super) fn range(&self) -> IpNet {
        self.range
    }

    /// Gives `ip` to `owner`; refused even to the one that holds it.
    pub(super) fn claim(&mut self, ip: IpAddr, owner: &ObjectKey) -> Result<(), AddressError> {
        let (first, last) = self.usable.ok_or(AddressError::OutOfRange)?;
        if !self.range.contains(&ip) || !(first..=last).contains(&number(ip)) {
            return Err(AddressError::OutOfRange);
        }
        let reserved = self
            .reserved
            .as_ref()
            .is_some_and(|(kept, who)| *kept == ip && who != owner);
        if reserved || self.held.contains_key(&ip) {
            return Err(AddressError::Taken);
        }
        self.held.insert(ip, owner.clone());
        Ok(())
    }

    /// Gives any free address to `owner`: the one it prefers, else a random one.
    pub(super) fn claim_any(
        &mut self,
        owner: &ObjectKey,
        rng: &mut impl Rng,
    ) -> Result<IpAddr, AddressError> {
        let ip = self.pick(owner, rng).ok_or(AddressError::Full)?;
        self.held.insert(ip, owner.clone());
        Ok(ip)
    }

    /// The address that `claim_any` would give.
    pub(super) fn pick(&self, owner: &ObjectKey, rng: &mut impl Rng) -> Option<IpAddr> {
        let wished = self.wishes.get(owner).into_iter().flatten();
        let mut kept = wished.filter(|ip| self.preferred.get(ip) == Some(owner));
        if let Some(ip) = kept.find(|ip| !self.held.contains_key(ip)) {
            return Some(*ip);
        }
        let (first, last) = self.usable?;
        // The first number of the upper band; past the end if there is none.
        let split = first.saturating_add(self.static_band);
        let mut bands = vec![split..=last];
        if self.static_band > 0 {
            bands.push(first..=last.min(split - 1));
        }
        let reserved = self.reserved.as_ref().map(|(ip, _)| *ip);
        let free = |ip: &IpAddr| !self.held.contains_key(ip) && reserved != Some(*ip);
        let unwanted = |ip: &IpAddr| free(ip) && !self.preferred.contains_key(ip);
        bands
            .iter()
            .find_map(|band| self.scan(band, rng, unwanted))
            .or_else(|| bands.iter().find_map(|band| self.scan(band, rng, free)))
    }

    /// Everything that is held, and by whom.
    #[cfg(test)]
    pub(super) fn held(&self) -> &BTreeMap<IpAddr, ObjectKey> {
        &self.held
    }

    /// Takes `ip` back if `owner` holds it.
    pub(super) fn release(&mut self, ip: IpAddr, owner: &ObjectKey) {
        if self.held.get(&ip) == Some(owner) {
            self.held.remove(&ip);
        }
    }

    /// Whether `owner` holds `ip`.
    pub(super) fn is_held_by(&self, ip: IpAddr, owner: &ObjectKey) -> bool {
        self.held.get(&ip) == Some(owner)
    }

    /// Keeps `ip` for `owner` as long as there is any other choice for others.
    pub(super) fn prefer(&mut self, ip: IpAddr, owner: &ObjectKey) {
        let (first, last) = self.usable.unwrap_or((1, 0));
        if self.range.contains(&ip) && (first..=last).contains(&number(ip)) {
            if self.preferred.insert(ip, owner.clone()).as_ref() == Some(owner) {
                return;
            }
            self.wishes.entry(owner.clone()).or_default().push(ip);
        }
    }

    /// Forgets every preference of `owner`.
    pub(super) fn forget_preferences(&mut self, owner: &ObjectKey) {
        let reserved = self.reserved.as_ref().map(|(ip, _)| *ip);
        for ip in self.wishes.remove(owner).unwrap_or_default() {
            if Some(ip) == reserved {
                self.wishes.entry(owner.clone()).or_default().push(ip);
            } else if self.preferred.get(&ip) == Some(owner) {
                self.preferred.remove(&ip);
            }
        }
    }

    // From a random start to the end, then from the beginning. At most one step more than there are addresses taken.
    fn scan(
        &self,
        band: &RangeInclusive<u128>,
        rng: &mut impl Rng,
        fits: impl Fn(&IpAddr) -> bool,
    ) -> Option<IpAddr> {
        if band.is_empty() {
            return None;
        }
        let start = rng.random_range(band.clone());
        (start..=*band.end())
            .chain(*band.start()..start)
            .map(|number| self.address(number))
            .find(fits)
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.range {
            IpNet::V4(_) => {
                let bits = u32::try_from(number).unwrap_or(u32::MAX);
                IpAddr::V4(bits.into())
            }
            IpNet::V6(_) => IpAddr::V6(number.into()),
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::control::Kind;

    fn pool(range: &str) -> AddressPool {
        AddressPool::new(range.parse().unwrap())
    }

    fn owner(name: &str) -> ObjectKey {
        ObjectKey {
            kind: Kind::Service,
            namespace: "default".into(),
            name: name.into(),
        }
    }

    #[test]
    fn static_bands_have_the_documented_sizes() {
        for (range, band) in [
            ("10.0.0.0/32", 0),
            ("10.0.0.0/30", 0),
            ("10.0.0.0/28", 0),
            ("10.0.0.0/27", 16),
            ("10.0.0.0/24", 16),
            ("fd00::/120", 16),
            ("10.0.0.0/22", 64),
            ("10.0.0.0/20", 256),
            ("10.0.0.0/8", 256),
            ("fd00::/64", 256),
        ] {
            assert_eq!(pool(range).static_band, band, "{range}");
        }
    }

    #[test]
    fn the_ends_of_a_range_are_usable_as_documented() {
        let claim = |range: &str, ip: &str| pool(range).claim(ip.parse().unwrap(), &owner("a"));
        assert_eq!(
            claim("10.0.0.0/24", "10.0.0.0"),
            Err(AddressError::OutOfRange)
        );
        assert_eq!(claim("10.0.0.0/24", "10.0.0.1"), Ok(()));
        assert_eq!(claim("10.0.0.0/24", "10.0.0.254"), Ok(()));
        assert_eq!(
            claim("10.0.0.0/24", "10.0.0.255"),
            Err(AddressError::OutOfRange)
        );
        assert_eq!(claim("fd00::/112", "fd00::"), Err(AddressError::OutOfRange));
        assert_eq!(claim("fd00::/112", "fd00::ffff"), Ok(()));
        assert_eq!(
            claim("fd00::/112", "fd00::1:0"),
            Err(AddressError::OutOfRange)
        );
        assert_eq!(
            claim("10.0.0.0/32", "10.0.0.0"),
            Err(AddressError::OutOfRange)
        );
    }

    #[test]
    fn the_last_range_of_all_works() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut last = pool("ffff:ffff:ffff:ffff::/64");
        assert!(last.claim_any(&owner("a"), &mut rng).is_ok());
    }

    #[test]
    fn one_or_two_single_addresses_are_usable_whole() {
        let all = |range: &str| {
            let mut rng = StdRng::seed_from_u64(1);
            let mut pool = AddressPool::of_single_addresses(range.parse().unwrap());
            let mut given = Vec::new();
            while let Ok(ip) = pool.claim_any(&owner("a"), &mut rng) {
                given.push(ip.to_string());
            }
            given.sort();
            given
        };
        assert_eq!(all("192.0.2.7/32"), ["192.0.2.7"]);
        assert_eq!(all("192.0.2.7/31"), ["192.0.2.6", "192.0.2.7"]);
        assert_eq!(all("192.0.2.7/30"), ["192.0.2.5", "192.0.2.6"]);
        assert_eq!(all("fd00::7/128"), ["fd00::7"]);
        assert_eq!(all("fd00::7/127"), ["fd00::6", "fd00::7"]);
        assert_eq!(all("fd00::7/126"), ["fd00::5", "fd00::6", "fd00::7"]);
    }

    #[test]
    fn a_preferred_address_goes_to_others_only_when_all_else_is_taken() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = pool("10.0.0.0/29");
        let wanted: IpAddr = "10.0.0.3".parse().unwrap();
        pool.prefer(wanted, &owner("mine"));
        for n in 0..5 {
            assert_ne!(pool.claim_any(&owner(&n.to_string()), &mut rng), Ok(wanted));
        }
        assert_eq!(pool.clone().claim_any(&owner("mine"), &mut rng), Ok(wanted));
        assert_eq!(pool.claim_any(&owner("late"), &mut rng), Ok(wanted));
        assert_eq!(
            pool.claim_any(&owner("x"), &mut rng),
            Err(AddressError::Full)
        );
    }

    proptest! {
        #[test]
        fn the_upper_band_goes_first_then_the_lower_then_nothing(seed: u64, bits in 24u8..=30) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut pool = pool(&format!("10.0.0.0/{bits}"));
            let usable = (1usize << (32 - bits)) - 2;
            let lower = usize::try_from(pool.static_band).unwrap().min(usable);
            let mut given = Vec::new();
            for n in 0..usable {
                given.push(pool.claim_any(&owner(&n.to_string()), &mut rng).unwrap());
            }
            prop_assert_eq!(pool.claim_any(&owner("x"), &mut rng), Err(AddressError::Full));
            let distinct: BTreeSet<_> = given.iter().collect();
            prop_assert_eq!(distinct.len(), usable);
            let first = number("10.0.0.1".parse().unwrap());
            let split = first + lower as u128;
            let (upper, rest) = given.split_at(usable - lower);
            prop_assert!(upper.iter().all(|ip| number(*ip) >= split));
            prop_assert!(rest.iter().all(|ip| number(*ip) < split));
            // Whatever is released can be asked for again at once.
            pool.release(given[0], &owner("0"));
            prop_assert_eq!(pool.claim(given[0], &owner("new")), Ok(()));
        }
    }
}
