//! A directory of manifests: the last good state of every file, and what a new look at it changes.
//!
//! The unit of failure is the document. A document that cannot be used leaves its object as it was; if it does not even
//! say which object that is, nothing of its file is removed until it does.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::claims::{Claims, Place};
use super::document::{Document, Manifest};
use super::file::is_manifest;
use super::finding::{Finding, reason};
use super::known_file::{KnownFile, Patience, Reading};
use crate::control::ObjectKey;

/// How many problems of one file are told. Whoever has mended these hears of the next.
const MAX_TOLD: usize = 1000;

/// One difference between what was told of a directory and what is in it now.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// An object is new, changed, or described by another file than before.
    Applied(Box<Manifest>),
    /// No file describes the object any longer.
    Removed(ObjectKey),
    /// A document that is not used; what was good before it stays.
    Problem(Finding),
    /// Something to know that costs nothing, told once.
    Warning(Finding),
    /// The problems told of this file are void. Those that remain are told again, after this.
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
}

/// What one look found.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) updates: Vec<Update>,
    /// Some file looks half written: look again after a little.
    pub(super) unsettled: bool,
}

/// The manifests of one directory, not of those below it: `*.yaml`, `*.yml` and `*.json`, without dot files.
#[derive(Debug)]
pub struct Directory {
    dir: PathBuf,
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
            files: BTreeMap::new(),
            claims: Claims::default(),
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
    /// If the directory cannot be listed. A file that cannot be read is a [`Update::Problem`] instead.
    pub fn scan(&mut self) -> Result<Vec<Update>, ScanError> {
        self.look(Patience::None).map(|scan| scan.updates)
    }

    pub(super) fn look(&mut self, patience: Patience) -> Result<Scan, ScanError> {
        let listed = list(&self.dir).map_err(|source| ScanError::List {
            dir: self.dir.clone(),
            source,
        })?;
        let mut touched = Touched::default();
        let gone = self.files.keys().filter(|file| !listed.contains_key(*file));
        for file in gone.cloned().collect::<Vec<_>>() {
            self.forget(&file, &mut touched);
        }
        let mut unsettled = false;
        for (file, metadata) in listed {
            let known = self.files.entry(Arc::clone(&file)).or_default();
            let documents = match known.read(&file, metadata, patience) {
                Reading::Same => continue,
                Reading::HalfWritten => {
                    unsettled = true;
                    continue;
                }
                Reading::Changed(documents) => documents,
            };
            self.replace(&file, documents, &mut touched);
        }
        let updates = self.differences(touched);
        Ok(Scan { updates, unsettled })
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
            self.claims.insert(key, place, Arc::new(manifest));
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
        if !state.told.is_empty() {
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
    objects: Vec<(usize, ObjectKey, Manifest)>,
    refused: Vec<Finding>,
    refused_keys: BTreeSet<ObjectKey>,
    warnings: Vec<Finding>,
    /// Some document does not say which object it describes.
    nameless: bool,
}

impl Sorted {
    fn new(documents: Vec<Document>) -> Self {
        let mut sorted = Self::default();
        for (position, document) in documents.into_iter().enumerate() {
            match document {
                Document::Object(manifest) => {
                    let key = manifest.object.key();
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

/// The manifests in `dir` by path, sorted. Anything but a regular file is left out, also behind a link.
fn list(dir: &Path) -> io::Result<BTreeMap<Arc<Path>, io::Result<Metadata>>> {
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
mod tests {
    use tempfile::TempDir;

    use super::*;

    struct Fixture {
        dir: TempDir,
        directory: Directory,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let directory = Directory::new(dir.path().to_owned());
            Self { dir, directory }
        }

        fn write(&self, name: &str, content: &str) {
            fs::write(self.dir.path().join(name), content).unwrap();
        }

        fn remove(&self, name: &str) {
            fs::remove_file(self.dir.path().join(name)).unwrap();
        }

        /// What a look tells, a line each.
        fn scan(&mut self) -> Vec<String> {
            let updates = self.directory.scan().unwrap();
            updates.iter().map(|update| self.shown(update)).collect()
        }

        fn shown(&self, update: &Update) -> String {
            let line = match update {
                Update::Applied(manifest) => {
                    let origin = &manifest.origin;
                    let object = manifest.object.key();
                    format!(
                        "applied {object} from {}:{}",
                        origin.file.display(),
                        origin.line
                    )
                }
                Update::Removed(key) => format!("removed {key}"),
                Update::Problem(finding) => format!("problem {finding}"),
                Update::Warning(finding) => format!("warning {finding}"),
                Update::Healed(file) => format!("healed {}", file.display()),
            };
            line.replace(&format!("{}/", self.dir.path().display()), "")
        }
    }

    fn service(name: &str, port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n"
        )
    }

    fn bad(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: 80}}\n---\n"
        )
    }

    #[test]
    fn the_first_look_tells_everything_and_the_next_nothing() {
        let mut fixture = Fixture::new();
        fixture.write("b.yml", &service("b", 80));
        fixture.write("a.yaml", &(service("a2", 80) + &service("a1", 80)));
        fixture.write(
            "c.json",
            r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c"}}"#,
        );
        for ignored in ["d.yaml.tmp", ".e.yaml", "f.txt"] {
            fixture.write(ignored, &service("x", 80));
        }
        fs::create_dir(fixture.dir.path().join("g.yaml")).unwrap();
        let expected = [
            "applied Service default/a2 from a.yaml:1",
            "applied Service default/a1 from a.yaml:6",
            "applied Service default/b from b.yml:1",
            "applied Namespace c from c.json:1",
        ];
        assert_eq!(fixture.scan(), expected);
        assert_eq!(fixture.scan(), Vec::<String>::new());
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut fixture = Fixture::new();
        fixture.write(
            "a.yaml",
            &(service("a", 80) + &service("b", 80) + &service("c", 80)),
        );
        fixture.scan();
        // The same size, the same file, and at once: nothing but the content shows the change.
        fixture.write(
            "a.yaml",
            &(service("a", 80) + &service("b", 81) + &service("d", 80)),
        );
        let expected = [
            "removed Service default/c",
            "applied Service default/b from a.yaml:6",
            "applied Service default/d from a.yaml:11",
        ];
        assert_eq!(fixture.scan(), expected);
        fixture.write(
            "a.yaml",
            &("# moved by a line\n".to_owned()
                + &service("d", 80)
                + &service("b", 81)
                + &service("a", 80)),
        );
        assert_eq!(fixture.scan(), Vec::<String>::new());
    }

    #[test]
    fn an_empty_file_has_no_objects_and_a_missing_one_neither() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &service("a", 80));
        fixture.write("b.yaml", &service("b", 80));
        fixture.scan();
        fixture.write("a.yaml", "");
        fixture.remove("b.yaml");
        assert_eq!(
            fixture.scan(),
            ["removed Service default/a", "removed Service default/b"]
        );
    }

    #[test]
    fn a_renamed_file_moves_its_objects() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &service("a", 80));
        fixture.scan();
        fs::rename(
            fixture.dir.path().join("a.yaml"),
            fixture.dir.path().join("z.yaml"),
        )
        .unwrap();
        assert_eq!(fixture.scan(), ["applied Service default/a from z.yaml:1"]);
    }

    #[test]
    fn a_bad_document_leaves_its_object_and_the_others_alone() {
        let mut fixture = Fixture::new();
        fixture.write(
            "a.yaml",
            &(service("a", 80) + &service("b", 80) + &service("c", 80)),
        );
        fixture.scan();
        fixture.write("a.yaml", &(bad("b") + &service("a", 81)));
        let problem = "problem a.yaml:4: Service default/b: spec.ports: expected a list, found the integer 80";
        assert_eq!(
            fixture.scan(),
            [
                "removed Service default/c",
                "applied Service default/a from a.yaml:6",
                problem
            ]
        );
        fixture.write("a.yaml", &(service("a", 81) + &service("b", 80)));
        assert_eq!(fixture.scan(), ["healed a.yaml"]);
    }

    #[test]
    fn a_bad_document_from_the_start_has_no_object() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &(bad("a") + &service("b", 80)));
        let problem = "problem a.yaml:4: Service default/a: spec.ports: expected a list, found the integer 80";
        assert_eq!(
            fixture.scan(),
            ["applied Service default/b from a.yaml:6", problem]
        );
        fixture.remove("a.yaml");
        assert_eq!(
            fixture.scan(),
            ["removed Service default/b", "healed a.yaml"]
        );
    }

    #[test]
    fn nothing_is_removed_while_a_document_does_not_say_what_it_is() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &(service("a", 80) + &service("b", 80)));
        fixture.scan();
        fixture.write(
            "a.yaml",
            &(service("a", 81) + "kind: Service\nmetadata: [\n"),
        );
        let told = fixture.scan();
        assert_eq!(told[0], "applied Service default/a from a.yaml:1");
        assert!(told[1].starts_with("problem a.yaml:8: "), "{told:?}");
        fixture.write(
            "a.yaml",
            "kind: Service\napiVersion: v1\nmetadata: {name: 5}\n",
        );
        let problem = "problem a.yaml:3: metadata.name: expected a string, found the integer 5";
        assert_eq!(fixture.scan(), ["healed a.yaml", problem]);
        fixture.write("a.yaml", &service("b", 80));
        assert_eq!(
            fixture.scan(),
            ["removed Service default/a", "healed a.yaml"]
        );
    }

    #[test]
    fn problems_are_told_once_and_again_when_they_change() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &(bad("a") + &bad("b")));
        assert_eq!(fixture.scan().len(), 2);
        fixture.write("a.yaml", &(bad("a") + &bad("b") + "# the same\n"));
        assert_eq!(fixture.scan(), Vec::<String>::new());
        fixture.write("a.yaml", &(bad("a") + &service("b", 80)));
        let problem = "problem a.yaml:4: Service default/a: spec.ports: expected a list, found the integer 80";
        assert_eq!(
            fixture.scan(),
            [
                "applied Service default/b from a.yaml:6",
                "healed a.yaml",
                problem
            ]
        );
    }

    #[test]
    fn at_most_so_many_problems_of_a_file_are_told() {
        let mut fixture = Fixture::new();
        fixture.write(
            "a.yaml",
            &(0..=MAX_TOLD)
                .map(|n| bad(&format!("s{n}")))
                .collect::<String>(),
        );
        assert_eq!(fixture.scan().len(), MAX_TOLD);
    }

    #[test]
    fn of_two_descriptions_the_first_counts_and_the_second_waits() {
        let mut fixture = Fixture::new();
        fixture.write("b.yaml", &service("web", 80));
        assert_eq!(
            fixture.scan(),
            ["applied Service default/web from b.yaml:1"]
        );
        fixture.write("c.yaml", &("# c\n".to_owned() + &service("web", 81)));
        let of_c = "problem c.yaml:4: Service default/web: metadata.name: also in b.yaml:1, which comes first; this one takes over when that one goes";
        assert_eq!(fixture.scan(), [of_c]);
        fixture.write("a.yaml", &service("web", 82));
        let of_b = "problem b.yaml:3: Service default/web: metadata.name: also in a.yaml:1, which comes first; this one takes over when that one goes";
        let told = fixture.scan();
        assert_eq!(
            told,
            [
                "applied Service default/web from a.yaml:1",
                of_b,
                "healed c.yaml",
                &of_c.replace("in b.yaml", "in a.yaml")
            ]
        );
        fixture.remove("a.yaml");
        assert_eq!(
            fixture.scan(),
            [
                "applied Service default/web from b.yaml:1",
                "healed b.yaml",
                "healed c.yaml",
                of_c
            ]
        );
        fixture.remove("b.yaml");
        assert_eq!(
            fixture.scan(),
            ["applied Service default/web from c.yaml:2", "healed c.yaml"]
        );
        fixture.remove("c.yaml");
        assert_eq!(fixture.scan(), ["removed Service default/web"]);
    }

    #[test]
    fn two_descriptions_in_one_file_are_in_conflict_too() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &(service("web", 80) + &service("web", 81)));
        let problem = "problem a.yaml:8: Service default/web: metadata.name: also in a.yaml:1, which comes first; this one takes over when that one goes";
        assert_eq!(
            fixture.scan(),
            ["applied Service default/web from a.yaml:1", problem]
        );
        fixture.write("a.yaml", &service("web", 81));
        assert_eq!(
            fixture.scan(),
            ["applied Service default/web from a.yaml:1", "healed a.yaml"]
        );
    }

    #[test]
    fn foreign_kinds_are_warned_of_once() {
        let mut fixture = Fixture::new();
        let deployment = |name: &str| {
            format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\n---\n")
        };
        fixture.write("a.yaml", &(deployment("a") + &service("a", 80)));
        let told = fixture.scan();
        assert!(
            told[1].starts_with("warning a.yaml:2: kind: Deployment a is ignored"),
            "{told:?}"
        );
        fixture.write(
            "a.yaml",
            &("# down a line\n".to_owned() + &deployment("a") + &service("a", 80)),
        );
        assert_eq!(fixture.scan(), Vec::<String>::new());
        fixture.write(
            "a.yaml",
            &(deployment("a") + &deployment("b") + &service("a", 80)),
        );
        assert_eq!(fixture.scan().len(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_read_keeps_its_objects() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &service("a", 80));
        fixture.scan();
        fs::write(fixture.dir.path().join("a.yaml"), b"\xff").unwrap();
        assert_eq!(fixture.scan(), ["problem a.yaml:1: is not UTF-8"]);
        assert_eq!(fixture.scan(), Vec::<String>::new());
        fixture.write("a.yaml", &service("a", 80));
        assert_eq!(fixture.scan(), ["healed a.yaml"]);
    }

    #[test]
    fn links_are_followed_and_dead_ones_are_no_files() {
        let mut fixture = Fixture::new();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("1"), service("a", 80)).unwrap();
        let link = fixture.dir.path().join("a.yaml");
        std::os::unix::fs::symlink(elsewhere.path().join("1"), &link).unwrap();
        assert_eq!(fixture.scan(), ["applied Service default/a from a.yaml:1"]);
        fs::write(elsewhere.path().join("2"), service("a", 81)).unwrap();
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("2"), &link).unwrap();
        assert_eq!(fixture.scan(), ["applied Service default/a from a.yaml:1"]);
        fs::remove_file(elsewhere.path().join("2")).unwrap();
        assert_eq!(fixture.scan(), ["removed Service default/a"]);
    }

    #[test]
    fn a_directory_that_is_gone_is_an_error_and_costs_nothing() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &service("a", 80));
        fixture.scan();
        let parked = fixture.dir.path().with_extension("parked");
        fs::rename(fixture.dir.path(), &parked).unwrap();
        let error = fixture.directory.scan().unwrap_err().to_string();
        assert!(
            error.contains("cannot list the manifest directory"),
            "{error}"
        );
        fs::rename(&parked, fixture.dir.path()).unwrap();
        assert_eq!(fixture.scan(), Vec::<String>::new());
    }

    #[test]
    fn half_written_files_are_left_for_later_only_if_asked() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &service("a", 80));
        fixture.scan();
        for half in ["", "kind: [", "kind: Serv"] {
            fixture.write("a.yaml", half);
            let scan = fixture.directory.look(Patience::UntilQuiet).unwrap();
            assert!(
                scan.unsettled && scan.updates.is_empty(),
                "{half:?}: {scan:?}"
            );
        }
        fixture.write("a.yaml", &service("a", 81));
        let scan = fixture.directory.look(Patience::UntilQuiet).unwrap();
        assert!(!scan.unsettled && scan.updates.len() == 1, "{scan:?}");
        fixture.write("a.yaml", "");
        assert_eq!(fixture.scan(), ["removed Service default/a"]);
    }
}
