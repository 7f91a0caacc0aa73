//! Where silence is impossible: listeners whose kernel takes no filter that keeps out who may not call. There such callers
//! are refused after they were heard.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use crate::capture::plan::{Entry, ListenerId};
use crate::model::Frontend;
use crate::routing::FrontendKind;

/// Those listeners that are open now.
#[derive(Debug, Default)]
pub(super) struct Audible(Mutex<BTreeSet<ListenerId>>);

impl Audible {
    /// A listener is open, and its filter was taken or was not.
    pub(super) fn opened(&self, id: &ListenerId, unfiltered: Option<&io::Error>) {
        match unfiltered {
            Some(error) => {
                warn!(listener = %id, %error, "this kernel takes no filter of its callers; those who should meet silence are refused");
                self.change(|listeners| listeners.insert(id.clone()));
            }
            None => self.closed(id),
        }
    }

    /// A listener is no longer open.
    pub(super) fn closed(&self, id: &ListenerId) {
        self.change(|listeners| listeners.remove(id));
    }

    /// Whether one of them is bound to a frontend that `is_meant`.
    pub(super) fn any(&self, is_meant: impl Fn(&Frontend, FrontendKind) -> bool) -> bool {
        let is_meant = |id: &ListenerId| match &id.entry {
            Entry::At(frontend, kind) => is_meant(frontend, *kind),
            Entry::All | Entry::Diverted | Entry::ClusterIp | Entry::External => false,
        };
        self.change(|listeners| listeners.iter().any(is_meant))
    }

    fn change<T>(&self, work: impl FnOnce(&mut BTreeSet<ListenerId>) -> T) -> T {
        // Whoever panicked left a set all the same.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
