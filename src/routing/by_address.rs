//! A persistent map from an address to everything that has it.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

/// Several values per address. Cloning shares everything.
#[derive(Clone, Debug)]
pub(super) struct ByAddress<T>(OrdMap<IpAddr, Few<T>>);

/// Nearly always one.
#[derive(Clone, Debug)]
enum Few<T> {
    One(T),
    Several(Arc<[T]>),
}

impl<T> Default for ByAddress<T> {
    fn default() -> Self {
        Self(OrdMap::default())
    }
}

impl<T: Clone> ByAddress<T> {
    /// What has the address, in the order in which it was added.
    pub(super) fn at(&self, ip: IpAddr) -> &[T] {
        match self.0.get(&ip) {
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
        match <[T; 1]>::try_from(values) {
            Ok([one]) => self.0.insert(ip, Few::One(one)),
            Err(values) if values.is_empty() => self.0.remove(&ip),
            Err(values) => self.0.insert(ip, Few::Several(values.into())),
        };
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
