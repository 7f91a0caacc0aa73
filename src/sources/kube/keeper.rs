//! Keeps the newest state on disk, and brings it back when no API server answers at the start.
//!
//! Owns the file (`kept`). Writes only what a server has told completely, never what came from the file itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::control::{Kind, Object, Objects, PublishedObjects};

use super::contact::Contact;
use super::initial::Initial;
use super::kept::KeptFile;

/// What is told of kinds whose state is from the file.
const NOT_HEARD: &str = "no API server was heard since the start";

/// The file that a start may still need.
#[derive(Debug)]
pub(super) struct Keeper {
    file: KeptFile,
    contact: Contact,
    kinds: Vec<Kind>,
    asked: Mutex<bool>,
}

impl Keeper {
    /// For a state of these kinds.
    pub(super) fn new(file: KeptFile, contact: Contact, kinds: Vec<Kind>) -> Self {
        Self {
            file,
            contact,
            kinds,
            asked: Mutex::new(false),
        }
    }

    /// The kept state, once; after that, and if there is none, nothing. Its age counts as out of touch.
    pub(super) async fn recall(self: &Arc<Self>) -> Option<Vec<Object>> {
        let asked = std::mem::replace(
            &mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner),
            true,
        );
        if asked {
            return None;
        }
        let keeper = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || keeper.file.read()).await;
        let file = self.file.path().display();
        let kept = match read {
            Ok(Ok(Some(kept))) => kept,
            Ok(Ok(None)) => return None,
            Ok(Err(error)) => {
                warn!(%file, %error, "kept state cannot be used");
                return None;
            }
            Err(error) => {
                error!(%file, %error, "reading the kept state has failed");
                return None;
            }
        };
        let age = Duration::try_from(Timestamp::now().duration_since(kept.saved));
        let age = age.unwrap_or_default();
        warn!(%file, objects = kept.objects.len(), ?age, "no API server answers: serving the kept state");
        let now = Instant::now();
        let since = now.checked_sub(age).unwrap_or(now);
        for kind in &self.kinds {
            self.contact.never_heard(*kind, since, NOT_HEARD);
        }
        Some(kept.objects)
    }

    /// Writes what has changed every `period`, and once more at the end.
    pub(super) async fn keep(
        self: Arc<Self>,
        objects: PublishedObjects,
        initial: Arc<Initial>,
        period: Duration,
        stop: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut kept: Option<Arc<Objects>> = None;
        let mut failing = false;
        loop {
            let last = tokio::select! {
                _ = ticks.tick() => false,
                () = stop.cancelled() => true,
            };
            let newest = objects.load_full();
            let known = kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, &newest));
            if initial.is_complete() && !known {
                let (keeper, state) = (Arc::clone(&self), Arc::clone(&newest));
                let write = move || keeper.file.write(&state, Timestamp::now());
                let failed = match tokio::task::spawn_blocking(write).await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(error) => Some(error.to_string()),
                };
                let file = self.file.path().display();
                match &failed {
                    None if failing => info!(%file, "state is kept again"),
                    Some(error) if !failing => {
                        error!(%file, error, "state cannot be kept for a start without API server");
                    }
                    None | Some(_) => {}
                }
                failing = failed.is_some();
                // A failure is tried again with the next tick.
                kept = (!failing).then_some(newest);
            }
            if last {
                return;
            }
        }
    }
}
