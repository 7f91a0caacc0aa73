//! The families that are captured, as long as this process owns the node's rules; see [`handover`](super::handover).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tracing::{info, warn};

use crate::capture::plan::{Arrival, Rules};
use crate::capture::{Capture, CaptureError, remove_others};
use crate::model::Family;

use super::handover::{Claim, Standing};

/// How long a process that ends first waits for the one before it to take the rules again, and how often it looks.
const HAND_BACK: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(50);

/// The captures with what is known of their rules.
pub(super) struct Captured {
    captures: Vec<Box<dyn Capture>>,
    ownership: Ownership,
    // No process that claimed before lives any more.
    is_first: bool,
    // Of which the kernel may hold what a successor wrote.
    doubtful: BTreeSet<Family>,
    // Of which nothing has been applied yet.
    unapplied: BTreeSet<Family>,
    // Of which other modes may have left something.
    uncleared: BTreeSet<Family>,
    // Of which nothing new is captured, because a successor does so by another mode.
    yielded: BTreeSet<Family>,
}

// Whose the rules are.
enum Ownership {
    // Nobody else can have them.
    Sole,
    // Nothing has been written yet.
    Unclaimed(PathBuf),
    // They cannot be claimed, so a process beside this one and this one hold each other for a vandal.
    Unclaimable(PathBuf),
    Claimed(Claim),
}

impl Captured {
    /// Claims are made in the folder `owners`, if others can have the rules; none before there is something to do.
    pub(super) fn new(captures: Vec<Box<dyn Capture>>, owners: Option<PathBuf>) -> Self {
        let families: BTreeSet<Family> = captures.iter().map(|it| it.family()).collect();
        Self {
            captures,
            ownership: owners.map_or(Ownership::Sole, Ownership::Unclaimed),
            is_first: false,
            doubtful: BTreeSet::new(),
            unapplied: families.clone(),
            uncleared: families,
            yielded: BTreeSet::new(),
        }
    }

    /// The captured families.
    pub(super) fn families(&self) -> Vec<Family> {
        self.captures.iter().map(|it| it.family()).collect()
    }

    /// How traffic of a family arrives, if it is captured.
    pub(super) fn arrival(&self, family: Family) -> Option<Arrival> {
        let mut captures = self.captures.iter();
        let capture = captures.find(|capture| capture.family() == family);
        capture.map(|capture| capture.arrival())
    }

    // What others are told of our rules.
    fn ways(&self) -> String {
        self.captures.iter().map(|it| way(it.as_ref())).collect()
    }

    /// Takes the rules over, the first time. What cannot be claimed is tried again.
    pub(super) fn claim(&mut self) {
        let (folder, is_first) = match &self.ownership {
            Ownership::Unclaimed(folder) => (folder.clone(), true),
            Ownership::Unclaimable(folder) => (folder.clone(), false),
            Ownership::Sole | Ownership::Claimed(_) => return,
        };
        self.ownership = match Claim::take(&folder, &self.ways()) {
            Ok(claim) => Ownership::Claimed(claim),
            Err(error) => {
                if is_first {
                    warn!(path = %folder.display(), %error, "this process cannot follow another one, nor be followed: each will undo what the other writes");
                }
                Ownership::Unclaimable(folder)
            }
        };
    }

    /// Whether a process that claimed before this one still runs. Once there is none, none comes; and this is asked for each
    /// of 10,000 listeners.
    pub(super) fn predecessor_lives(&mut self) -> bool {
        let lives = match &self.ownership {
            Ownership::Claimed(claim) => !self.is_first && claim.has_predecessor(),
            Ownership::Sole | Ownership::Unclaimed(_) | Ownership::Unclaimable(_) => return false,
        };
        self.is_first = !lives;
        lives
    }

    /// Whether another process has taken the rules over.
    pub(super) fn is_superseded(&self) -> bool {
        self.standing() == Standing::Superseded
    }

    fn standing(&self) -> Standing {
        match &self.ownership {
            Ownership::Claimed(claim) => claim.standing(),
            Ownership::Sole | Ownership::Unclaimed(_) | Ownership::Unclaimable(_) => Standing::Ours,
        }
    }

    /// Begins to take the rules over again if a successor has ended. True if it has; then everything is to be applied, which
    /// ends it.
    pub(super) fn regain(&mut self) -> bool {
        if self.standing() != Standing::Abandoned || !self.doubtful.is_empty() {
            return false;
        }
        self.doubtful = self.families().into_iter().collect();
        self.unapplied.clone_from(&self.doubtful);
        self.uncleared.clone_from(&self.doubtful);
        self.yielded.clear();
        !self.doubtful.is_empty()
    }

    /// Has the kernel do exactly that, if the rules are ours.
    pub(super) async fn apply(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        self.claim();
        let family = rules.family;
        let is_regained = self.doubtful.contains(&family);
        match self.standing() {
            Standing::Ours => {}
            Standing::Abandoned if is_regained => {}
            // What was abandoned is regained first, which is noticed soon.
            Standing::Superseded | Standing::Abandoned => return Ok(()),
        }
        let Some(capture) = self.capture(family) else {
            return Ok(());
        };
        let outcome = async {
            if is_regained {
                // A change builds on what was written before.
                capture.reassert().await?;
            }
            capture.apply(rules).await
        };
        let outcome = outcome.await;
        self.unapplied
            .retain(|unapplied| *unapplied != family || outcome.is_err());
        if self.doubtful.remove(&family) && self.doubtful.is_empty() {
            self.renew();
        }
        outcome
    }

    /// Removes what other modes may have left of a family, once: after it was applied, so that the traffic is led somewhere
    /// all the time, and not while a process lives whose flows may need it.
    pub(super) async fn clear(&mut self, family: Family) {
        let is_due =
            !self.unapplied.contains(&family) && !self.is_superseded() && !self.predecessor_lives();
        if is_due
            && self.uncleared.remove(&family)
            && let Some(capture) = self.capture(family)
        {
            remove_others(capture.mode(), family).await;
        }
    }

    // Tells whoever gave the rules back that they are in effect.
    fn renew(&mut self) {
        self.is_first = false;
        if let Ownership::Claimed(claim) = &mut self.ownership
            && let Err(error) = claim.renew()
        {
            warn!(%error, "the rules were taken over again, but this cannot be told to others");
        }
    }

    /// Restores rules that somebody else removed, if they are ours; true if it had to. Nothing is claimed for that.
    pub(super) async fn check(&mut self, family: Family) -> Result<bool, CaptureError> {
        if matches!(self.ownership, Ownership::Unclaimed(_)) || self.standing() != Standing::Ours {
            return Ok(false);
        }
        match self.capture(family) {
            Some(capture) => capture.reassert().await,
            None => Ok(false),
        }
    }

    /// Captures nothing new of the families that a successor captures by another mode: both would be in each other's way.
    pub(super) async fn yield_to_other_modes(&mut self) {
        let Ownership::Claimed(claim) = &self.ownership else {
            return;
        };
        if claim.standing() != Standing::Superseded {
            return;
        }
        let Ok(ways) = claim.owners_ways() else {
            return;
        };
        for capture in &mut self.captures {
            let is_followed = ways.contains(&way(capture.as_ref()));
            if is_followed || !self.yielded.insert(capture.family()) {
                continue;
            }
            if let Err(error) = capture.drain().await {
                warn!(family = %capture.family(), %error, "flows may still be captured that another process should have");
            }
        }
    }

    /// Captures nothing new. Where the process before this one still serves, the rules are its again.
    pub(super) async fn stop(&mut self) {
        if self.predecessor_lives() && !self.is_superseded() {
            self.hand_back().await;
        }
        self.yield_to_other_modes().await;
        if !self.is_ours_to_remove() {
            return;
        }
        for capture in &mut self.captures {
            if let Err(error) = capture.drain().await {
                warn!(family = %capture.family(), %error, "flows may still be captured while others drain");
            }
        }
    }

    // Listeners stay open until the other has replaced the rules.
    async fn hand_back(&mut self) {
        let Ownership::Claimed(claim) = std::mem::replace(&mut self.ownership, Ownership::Sole)
        else {
            return;
        };
        let given_up = claim.give_up();
        let taken = async {
            while !given_up.is_taken() {
                tokio::time::sleep(LOOK).await;
            }
        };
        match tokio::time::timeout(HAND_BACK, taken).await {
            Ok(()) => {
                info!("the viaduct before this one serves this node again");
                // Nothing of ours is left to remove.
                self.captures.clear();
            }
            Err(_) => {
                info!("the viaduct before this one does not take the rules again; they are removed")
            }
        }
    }

    /// Removes our rules from the kernel.
    pub(super) async fn release(self) {
        if !self.is_ours_to_remove() {
            return info!("another viaduct serves this node, or none has begun to; its rules stay");
        }
        for mut capture in self.captures {
            if self.uncleared.contains(&capture.family()) {
                remove_others(capture.mode(), capture.family()).await;
            }
            match capture.release().await {
                Ok(()) => info!(family = %capture.family(), "capture released"),
                Err(error) => {
                    warn!(family = %capture.family(), %error, "rules could not be removed; `viaduct cleanup` does it")
                }
            }
        }
    }

    fn is_ours_to_remove(&self) -> bool {
        !matches!(self.ownership, Ownership::Unclaimed(_)) && !self.is_superseded()
    }

    fn capture(&mut self, family: Family) -> Option<&mut Box<dyn Capture>> {
        let mut captures = self.captures.iter_mut();
        captures.find(|capture| capture.family() == family)
    }
}

// A line of its own, so that none is part of another.
fn way(capture: &dyn Capture) -> String {
    format!("{} {}\n", capture.family(), capture.mode())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;

    use super::*;
    use crate::capture::Mode;

    /// Writes down what is asked of it. `None` is a mode that `remove_others` has nothing to remove for.
    struct Recorder(Arc<Mutex<Vec<&'static str>>>);

    #[async_trait]
    impl Capture for Recorder {
        fn family(&self) -> Family {
            Family::V4
        }

        fn mode(&self) -> Mode {
            Mode::None
        }

        fn arrival(&self) -> Arrival {
            Arrival::Redirected
        }

        async fn apply(&mut self, _rules: &Rules) -> Result<(), CaptureError> {
            self.0.lock().unwrap().push("apply");
            Ok(())
        }

        async fn reassert(&mut self) -> Result<bool, CaptureError> {
            self.0.lock().unwrap().push("reassert");
            Ok(true)
        }

        async fn drain(&mut self) -> Result<(), CaptureError> {
            self.0.lock().unwrap().push("drain");
            Ok(())
        }

        async fn release(&mut self) -> Result<(), CaptureError> {
            self.0.lock().unwrap().push("release");
            Ok(())
        }
    }

    /// A process as the kernel sees it.
    struct Process {
        captured: Captured,
        done: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Process {
        fn beside_others(folder: &tempfile::TempDir) -> Self {
            Self::with_owners(Some(folder.path().join("owners")))
        }

        fn with_owners(owners: Option<PathBuf>) -> Self {
            let done = Arc::default();
            let capture = Recorder(Arc::clone(&done));
            Self {
                captured: Captured::new(vec![Box::new(capture)], owners),
                done,
            }
        }

        async fn apply(&mut self) -> Vec<&'static str> {
            let rules = Rules::none(Family::V4);
            self.captured.apply(&rules).await.unwrap();
            self.take_done()
        }

        async fn check(&mut self) -> Vec<&'static str> {
            self.captured.check(Family::V4).await.unwrap();
            self.take_done()
        }

        async fn end(mut self) -> Vec<&'static str> {
            self.captured.stop().await;
            self.captured.release().await;
            std::mem::take(&mut *self.done.lock().unwrap())
        }

        fn take_done(&self) -> Vec<&'static str> {
            std::mem::take(&mut *self.done.lock().unwrap())
        }
    }

    const NOTHING: [&str; 0] = [];

    #[tokio::test]
    async fn who_has_written_nothing_takes_nothing_over_and_removes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Process::beside_others(&folder);
        assert_eq!(first.apply().await, ["apply"]);
        let mut second = Process::beside_others(&folder);
        assert_eq!(second.check().await, NOTHING);
        assert!(!first.captured.is_superseded());
        assert_eq!(second.end().await, NOTHING);
        assert_eq!(first.check().await, ["reassert"]);
        assert_eq!(first.end().await, ["drain", "release"]);
    }

    #[tokio::test]
    async fn who_is_superseded_writes_nothing_and_removes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Process::beside_others(&folder);
        let mut second = Process::beside_others(&folder);
        first.apply().await;
        assert_eq!(second.apply().await, ["apply"]);
        assert!(second.captured.predecessor_lives() && !first.captured.predecessor_lives());
        assert_eq!(first.apply().await, NOTHING);
        assert_eq!(first.check().await, NOTHING);
        assert_eq!(first.end().await, NOTHING);
        assert!(!second.captured.predecessor_lives());
        assert_eq!(second.end().await, ["drain", "release"]);
    }

    #[tokio::test]
    async fn what_a_successor_leaves_is_taken_over_from_what_was_written_before() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Process::beside_others(&folder);
        let mut second = Process::beside_others(&folder);
        first.apply().await;
        second.apply().await;
        assert!(!first.captured.regain(), "it lives");
        drop(second);
        assert_eq!(
            first.apply().await,
            NOTHING,
            "nothing is known of the kernel"
        );
        assert!(first.captured.regain());
        assert!(!first.captured.regain(), "it has begun");
        assert_eq!(first.apply().await, ["reassert", "apply"]);
        assert!(!first.captured.regain(), "it is done");
        assert_eq!(first.apply().await, ["apply"]);
    }

    #[tokio::test]
    async fn who_is_called_back_waits_until_the_one_before_has_the_rules() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Process::beside_others(&folder);
        let mut second = Process::beside_others(&folder);
        first.apply().await;
        second.apply().await;
        let taking = async {
            while !first.captured.regain() {
                tokio::time::sleep(LOOK).await;
            }
            first.apply().await
        };
        let (ended, taken) = tokio::join!(second.end(), taking);
        assert_eq!(ended, NOTHING);
        assert_eq!(taken, ["reassert", "apply"]);
    }

    #[tokio::test]
    async fn if_the_one_before_does_not_take_them_the_rules_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Process::beside_others(&folder);
        let mut second = Process::beside_others(&folder);
        first.apply().await;
        second.apply().await;
        let begun = std::time::Instant::now();
        assert_eq!(second.end().await, ["drain", "release"]);
        assert!(begun.elapsed() >= HAND_BACK);
        drop(first);
    }

    #[tokio::test]
    async fn without_a_place_to_claim_everybody_writes() {
        for owners in [None, Some(PathBuf::from("/proc/none/owners"))] {
            let mut process = Process::with_owners(owners);
            assert_eq!(process.apply().await, ["apply"]);
            assert_eq!(process.check().await, ["reassert"]);
            assert!(!process.captured.predecessor_lives() && !process.captured.regain());
            assert_eq!(process.end().await, ["drain", "release"]);
        }
    }
}
