//! One copy of each text that many facts repeat: nodes, zones, namespaces, Services, ports. Pure.
//!
//! A large cluster says each of them thousands of times, and a copy each would be a good part of all memory.

use std::collections::HashSet;
use std::sync::Arc;

/// Below this many texts nobody looks which are still in use.
const MIN_SWEEP: usize = 1_024;

/// The texts in use. Holds at most twice as many as are in use elsewhere, or [`MIN_SWEEP`].
#[derive(Debug)]
pub struct Names {
    known: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            sweep_at: MIN_SWEEP,
        }
    }
}

impl Names {
    /// Makes `text` the copy that others of the same letters have.
    pub fn share(&mut self, text: &mut Arc<str>) {
        if let Some(known) = self.known.get(&**text) {
            *text = Arc::clone(known);
            return;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = MIN_SWEEP.max(2 * self.known.len());
        }
        self.known.insert(Arc::clone(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(names: &mut Names, text: &str) -> Arc<str> {
        let mut text = Arc::from(text);
        names.share(&mut text);
        text
    }

    #[test]
    fn the_same_letters_are_the_same_copy() {
        let mut names = Names::default();
        let first = shared(&mut names, "node-1");
        assert!(Arc::ptr_eq(&first, &shared(&mut names, "node-1")));
        assert!(!Arc::ptr_eq(&first, &shared(&mut names, "node-2")));
    }

    #[test]
    fn what_nobody_uses_goes_when_there_are_many() {
        let mut names = Names::default();
        let kept = shared(&mut names, "kept");
        for number in 0..10 * MIN_SWEEP {
            shared(&mut names, &number.to_string());
            assert!(names.known.len() <= MIN_SWEEP);
        }
        assert!(Arc::ptr_eq(&kept, &shared(&mut names, "kept")));
    }

    #[test]
    fn what_is_in_use_stays_however_much_it_is() {
        let mut names = Names::default();
        let texts = 0..5 * MIN_SWEEP;
        let kept: Vec<_> = texts.map(|n| shared(&mut names, &n.to_string())).collect();
        for (number, text) in kept.iter().enumerate() {
            assert!(Arc::ptr_eq(text, &shared(&mut names, &number.to_string())));
        }
        assert_eq!(names.known.len(), kept.len());
    }
}
