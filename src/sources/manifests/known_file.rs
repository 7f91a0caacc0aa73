//! What is known of one file, and whether a new look at it finds anything else.
//!
//! Most looks end at the stamp: ten thousand files without a change cost ten thousand `stat` calls. A file that looks
//! half written is not believed at once.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::claims::Place;
use super::document::Document;
use super::file::{ReadError, Stamp, read_text};
use super::finding::Finding;
use super::pieces::Pieces;
use crate::control::ObjectKey;

/// How long an empty or unparsable file must stay as it is before that counts: editors empty a file before they fill
/// it again.
pub(super) const QUIET: Duration = Duration::from_millis(50);

/// For how long a file that changes all the time may put that off.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What is known of a file.
#[derive(Debug, Default)]
pub(super) struct KnownFile {
    /// As of the last reading; `None` if the next look must read it whatever its stamp says.
    stamp: Option<Stamp>,
    digest: Option<u64>,
    suspect: Option<Suspect>,
    pieces: Pieces,
    pub(super) objects: Vec<(ObjectKey, Place)>,
    pub(super) refused: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
    /// The problems as they were told last.
    pub(super) told: Vec<Finding>,
}

/// A file that looks half written.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    stamp: Stamp,
    since: Instant,
    first: Instant,
}

/// What to do with a file that looks half written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Believe it.
    None,
    /// Leave it for a later look, until it has been quiet.
    UntilQuiet,
    /// Leave it for a later look, and one too that describes other objects than before: they may be on their way from
    /// one file to another.
    InPlace,
}

/// What reading a file gave.
pub(super) enum Reading {
    Same,
    /// There is something new, for a later look.
    Postponed,
    Changed(Vec<Document>),
}

impl KnownFile {
    /// Reads the file if it may have changed. What is new is known from then on; the objects are for the caller.
    pub(super) fn read(
        &mut self,
        file: &Arc<Path>,
        metadata: io::Result<Metadata>,
        patience: Patience,
    ) -> Reading {
        let now = SystemTime::now();
        let stamp = match metadata {
            Ok(metadata) => Stamp::of(&metadata),
            Err(error) => return self.unreadable(file, &error.into()),
        };
        if self.stamp == Some(stamp) {
            return Reading::Same;
        }
        let text = match read_text(file) {
            Ok(text) => text,
            Err(error) => return self.unreadable(file, &error),
        };
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let digest = Some(hasher.finish());
        let conclusive = stamp.is_conclusive(now).then_some(stamp);
        if self.digest == digest {
            (self.stamp, self.suspect) = (conclusive, None);
            return Reading::Same;
        }
        let documents = self.pieces.read(file, &text);
        let is_believed = match patience {
            Patience::None => true,
            Patience::UntilQuiet => !looks_half_written(&documents) || self.has_been_quiet(stamp),
            Patience::InPlace => !looks_half_written(&documents) && self.describes_only(&documents),
        };
        if !is_believed {
            return Reading::Postponed;
        }
        (self.stamp, self.digest, self.suspect) = (conclusive, digest, None);
        Reading::Changed(documents)
    }

    /// The file is read again at every look until it can be.
    fn unreadable(&mut self, file: &Arc<Path>, error: &ReadError) -> Reading {
        (self.stamp, self.digest, self.suspect) = (None, None, None);
        let finding = error.finding(file);
        if self.refused == [finding.clone()] {
            return Reading::Same;
        }
        Reading::Changed(vec![Document::Unparsable(finding)])
    }

    /// Whether these are about the objects that the file described before, all of them.
    fn describes_only(&self, documents: &[Document]) -> bool {
        let now = documents.iter().filter_map(|document| match document {
            Document::Object(manifest) => Some(manifest.object.key()),
            Document::Refused(..) | Document::Unparsable(_) | Document::Ignored(_) => None,
        });
        let before = self.objects.iter().map(|(key, _)| key.clone());
        now.collect::<BTreeSet<_>>() == before.collect()
    }

    /// Whether the file has had this stamp for [`QUIET`], or has changed for too long.
    fn has_been_quiet(&mut self, stamp: Stamp) -> bool {
        let now = Instant::now();
        let suspect = match self.suspect {
            Some(suspect) if suspect.stamp == stamp => suspect,
            Some(suspect) => Suspect {
                stamp,
                since: now,
                ..suspect
            },
            None => Suspect {
                stamp,
                since: now,
                first: now,
            },
        };
        self.suspect = Some(suspect);
        now - suspect.since >= QUIET || now - suspect.first >= LONGEST_WAIT
    }
}

fn looks_half_written(documents: &[Document]) -> bool {
    let is_bad =
        |document: &Document| matches!(document, Document::Unparsable(_) | Document::Refused(..));
    documents.is_empty() || documents.iter().any(is_bad)
}
