//! The file that keeps allocations across restarts. What it holds is preferred, never reserved.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use tracing::{error, warn};

use crate::control::{Allocations, ObjectKey, Saved};

/// The file, and what it is to hold. Losing it costs stable addresses, nothing else. It is written whole, but only when
/// an object holds something else than before: endpoints come and go without it.
pub(super) struct KeptAllocations {
    path: PathBuf,
    held: BTreeMap<ObjectKey, Saved>,
    is_saved: bool,
}

impl KeptAllocations {
    pub(super) fn at(path: PathBuf) -> Self {
        Self {
            path,
            held: BTreeMap::new(),
            is_saved: false,
        }
    }

    /// What an earlier run has kept; nothing if that cannot be read.
    pub(super) fn read(&self) -> Option<Allocations> {
        self.try_read().unwrap_or_else(|error| {
            warn!(file = %self.path.display(), %error, "kept allocations cannot be read; starting anew");
            None
        })
    }

    /// Takes note of what an object holds by now; `None` for nothing.
    pub(super) fn note(&mut self, key: ObjectKey, holds: Option<Saved>) {
        let before = match &holds {
            Some(saved) => self.held.insert(key, saved.clone()),
            None => self.held.remove(&key),
        };
        self.is_saved &= before == holds;
    }

    /// Writes the file if it holds something else. A failure is tried again with the next call.
    pub(super) fn save(&mut self) {
        if self.is_saved {
            return;
        }
        match self.write() {
            Ok(()) => self.is_saved = true,
            Err(error) => {
                error!(file = %self.path.display(), %error, "allocations cannot be kept for the next start");
            }
        }
    }

    fn try_read(&self) -> io::Result<Option<Allocations>> {
        match std::fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(Into::into),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    // Written beside and renamed, so that a crash leaves the old file or the new one.
    fn write(&self) -> io::Result<()> {
        let mut allocations = Allocations::default();
        allocations.extend(self.held.values().cloned());
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let fresh = self.path.with_extension("tmp");
        std::fs::write(&fresh, serde_json::to_vec(&allocations)?)?;
        std::fs::rename(&fresh, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Kind, SavedPod};

    fn pod() -> ObjectKey {
        ObjectKey {
            kind: Kind::Pod,
            namespace: "default".into(),
            name: "a".into(),
        }
    }

    fn address(last: u8) -> SavedPod {
        SavedPod {
            namespace: "default".to_owned(),
            name: "a".to_owned(),
            ip: [10, 1, 0, last].into(),
        }
    }

    fn one_pod() -> Allocations {
        Allocations {
            pods: vec![address(1)],
            ..Allocations::default()
        }
    }

    #[test]
    fn what_was_kept_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/allocations.json");
        let mut kept = KeptAllocations::at(path.clone());
        assert_eq!(kept.read(), None);
        kept.note(pod(), Some(Saved::Pod(address(1))));
        kept.save();
        assert_eq!(KeptAllocations::at(path).read(), Some(one_pod()));
    }

    #[test]
    fn it_is_written_only_if_something_else_is_held() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allocations.json");
        let mut kept = KeptAllocations::at(path.clone());
        let mut is_written_by = |holds: Option<Saved>| {
            kept.note(pod(), holds);
            kept.save();
            std::fs::remove_file(&path).is_ok()
        };
        assert!(is_written_by(Some(Saved::Pod(address(1)))));
        assert!(!is_written_by(Some(Saved::Pod(address(1)))));
        assert!(is_written_by(Some(Saved::Pod(address(2)))));
        assert!(is_written_by(None));
        assert!(!is_written_by(None));
    }

    #[test]
    fn a_broken_file_is_a_new_start_and_a_failed_write_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allocations.json");
        std::fs::write(&path, "{").unwrap();
        assert_eq!(KeptAllocations::at(path.clone()).read(), None);
        let in_a_file = path.join("allocations.json");
        let mut kept = KeptAllocations::at(in_a_file.clone());
        kept.note(pod(), Some(Saved::Pod(address(1))));
        kept.save();
        std::fs::remove_file(&path).unwrap();
        kept.save();
        assert_eq!(KeptAllocations::at(in_a_file).read(), Some(one_pod()));
    }
}
