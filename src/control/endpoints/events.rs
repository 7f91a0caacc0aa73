//! What the controllers have to say about objects, as Kubernetes Events would.

use std::collections::{BTreeMap, VecDeque};

use crate::control::object::ObjectKey;

/// Events that nobody has taken; the oldest go first.
const MAX_EVENTS: usize = 1000;

/// A remark of a controller about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerEvent {
    /// What it is about.
    pub object: ObjectKey,
    /// Whether somebody should look.
    pub severity: Severity,
    /// The reason in one word: `TopologyAwareHintsEnabled`, `TopologyAwareHintsDisabled`, `TooManyAddressesToMirror`.
    pub reason: &'static str,
    /// The whole sentence.
    pub message: String,
}

/// The two types of Events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// As wished.
    Normal,
    /// Not as wished.
    Warning,
}

/// Events not taken yet, and the last one per subject: the same is not said twice in a row.
#[derive(Debug, Default)]
pub(in crate::control) struct Events {
    fresh: VecDeque<ControllerEvent>,
    /// Bounded by the objects there are: `forget` is called when one goes.
    last: BTreeMap<ObjectKey, BTreeMap<&'static str, String>>,
}

impl Events {
    /// Says it, unless it was the last thing said about this aspect (a family) of the object.
    pub(super) fn say(&mut self, aspect: &'static str, event: ControllerEvent) {
        let last = self.last.entry(event.object.clone()).or_default();
        if last.get(aspect) == Some(&event.message) {
            return;
        }
        last.insert(aspect, event.message.clone());
        if self.fresh.len() == MAX_EVENTS {
            self.fresh.pop_front();
        }
        self.fresh.push_back(event);
    }

    /// The object is gone.
    pub(super) fn forget(&mut self, object: &ObjectKey) {
        self.last.remove(object);
    }

    /// Events since the last call, at most a thousand.
    pub(in crate::control) fn take(&mut self) -> Vec<ControllerEvent> {
        std::mem::take(&mut self.fresh).into()
    }
}
