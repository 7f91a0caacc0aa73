//! Whether the configuration file has changed on disk.
//!
//! Looked at once a second, through every link: a ConfigMap's file changes by a link in its folder, an editor's by a
//! rename, and notifications miss one or the other or run out. A look costs one `stat`.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The changes of one file, told once each.
#[derive(Debug)]
pub struct FileChanges {
    path: Option<PathBuf>,
    told: Option<Stamp>,
    moving: Option<Option<Stamp>>,
}

// What differs between two states of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl From<Metadata> for Stamp {
    fn from(file: Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

impl FileChanges {
    /// Changes from now on; none without a file.
    pub fn of(path: Option<PathBuf>) -> Self {
        let mut this = Self {
            path,
            told: None,
            moving: None,
        };
        this.told = this.stamp();
        this
    }

    /// Waits for the next change that has come to rest: half-written files are passed over. May be dropped and called
    /// again.
    pub async fn next(&mut self) {
        if self.path.is_none() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            if self.look() {
                return;
            }
        }
    }

    // True if the file is other than what was told last, and was so at the last look.
    fn look(&mut self) -> bool {
        let now = self.stamp();
        if now == self.told {
            self.moving = None;
        } else if self.moving == Some(now) {
            self.told = now;
            self.moving = None;
            return true;
        } else {
            self.moving = Some(now);
        }
        false
    }

    // `None` while there is no file.
    fn stamp(&self) -> Option<Stamp> {
        let path = self.path.as_ref()?;
        std::fs::metadata(path).ok().map(Stamp::from)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_change_is_told_once_it_rests_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        fs::write(&path, "a").unwrap();
        let mut changes = FileChanges::of(Some(path.clone()));
        assert!(!changes.look());
        fs::write(&path, "ab").unwrap();
        assert!(!changes.look(), "it may still be written to");
        fs::write(&path, "abc").unwrap();
        assert!(!changes.look());
        assert!(changes.look());
        assert!(!changes.look());
        fs::remove_file(&path).unwrap();
        assert_eq!((changes.look(), changes.look()), (false, true));
    }

    #[test]
    fn a_config_map_changes_by_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (data, text) in [("one", "same"), ("two", "size")] {
            fs::create_dir(at(data)).unwrap();
            fs::write(at(data).join("config.conf"), text).unwrap();
        }
        symlink("one", at("..data")).unwrap();
        symlink("..data/config.conf", at("config.conf")).unwrap();
        let mut changes = FileChanges::of(Some(at("config.conf")));
        symlink("two", at("..tmp")).unwrap();
        fs::rename(at("..tmp"), at("..data")).unwrap();
        assert_eq!((changes.look(), changes.look()), (false, true));
    }
}
