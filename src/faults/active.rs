//! Which faults are on. Owns them for as long as the process lives; nothing keeps them longer.
//!
//! A snapshot that is replaced as a whole. That there are none is one flag, so that who asks for every flow pays one load
//! for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::watch;

use crate::model::ServicePortKey;

use super::injection::Injection;
use super::metrics::Metrics;
use super::target::{FaultTarget, Subject};
use super::text::Faults;

/// Targets that may have faults at a time.
const MAX_TARGETS: usize = 256;

type Targets = BTreeMap<FaultTarget, Arc<Injection>>;

/// The faults that are on, by target. A handle: clones share them.
#[derive(Clone, Debug, Default)]
pub struct ActiveFaults(Arc<Shared>);

/// Changes of what is on.
#[derive(Clone, Debug)]
pub struct Changes(watch::Receiver<Arc<Targets>>);

impl Changes {
    /// Waits for the next one; never ends once all handles are gone.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    between: AtomicBool,
    targets: watch::Sender<Arc<Targets>>,
    metrics: Metrics,
}

/// A fault that is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFault {
    /// Where.
    pub target: FaultTarget,
    /// What.
    pub faults: Faults,
}

/// The bound on targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_TARGETS} targets have faults already; turn some off first")]
pub struct TooManyFaults;

impl ActiveFaults {
    /// None yet; what is injected is counted there.
    pub fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Shared {
            metrics,
            ..Shared::default()
        }))
    }

    /// Turns faults on for a target, in place of those it had, from `now` on.
    ///
    /// # Errors
    /// Too many targets have some.
    pub fn turn_on(
        &self,
        target: FaultTarget,
        faults: Faults,
        now: Instant,
    ) -> Result<(), TooManyFaults> {
        let injection = Arc::new(self.injection(faults, now));
        let mut fits = true;
        self.change(|targets| {
            fits = targets.len() < MAX_TARGETS || targets.contains_key(&target);
            if fits {
                targets.insert(target, injection);
            }
        });
        if fits { Ok(()) } else { Err(TooManyFaults) }
    }

    /// Turns the faults of a target off; whether it had any.
    pub fn turn_off(&self, target: &FaultTarget) -> bool {
        let mut had = false;
        self.change(|targets| had = targets.remove(target).is_some());
        had
    }

    /// All that are on, by target.
    pub fn list(&self) -> Vec<ListedFault> {
        let targets = self.0.targets.borrow();
        let listed = targets.iter().map(|(target, injection)| ListedFault {
            target: target.clone(),
            faults: injection.faults().clone(),
        });
        listed.collect()
    }

    /// Whether any lies between clients and backends.
    pub fn any_between(&self) -> bool {
        self.0.between.load(Ordering::Relaxed)
    }

    /// Those of a simulated Pod.
    pub fn of_pod(&self, pod: &FaultTarget) -> Option<Arc<Injection>> {
        self.0.targets.borrow().get(pod).cloned()
    }

    /// Those that a flow to that backend meets: of all targets that name it, the closest. `pod` is the backend's.
    pub fn between(
        &self,
        key: &ServicePortKey,
        port: u16,
        backend: SocketAddr,
        pod: Option<&str>,
    ) -> Option<Arc<Injection>> {
        if !self.any_between() {
            return None;
        }
        let targets = self.0.targets.borrow();
        let closest = targets
            .iter()
            .filter_map(|(target, injection)| {
                Some((target.closeness(key, port, backend, pod)?, injection))
            })
            .max_by_key(|(closeness, _)| *closeness);
        closest.map(|(_, injection)| injection.clone())
    }

    /// Tells of every change from now on.
    pub fn changes(&self) -> Changes {
        Changes(self.0.targets.subscribe())
    }

    /// Faults that are on from somewhere else, such as an annotation, and count like these.
    pub fn injection(&self, faults: Faults, now: Instant) -> Injection {
        Injection::new(faults, now, self.0.metrics.clone())
    }

    fn change(&self, edit: impl FnOnce(&mut Targets)) {
        self.0.targets.send_modify(|targets| {
            edit(Arc::make_mut(targets));
            let between = targets.keys().any(|target| target.subject != Subject::Pod);
            self.0.between.store(between, Ordering::Relaxed);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Protocol, ServiceName};

    fn key() -> ServicePortKey {
        ServicePortKey {
            service: ServiceName {
                namespace: "default".into(),
                name: "web".into(),
            },
            port: "http".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        }
    }

    fn on(active: &ActiveFaults, target: &str, text: &str) {
        let faults = Faults::parse(text).unwrap();
        let target = target.parse().unwrap();
        active.turn_on(target, faults, Instant::now()).unwrap();
    }

    fn met(active: &ActiveFaults, backend: &str, pod: &str) -> Option<u64> {
        let backend = backend.parse().unwrap();
        let injection = active.between(&key(), 80, backend, Some(pod))?;
        Some(injection.faults().seed)
    }

    #[test]
    fn the_closest_target_counts() {
        let active = ActiveFaults::default();
        assert_eq!(met(&active, "10.1.0.4:8080", "web-0"), None);
        for (seed, target) in [
            (1, "service/default/web"),
            (2, "default/web:80"),
            (3, "default/web@10.1.0.4"),
            (4, "default/web:http@web-1"),
            (5, "default/web:443"),
            (6, "service/other/web"),
            (7, "pod/default/web"),
        ] {
            on(&active, target, &format!("refuse; seed={seed}"));
        }
        assert_eq!(met(&active, "10.1.0.4:8080", "web-0"), Some(3));
        assert_eq!(met(&active, "10.1.0.5:8080", "web-1"), Some(4));
        assert_eq!(met(&active, "10.1.0.6:8080", "web-2"), Some(2));
        assert!(active.turn_off(&"default/web:80".parse().unwrap()));
        assert!(!active.turn_off(&"default/web:80".parse().unwrap()));
        assert_eq!(met(&active, "10.1.0.6:8080", "web-2"), Some(1));
    }

    #[test]
    fn there_is_a_bound_and_room_after_it_frees() {
        let active = ActiveFaults::default();
        let turn_on = |n: usize| {
            let target = FaultTarget::pod("default", &format!("web-{n}"));
            active.turn_on(target, Faults::default(), Instant::now())
        };
        for n in 0..MAX_TARGETS {
            turn_on(n).unwrap();
        }
        assert_eq!(turn_on(MAX_TARGETS), Err(TooManyFaults));
        turn_on(0).unwrap();
        assert!(active.turn_off(&FaultTarget::pod("default", "web-0")));
        turn_on(MAX_TARGETS).unwrap();
        assert_eq!(active.list().len(), MAX_TARGETS);
    }
}
