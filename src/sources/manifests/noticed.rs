//! What the kernel says of the directory, sorted by how it is to be looked into. Pure.
//!
//! Editors and tools tell a lot: a save is five events. What counts is a file that somebody has finished writing, which
//! is looked at alone and at once, unless something older waits; anything else that may matter is a reason for a whole
//! look once the burst is over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};

use super::file::is_manifest;

/// How many files are looked at one by one. More at a time are a reason for a whole look.
const MAX_WRITTEN: usize = 256;

/// What has been noticed and not been looked into yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Noticed {
    /// Manifests whose writer has closed them, or that were moved here complete.
    pub(super) written: BTreeSet<PathBuf>,
    /// Manifests that have been written to, and whose writer has not closed them yet.
    pub(super) unfinished: BTreeSet<PathBuf>,
    /// Something else may have changed.
    pub(super) other: bool,
}

impl Noticed {
    /// Takes note of an event. False if it says nothing about the manifests.
    pub(super) fn note(&mut self, event: &notify::Event) -> bool {
        let path = event.paths.first();
        match (meaning(event.kind), path) {
            (Meaning::Nothing, _) => return false,
            (_, Some(path)) if is_scratch(path) => return false,
            (Meaning::Written, Some(path)) if has_manifest_name(path) => {
                self.unfinished.remove(path);
                self.written.insert(path.clone());
            }
            (Meaning::Writing, Some(path)) if has_manifest_name(path) => {
                self.unfinished.insert(path.clone());
            }
            (Meaning::Written | Meaning::Writing | Meaning::Other, _) => self.other = true,
        }
        if self.written.len() > MAX_WRITTEN || self.unfinished.len() > MAX_WRITTEN {
            *self = Self {
                other: true,
                ..Self::default()
            };
        }
        true
    }

    /// The files to look at alone and at once: none while a whole look is due, which comes to them in their turn.
    pub(super) fn take_written(&mut self) -> BTreeSet<PathBuf> {
        if self.other {
            return BTreeSet::new();
        }
        std::mem::take(&mut self.written)
    }
}

enum Meaning {
    Nothing,
    Writing,
    Written,
    Other,
}

fn meaning(kind: EventKind) -> Meaning {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Meaning::Written,
        EventKind::Modify(ModifyKind::Data(_)) => Meaning::Writing,
        // Our own reading opens and closes the files.
        EventKind::Access(_) => Meaning::Nothing,
        // A rename is told by its halves before it is told as a whole.
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => Meaning::Nothing,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => Meaning::Other,
    }
}

fn has_manifest_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(is_manifest)
}

/// Files that are written beside a manifest to replace it, and dot files. Not those that begin with two dots: the
/// kubelet swaps a whole directory of links by renaming one.
fn is_scratch(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| {
        name.ends_with(".tmp") || (name.starts_with('.') && !name.starts_with(".."))
    })
}

#[cfg(test)]
mod tests {
    use notify::Event;
    use notify::event::{CreateKind, DataChange, RemoveKind};

    use super::*;

    const CLOSED: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const MOVED_HERE: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::To));
    const MOVED_AWAY: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::From));
    const WRITTEN_TO: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CREATED: EventKind = EventKind::Create(CreateKind::File);
    const REMOVED: EventKind = EventKind::Remove(RemoveKind::File);

    fn noticed(kind: EventKind, name: &str) -> Noticed {
        let mut noticed = Noticed::default();
        let event = Event::new(kind).add_path(Path::new("/d").join(name));
        let told = noticed.note(&event);
        assert_eq!(told, noticed != Noticed::default());
        noticed
    }

    #[test]
    fn a_manifest_that_is_complete_is_looked_at_alone() {
        for kind in [CLOSED, MOVED_HERE] {
            let noticed = noticed(kind, "a.yaml");
            assert!(!noticed.other);
            assert_eq!(noticed.written, [PathBuf::from("/d/a.yaml")].into());
        }
    }

    #[test]
    fn a_manifest_is_unfinished_until_its_writer_closes_it() {
        let mut state = noticed(WRITTEN_TO, "a.yaml");
        assert!(!state.other && state.written.is_empty());
        assert_eq!(state.unfinished, [PathBuf::from("/d/a.yaml")].into());
        state.note(&Event::new(CLOSED).add_path("/d/a.yaml".into()));
        assert!(state.unfinished.is_empty() && state.written.len() == 1);
        assert!(noticed(WRITTEN_TO, "real.txt").other);
    }

    #[test]
    fn whatever_else_may_matter_is_a_reason_for_a_whole_look() {
        let whole = Noticed {
            other: true,
            ..Noticed::default()
        };
        for kind in [MOVED_AWAY, CREATED, REMOVED, EventKind::Any] {
            assert_eq!(noticed(kind, "a.yaml"), whole, "{kind:?}");
        }
        for name in ["..data", "real.txt", "a.yaml~"] {
            assert_eq!(noticed(MOVED_HERE, name), whole, "{name}");
        }
    }

    #[test]
    fn a_manifest_waits_for_what_came_before_it() {
        let mut noticed = noticed(CREATED, "new.yaml");
        noticed.note(&Event::new(CLOSED).add_path("/d/a.yaml".into()));
        assert_eq!(noticed.take_written(), BTreeSet::new());
        assert_eq!(noticed.written.len(), 1);
        noticed.other = false;
        assert_eq!(noticed.take_written(), [PathBuf::from("/d/a.yaml")].into());
        assert!(noticed.written.is_empty());
    }

    #[test]
    fn our_own_reading_and_files_on_the_way_are_nothing() {
        let reading = [
            AccessKind::Open(AccessMode::Any),
            AccessKind::Read,
            AccessKind::Close(AccessMode::Read),
        ];
        for access in reading {
            assert_eq!(
                noticed(EventKind::Access(access), "a.yaml"),
                Noticed::default()
            );
        }
        let both = EventKind::Modify(ModifyKind::Name(RenameMode::Both));
        assert_eq!(noticed(both, "a.yaml"), Noticed::default());
        for name in ["a.yaml.tmp", ".a.yaml.swp"] {
            for kind in [CREATED, WRITTEN_TO, CLOSED, MOVED_AWAY, REMOVED] {
                assert_eq!(noticed(kind, name), Noticed::default(), "{name} {kind:?}");
            }
        }
    }

    #[test]
    fn many_files_at_a_time_are_one_look() {
        let mut noticed = Noticed::default();
        for n in 0..=MAX_WRITTEN {
            assert!(!noticed.other, "{n}");
            noticed.note(&Event::new(CLOSED).add_path(format!("/d/{n}.yaml").into()));
        }
        assert!(noticed.other && noticed.written.is_empty());
    }
}
