//! The API server as a source: lists and watches what the proxy needs, and says what changed.
//!
//! ```text
//!  Access ─► ApiServers: one kube::Client over all servers ─► follow, one task per kind ─► Update ─► reconciler
//!                           └► Contact: since when nobody answers ◄────┘
//!                           ▲
//!  reconciler, app ─► Notices ─► events: posts what users should know
//! ```
//!
//! It keeps no objects. What a server does not answer changes nothing: the last that was heard stays, `Contact` tells
//! how old it is, and the next list says what has vanished meanwhile. Start reading at `watch`.

mod access;
mod backoff;
mod body;
mod bucket;
mod contact;
mod events;
mod follow;
mod initial;
mod interest;
mod keeper;
mod kept;
mod metrics;
mod notices;
#[cfg(test)]
mod outage_tests;
mod servers;
mod trim;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::control::{Kind, Object, ObjectKey, PublishedObjects};
use crate::model::NodeName;
use crate::routing::Published;

pub use access::{Access, AccessError, Master};
pub use bucket::Rate;
pub use contact::{Contact, OutOfTouch};
pub use interest::DnsNeeds;
pub use metrics::Metrics;
pub use notices::{Notice, Noticed, Notices, notices};

use events::Poster;
use follow::{Feed, follow};
use initial::Initial;
use interest::{Watched, interest};
use keeper::Keeper;
use kept::{KeptFile, Owner};
use servers::ApiServers;

/// What an API server said.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The object is there, or changed.
    Applied(Object),
    /// The object is gone.
    Deleted(ObjectKey),
    /// A list is complete: of this kind there are these objects, and no others.
    Listed(Kind, HashSet<ObjectKey>),
    /// What an earlier run knew, of kinds that have not been listed yet.
    Kept(Vec<Object>),
    /// Everything that a first table needs has been told.
    Synced,
}

/// Where to look and what for.
pub struct Config {
    /// Where the API servers are, and who we are to them.
    pub access: Access,
    /// Of all Nodes only this one is watched.
    pub node: NodeName,
    /// What DNS needs beyond what routing does.
    pub dns: DnsNeeds,
    /// How often a server is asked; `None` = as often as there is a reason to.
    pub rate: Option<Rate>,
    /// The bounds on everything that a server could draw out.
    pub patience: Patience,
    /// Where the newest state is kept for a start without an API server, and how often it is written.
    pub keep: Option<Keep>,
    /// What users are told by Events; without it they are told nothing.
    pub tell: Option<Tell>,
}

/// Telling users.
pub struct Tell {
    /// What there is to tell.
    pub noticed: Noticed,
    /// The objects that it may be about.
    pub objects: PublishedObjects,
}

/// Keeping the newest state.
pub struct Keep {
    /// The file.
    pub file: PathBuf,
    /// The state.
    pub objects: PublishedObjects,
    /// Between two writes, if something has changed.
    pub period: Duration,
}

/// How long and how much a server may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Objects of one page of a list.
    pub page_size: u32,
    /// Bytes of one page. An object has at most about 1.5 MiB (etcd's bound); slices of 1,000 endpoints have 300 KiB.
    pub page_bytes: usize,
    /// Bytes of one event of a watch.
    pub event_bytes: usize,
    /// For a connection to be made.
    pub connect: Duration,
    /// From a request to the head of its answer; also for an exec plugin.
    pub answer: Duration,
    /// From the head of a page's answer to its end.
    pub page: Duration,
    /// After which a watch is ended by the server, and asked for again. Below 295 s, the client's own bound.
    pub watch: Duration,
    /// For a first list, before what an earlier run has kept is served; a failure ends the waiting at once.
    pub first_list: Duration,
    /// Before the first retry.
    pub first_retry: Duration,
    /// Between retries in the long run.
    pub last_retry: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            page_size: 500,
            page_bytes: 128 << 20,
            event_bytes: 8 << 20,
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            page: Duration::from_secs(60),
            watch: Duration::from_secs(290),
            first_list: Duration::from_secs(3),
            first_retry: Duration::from_millis(500),
            last_retry: Duration::from_secs(30),
        }
    }
}

/// Batches of updates that may wait for the reconciler; past it the watches are simply read later.
pub const BATCHES: usize = 16;

/// Follows the API server until `stop`. Servers that are addresses of Services in `table` are reached through these
/// Services' endpoints: our own rules would catch the connection otherwise.
pub async fn watch(
    config: Config,
    table: Published,
    contact: Contact,
    metrics: Arc<Metrics>,
    updates: mpsc::Sender<Vec<Update>>,
    stop: CancellationToken,
) {
    let servers = config.access.servers();
    let api = ApiServers::new(
        config.access,
        config.patience.clone(),
        config.rate,
        table,
        contact.clone(),
    );
    let client = Arc::new(api).client();
    let watched = interest(&config.node, config.dns);
    let kinds: Vec<Kind> = watched.iter().map(|watched| watched.kind).collect();
    let initial = Arc::new(Initial::new(kinds.iter().copied()));
    let owner = Owner {
        node: config.node.to_string(),
        servers,
    };
    let poster = config.tell.map(|tell| {
        let poster = Poster {
            client: client.clone(),
            node: config.node.clone(),
            objects: tell.objects,
            metrics: Arc::clone(&metrics),
            first_retry: config.patience.first_retry,
            last_retry: config.patience.last_retry,
        };
        poster.post(tell.noticed)
    });
    let mut keeping = None;
    let keeper = config.keep.map(|keep| {
        let file = KeptFile::new(keep.file, owner);
        let keeper = Arc::new(Keeper::new(file, contact.clone(), kinds));
        let (objects, initial) = (keep.objects, Arc::clone(&initial));
        let kept = Arc::clone(&keeper).keep(objects, initial, keep.period, stop.clone());
        keeping = Some(tokio::spawn(kept));
        keeper
    });
    let feed = Feed {
        client,
        updates,
        initial,
        keeper,
        contact,
        metrics,
        patience: config.patience,
    };
    let mut tasks = JoinSet::new();
    if let Some(poster) = poster {
        tasks.spawn(poster);
    }
    for watched in watched {
        spawn_follower(&mut tasks, feed.clone(), watched);
    }
    tasks.spawn(async move {
        tokio::time::sleep(feed.patience.first_list).await;
        // An error means that the reconciler is gone, and with it everything that waits for this.
        let _ = feed.recall().await;
    });
    stop.cancelled().await;
    tasks.shutdown().await;
    if let Some(keeping) = keeping {
        // It ends by itself, and writes a last time; a panic has been told already.
        let _ = keeping.await;
    }
}

fn spawn_follower(tasks: &mut JoinSet<()>, feed: Feed, watched: Watched) {
    match watched.kind {
        Kind::Service => {
            tasks.spawn(follow::<core::Service>(feed, watched, Object::Service));
        }
        Kind::EndpointSlice => {
            tasks.spawn(follow::<EndpointSlice>(
                feed,
                watched,
                Object::EndpointSlice,
            ));
        }
        Kind::Node => {
            tasks.spawn(follow::<core::Node>(feed, watched, Object::Node));
        }
        Kind::Namespace => {
            tasks.spawn(follow::<core::Namespace>(feed, watched, Object::Namespace));
        }
        Kind::Pod => {
            tasks.spawn(follow::<core::Pod>(feed, watched, Object::Pod));
        }
        // Hand-made Endpoints reach us through mirrored slices; `interest` never asks for them.
        Kind::Endpoints => {}
    }
}
