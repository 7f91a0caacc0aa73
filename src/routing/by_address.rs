//! A persistent map from an address to everything that has it.

use std::net::IpAddr;
use std::sync::Arc;

use rpds::HashTrieMapSync;

/// Several values per address. Cloning shares everything.
#[derive(Clone, Debug)]
pub(super) struct ByAddress<T>(HashTrieMapSync<IpAddr, Arc<[T]>>);

impl<T> Default for ByAddress<T> {
    fn default() -> Self {
        Self(HashTrieMapSync::default())
    }
}

impl<T: Clone> ByAddress<T> {
    /// What has the address, in the order in which it was added.
    pub(super) fn at(&self, ip: IpAddr) -> &[T] {
        self.0.get(&ip).map_or(&[], |values| values)
    }

    /// Adds a value, a second time if it is there already.
    pub(super) fn add(&mut self, ip: IpAddr, value: T) {
        let values = self.at(ip).iter().cloned().chain([value]).collect();
        self.0.insert_mut(ip, values);
    }

    /// Removes the values at the address that match.
    pub(super) fn remove(&mut self, ip: IpAddr, matches: impl Fn(&T) -> bool) {
        let rest: Arc<[T]> = self
            .at(ip)
            .iter()
            .filter(|value| !matches(value))
            .cloned()
            .collect();
        if rest.is_empty() {
            self.0.remove_mut(&ip);
        } else {
            self.0.insert_mut(ip, rest);
        }
    }

    /// How many addresses have a value.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.size()
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
