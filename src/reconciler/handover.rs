//! Handover of a node between two processes: the one that started last owns its rules.
//!
//! While a new version starts beside the old one, both serve what they accept; but only the new one writes rules, and the
//! old one, when it ends, leaves them alone. Who is the owner stands in a file in the data directory, which both share, and
//! the owner holds that very file locked: the kernel takes the lock back however the process ends, and shows it to whoever
//! shares the directory, also from another PID namespace. A successor that ends before the one that it came to replace leaves
//! the rules to it again.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
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

    /// Whose the rules are by now. A file that cannot be read says nothing.
    pub(super) fn standing(&self) -> Standing {
        let Ok(mut file) = File::open(&self.path) else {
            return Standing::Ours;
        };
        let mut owner = String::new();
        match file.read_to_string(&mut owner) {
            Ok(_) if owner != self.owner => {}
            Ok(_) | Err(_) => return Standing::Ours,
        }
        match holder(&file) {
            Holder::Lives | Holder::Unknown => Standing::Superseded,
            Holder::Gone => Standing::Abandoned,
        }
    }

    /// Takes them again.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        *self = Self::take(&self.path)?;
        Ok(())
    }
}

/// Whose the rules are that this process has claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// This one's.
    Ours,
    /// Another process has taken them since.
    Superseded,
    /// Another process has, and has ended.
    Abandoned,
}

// Whether the process lives that claimed by this file.
enum Holder {
    Lives,
    Gone,
    // The file system knows no locks.
    Unknown,
}

fn holder(file: &File) -> Holder {
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Holder::Lives,
        Err(TryLockError::Error(_)) => Holder::Unknown,
        // The lock ends with the file, or is renewed.
        Ok(()) => Holder::Gone,
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
        match holder(&self.0) {
            Holder::Lives => true,
            Holder::Gone | Holder::Unknown => false,
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
        assert_eq!(first.standing(), Standing::Ours);
        let second = Claim::take(&path).unwrap();
        assert_eq!(first.standing(), Standing::Superseded);
        assert_eq!(second.standing(), Standing::Ours);
        fs::remove_file(&path).unwrap();
        assert_eq!(
            first.standing(),
            Standing::Ours,
            "without a file there is no other owner"
        );
        assert!(Claim::take(Path::new("/proc/none/owner")).is_err());
    }

    #[test]
    fn rules_of_a_successor_that_has_ended_are_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rules-owner");
        let mut first = Claim::take(&path).unwrap();
        let second = Claim::take(&path).unwrap();
        drop(second);
        assert_eq!(first.standing(), Standing::Abandoned);
        assert_eq!(
            first.standing(),
            Standing::Abandoned,
            "however often one looks"
        );
        first.renew().unwrap();
        assert_eq!(first.standing(), Standing::Ours);
        assert!(Predecessor::find(&path).unwrap().lives());
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
