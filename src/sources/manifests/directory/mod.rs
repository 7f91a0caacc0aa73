//! A directory of manifests: the last good state of every file, and what a new look at it changes.
//!
//! The unit of failure is the document. A document that cannot be used leaves its object as it was; if it does not even
//! say which object that is, nothing of its file is removed until it does.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::control::{NAMELESS, ObjectKey};
use crate::sources::manifests::claims::{Claims, Place};
use crate::sources::manifests::document::Document;
use crate::sources::manifests::file::is_manifest;
use crate::sources::manifests::finding::{Finding, reason};
use crate::sources::manifests::known_file::{KnownFile, Patience, Reading};
use crate::sources::manifests::manifest::Manifest;

/// How many problems of one file are told. Whoever has mended these hears of the next.
const MAX_TOLD: usize = 1000;

/// One difference between what was told of a directory and what is in it now.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// An object is new, changed, or described by another file than before.
    Applied(Box<Manifest>),
    /// No file describes the object any longer.
    Removed(ObjectKey),
    /// A document that is not used; what was good before it stays. When the problems of a file change, all that it has
    /// then are told in one message, and those told before are void.
    Problem(Finding),
    /// Something to know that costs nothing, told once.
    Warning(Finding),
    /// Nothing is wrong with this file any longer.
    Healed(Arc<Path>),
}

/// Why a directory could not be looked at. What was read before stays.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Listing it failed.
    #[error("cannot list the manifest directory {}: {source}", dir.display())]
    List {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The one file that was named is not there.
    #[error("cannot read the manifest {}: {source}", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What one look found.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) updates: Vec<Update>,
    /// Some file looks half written, or was left for a whole look: look again after a little.
    pub(super) unsettled: bool,
}

/// The manifests of one directory, not of those below it: `*.yaml`, `*.yml` and `*.json`, without dot files. Or those of
/// one file, whatever its name.
#[derive(Debug)]
pub struct Directory {
    dir: PathBuf,
    only: Option<Arc<Path>>,
    files: BTreeMap<Arc<Path>, KnownFile>,
    claims: Claims,
}

/// What a look touched: enough to tell what is different after it.
#[derive(Debug, Default)]
struct Touched {
    /// What spoke for an object before.
    before: HashMap<ObjectKey, Option<Arc<Manifest>>>,
    files: BTreeSet<Arc<Path>>,
    warnings: Vec<Finding>,
    healed: Vec<Arc<Path>>,
}

impl Directory {
    /// A directory that has not been looked at yet.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            only: None,
            files: BTreeMap::new(),
            claims: Claims::default(),
        }
    }

    /// One file that has not been looked at yet, as if it were alone in its directory.
    pub fn of_file(file: PathBuf) -> Self {
        let parent = file.parent().filter(|dir| !dir.as_os_str().is_empty());
        Self {
            only: Some(file.as_path().into()),
            ..Self::new(parent.unwrap_or(Path::new(".")).to_owned())
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Looks at every file and tells what is different since the last look; the first look tells everything. Removals
    /// come first, then objects by file name and place, then what is to be said about files.
    ///
    /// # Errors
    /// If the directory cannot be listed, or the one file is gone. A file that cannot be read is a [`Update::Problem`] instead.
    pub fn scan(&mut self) -> Result<Vec<Update>, ScanError> {
        self.look(Patience::None).map(|scan| scan.updates)
    }

    pub(super) fn look(&mut self, patience: Patience) -> Result<Scan, ScanError> {
        let listed = self.list()?;
        let mut touched = Touched::default();
        let gone = self.files.keys().filter(|file| !listed.contains_key(*file));
        for file in gone.cloned().collect::<Vec<_>>() {
            self.forget(&file, &mut touched);
        }
        let mut unsettled = false;
        for (file, metadata) in listed {
            self.files.entry(Arc::clone(&file)).or_default();
            unsettled |= self.read(&file, metadata, patience, &mut touched);
        }
        let updates = self.differences(touched);
        Ok(Scan { updates, unsettled })
    }

    /// Looks at these files alone, which somebody has finished writing. What they say of the objects that they
    /// described before is told; anything else, such as an object that comes or goes, is left for a whole look.
    pub(super) fn glance(&mut self, files: &BTreeSet<PathBuf>) -> Scan {
        let mut touched = Touched::default();
        let mut unsettled = false;
        for file in files {
            let known = self.files.get_key_value(file.as_path());
            let metadata = fs::metadata(file).ok().filter(Metadata::is_file);
            unsettled |= match (known, metadata) {
                (Some((file, _)), Some(metadata)) => self.read(
                    &Arc::clone(file),
                    Ok(metadata),
                    Patience::InPlace,
                    &mut touched,
                ),
                (None, _) | (_, None) => true,
            };
        }
        let updates = self.differences(touched);
        Scan { updates, unsettled }
    }

    /// Takes over what a known file says now. True if that is for a later look.
    fn read(
        &mut self,
        file: &Arc<Path>,
        metadata: io::Result<Metadata>,
        patience: Patience,
        touched: &mut Touched,
    ) -> bool {
        let Some(known) = self.files.get_mut(file) else {
            return false;
        };
        match known.read(file, metadata, patience) {
            Reading::Same => {}
            Reading::Postponed => return true,
            Reading::Changed(documents) => self.replace(file, documents, touched),
        }
        false
    }

    fn list(&self) -> Result<Files, ScanError> {
        match &self.only {
            None => list(&self.dir).map_err(|source| ScanError::List {
                dir: self.dir.clone(),
                source,
            }),
            Some(file) => match fs::metadata(file) {
                Ok(metadata) => Ok([(Arc::clone(file), Ok(metadata))].into()),
                Err(source) => Err(ScanError::Missing {
                    file: file.to_path_buf(),
                    source,
                }),
            },
        }
    }

    /// Drops what a file contributed.
    fn forget(&mut self, file: &Arc<Path>, touched: &mut Touched) {
        let Some(state) = self.files.remove(file) else {
            return;
        };
        for (key, place) in state.objects {
            touched.note(&self.claims, &key);
            self.claims.remove(&key, &place);
        }
        if !state.told.is_empty() {
            touched.healed.push(Arc::clone(file));
        }
    }

    /// Takes over the documents of a file, and keeps of its earlier objects what they leave in doubt.
    fn replace(&mut self, file: &Arc<Path>, documents: Vec<Document>, touched: &mut Touched) {
        let Some(state) = self.files.get_mut(file) else {
            return;
        };
        let mut earlier: HashMap<ObjectKey, (Place, Arc<Manifest>)> = HashMap::new();
        for (key, place) in std::mem::take(&mut state.objects) {
            touched.note(&self.claims, &key);
            if let Some(manifest) = self.claims.remove(&key, &place) {
                earlier.entry(key).or_insert((place, manifest));
            }
        }
        let sorted = Sorted::new(documents);
        for (position, key, manifest) in sorted.objects {
            earlier.remove(&key);
            let place = Place {
                file: Arc::clone(file),
                position,
            };
            state.objects.push((key.clone(), place.clone()));
            touched.note(&self.claims, &key);
            self.claims.insert(key, place, manifest);
        }
        earlier.retain(|key, _| sorted.nameless || sorted.refused_keys.contains(key));
        for (key, (place, manifest)) in earlier {
            state.objects.push((key.clone(), place.clone()));
            self.claims.insert(key, place, manifest);
        }
        let known: HashSet<_> = state.warnings.iter().map(matter).collect();
        let is_new = |warning: &&Finding| !known.contains(&matter(warning));
        let new = sorted.warnings.iter().filter(is_new).cloned();
        touched.warnings.extend(new);
        state.warnings = sorted.warnings;
        state.refused = sorted.refused;
        touched.files.insert(Arc::clone(file));
    }

    fn differences(&mut self, touched: Touched) -> Vec<Update> {
        let Touched {
            before,
            mut files,
            warnings,
            healed,
        } = touched;
        let mut removed = Vec::new();
        let mut applied = Vec::new();
        for (key, before) in before {
            let places = self.claims.places(&key);
            files.extend(places.map(|place| Arc::clone(&place.file)));
            match (before, self.claims.first(&key)) {
                (None, None) => {}
                (Some(_), None) => removed.push(key),
                (Some(before), Some((_, now))) if Arc::ptr_eq(&before, now) => {}
                (Some(before), Some((_, now))) if says_the_same(&before, now) => {}
                (_, Some((place, now))) => applied.push((place.clone(), Arc::clone(now))),
            }
        }
        removed.sort();
        applied.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut updates: Vec<Update> = removed.into_iter().map(Update::Removed).collect();
        let applied = applied.into_iter().map(|(_, now)| Box::new((*now).clone()));
        updates.extend(applied.map(Update::Applied));
        updates.extend(healed.into_iter().map(Update::Healed));
        for file in files {
            self.tell_problems(&file, &mut updates);
        }
        updates.extend(warnings.into_iter().map(Update::Warning));
        updates
    }

    fn tell_problems(&mut self, file: &Arc<Path>, updates: &mut Vec<Update>) {
        let Some(state) = self.files.get_mut(file) else {
            return;
        };
        let mut problems = state.refused.clone();
        for (key, place) in &state.objects {
            problems.extend(conflict(&self.claims, key, place));
        }
        problems.sort_by_key(|problem| problem.line);
        problems.truncate(MAX_TOLD);
        if problems == state.told {
            return;
        }
        if problems.is_empty() {
            updates.push(Update::Healed(Arc::clone(file)));
        }
        updates.extend(problems.iter().cloned().map(Update::Problem));
        state.told = problems;
    }
}

impl Touched {
    /// Remembers what speaks for `key`, unless an earlier state is remembered already.
    fn note(&mut self, claims: &Claims, key: &ObjectKey) {
        if !self.before.contains_key(key) {
            let first = claims.first(key).map(|(_, manifest)| Arc::clone(manifest));
            self.before.insert(key.clone(), first);
        }
    }
}

/// The documents of a file, sorted by what follows from them.
#[derive(Default)]
struct Sorted {
    objects: Vec<(usize, ObjectKey, Arc<Manifest>)>,
    refused: Vec<Finding>,
    refused_keys: BTreeSet<ObjectKey>,
    warnings: Vec<Finding>,
    /// Some document does not say which object it describes: it may be any of those that are missing.
    nameless: bool,
}

impl Sorted {
    fn new(documents: Vec<Document>) -> Self {
        let mut sorted = Self::default();
        for (position, document) in documents.into_iter().enumerate() {
            match document {
                Document::Object(manifest) => {
                    let key = manifest.object.key();
                    // As a file that is cut off in the middle of its last document has it.
                    sorted.nameless |= key.name.is_empty();
                    sorted.objects.push((position, key, manifest));
                }
                Document::Refused(key, findings) => {
                    sorted.nameless |= key.is_none();
                    sorted.refused_keys.extend(key);
                    sorted.refused.extend(findings);
                }
                Document::Unparsable(finding) => {
                    sorted.nameless = true;
                    sorted.refused.push(finding);
                }
                Document::Ignored(finding) => sorted.warnings.push(finding),
            }
        }
        sorted
    }
}

/// Files by path, sorted.
type Files = BTreeMap<Arc<Path>, io::Result<Metadata>>;

/// The manifests in `dir`. Anything but a regular file is left out, also behind a link.
fn list(dir: &Path) -> io::Result<Files> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !name.to_str().is_some_and(is_manifest) {
            continue;
        }
        let path = dir.join(name);
        let metadata = fs::metadata(&path);
        let is_there = match &metadata {
            Ok(metadata) => metadata.is_file(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if is_there {
            files.insert(path.into(), metadata);
        }
    }
    Ok(files)
}

/// Another place is news too: what is told of the object later must name the right file.
fn says_the_same(before: &Manifest, now: &Manifest) -> bool {
    before.origin.file == now.origin.file && before.object == now.object
}

/// What a finding is about, wherever it has moved to.
fn matter(finding: &Finding) -> (&Option<ObjectKey>, &str, &str) {
    (&finding.object, &finding.field, &finding.message)
}

/// Tells of a manifest that another one comes before it.
fn conflict(claims: &Claims, key: &ObjectKey, place: &Place) -> Option<Finding> {
    let (first, speaker) = claims.first(key)?;
    if first == place {
        return None;
    }
    let manifest = claims.at(key, place)?;
    if key.name.is_empty() {
        // Two documents without a name are not two of one object.
        let message = format!("Required value: {NAMELESS}");
        let origin = &manifest.origin;
        return Some(origin.finding(key.clone(), "metadata.name", reason::REQUIRED, message));
    }
    let origin = &speaker.origin;
    let message = format!(
        "also in {}:{}, which comes first; this one takes over when that one goes",
        origin.file.display(),
        origin.line
    );
    let object = key.clone();
    Some(
        manifest
            .origin
            .finding(object, "metadata.name", reason::DUPLICATE, message),
    )
}

#[cfg(test)]
mod tests;
