//! The directory source against real files: what each look tells, line by line.

use proptest::prelude::*;
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
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: 80}}\n---\n")
}

#[test]
fn one_file_is_read_alone_and_whatever_its_name() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("a", 80));
    fixture.write("b.conf", &service("b", 80));
    let file = fixture.dir.path().join("b.conf");
    fixture.directory = Directory::of_file(file);
    assert_eq!(fixture.scan(), ["applied Service default/b from b.conf:1"]);
    fixture.remove("b.conf");
    assert!(matches!(
        fixture.directory.scan(),
        Err(ScanError::Missing { .. })
    ));
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
    let problem =
        "problem a.yaml:4: Service default/b: spec.ports: expected a list, found the integer 80";
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
    let problem =
        "problem a.yaml:4: Service default/a: spec.ports: expected a list, found the integer 80";
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
    assert_eq!(fixture.scan(), [problem]);
    fixture.write("a.yaml", &service("b", 80));
    assert_eq!(
        fixture.scan(),
        ["removed Service default/a", "healed a.yaml"]
    );
}

#[test]
fn a_file_that_is_cut_off_loses_nothing() {
    let mut fixture = Fixture::new();
    let whole = service("a", 1) + &service("b", 2) + &service("c", 3);
    fixture.write("x.yaml", &whole);
    fixture.scan();
    let cut = service("a", 1) + "apiVersion: v1\nkind: Service\nmetadata:\n  name:";
    fixture.write("x.yaml", &cut);
    let told = fixture.scan();
    assert!(
        !told.iter().any(|line| line.starts_with("removed")),
        "{told:?}"
    );
    fixture.write("x.yaml", &service("a", 1));
    let told = fixture.scan().join("\n");
    assert!(
        told.contains("removed Service default/b") && told.contains("removed Service default/c"),
        "{told}"
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
    let problem =
        "problem a.yaml:4: Service default/a: spec.ports: expected a list, found the integer 80";
    assert_eq!(
        fixture.scan(),
        ["applied Service default/b from a.yaml:6", problem]
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
            &of_c.replace("in b.yaml", "in a.yaml")
        ]
    );
    fixture.remove("a.yaml");
    assert_eq!(
        fixture.scan(),
        [
            "applied Service default/web from b.yaml:1",
            "healed b.yaml",
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

#[test]
fn a_glance_takes_edits_in_place_and_leaves_what_comes_or_goes_to_a_look() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &(service("a", 80) + &service("b", 80)));
    fixture.write("b.yaml", &service("c", 80));
    fixture.scan();
    let path = |name: &str| fixture.dir.path().join(name);
    let [a, b, new] = ["a.yaml", "b.yaml", "new.yaml"].map(path);
    let mut glance = |file: &PathBuf| {
        let scan = fixture.directory.glance(&[file.clone()].into());
        (scan.updates.len(), scan.unsettled)
    };
    let write = |file: &PathBuf, content: &str| fs::write(file, content).unwrap();

    write(&a, &(service("b", 81) + &service("a", 80)));
    write(&b, &service("c", 81));
    assert_eq!(glance(&a), (1, false), "the other file was not asked about");
    assert_eq!(glance(&b), (1, false));
    assert_eq!(glance(&b), (0, false));

    for other in [
        service("a", 82),
        service("a", 82) + &service("b", 82) + &service("d", 82),
    ] {
        write(&a, &other);
        assert_eq!(glance(&a), (0, true), "{other}");
    }
    for half in ["", "kind: [", &bad("c")] {
        write(&b, half);
        assert_eq!(glance(&b), (0, true), "{half}");
    }
    write(&new, &service("e", 80));
    assert_eq!(glance(&new), (0, true));
    fs::remove_file(&b).unwrap();
    assert_eq!(glance(&b), (0, true));
    let updates = fixture.scan();
    assert_eq!(updates.len(), 5, "{updates:?}");
}

/// What somebody knows who only hears the updates.
#[derive(Debug, Default, PartialEq)]
struct Listener {
    objects: BTreeMap<ObjectKey, (Arc<Path>, crate::control::Object)>,
    problems: BTreeMap<Arc<Path>, Vec<Finding>>,
}

impl Listener {
    fn hear(&mut self, updates: Vec<Update>) {
        let mut told: BTreeMap<Arc<Path>, Vec<Finding>> = BTreeMap::new();
        for update in updates {
            match update {
                Update::Applied(manifest) => {
                    let (object, origin) = (manifest.object, manifest.origin);
                    self.objects.insert(object.key(), (origin.file, object));
                }
                Update::Removed(key) => assert!(self.objects.remove(&key).is_some(), "{key}"),
                Update::Problem(finding) => {
                    let of_file = told.entry(Arc::clone(&finding.file)).or_default();
                    of_file.push(finding);
                }
                Update::Warning(finding) => panic!("{finding}"),
                Update::Healed(file) => assert!(self.problems.remove(&file).is_some(), "{file:?}"),
            }
        }
        self.problems.extend(told);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn who_hears_the_differences_knows_what_a_first_look_would_tell(
        steps in prop::collection::vec((0_usize..3, prop::option::of(prop::collection::vec((0_u8..4, 1_u16..3), 0..4))), 1..12),
    ) {
        let mut fixture = Fixture::new();
        let mut listener = Listener::default();
        for (file, content) in steps {
            let name = ["a.yaml", "b.yaml", "c.yaml"][file];
            match content {
                Some(services) => {
                    let services = services.iter().map(|(name, port)| service(&format!("s{name}"), *port));
                    fixture.write(name, &services.collect::<String>());
                }
                None if fixture.dir.path().join(name).exists() => fixture.remove(name),
                None => {}
            }
            listener.hear(fixture.directory.scan().unwrap());
            let mut fresh = Listener::default();
            fresh.hear(Directory::new(fixture.dir.path().to_owned()).scan().unwrap());
            prop_assert_eq!(&listener, &fresh);
        }
    }
}
