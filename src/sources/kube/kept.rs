//! The last state of a cluster, kept on disk: what a start without an API server serves.
//!
//! One JSON object per line: a header with the format's version, then the objects as Kubernetes spells them, then how many
//! there are. Written beside and renamed, so that a crash leaves the old file or the new one. A file that is not whole, of
//! another version, another node or other servers is passed over: losing it costs the start without an API server,
//! nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::control::{Kind, Object, Objects, UnknownFields, decode};

/// The format. Another number is another format, which is not read.
const VERSION: u32 = 1;

/// Bytes of the file, written or read: several times what 10,000 Services with 100,000 endpoints take. A larger state is
/// not kept.
const MAX_BYTES: u64 = 256 << 20;

/// Whose state it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// The node's name.
    pub(super) node: String,
    /// The API servers that it is from.
    pub(super) servers: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    saved: Timestamp,
    #[serde(flatten)]
    owner: Owner,
}

#[derive(Serialize, Deserialize)]
struct End {
    objects: usize,
}

/// What was kept.
#[derive(Debug)]
pub(super) struct KeptState {
    /// When it was the newest state.
    pub(super) saved: Timestamp,
    /// All of it.
    pub(super) objects: Vec<Object>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("line {0} is not what it should be: {1}")]
    Line(usize, String),
    #[error("format {0} is not known")]
    Version(u32),
    #[error("it is of another node or of other API servers")]
    Foreign,
    #[error("it ends before its end")]
    CutOff,
    #[error("it has more than {MAX_BYTES} bytes")]
    TooLarge,
}

/// The file.
#[derive(Clone, Debug)]
pub(super) struct KeptFile {
    path: PathBuf,
    owner: Owner,
}

impl KeptFile {
    pub(super) fn new(path: PathBuf, owner: Owner) -> Self {
        Self { path, owner }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier run has kept; `None` if there was none. Blocks.
    pub(super) fn read(&self) -> Result<Option<KeptState>, ReadError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if file.metadata()?.len() > MAX_BYTES {
            return Err(ReadError::TooLarge);
        }
        let mut lines = BufReader::new(file.take(MAX_BYTES)).lines();
        let first = lines.next().ok_or(ReadError::CutOff)??;
        let header: Header =
            serde_json::from_str(&first).map_err(|error| ReadError::Line(1, error.to_string()))?;
        if header.version != VERSION {
            return Err(ReadError::Version(header.version));
        }
        if !self.owner.is_akin_to(&header.owner) {
            return Err(ReadError::Foreign);
        }
        let mut objects = Vec::new();
        for (index, line) in lines.enumerate() {
            let broken = |why: String| ReadError::Line(index + 2, why);
            let document: Value =
                serde_json::from_str(&line?).map_err(|error| broken(error.to_string()))?;
            if document.get("kind").is_some() {
                let (object, _) = decode(document, UnknownFields::Warn)
                    .map_err(|rejection| broken(rejection.message))?;
                objects.push(object);
                continue;
            }
            let end: End =
                serde_json::from_value(document).map_err(|error| broken(error.to_string()))?;
            if end.objects != objects.len() {
                return Err(ReadError::CutOff);
            }
            let saved = header.saved;
            return Ok(Some(KeptState { saved, objects }));
        }
        Err(ReadError::CutOff)
    }

    /// Keeps `objects` as the state at `now`. Blocks.
    ///
    /// # Errors
    ///
    /// The disk's, or that the state is too large to keep; the old file stays then.
    pub(super) fn write(&self, objects: &Objects, now: Timestamp) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let fresh = self.path.with_extension("tmp");
        let written = self.write_to(&fresh, objects, now);
        match written {
            Ok(()) => fs::rename(&fresh, &self.path),
            Err(error) => {
                // What cannot be written may not be there to remove.
                let _ = fs::remove_file(&fresh);
                Err(error)
            }
        }
    }

    fn write_to(&self, path: &Path, objects: &Objects, now: Timestamp) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        let mut lines = Lines {
            file: BufWriter::new(file),
            bytes: 0,
        };
        lines.add(&Header {
            version: VERSION,
            saved: now,
            owner: self.owner.clone(),
        })?;
        let mut n_objects = 0;
        for kind in Kind::ALL {
            for object in objects.list(kind) {
                lines.add(&object.to_json()?)?;
                n_objects += 1;
            }
        }
        lines.add(&End { objects: n_objects })?;
        let file = lines
            .file
            .into_inner()
            .map_err(|error| error.into_error())?;
        file.sync_all()
    }
}

impl Owner {
    // Servers come and go; one that is in both lists is enough.
    fn is_akin_to(&self, other: &Self) -> bool {
        let shared = |server: &String| other.servers.contains(server);
        self.node == other.node && self.servers.iter().any(shared)
    }
}

struct Lines {
    file: BufWriter<File>,
    bytes: u64,
}

impl Lines {
    fn add(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.bytes = self.bytes.saturating_add(line.len() as u64);
        if self.bytes > MAX_BYTES {
            let message = format!("the state has more than {MAX_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        self.file.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn owner(servers: &[&str]) -> Owner {
        Owner {
            node: "here".to_owned(),
            servers: servers.iter().map(|url| (*url).to_owned()).collect(),
        }
    }

    fn state() -> Objects {
        let mut objects = Objects::default();
        for name in ["web", "api"] {
            let document = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
            });
            let (object, _) = decode(document, UnknownFields::Refuse).unwrap();
            objects.insert(object.key(), &object);
        }
        objects
    }

    fn kept(directory: &tempfile::TempDir, servers: &[&str]) -> KeptFile {
        KeptFile::new(directory.path().join("deeper/cluster.json"), owner(servers))
    }

    #[test]
    fn what_was_kept_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = kept(&directory, &["a", "b"]);
        assert!(file.read().unwrap().is_none());
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        file.write(&state(), now).unwrap();
        let again = kept(&directory, &["c", "b"]).read().unwrap().unwrap();
        assert_eq!(again.saved, now);
        let mut names: Vec<String> = again.objects.iter().map(|o| o.key().to_string()).collect();
        names.sort();
        assert_eq!(names, ["Service default/api", "Service default/web"]);
        let mode = fs::metadata(file.path()).unwrap();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
            0o600
        );
        file.write(&Objects::default(), now).unwrap();
        assert_eq!(file.read().unwrap().unwrap().objects, []);
    }

    #[test]
    fn a_file_of_somebody_else_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        kept(&directory, &["a"])
            .write(&state(), Timestamp::UNIX_EPOCH)
            .unwrap();
        let foreign = kept(&directory, &["b"]).read().unwrap_err();
        assert!(matches!(foreign, ReadError::Foreign), "{foreign}");
        let mut other = kept(&directory, &["a"]);
        other.owner.node = "there".to_owned();
        assert!(matches!(other.read().unwrap_err(), ReadError::Foreign));
    }

    #[test]
    fn a_file_that_is_not_whole_is_passed_over_wherever_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let file = kept(&directory, &["a"]);
        file.write(&state(), Timestamp::UNIX_EPOCH).unwrap();
        let whole = fs::read(file.path()).unwrap();
        for length in 0..whole.len() - 1 {
            fs::write(file.path(), &whole[..length]).unwrap();
            assert!(file.read().is_err(), "{length} bytes");
        }
        let text = String::from_utf8(whole).unwrap();
        fs::write(file.path(), text.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(matches!(file.read().unwrap_err(), ReadError::Version(2)));
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = kept(&directory, &["a"]);
        file.write(&state(), Timestamp::UNIX_EPOCH).unwrap();
        fs::create_dir(file.path().with_extension("tmp")).unwrap();
        assert!(
            file.write(&Objects::default(), Timestamp::UNIX_EPOCH)
                .is_err()
        );
        assert_eq!(file.read().unwrap().unwrap().objects.len(), 2);
    }
}
