//! Services that ask for their clients to be shown to backends (`viaduct.dev/source-ip`) where the capture mode cannot.

use std::collections::BTreeSet;

use tracing::warn;

use crate::capture::plan::Arrival;
use crate::control::{Kind, ObjectKey};
use crate::model::{Family, ServiceName};
use crate::sources::kube::Notice;

use super::{Effects, Programmed, Programmer};

const NOT_SHOWN: &str =
    "viaduct.dev/source-ip needs the capture mode tproxy; backends see the node's address";

impl<E: Effects> Programmer<E> {
    /// Families in which backends can be shown their clients' addresses.
    pub(in crate::reconciler) fn shows_clients(&self) -> BTreeSet<Family> {
        let diverted = |family: &Family| self.effects.arrival(*family) == Some(Arrival::Diverted);
        Family::BOTH.into_iter().filter(diverted).collect()
    }

    /// Tells of Services that ask for it, once, when they begin to. They are served all the same.
    pub(super) fn note_clients_not_shown(&mut self, wanted: &[(ServiceName, Programmed)]) {
        for (name, service) in wanted {
            let asked_before = self.services.get(name);
            let asked_before = asked_before.is_some_and(|before| self.asks_in_vain(before));
            if asked_before || !self.asks_in_vain(service) {
                continue;
            }
            warn!(service = %name, "{NOT_SHOWN}");
            let key = ObjectKey {
                kind: Kind::Service,
                namespace: name.namespace.clone(),
                name: name.name.clone(),
            };
            self.effects
                .tell(Notice::annotation(key, NOT_SHOWN.to_owned()));
        }
    }

    fn asks_in_vain(&self, service: &Programmed) -> bool {
        service.routes.iter().any(|route| {
            let arrival = self.effects.arrival(route.key.family);
            route.knobs.source_ip.is_some()
                && arrival.is_some_and(|arrival| arrival != Arrival::Diverted)
        })
    }
}
