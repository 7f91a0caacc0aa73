//! Follows one kind: its list, then its watch, for ever; every failure is waited out and told.
//!
//! Owns nothing but the keys of a list that is being read. The client library lists in pages, goes on from bookmarks and
//! lists again after 410; here is decided what a failure means, and when to begin anew.

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::{Pin, pin};
use std::sync::Arc;

use futures_util::{FutureExt, Stream, StreamExt};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::control::{Kind, Object, ObjectKey};

use super::backoff::Backoff;
use super::contact::{Contact, Turn};
use super::initial::Initial;
use super::interest::Watched;
use super::keeper::Keeper;
use super::metrics::Metrics;
use super::servers::cause;
use super::trim::trimmed;
use super::{Patience, Update};

/// Updates of one batch; more are sent as the next.
const BATCH: usize = 500;

/// What every follower needs.
#[derive(Clone)]
pub(super) struct Feed {
    pub(super) client: Client,
    pub(super) updates: mpsc::Sender<Vec<Update>>,
    pub(super) initial: Arc<Initial>,
    pub(super) keeper: Option<Arc<Keeper>>,
    pub(super) contact: Contact,
    pub(super) metrics: Arc<Metrics>,
    pub(super) patience: Patience,
}

/// The reconciler is gone: nothing is left to do.
pub(super) struct Unheard;

impl Feed {
    /// A start that still waits for a list goes on with what an earlier run has kept.
    pub(super) async fn recall(&self) -> Result<(), Unheard> {
        let Some(keeper) = &self.keeper else {
            return Ok(());
        };
        if self.initial.is_complete() {
            return Ok(());
        }
        match keeper.recall().await {
            Some(objects) => self.send(vec![Update::Kept(objects), Update::Synced]).await,
            None => Ok(()),
        }
    }

    async fn send(&self, batch: Vec<Update>) -> Result<(), Unheard> {
        self.updates.send(batch).await.map_err(|_| Unheard)
    }
}

/// Follows a kind until nobody listens any more.
pub(super) async fn follow<K>(feed: Feed, watched: Watched, wrap: fn(Box<K>) -> Object)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut follower = Follower {
        kind: watched.kind,
        backoff: Backoff::new(feed.patience.first_retry, feed.patience.last_retry),
        listed: HashSet::new(),
        last_failure: String::new(),
        expired: false,
        feed,
    };
    loop {
        let api: Api<K> = Api::all(follower.feed.client.clone());
        let events = watcher(api, configuration(&watched, &follower.feed.patience));
        if follower.read(pin!(events), wrap).await.is_err() {
            return;
        }
    }
}

// Ends of watches are spread, so that neither kinds nor nodes ask again all at once.
fn configuration(watched: &Watched, patience: &Patience) -> watcher::Config {
    let longest =
        u32::try_from(patience.watch.as_secs()).map_or(294, |seconds| seconds.clamp(1, 294));
    let config = watcher::Config::default()
        .page_size(patience.page_size)
        .timeout(rand::random_range(longest - longest / 5..=longest));
    watcher::Config {
        label_selector: watched.labels.map(str::to_owned),
        field_selector: watched.fields.clone(),
        ..config
    }
}

struct Follower {
    kind: Kind,
    feed: Feed,
    backoff: Backoff,
    /// What the list that is being read has named so far.
    listed: HashSet<ObjectKey>,
    last_failure: String,
    /// Whether the last failure was a version that the server has forgotten.
    expired: bool,
}

impl Follower {
    // Reads events until something is lost that only a new list brings back.
    async fn read<K>(
        &mut self,
        mut events: Pin<&mut impl Stream<Item = watcher::Result<watcher::Event<K>>>>,
        wrap: fn(Box<K>) -> Object,
    ) -> Result<(), Unheard> {
        loop {
            let mut batch = Vec::new();
            let mut synced = false;
            let mut next = events.next().await;
            let failure = loop {
                match next {
                    Some(Ok(event)) => synced |= self.heard(event, wrap, &mut batch),
                    Some(Err(failure)) => break Some(failure),
                    // The library's stream has no end.
                    None => break None,
                }
                if batch.len() >= BATCH {
                    break None;
                }
                next = match events.next().now_or_never() {
                    Some(event) => event,
                    None => break None,
                };
            };
            if !batch.is_empty() {
                self.heard_again();
                self.feed.send(batch).await?;
            }
            if synced && self.feed.initial.listed(self.kind) {
                self.feed.send(vec![Update::Synced]).await?;
            }
            let Some(failure) = failure else {
                continue;
            };
            self.failed(&failure).await?;
            if loses_events(&failure) {
                return Ok(());
            }
        }
    }

    // Whether a list is complete now.
    fn heard<K>(
        &mut self,
        event: watcher::Event<K>,
        wrap: fn(Box<K>) -> Object,
        batch: &mut Vec<Update>,
    ) -> bool {
        let object = |object: K| trimmed(wrap(Box::new(object)));
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(applied) => {
                let object = object(applied);
                self.listed.insert(object.key());
                batch.push(Update::Applied(object));
            }
            watcher::Event::InitDone => {
                let keys = std::mem::take(&mut self.listed);
                debug!(kind = %self.kind, objects = keys.len(), "list is complete");
                batch.push(Update::Listed(self.kind, keys));
                self.feed.metrics.listed(self.kind);
                return true;
            }
            watcher::Event::Apply(applied) => {
                self.feed.metrics.event(self.kind);
                batch.push(Update::Applied(object(applied)));
            }
            watcher::Event::Delete(deleted) => {
                self.feed.metrics.event(self.kind);
                batch.push(Update::Deleted(object(deleted).key()));
            }
        }
        false
    }

    async fn failed(&mut self, failure: &watcher::Error) -> Result<(), Unheard> {
        let (reason, told) = judged(failure);
        self.feed.metrics.failed(self.kind, reason);
        let now = Instant::now().into_std();
        let turn = self.feed.contact.lost(self.kind, now, &told);
        if turn == Turn::Lost {
            warn!(kind = %self.kind, error = told, "API server is out of touch; what is in service stays");
        } else if self.last_failure == told {
            debug!(kind = %self.kind, error = told, "API server is still out of touch");
        } else if reason == "refused" {
            error!(kind = %self.kind, error = told, "API server refuses us; are the credentials valid and the RBAC rules in place?");
        } else {
            warn!(kind = %self.kind, error = told, "API server is still out of touch");
        }
        self.last_failure = told;
        if matches!(self.kind, Kind::Service | Kind::EndpointSlice) {
            self.feed.recall().await?;
        }
        if self.feed.initial.failed(self.kind) {
            self.feed.send(vec![Update::Synced]).await?;
        }
        // A server that has come back answers so to everybody; who waited long while it was away has waited enough. But a
        // list for each such answer would be a storm.
        let expired = reason == "expired";
        if expired && !self.expired {
            self.backoff.begin_anew();
        }
        self.expired = expired;
        let wait = self.backoff.failed(now, rand::random());
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.feed.updates.closed() => Err(Unheard),
        }
    }

    fn heard_again(&mut self) {
        self.last_failure.clear();
        let now = Instant::now().into_std();
        self.feed.contact.heard(self.kind, now);
    }
}

// Whether the watch would go on without something, or not at all. An event that cannot be read is lost to it, and one
// that makes no sense comes as a status without a code. A version that a server does not know any more (410), or not yet
// because it was restored from a backup (400, 504), stays unknown however often it is asked for.
fn loses_events(failure: &watcher::Error) -> bool {
    match failure {
        watcher::Error::WatchFailed(error) => matches!(
            error,
            kube::Error::Api(_)
                | kube::Error::SerdeError(_)
                | kube::Error::LinesCodecMaxLineLengthExceeded
        ),
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            matches!(status.code, 400 | 410 | 504)
        }
        watcher::Error::WatchError(status) => status.code != 410,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

// The label of a failure, and its words.
fn judged(failure: &watcher::Error) -> (&'static str, String) {
    let error = match failure {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error,
        watcher::Error::WatchError(status) => return judged_status(status),
        watcher::Error::NoResourceVersion => {
            return ("garbage", "an object without a version".to_owned());
        }
    };
    if let kube::Error::Api(status) = error {
        return judged_status(status);
    }
    if let kube::Error::SerdeError(error) = error {
        return ("garbage", format!("no answer of an API server: {error}"));
    }
    if let kube::Error::FromUtf8(error) = error {
        return ("garbage", format!("no answer of an API server: {error}"));
    }
    ("unreachable", cause(error))
}

fn judged_status(status: &kube::core::Status) -> (&'static str, String) {
    let label = match status.code {
        0 => return ("garbage", "an event that makes no sense".to_owned()),
        401 | 403 => "refused",
        410 => "expired",
        _ => "server",
    };
    (label, format!("{} {}", status.code, status.message))
}
