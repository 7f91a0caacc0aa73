//! A persistent map from an address to everything that has it.

use std::net::IpAddr;

use imbl::OrdMap;
use smallvec::SmallVec;

/// Several values per address; nearly all have one. Cloning shares everything.
#[derive(Clone, Debug)]
pub(super) struct ByAddress<T>(OrdMap<IpAddr, SmallVec<[T; 1]>>);

impl<T> Default for ByAddress<T> {
    fn default() -> Self {
        Self(OrdMap::default())
    }
}

impl<T: Clone> ByAddress<T> {
    /// What has the address, in the order in which it was added.
    pub(super) fn at(&self, ip: IpAddr) -> &[T] {
        self.0.get(&ip).map_or(&[], |values| values)
    }

    /// Adds a value, a second time if it is there already.
    pub(super) fn add(&mut self, ip: IpAddr, value: T) {
        self.0.entry(ip).or_default().push(value);
    }

    /// Removes the values at the address that match.
    pub(super) fn remove(&mut self, ip: IpAddr, matches: impl Fn(&T) -> bool) {
        let Some(values) = self.0.get_mut(&ip) else {
            return;
        };
        values.retain(|value| !matches(value));
        if values.is_empty() {
            self.0.remove(&ip);
        }
    }

    /// How many addresses have a value.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
