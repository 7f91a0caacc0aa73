//! Listeners that are bound to their frontends: no rule leads to them, so they are in effect as soon as they are open and
//! their address is captured. Keeps them from being ahead of changes that were made before, or behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tracing::warn;

use crate::capture::plan::{Arrival, ListenerSpec, ListenerState, Tenure};
use crate::model::{Family, ServiceName};
use crate::routing::NodeView;

use super::{Effects, Programmed, Programmer, REOPEN};

impl<E: Effects> Programmer<E> {
    /// Nothing but its own address leads to a direct listener, so it ends before the table is without it, and one that
    /// takes over the address finds it free.
    pub(super) async fn close_direct(&mut self, wanted: &[(ServiceName, Programmed)]) {
        let mut gone = Vec::new();
        for (name, service) in wanted {
            let before = self.services.get(name).map(|before| &before.specs);
            let before = before.into_iter().flat_map(BTreeMap::values);
            let direct = before.filter(|spec| spec.arrival() == Arrival::Direct);
            let unwanted = direct.filter(|spec| !service.specs.contains_key(&spec.id));
            gone.extend(unwanted.map(|spec| spec.id.clone()));
        }
        for id in gone {
            self.effects.close(&id).await;
            self.bound.remove(&id);
            self.waiting.remove(&id);
        }
    }

    /// What is bound to an address that is not captured yet is in effect with the next write.
    pub(super) fn note_uncaptured(&mut self, wanted: &[(ServiceName, Programmed)]) {
        let specs = wanted
            .iter()
            .flat_map(|(_, service)| service.specs.values());
        let fresh = specs.filter(|spec| spec.tenure == Tenure::Owned);
        let fresh = fresh.filter(|spec| spec.arrival() == Arrival::Direct);
        let fresh = fresh.map(|spec| spec.bind.ip());
        let fresh: Vec<IpAddr> = fresh.filter(|ip| !self.is_captured(*ip)).collect();
        self.uncaptured.extend(fresh);
    }

    fn is_captured(&self, ip: IpAddr) -> bool {
        let is_local = |node: &Arc<NodeView>| node.local_addresses.contains(&ip);
        ip.is_loopback() || self.node.as_ref().is_some_and(is_local) || self.rules.captures(ip)
    }

    /// A new direct listener at a captured address would be in effect at once, ahead of what waits for a write.
    pub(super) fn must_wait(&self, spec: &ListenerSpec) -> bool {
        let family = spec.id.route.family;
        spec.state == ListenerState::Serving
            && spec.tenure == Tenure::Owned
            && spec.arrival() == Arrival::Direct
            && !self.bound.contains_key(&spec.id)
            && !self.uncaptured.contains(&spec.bind.ip())
            && self.uncaptured.iter().any(|ip| Family::of(*ip) == family)
    }

    /// The rules of that family have been written, or could not be: nothing is waited for any longer.
    pub(super) async fn serve_waiting(&mut self, family: Family) {
        self.uncaptured.retain(|ip| Family::of(*ip) != family);
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let (waited, waiting): (BTreeSet<_>, BTreeSet<_>) =
            waiting.partition(|id| id.route.family == family);
        self.waiting = waiting;
        for id in waited {
            let service = self.services.get(&id.route.service);
            let spec = service.and_then(|service| service.specs.get(&id));
            let (Some(spec), Some(bound)) = (spec, self.bound.get_mut(&id)) else {
                continue;
            };
            if spec.state == ListenerState::HeldClosed {
                continue;
            }
            match self.effects.open(spec).await {
                Ok(_) => {
                    bound.state = ListenerState::Serving;
                    bound.callers = spec.callers.clone();
                }
                Err(error) => {
                    warn!(service = %id.route, frontend = %spec.bind, %error, "listener could not be opened; it is tried again");
                    self.reopen.insert(id.route.service.clone());
                    self.reopen_at = Some(Instant::now() + REOPEN);
                }
            }
        }
    }
}
