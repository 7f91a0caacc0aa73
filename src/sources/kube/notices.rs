//! What users of the cluster are told by Events: what the operator of a node, or the author of a Service, can mend.
//!
//! Owns the queue of notices and the decision which of them are worth an Event. That one is posted or lost changes
//! nothing else: every notice is in the log as well. Posting is `events`' business.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::debug;

use crate::control::ObjectKey;

/// Notices that may wait to be posted; past it further ones are in the log alone.
const QUEUE: usize = 64;
/// Notices that are remembered; past it the oldest is forgotten, and may be told again.
const REMEMBERED: usize = 256;
/// For how long the same is not told again. API servers keep Events for an hour.
const QUIET: Duration = Duration::from_secs(3600);
/// Events at once after a rest, and how long one more takes to be earned. Source: client-go's limit for one source of
/// Events is 25, then one in five minutes; ours holds for all objects together.
const BURST: u32 = 25;
const EARNED: Duration = Duration::from_secs(30);

/// Something that somebody can mend, or should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub(super) regarding: Regarding,
    pub(super) kind: NoticeKind,
    pub(super) reason: &'static str,
    pub(super) action: &'static str,
    pub(super) note: String,
}

/// What a notice is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Regarding {
    Node,
    Object(ObjectKey),
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoticeKind {
    Normal,
    Warning,
}

impl Notice {
    /// The proxy of this node starts. Source: kube-proxy.
    pub fn starting() -> Self {
        Self {
            regarding: Regarding::Node,
            kind: NoticeKind::Normal,
            reason: "Starting",
            action: "StartKubeProxy",
            note: String::new(),
        }
    }

    /// The health server cannot listen. Source: kube-proxy.
    pub fn health_server(note: String) -> Self {
        Self {
            reason: "FailedToStartProxierHealthcheck",
            ..Self::server(note)
        }
    }

    /// The metrics server cannot listen. Source: kube-proxy.
    pub fn metrics_server(note: String) -> Self {
        Self {
            reason: "FailedToStartMetricServer",
            ..Self::server(note)
        }
    }

    /// The health-check node port of a Service cannot be opened. Source: kube-proxy.
    pub fn health_check_port(service: ObjectKey, note: String) -> Self {
        Self {
            regarding: Regarding::Object(service),
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            ..Self::server(note)
        }
    }

    /// An annotation of a Service says nothing that can be used.
    pub fn annotation(service: ObjectKey, note: String) -> Self {
        Self {
            regarding: Regarding::Object(service),
            kind: NoticeKind::Warning,
            reason: "InvalidAnnotation",
            action: "ReadAnnotations",
            note,
        }
    }

    fn server(note: String) -> Self {
        Self {
            regarding: Regarding::Node,
            kind: NoticeKind::Warning,
            reason: "",
            action: "StartKubeProxy",
            note,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.regarding {
            Regarding::Node => f.write_str("Node")?,
            Regarding::Object(key) => key.fmt(f)?,
        }
        write!(f, ": {} {}", self.reason, self.note)
    }
}

/// Where notices are given. Cheap to clone; without an API server they go nowhere.
#[derive(Clone, Debug)]
pub struct Notices(mpsc::Sender<Notice>);

/// Where they come out.
pub type Noticed = mpsc::Receiver<Notice>;

/// The queue.
pub fn notices() -> (Notices, Noticed) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Notices(sender), receiver)
}

impl Notices {
    /// Has it told, if there is somebody to tell. Never waits.
    pub fn tell(&self, notice: Notice) {
        if let Err(mpsc::error::TrySendError::Full(notice)) = self.0.try_send(notice) {
            debug!(%notice, "too many notices wait; no Event");
        }
    }
}

/// What was told lately, and what may still be told.
#[derive(Debug)]
pub(super) struct Told {
    recent: VecDeque<(Notice, Instant)>,
    left: u32,
    earned_at: Instant,
}

impl Told {
    /// Nothing was told yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            recent: VecDeque::new(),
            left: BURST,
            earned_at: now,
        }
    }

    /// Whether it is worth an Event: it is news, and not too many were. If so it counts as told.
    pub(super) fn admits(&mut self, notice: &Notice, now: Instant) -> bool {
        while let Some((_, at)) = self.recent.front()
            && now.duration_since(*at) >= QUIET
        {
            self.recent.pop_front();
        }
        while self.left < BURST && now.duration_since(self.earned_at) >= EARNED {
            self.left += 1;
            self.earned_at += EARNED;
        }
        let known = self.recent.iter().any(|(told, _)| told == notice);
        if known || self.left == 0 {
            return false;
        }
        if self.left == BURST {
            self.earned_at = now;
        }
        self.left -= 1;
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back((notice.clone(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Kind;

    fn about(name: &str, note: &str) -> Notice {
        let key = ObjectKey {
            kind: Kind::Service,
            namespace: "shop".into(),
            name: name.into(),
        };
        Notice::annotation(key, note.to_owned())
    }

    #[test]
    fn the_same_is_told_once_an_hour() {
        let start = Instant::now();
        let mut told = Told::new(start);
        assert!(told.admits(&about("web", "one"), start));
        assert!(!told.admits(&about("web", "one"), start));
        assert!(told.admits(&about("web", "two"), start));
        assert!(told.admits(&about("api", "one"), start));
        let last = start + QUIET - Duration::from_millis(1);
        assert!(!told.admits(&about("web", "one"), last));
        assert!(told.admits(&about("web", "one"), start + QUIET));
    }

    #[test]
    fn a_burst_is_told_and_then_one_for_each_that_is_earned() {
        let start = Instant::now();
        let mut told = Told::new(start);
        let admitted = |told: &mut Told, from: u32, now| {
            let names = (from..from + 100).map(|n| about(&n.to_string(), ""));
            names.filter(|notice| told.admits(notice, now)).count()
        };
        assert_eq!(admitted(&mut told, 0, start), 25);
        assert_eq!(admitted(&mut told, 100, start + EARNED / 2), 0);
        assert_eq!(admitted(&mut told, 200, start + EARNED), 1);
        assert_eq!(admitted(&mut told, 300, start + 3 * EARNED), 2);
        assert_eq!(admitted(&mut told, 400, start + 24 * QUIET), 25);
    }

    #[test]
    fn memory_is_bounded_and_a_full_queue_keeps_nobody_waiting() {
        let start = Instant::now();
        let mut told = Told::new(start);
        for n in 0..4 * u32::try_from(REMEMBERED).unwrap() {
            // Slower than they are earned, quicker than they are forgotten.
            told.admits(&about(&n.to_string(), ""), start + n * EARNED / 8);
            assert!(told.recent.len() <= REMEMBERED);
        }
        let (notices, mut noticed) = notices();
        for n in 0..=QUEUE {
            notices.tell(about(&n.to_string(), ""));
        }
        let waiting = std::iter::from_fn(|| noticed.try_recv().ok());
        assert_eq!(waiting.count(), QUEUE);
        drop(noticed);
        notices.tell(Notice::starting());
    }
}
