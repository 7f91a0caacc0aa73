//! When the first table may be made: a list of every kind has come in.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::control::Kind;

/// The kinds that are still waited for.
#[derive(Debug)]
pub(super) struct Initial(Mutex<BTreeSet<Kind>>);

impl Initial {
    /// Waits for all of these.
    pub(super) fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self(Mutex::new(kinds.into_iter().collect()))
    }

    /// The kind's list is complete. True once: when nothing else is waited for.
    pub(super) fn listed(&self, kind: Kind) -> bool {
        self.done(kind)
    }

    /// The kind cannot be had. Without Services and slices there is no table; all else may come later. True once: when
    /// nothing else is waited for.
    pub(super) fn failed(&self, kind: Kind) -> bool {
        match kind {
            Kind::Service | Kind::EndpointSlice => false,
            Kind::Namespace | Kind::Node | Kind::Pod | Kind::Endpoints => self.done(kind),
        }
    }

    fn done(&self, kind: Kind) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&kind) && waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_list_completes_it_once() {
        let initial = Initial::new([Kind::Service, Kind::EndpointSlice]);
        assert!(!initial.listed(Kind::Service));
        assert!(!initial.listed(Kind::Service));
        assert!(initial.listed(Kind::EndpointSlice));
        assert!(!initial.listed(Kind::EndpointSlice));
    }

    #[test]
    fn only_services_and_slices_are_worth_waiting_for() {
        let initial = Initial::new([Kind::Service, Kind::EndpointSlice, Kind::Node]);
        assert!(!initial.listed(Kind::Service));
        assert!(!initial.failed(Kind::EndpointSlice));
        assert!(!initial.failed(Kind::Node));
        assert!(initial.listed(Kind::EndpointSlice));
    }
}
