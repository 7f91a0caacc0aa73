//! The file that keeps allocations across restarts. What it holds is preferred, never reserved.

use std::io;
use std::path::PathBuf;

use tracing::{error, warn};

use crate::control::Allocations;

/// The file, and what it holds. Losing it costs stable addresses, nothing else.
pub(super) struct KeptAllocations {
    path: PathBuf,
    saved: Option<Allocations>,
}

impl KeptAllocations {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, saved: None }
    }

    /// What an earlier run has kept; nothing if that cannot be read.
    pub(super) fn read(&self) -> Option<Allocations> {
        self.try_read().unwrap_or_else(|error| {
            warn!(file = %self.path.display(), %error, "kept allocations cannot be read; starting anew");
            None
        })
    }

    /// Keeps `allocations`, if they are others than the last time. A failure is tried again with the next call.
    pub(super) fn keep(&mut self, allocations: Allocations) {
        if self.saved.as_ref() == Some(&allocations) {
            return;
        }
        match self.write(&allocations) {
            Ok(()) => self.saved = Some(allocations),
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
    fn write(&self, allocations: &Allocations) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let fresh = self.path.with_extension("tmp");
        std::fs::write(&fresh, serde_json::to_vec(allocations)?)?;
        std::fs::rename(&fresh, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::SavedPod;

    fn one_pod() -> Allocations {
        Allocations {
            pods: vec![SavedPod {
                namespace: "default".to_owned(),
                name: "a".to_owned(),
                ip: [10, 1, 0, 1].into(),
            }],
            ..Allocations::default()
        }
    }

    #[test]
    fn what_was_kept_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/allocations.json");
        let mut kept = KeptAllocations::at(path.clone());
        assert_eq!(kept.read(), None);
        kept.keep(one_pod());
        assert_eq!(KeptAllocations::at(path).read(), Some(one_pod()));
    }

    #[test]
    fn a_broken_file_is_a_new_start_and_a_failed_write_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allocations.json");
        std::fs::write(&path, "{").unwrap();
        assert_eq!(KeptAllocations::at(path.clone()).read(), None);
        let in_a_file = path.join("allocations.json");
        let mut kept = KeptAllocations::at(in_a_file.clone());
        kept.keep(one_pod());
        std::fs::remove_file(&path).unwrap();
        kept.keep(one_pod());
        assert_eq!(KeptAllocations::at(in_a_file).read(), Some(one_pod()));
    }
}
