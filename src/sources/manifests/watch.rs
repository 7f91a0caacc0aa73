//! When to look at the directory: at every change the kernel tells of, and now and then in any case.
//!
//! Changes come in bursts (an editor's save is five events, `kubectl kustomize > file` hundreds of writes); a burst is
//! one look. Where inotify is refused, because its instances are used up or the file system has none, a look every
//! second replaces it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::directory::{Directory, Scan, ScanError, Update};
use super::known_file::{Patience, QUIET};

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
    let mut pause = alarm.interval();
    let mut is_failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = updates.closed() => return Ok(()),
            () = alarm.burst() => {}
            () = sleep(pause) => {}
        }
        alarm.renew(&dir);
        let (returned, outcome) = look(directory, Patience::UntilQuiet).await?;
        directory = returned;
        match outcome {
            Ok(scan) => {
                is_failing = false;
                pause = if scan.unsettled {
                    QUIET
                } else {
                    alarm.interval()
                };
                if !scan.updates.is_empty() && updates.send(scan.updates).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) => {
                if !is_failing {
                    warn!(%error, "the last good manifests stay");
                }
                (is_failing, pause) = (true, POLL_INTERVAL);
            }
        }
    }
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

/// Wakes us when something in the directory changes.
struct Alarm {
    changed: Arc<Notify>,
    /// The watch and what it is on, by device and inode; `None` where inotify is refused.
    watch: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Alarm {
    fn new(dir: &Path) -> Self {
        let mut alarm = Self {
            changed: Arc::new(Notify::new()),
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
        let changed = Arc::clone(&self.changed);
        // Whatever it is, one look finds out; an error (a full kernel queue) means that something was missed.
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if event.map_or(true, |event| may_change_content(event.kind)) {
                    changed.notify_one();
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

    /// Waits for a change and for the end of its burst.
    async fn burst(&self) {
        self.changed.notified().await;
        let end = Instant::now() + LONGEST_BURST;
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep(BURST_GAP) => return,
                () = sleep_until(end) => return,
            }
        }
    }
}

/// Our own reading opens and closes the files; only what writes counts.
fn may_change_content(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
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

    #[test]
    fn our_own_reading_is_no_change() {
        let reading = [
            AccessKind::Open(AccessMode::Any),
            AccessKind::Read,
            AccessKind::Close(AccessMode::Read),
        ];
        for access in reading {
            assert!(!may_change_content(EventKind::Access(access)), "{access:?}");
        }
        assert!(may_change_content(EventKind::Access(AccessKind::Close(
            AccessMode::Write
        ))));
        assert!(may_change_content(EventKind::Other));
    }
}
