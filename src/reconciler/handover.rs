//! Handover of a node's rules between two processes: the one that started last owns them.
//!
//! While a new version starts beside the old one, both serve what they accept; but only the new one writes rules, and the
//! old one, when it ends, leaves them alone. Who is the owner stands in a file in the data directory, which both share.

use std::io;
use std::path::{Path, PathBuf};

/// This process's claim to the rules.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    owner: String,
}

impl Claim {
    /// Takes the rules over from whoever has them.
    pub(super) fn take(path: &Path) -> io::Result<Self> {
        let owner = format!("{} {:016x}\n", std::process::id(), rand::random::<u64>());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // By rename, so that nobody reads half an owner.
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, &owner)?;
        std::fs::rename(&fresh, path)?;
        Ok(Self {
            path: path.to_owned(),
            owner,
        })
    }

    /// Whether another process has taken them since. A file that cannot be read says nothing.
    pub(super) fn is_superseded(&self) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|owner| owner != self.owner)
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
        std::fs::remove_file(&path).unwrap();
        assert!(
            !first.is_superseded(),
            "without a file there is no other owner"
        );
        assert!(Claim::take(Path::new("/proc/none/owner")).is_err());
    }
}
