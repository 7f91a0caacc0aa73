//! A persistent map from an address to everything that has it.
//!
//! A large cluster has tens of thousands of entries, so a family has a map of its own: with an IPv4 address for its key an
//! entry is 24 octets, with either kind it would be 40.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use imbl::OrdMap;

/// Several values per address. Cloning shares everything.
#[derive(Clone, Debug)]
pub(super) struct ByAddress<T> {
    v4: OrdMap<Ipv4Addr, Few<T>>,
    v6: OrdMap<Ipv6Addr, Few<T>>,
}

/// Nearly always one.
#[derive(Clone, Debug)]
enum Few<T> {
    One(T),
    Several(Arc<[T]>),
}

impl<T> Default for ByAddress<T> {
    fn default() -> Self {
        Self {
            v4: OrdMap::default(),
            v6: OrdMap::default(),
        }
    }
}

impl<T: Clone> ByAddress<T> {
    /// What has the address, in the order in which it was added.
    pub(super) fn at(&self, ip: IpAddr) -> &[T] {
        let few = match ip {
            IpAddr::V4(ip) => self.v4.get(&ip),
            IpAddr::V6(ip) => self.v6.get(&ip),
        };
        match few {
            None => &[],
            Some(Few::One(value)) => std::slice::from_ref(value),
            Some(Few::Several(values)) => values,
        }
    }

    /// Adds a value, a second time if it is there already.
    pub(super) fn add(&mut self, ip: IpAddr, value: T) {
        let values = self.at(ip).iter().cloned().chain([value]).collect();
        self.set(ip, values);
    }

    /// Removes the values at the address that match.
    pub(super) fn remove(&mut self, ip: IpAddr, matches: impl Fn(&T) -> bool) {
        let all = self.at(ip).iter();
        let rest = all.filter(|value| !matches(value)).cloned().collect();
        self.set(ip, rest);
    }

    fn set(&mut self, ip: IpAddr, values: Vec<T>) {
        match ip {
            IpAddr::V4(ip) => set(&mut self.v4, ip, values),
            IpAddr::V6(ip) => set(&mut self.v6, ip, values),
        }
    }

    /// How many addresses have a value.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

fn set<K: Ord + Clone, T: Clone>(map: &mut OrdMap<K, Few<T>>, key: K, values: Vec<T>) {
    match <[T; 1]>::try_from(values) {
        Ok([one]) => map.insert(key, Few::One(one)),
        Err(values) if values.is_empty() => map.remove(&key),
        Err(values) => map.insert(key, Few::Several(values.into())),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_kept_apart() {
        let (v4, v6) = (
            IpAddr::from([10, 0, 0, 1]),
            "::ffff:10.0.0.1".parse().unwrap(),
        );
        let mut map = ByAddress::default();
        map.add(v4, "a");
        map.add(v6, "b");
        assert_eq!((map.at(v4), map.at(v6)), (&["a"][..], &["b"][..]));
        map.remove(v6, |_| true);
        assert_eq!((map.at(v4), map.len()), (&["a"][..], 1));
    }

    #[test]
    fn an_address_without_values_takes_no_room() {
        let ip = IpAddr::from([10, 0, 0, 1]);
        let mut map = ByAddress::default();
        map.add(ip, "a");
        map.add(ip, "b");
        let before = map.clone();
        map.remove(ip, |value| *value == "a");
        assert_eq!((before.at(ip), map.at(ip)), (&["a", "b"][..], &["b"][..]));
        map.remove(ip, |value| *value == "b");
        assert_eq!((map.at(ip), map.len()), (&[][..], 0));
        map.remove(ip, |_| true);
        assert_eq!(map.len(), 0);
    }
}
