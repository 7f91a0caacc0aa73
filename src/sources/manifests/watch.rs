//! When to look at the directory: at every change the kernel tells of, and now and then in any case.
//!
//! A manifest that somebody has finished writing is looked at alone and at once. Whatever comes or goes is looked at
//! with all the rest when its burst is over (an editor's save is five events, `kubectl kustomize > file` hundreds of
//! writes), so that an object which moves from one file to another is never gone. What is written while such a look is
//! due waits for it: no change overtakes an earlier one. Where inotify is refused, because its instances are used up or
//! the file system has none, a look every second replaces it.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::directory::{Directory, Scan, ScanError, Update};
use super::known_file::{Patience, QUIET};
use super::noticed::Noticed;

/// Silence after which a burst of changes is over.
const BURST_GAP: Duration = Duration::from_millis(20);
/// The longest that a burst may put off a look.
const LONGEST_BURST: Duration = Duration::from_millis(100);
/// How often to look without inotify.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often to look although inotify is silent: it says nothing of a file behind a link, nor on network file systems.
const SAFETY_INTERVAL: Duration = Duration::from_secs(10);

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The first look failed. Later ones may fail: they are repeated.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A look panicked; the state of the directory is lost.
    #[error("reading the manifest directory ended unexpectedly: {0}")]
    Lost(#[from] JoinError),
}

/// Follows `directory` until `stop` or until nobody receives. The first message is what the first look found, even if
/// that is nothing; later ones are never empty.
///
/// Waits while the receiver is behind; changes during that are one look later.
///
/// # Errors
/// If the first look fails. Later failures are logged, and the last good state stays.
pub async fn watch(
    directory: Directory,
    updates: mpsc::Sender<Vec<Update>>,
    stop: CancellationToken,
) -> Result<(), WatchError> {
    let dir = directory.path().to_owned();
    // Watched before the first look, so that no change falls between the two.
    let mut alarm = Alarm::new(&dir);
    let (mut directory, first) = look(directory, Patience::None).await?;
    if updates.send(first?.updates).await.is_err() {
        return Ok(());
    }
    let mut whole_look = WholeLook::after(alarm.interval());
    let mut is_failing = false;
    let mut held = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = updates.closed() => return Ok(()),
            () = alarm.rings.notified() => {
                let written = alarm.noticed().take_written();
                if !written.is_empty() {
                    let (returned, scan) = glance(directory, written).await?;
                    directory = returned;
                    // What came meanwhile may be older than what was read.
                    let is_overtaking = {
                        let mut noticed = alarm.noticed();
                        noticed.other |= scan.unsettled;
                        noticed.other
                    };
                    held.extend(scan.updates);
                    if !is_overtaking && !deliver(&mut held, &updates).await {
                        return Ok(());
                    }
                }
                whole_look.put_off(&alarm.noticed(), Instant::now());
                continue;
            }
            () = sleep_until(whole_look.due) => {}
        }
        alarm.renew(&dir);
        *alarm.noticed() = Noticed::default();
        let (returned, outcome) = look(directory, Patience::UntilQuiet).await?;
        directory = returned;
        match outcome {
            Ok(scan) => {
                is_failing = false;
                whole_look = WholeLook::after(if scan.unsettled {
                    QUIET
                } else {
                    alarm.interval()
                });
                held.extend(scan.updates);
                if !deliver(&mut held, &updates).await {
                    return Ok(());
                }
            }
            Err(error) => {
                if !is_failing {
                    warn!(%error, "the last good manifests stay");
                }
                is_failing = true;
                whole_look = WholeLook::after(POLL_INTERVAL);
            }
        }
    }
}

/// Tells what is held, if there is anything. False if nobody receives any longer.
async fn deliver(held: &mut Vec<Update>, updates: &mpsc::Sender<Vec<Update>>) -> bool {
    held.is_empty() || updates.send(std::mem::take(held)).await.is_ok()
}

/// One look, off the async threads: it reads files.
async fn look(
    mut directory: Directory,
    patience: Patience,
) -> Result<(Directory, Result<Scan, ScanError>), JoinError> {
    spawn_blocking(move || {
        let outcome = directory.look(patience);
        (directory, outcome)
    })
    .await
}

/// The same at a few files.
async fn glance(
    mut directory: Directory,
    files: BTreeSet<PathBuf>,
) -> Result<(Directory, Scan), JoinError> {
    spawn_blocking(move || {
        let scan = directory.glance(&files);
        (directory, scan)
    })
    .await
}

/// When to look at everything.
#[derive(Clone, Copy, Debug)]
struct WholeLook {
    /// Without a burst.
    regular: Instant,
    burst_began: Option<Instant>,
    due: Instant,
}

impl WholeLook {
    fn after(pause: Duration) -> Self {
        let regular = Instant::now() + pause;
        Self {
            regular,
            burst_began: None,
            due: regular,
        }
    }

    /// Waits for the end of a burst, but not for ever; and for a writer to finish, as long.
    fn put_off(&mut self, noticed: &Noticed, now: Instant) {
        if !noticed.other && noticed.unfinished.is_empty() {
            (self.burst_began, self.due) = (None, self.regular);
            return;
        }
        let end = *self.burst_began.get_or_insert(now) + LONGEST_BURST;
        let due = if noticed.other {
            end.min(now + BURST_GAP)
        } else {
            end
        };
        self.due = due.min(self.regular);
    }
}

/// Wakes us when something in the directory changes.
struct Alarm {
    rings: Arc<Notify>,
    noticed: Arc<Mutex<Noticed>>,
    /// The watch and what it is on, by device and inode; `None` where inotify is refused.
    watch: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Alarm {
    fn new(dir: &Path) -> Self {
        let mut alarm = Self {
            rings: Arc::default(),
            noticed: Arc::default(),
            watch: None,
        };
        if let Err(error) = alarm.start(dir) {
            warn!(dir = %dir.display(), %error, "inotify is not available, looking every second");
        }
        alarm
    }

    /// Watches what is at the path now, if that is something else than before: a directory may be replaced.
    fn renew(&mut self, dir: &Path) {
        let is_current =
            |(_, watched): &(_, (u64, u64))| identity(dir).is_ok_and(|now| now == *watched);
        if self.watch.as_ref().is_some_and(is_current) {
            return;
        }
        self.watch = None;
        if let Err(error) = self.start(dir) {
            debug!(dir = %dir.display(), %error, "inotify is still not available");
        }
    }

    fn start(&mut self, dir: &Path) -> Result<(), notify::Error> {
        let (rings, noticed) = (Arc::clone(&self.rings), Arc::clone(&self.noticed));
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let mut noticed = noticed.lock().unwrap_or_else(PoisonError::into_inner);
                let matters = match event {
                    Ok(event) => noticed.note(&event),
                    // A full kernel queue: something was missed.
                    Err(_) => {
                        noticed.other = true;
                        true
                    }
                };
                if matters {
                    rings.notify_one();
                }
            })?;
        let watched = identity(dir).map_err(notify::Error::io)?;
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
        self.watch = Some((watcher, watched));
        Ok(())
    }

    fn interval(&self) -> Duration {
        if self.watch.is_some() {
            SAFETY_INTERVAL
        } else {
            POLL_INTERVAL
        }
    }

    fn noticed(&self) -> MutexGuard<'_, Noticed> {
        self.noticed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(dir)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;

    /// More than any look takes, less than the safety interval: what arrives in time was seen by inotify.
    const PATIENCE: Duration = Duration::from_secs(8);

    struct Fixture {
        dir: TempDir,
        updates: mpsc::Receiver<Vec<Update>>,
        stop: CancellationToken,
        task: JoinHandle<Result<(), WatchError>>,
    }

    impl Fixture {
        fn start(dir: TempDir) -> Self {
            let (sender, updates) = mpsc::channel(4);
            let stop = CancellationToken::new();
            let directory = Directory::new(dir.path().to_owned());
            let task = tokio::spawn(watch(directory, sender, stop.clone()));
            Self {
                dir,
                updates,
                stop,
                task,
            }
        }

        fn write(&self, name: &str, content: &str) {
            fs::write(self.dir.path().join(name), content).unwrap();
        }

        async fn next(&mut self) -> Vec<String> {
            let updates = timeout(PATIENCE, self.updates.recv())
                .await
                .expect("nothing was told");
            updates.unwrap().iter().map(shown).collect()
        }
    }

    fn shown(update: &Update) -> String {
        match update {
            Update::Applied(manifest) => format!("applied {}", manifest.object.key()),
            Update::Removed(key) => format!("removed {key}"),
            Update::Problem(finding) => format!("problem {}", finding.reason),
            Update::Warning(finding) => format!("warning {}", finding.reason),
            Update::Healed(_) => "healed".to_owned(),
        }
    }

    fn pod(name: &str) -> String {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n")
    }

    fn empty_dir() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    #[tokio::test]
    async fn the_first_message_comes_even_if_there_is_nothing() {
        let mut fixture = Fixture::start(empty_dir());
        assert_eq!(fixture.next().await, Vec::<String>::new());
        fixture.stop.cancel();
        timeout(PATIENCE, fixture.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn changes_are_told_as_they_come() {
        let dir = empty_dir();
        fs::write(dir.path().join("a.yaml"), pod("a")).unwrap();
        let mut fixture = Fixture::start(dir);
        assert_eq!(fixture.next().await, ["applied Pod default/a"]);
        fixture.write("b.yaml", &pod("b"));
        assert_eq!(fixture.next().await, ["applied Pod default/b"]);
        fs::rename(
            fixture.dir.path().join("b.yaml"),
            fixture.dir.path().join("b.yaml.tmp"),
        )
        .unwrap();
        assert_eq!(fixture.next().await, ["removed Pod default/b"]);
        fixture.write("c.yaml.tmp", &pod("c"));
        fs::rename(
            fixture.dir.path().join("c.yaml.tmp"),
            fixture.dir.path().join("a.yaml"),
        )
        .unwrap();
        assert_eq!(
            fixture.next().await,
            ["removed Pod default/a", "applied Pod default/c"]
        );
    }

    #[tokio::test]
    async fn a_file_that_stays_bad_is_told_and_one_that_does_not_is_not() {
        let mut fixture = Fixture::start(empty_dir());
        fixture.next().await;
        fixture.write("a.yaml", "kind: [");
        assert_eq!(fixture.next().await, ["problem SyntaxError"]);
        fixture.write("a.yaml", &pod("a"));
        assert_eq!(fixture.next().await, ["applied Pod default/a", "healed"]);
        fixture.write("a.yaml", "");
        fixture.write("a.yaml", &pod("b"));
        assert_eq!(
            fixture.next().await,
            ["removed Pod default/a", "applied Pod default/b"]
        );
        fixture.write("a.yaml", "");
        assert_eq!(fixture.next().await, ["removed Pod default/b"]);
    }

    #[tokio::test]
    async fn a_burst_of_changes_is_few_messages() {
        let mut fixture = Fixture::start(empty_dir());
        fixture.next().await;
        for n in 0..200 {
            fixture.write(&format!("{n}.yaml"), &pod(&format!("p{n}")));
        }
        let (mut told, mut messages) = (0, 0);
        while told < 200 {
            told += fixture.next().await.len();
            messages += 1;
        }
        assert_eq!(told, 200);
        assert!(messages <= 20, "{messages}");
    }

    #[tokio::test]
    async fn a_directory_that_was_replaced_is_followed() {
        let parent = empty_dir();
        let path = parent.path().join("manifests");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a.yaml"), pod("a")).unwrap();
        let (sender, mut updates) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let task = tokio::spawn(watch(Directory::new(path.clone()), sender, stop.clone()));
        assert_eq!(updates.recv().await.unwrap().len(), 1);
        fs::rename(&path, parent.path().join("old")).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("b.yaml"), pod("b")).unwrap();
        let mut told = Vec::new();
        while !told.contains(&"applied Pod default/b".to_owned()) {
            let updates = timeout(2 * SAFETY_INTERVAL, updates.recv())
                .await
                .unwrap()
                .unwrap();
            told.extend(updates.iter().map(shown));
        }
        assert_eq!(told, ["removed Pod default/a", "applied Pod default/b"]);
        fs::write(path.join("c.yaml"), pod("c")).unwrap();
        let next = timeout(PATIENCE, updates.recv())
            .await
            .expect("the new directory is not watched")
            .unwrap();
        assert_eq!(
            next.iter().map(shown).collect::<Vec<_>>(),
            ["applied Pod default/c"]
        );
        stop.cancel();
        timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn without_a_directory_there_is_nothing_to_follow() {
        let dir = empty_dir();
        let (sender, _updates) = mpsc::channel(1);
        let directory = Directory::new(dir.path().join("missing"));
        let ended = watch(directory, sender, CancellationToken::new()).await;
        assert!(matches!(ended, Err(WatchError::Scan(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn it_ends_when_nobody_listens() {
        let mut fixture = Fixture::start(empty_dir());
        fixture.next().await;
        drop(fixture.updates);
        timeout(PATIENCE, fixture.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn an_edit_in_place_is_told_at_once() {
        let mut fixture = Fixture::start(empty_dir());
        fixture.next().await;
        fixture.write("a.yaml", &pod("a"));
        fixture.next().await;
        let mut quickest = PATIENCE;
        for n in 0..20 {
            let labels = format!("  labels: {{n: \"{n}\"}}\n");
            let began = Instant::now();
            fixture.write(
                "a.yaml",
                &(pod("a").replace("{name: a}", "\n  name: a") + &labels),
            );
            assert_eq!(fixture.next().await, ["applied Pod default/a"]);
            quickest = quickest.min(began.elapsed());
        }
        assert!(quickest < BURST_GAP, "{quickest:?}");
    }

    #[tokio::test]
    async fn no_edit_overtakes_what_came_before_it() {
        let mut fixture = Fixture::start(empty_dir());
        fixture.next().await;
        fixture.write("edited.yaml", &pod("edited"));
        fixture.next().await;
        for n in 0..20 {
            fixture.write(&format!("new-{n}.yaml"), &pod(&format!("new-{n}")));
            fixture.write(
                "edited.yaml",
                &(pod("edited").replace("{name: edited}", "\n  name: edited")
                    + &format!("  labels: {{n: \"{n}\"}}\n")),
            );
            let mut told = fixture.next().await;
            assert!(
                told.contains(&format!("applied Pod default/new-{n}")),
                "{told:?}"
            );
            while !told.contains(&"applied Pod default/edited".to_owned()) {
                told.extend(fixture.next().await);
            }
        }
    }

    #[tokio::test]
    async fn an_object_that_moves_to_another_file_is_never_gone() {
        let mut fixture = Fixture::start(empty_dir());
        fixture.next().await;
        fixture.write("a.yaml", &(pod("a") + "---\n" + &pod("b")));
        fixture.next().await;
        fixture.write("a.yaml", &pod("a"));
        fixture.write("b.yaml", &pod("b"));
        assert_eq!(fixture.next().await, ["applied Pod default/b"]);
    }

    #[test]
    fn a_whole_look_waits_for_the_end_of_a_burst_but_not_for_ever() {
        let mut look = WholeLook::after(SAFETY_INTERVAL);
        let regular = look.due;
        let began = Instant::now();
        let ms = Duration::from_millis;
        let other = Noticed {
            other: true,
            ..Noticed::default()
        };
        look.put_off(&other, began);
        assert_eq!(look.due, began + BURST_GAP);
        look.put_off(&other, began + ms(15));
        assert_eq!(look.due, began + ms(15) + BURST_GAP);
        look.put_off(&other, began + ms(90));
        assert_eq!(look.due, began + LONGEST_BURST);
        look.put_off(&Noticed::default(), began + ms(95));
        assert_eq!(look.due, regular);
        let unfinished = Noticed {
            unfinished: [PathBuf::from("a.yaml")].into(),
            ..Noticed::default()
        };
        look.put_off(&unfinished, began);
        assert_eq!(look.due, began + LONGEST_BURST);
    }
}
