//! Handover of a node between two processes: the one that started last owns its rules.
//!
//! While a new version starts beside the old one, both serve what they accept; but only the new one writes rules, and the
//! old one, when it ends, leaves them alone. Who is the owner stands in a file in the data directory, which both share, and
//! the owner holds that very file locked: the kernel takes the lock back however the process ends, and shows it to whoever
//! shares the directory, also from another PID namespace.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// This process's claim to the rules.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    owner: String,
    // Its lock is the sign of life.
    _locked: File,
}

impl Claim {
    /// Takes the rules over from whoever has them.
    pub(super) fn take(path: &Path) -> io::Result<Self> {
        let owner = format!("{} {:016x}\n", std::process::id(), rand::random::<u64>());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // By rename, so that nobody reads half an owner, or finds one that is not locked yet.
        let fresh = path.with_extension("new");
        let mut locked = File::create(&fresh)?;
        locked.write_all(owner.as_bytes())?;
        // A file system without locks only hides that we live.
        let _unseen = locked.try_lock();
        fs::rename(&fresh, path)?;
        Ok(Self {
            path: path.to_owned(),
            owner,
            _locked: locked,
        })
    }

    /// Whether another process has taken them since. A file that cannot be read says nothing.
    pub(super) fn is_superseded(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|owner| owner != self.owner)
    }
}

/// The process that owned the rules when this one began.
#[derive(Debug)]
pub(super) struct Predecessor(File);

impl Predecessor {
    /// Whoever the file at `path` names.
    pub(super) fn find(path: &Path) -> Option<Self> {
        File::open(path).ok().map(Self)
    }

    /// Whether it still runs.
    pub(super) fn lives(&self) -> bool {
        match self.0.try_lock_shared() {
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(_)) => false,
            Ok(()) => {
                // Fails for no descriptor that could be locked.
                let _released_with_it = self.0.unlock();
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_claim_owns_the_rules() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/rules-owner");
        let first = Claim::take(&path).unwrap();
        assert!(!first.is_superseded());
        let second = Claim::take(&path).unwrap();
        assert!(first.is_superseded() && !second.is_superseded());
        fs::remove_file(&path).unwrap();
        assert!(
            !first.is_superseded(),
            "without a file there is no other owner"
        );
        assert!(Claim::take(Path::new("/proc/none/owner")).is_err());
    }

    #[test]
    fn a_predecessor_lives_as_long_as_its_claim() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rules-owner");
        assert!(Predecessor::find(&path).is_none(), "nobody was here");
        let first = Claim::take(&path).unwrap();
        let predecessor = Predecessor::find(&path).unwrap();
        let second = Claim::take(&path).unwrap();
        assert!(predecessor.lives() && predecessor.lives());
        drop(first);
        assert!(
            !predecessor.lives(),
            "whoever comes after it does not count"
        );
        let predecessor = Predecessor::find(&path).unwrap();
        drop(second);
        assert!(!predecessor.lives());
    }

    #[test]
    fn a_file_that_nobody_holds_names_nobody_who_lives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rules-owner");
        fs::write(&path, "1 0123456789abcdef\n").unwrap();
        assert!(!Predecessor::find(&path).unwrap().lives());
    }
}
