//! Which health-check node ports are wanted, and when those that could not be bound are tried again.
//!
//! A port that is taken is tried again on every change of its Service and once per second; that is told once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::control::{Kind, ObjectKey};
use crate::model::ServiceName;
use crate::routing::HealthCheck;
use crate::sources::kube::Notice;

use super::program::Effects;

/// How long a port that could not be bound waits before it is tried again.
const REBIND: Duration = Duration::from_secs(1);

/// What should answer, by Service.
#[derive(Default)]
pub(super) struct HealthChecks {
    wanted: BTreeMap<ServiceName, Vec<HealthCheck>>,
    unbound: BTreeSet<(ServiceName, SocketAddr)>,
    changed: bool,
    retry_at: Option<Instant>,
}

impl HealthChecks {
    /// Takes note of what a Service that may have changed wants.
    pub(super) fn want(&mut self, service: &ServiceName, checks: Vec<HealthCheck>) {
        self.changed |= self.unbound.iter().any(|(name, _)| name == service);
        let before = self.wanted.get(service).map_or(&[][..], Vec::as_slice);
        if before == checks {
            return;
        }
        self.changed = true;
        if checks.is_empty() {
            self.wanted.remove(service);
        } else {
            self.wanted.insert(service.clone(), checks);
        }
    }

    /// Has what is wanted answered, if that changed or a port is due to be tried again.
    pub(super) async fn apply(&mut self, effects: &mut impl Effects, now: Instant) {
        if !self.changed && self.retry_at.is_none_or(|at| at > now) {
            return;
        }
        self.changed = false;
        let wanted: Vec<HealthCheck> = self.wanted.values().flatten().cloned().collect();
        let mut unbound = BTreeSet::new();
        for failure in effects.answer_health_checks(&wanted).await {
            let (service, frontend, error) = (&failure.service, failure.bind, &failure.source);
            let place = (failure.service.clone(), failure.bind);
            if self.unbound.contains(&place) {
                debug!(%service, %frontend, %error, "health-check node port still cannot be bound");
            } else {
                warn!(%service, %frontend, %error, reason = "FailedToStartServiceHealthcheck",
                    "health-check node port cannot be bound; it is tried again");
                effects.tell(told(
                    service,
                    &format!("{frontend} cannot be listened on: {error}"),
                ));
            }
            unbound.insert(place);
        }
        self.retry_at = (!unbound.is_empty()).then(|| now + REBIND);
        self.unbound = unbound;
    }

    /// When to call again, if a port waits.
    pub(super) fn next(&self) -> Option<Instant> {
        self.retry_at
    }
}

fn told(service: &ServiceName, note: &str) -> Notice {
    let key = ObjectKey {
        kind: Kind::Service,
        namespace: service.namespace.clone(),
        name: service.name.clone(),
    };
    Notice::health_check_port(key, note.to_owned())
}
