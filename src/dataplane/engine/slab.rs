//! Places for what a thread serves. A key names a place and whose turn it is, so that an event for something that has
//! ended never reaches what came after it. Pure.

/// A place, for as long as its occupant lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) struct Key {
    pub(in super::super) place: u32,
    pub(in super::super) turn: u32,
}

/// Places for `T`. Grows to as many as there ever were at a time, which the caller bounds.
#[derive(Debug)]
pub(in super::super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    turn: u32,
    occupant: Option<T>,
}

impl<T> Slab<T> {
    /// No places yet.
    pub(in super::super) fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    /// How many places are taken.
    pub(in super::super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The key that the next [`Slab::insert`] returns.
    pub(in super::super) fn next_key(&self) -> Key {
        match self.free.last() {
            Some(place) => Key {
                place: *place,
                turn: self.places[*place as usize].turn,
            },
            None => Key {
                // Each occupant has a descriptor, of which there are far fewer.
                place: u32::try_from(self.places.len()).unwrap_or(u32::MAX),
                turn: 0,
            },
        }
    }

    /// Gives `occupant` a place.
    pub(in super::super) fn insert(&mut self, occupant: T) -> Key {
        let key = self.next_key();
        if self.free.pop().is_some() {
            self.places[key.place as usize].occupant = Some(occupant);
        } else {
            self.places.push(Place {
                turn: key.turn,
                occupant: Some(occupant),
            });
        }
        key
    }

    /// Who has the key; `None` if it has ended.
    pub(in super::super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.place as usize)?;
        if place.turn == key.turn {
            place.occupant.as_mut()
        } else {
            None
        }
    }

    /// Who is in that place, whoever that is by now.
    pub(in super::super) fn at(&mut self, place: u32) -> Option<&mut T> {
        self.places.get_mut(place as usize)?.occupant.as_mut()
    }

    /// All occupants.
    pub(in super::super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.places
            .iter()
            .filter_map(|place| place.occupant.as_ref())
    }

    /// Takes the occupant out, and frees the place for another turn.
    pub(in super::super) fn remove(&mut self, key: Key) -> Option<T> {
        self.get_mut(key)?;
        let place = &mut self.places[key.place as usize];
        // A turn has as many bits in a token; see `Token`.
        place.turn = place.turn.wrapping_add(1);
        self.free.push(key.place);
        place.occupant.take()
    }

    /// Takes everybody out.
    pub(in super::super) fn clear(&mut self) {
        for place in 0..u32::try_from(self.places.len()).unwrap_or(u32::MAX) {
            let turn = self.places[place as usize].turn;
            self.remove(Key { place, turn });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_reaches_the_next_occupant() {
        let mut slab = Slab::new();
        let announced = slab.next_key();
        let first = slab.insert("first");
        assert_eq!(first, announced);
        let other = slab.insert("other");
        assert_eq!(slab.remove(first), Some("first"));
        assert_eq!(slab.remove(first), None);
        let announced = slab.next_key();
        let second = slab.insert("second");
        assert_eq!((second, second.place), (announced, first.place));
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut "second"));
        assert_eq!(slab.len(), 2);
        slab.clear();
        assert_eq!((slab.len(), slab.get_mut(other)), (0, None));
        slab.insert("third");
        slab.insert("fourth");
        assert_eq!(slab.places.len(), 2, "places are used again");
    }
}
