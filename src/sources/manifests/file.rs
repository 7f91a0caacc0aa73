//! One file: what tells that it changed, and reading it within bounds.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::finding::{Finding, reason};

/// The largest file that is read. An API server takes 3 MiB in one request, and etcd half of that.
pub(super) const MAX_FILE_SIZE: u64 = 16 << 20;

/// Coarser than the clock of any file system here (a kernel tick, at most 10 ms). A file changed less than this before
/// it was read may have changed again since without a trace in its times.
const CLOCK_GRAIN: Duration = Duration::from_millis(100);

/// Whether the directory reads a file of that name.
pub(super) fn is_manifest(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// What changes when a file's content does. The change time is part of it because no tool can set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether an equal stamp after `now` proves that the content is the same.
    pub(super) fn is_conclusive(&self, now: SystemTime) -> bool {
        let age = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .ok()
            .and_then(|now| {
                let seconds = u64::try_from(self.changed.0).ok()?;
                let nanos = u32::try_from(self.changed.1).ok()?;
                now.checked_sub(Duration::new(seconds, nanos))
            });
        age.is_some_and(|age| age > CLOCK_GRAIN)
    }
}

/// Why a file has no text.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("has more than {MAX_FILE_SIZE} bytes")]
    TooLarge,
    #[error("is not UTF-8")]
    NotUtf8 { line: u32 },
}

impl ReadError {
    /// As a finding about the file.
    pub(super) fn finding(&self, file: &Arc<Path>) -> Finding {
        let line = match self {
            Self::NotUtf8 { line } => *line,
            Self::Io(_) | Self::TooLarge => 1,
        };
        Finding {
            file: Arc::clone(file),
            line,
            object: None,
            field: String::new(),
            reason: reason::UNREADABLE.to_owned(),
            message: self.to_string(),
        }
    }
}

/// The text of a file of at most [`MAX_FILE_SIZE`] bytes.
pub(super) fn read_text(path: &Path) -> Result<String, ReadError> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE_SIZE + 1)
        .read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE_SIZE) {
        return Err(ReadError::TooLarge);
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let lines = good.iter().filter(|byte| **byte == b'\n').count();
        let line = u32::try_from(lines).unwrap_or(u32::MAX).saturating_add(1);
        ReadError::NotUtf8 { line }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::sources::manifests::document::Document;
    use crate::sources::manifests::pieces::Pieces;

    fn parse(file: &Arc<Path>, text: &str) -> Vec<Document> {
        Pieces::default().read(file, text)
    }

    fn written(name: &str, content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[test]
    fn only_manifests_are_read() {
        for name in ["a.yaml", "a.yml", "a.json", "a.b.yaml"] {
            assert!(is_manifest(name), "{name}");
        }
        for name in [
            ".a.yaml",
            "a.yaml.tmp",
            "a.tmp",
            "a.yaml~",
            "a",
            "yaml",
            "a.YAML",
            "a.txt",
            "..data",
            ".yaml",
            "",
        ] {
            assert!(!is_manifest(name), "{name}");
        }
    }

    #[test]
    fn files_have_a_largest_size() {
        let size = usize::try_from(MAX_FILE_SIZE).unwrap();
        let (_dir, path) = written("a.yaml", &vec![b'#'; size]);
        assert_eq!(read_text(&path).unwrap().len(), size);
        let (_dir, path) = written("a.yaml", &vec![b'#'; size + 1]);
        assert!(matches!(read_text(&path), Err(ReadError::TooLarge)));
    }

    #[test]
    fn bytes_that_are_no_text_have_a_line() {
        let (_dir, path) = written("a.yaml", b"a: 1\nb: \xff\n");
        let finding = read_text(&path).unwrap_err().finding(&path.into());
        assert_eq!(
            (finding.line, &*finding.reason, &*finding.message),
            (2, "Unreadable", "is not UTF-8")
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error() {
        let (_dir, path) = written("a.yaml", b"");
        fs::remove_file(&path).unwrap();
        assert!(matches!(read_text(&path), Err(ReadError::Io(_))));
    }

    #[test]
    fn the_stamp_of_a_file_just_written_proves_nothing() {
        let (_dir, path) = written("a.yaml", b"a: 1");
        let stamp = Stamp::of(&fs::metadata(&path).unwrap());
        let changed = SystemTime::UNIX_EPOCH
            + Duration::new(
                u64::try_from(stamp.changed.0).unwrap(),
                u32::try_from(stamp.changed.1).unwrap(),
            );
        assert!(!stamp.is_conclusive(changed));
        assert!(!stamp.is_conclusive(changed + CLOCK_GRAIN));
        assert!(stamp.is_conclusive(changed + CLOCK_GRAIN + Duration::from_nanos(1)));
        assert!(!stamp.is_conclusive(changed - Duration::from_secs(1)));
    }

    #[test]
    fn the_name_decides_on_the_notation() {
        let text = "{\"kind\": \"Pod\", \"apiVersion\": \"v1\", \"metadata\": {\"name\": \"\\ud83d\\ude00\"}}";
        let read = |name: &str| parse(&Path::new(name).into(), text).remove(0);
        assert!(matches!(read("a.json"), Document::Object(_)));
        assert!(matches!(read("a.yaml"), Document::Unparsable(_)));
    }

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata:\n  name: &n web\n  labels: {app: *n}\nspec:\n  ports:\n  - {port: 80, targetPort: \"http\"}\n---\n{\"kind\": \"List\", \"apiVersion\": \"v1\", \"items\": [{\"kind\": \"Pod\", \"apiVersion\": \"v1\"}]}\n";

    proptest! {
        #[test]
        fn any_content_is_documents(bytes: Vec<u8>, at in 0..SERVICE.len(), length in 0_usize..40, json: bool) {
            let mut content = SERVICE.as_bytes().to_vec();
            let end = (at + length).min(content.len());
            content.splice(at..end, bytes.iter().copied());
            let file: Arc<Path> = Path::new(if json { "a.json" } else { "a.yaml" }).into();
            for bytes in [bytes, content] {
                let text = String::from_utf8_lossy(&bytes);
                let lines = u32::try_from(text.split(['\n', '\r']).count()).unwrap() + 1;
                for document in parse(&file, &text) {
                    let findings = match document {
                        Document::Object(manifest) => vec![manifest.origin.finding(manifest.object.key(), "spec.ports[0].port", "", "")],
                        Document::Refused(_, findings) => findings,
                        Document::Unparsable(finding) | Document::Ignored(finding) => vec![finding],
                    };
                    prop_assert!(!findings.is_empty());
                    prop_assert!(findings.iter().all(|finding| (1..=lines).contains(&finding.line)), "{findings:?}");
                }
            }
        }
    }
}
