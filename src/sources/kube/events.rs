//! Posts notices as Events, in order, one at a time.
//!
//! An API server that is away is tried a few times; one that refuses is told of once. Nothing waits for any of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tracing::{debug, warn};

use crate::control::PublishedObjects;
use crate::model::NodeName;

use super::backoff::Backoff;
use super::metrics::{Metrics, Posted};
use super::notices::{Notice, NoticeKind, Noticed, Regarding, Told};
use super::servers::cause;

/// How often a server that does not answer is tried before the Event is given up.
const ATTEMPTS: u32 = 5;
/// Bytes of a note that an API server takes.
const NOTE: usize = 1024;
/// Characters of who reports that an API server takes.
const REPORTER: usize = 128;
/// Of an object's name in the name of an Event, which has 253 with the time behind it.
const NAME: usize = 200;
/// Where Events about objects without a namespace are. Source: client-go's recorder.
const CLUSTER_EVENTS: &str = "default";

/// Who posts, and how.
pub(super) struct Poster {
    pub(super) client: Client,
    pub(super) node: NodeName,
    /// What Events are about, for its uid.
    pub(super) objects: PublishedObjects,
    pub(super) metrics: Arc<Metrics>,
    pub(super) first_retry: Duration,
    pub(super) last_retry: Duration,
}

impl Poster {
    /// Posts until nobody tells anything any more.
    pub(super) async fn post(self, mut noticed: Noticed) {
        let mut told = Told::new(Instant::now());
        let mut refused = false;
        while let Some(notice) = noticed.recv().await {
            if !told.admits(&notice, Instant::now()) {
                self.metrics.posted(Posted::Suppressed);
                continue;
            }
            match self.create(&notice).await {
                Ok(()) => self.metrics.posted(Posted::Sent),
                Err(error) => {
                    self.metrics.posted(Posted::Failed);
                    let error = cause(&error);
                    if refused {
                        debug!(%notice, error, "Event is not posted");
                    } else {
                        warn!(%notice, error, "Event is not posted; is the RBAC rule in place?");
                    }
                    refused = true;
                }
            }
        }
    }

    async fn create(&self, notice: &Notice) -> Result<(), kube::Error> {
        let event = self.event(notice, Timestamp::now());
        let namespace = event.metadata.namespace.as_deref();
        let api: Api<Event> =
            Api::namespaced(self.client.clone(), namespace.unwrap_or(CLUSTER_EVENTS));
        let mut backoff = Backoff::new(self.first_retry, self.last_retry);
        for _ in 1..ATTEMPTS {
            match api.create(&PostParams::default(), &event).await {
                Ok(_) => return Ok(()),
                // It was heard the first time.
                Err(kube::Error::Api(status)) if status.code == 409 => return Ok(()),
                Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                    return Err(kube::Error::Api(status));
                }
                Err(_) => {
                    let wait = backoff.failed(Instant::now(), rand::random());
                    tokio::time::sleep(wait).await;
                }
            }
        }
        api.create(&PostParams::default(), &event).await.map(drop)
    }

    fn event(&self, notice: &Notice, now: Timestamp) -> Event {
        let regarding = self.reference(&notice.regarding);
        let namespace = regarding.namespace.as_deref().unwrap_or(CLUSTER_EVENTS);
        let subject = shortened(regarding.name.as_deref().unwrap_or_default(), NAME);
        // Without this, a name that was cut at a dot would be none.
        let subject = subject.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let kind = match notice.kind {
            NoticeKind::Normal => "Normal",
            NoticeKind::Warning => "Warning",
        };
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{subject}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            action: Some(notice.action.to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(shortened(&notice.note, NOTE).to_owned()),
            reason: Some(notice.reason.to_owned()),
            reporting_controller: Some("viaduct.dev/viaduct".to_owned()),
            reporting_instance: Some(
                shortened(&format!("viaduct-{}", self.node), REPORTER).to_owned(),
            ),
            type_: Some(kind.to_owned()),
            regarding: Some(regarding),
            ..Event::default()
        }
    }

    // `kubectl describe` looks for a Node's Events by its name in place of the uid, as the kubelet and kube-proxy write it.
    fn reference(&self, regarding: &Regarding) -> ObjectReference {
        match regarding {
            Regarding::Node => ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(self.node.to_string()),
                uid: Some(self.node.to_string()),
                ..ObjectReference::default()
            },
            Regarding::Object(key) => {
                let object = self.objects.load_full().get(key);
                ObjectReference {
                    api_version: Some(key.kind.api_version().to_owned()),
                    kind: Some(key.kind.as_str().to_owned()),
                    namespace: Some(key.namespace.to_string()),
                    name: Some(key.name.to_string()),
                    uid: object.and_then(|object| object.metadata().uid.clone()),
                    ..ObjectReference::default()
                }
            }
        }
    }
}

// At most so many bytes, whole characters.
fn shortened(text: &str, bytes: usize) -> &str {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    &text[..ends.take_while(|end| *end <= bytes).last().unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("abcd", 3), "abc");
        assert_eq!(shortened("abü", 3), "ab");
        assert_eq!(shortened("", 3), "");
    }
}
