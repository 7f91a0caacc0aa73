//! The real effects: the data path, the published table and the kernel.

use std::io;
use std::sync::Arc;

use crate::capture::CaptureError;
use crate::capture::plan::{Arrival, ListenerId, ListenerSpec, Rules};
use crate::dataplane::{Dataplane, OpenError, Opened};
use crate::health_checks::{HealthCheckPorts, Unbound};
use crate::model::{Family, ServicePortKey};
use crate::routing::{HealthCheck, Published, RoutingTable};
use crate::sources::kube::{Notice, Notices};

use super::captured::Captured;
use super::program::Effects;

/// Does what the programmer decides.
pub(super) struct Live {
    dataplane: Arc<Dataplane>,
    captures: Captured,
    table: Published,
    health_checks: HealthCheckPorts,
    notices: Notices,
}

impl Live {
    pub(super) fn new(
        dataplane: Arc<Dataplane>,
        captures: Captured,
        table: Published,
        health_checks: HealthCheckPorts,
        notices: Notices,
    ) -> Self {
        Self {
            dataplane,
            captures,
            table,
            health_checks,
            notices,
        }
    }

    /// Tells balancers to go elsewhere and captures nothing new. What is returned still translates the flows that
    /// there are, until it is released.
    pub(super) async fn stop_capturing(mut self) -> Captured {
        self.health_checks.shutdown().await;
        self.captures.stop().await;
        self.captures
    }
}

impl Effects for Live {
    fn arrival(&self, family: Family) -> Option<Arrival> {
        self.captures.arrival(family)
    }

    async fn open(&mut self, spec: &ListenerSpec) -> Result<Opened, OpenError> {
        // Whoever finds our sockets beside its own knows by then who we are.
        self.captures.claim();
        if self.predecessor_lives() {
            return self.dataplane.open_beside(spec).await;
        }
        let addr = self.dataplane.open(spec).await?;
        let state = spec.state;
        Ok(Opened { addr, state })
    }

    async fn close(&mut self, id: &ListenerId) {
        self.dataplane.close(id).await;
    }

    fn predecessor_lives(&mut self) -> bool {
        self.captures.predecessor_lives()
    }

    fn regain(&mut self) -> bool {
        self.captures.regain()
    }

    async fn yield_to_successor(&mut self) {
        self.captures.yield_to_other_modes().await;
    }

    async fn accompanied(&mut self) -> io::Result<Vec<ListenerId>> {
        let found = self.dataplane.accompanied().await?;
        // Asked for last: a successor claims first and opens then.
        let are_a_successors = self.captures.is_superseded();
        Ok(if are_a_successors { Vec::new() } else { found })
    }

    fn publish(&mut self, table: Arc<RoutingTable>, changed: &[ServicePortKey]) {
        self.table.publish(table);
        self.dataplane.routes_changed(changed);
    }

    fn families(&self) -> Vec<Family> {
        self.captures.families()
    }

    async fn write_rules(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        self.captures.apply(rules).await
    }

    async fn clear_other_modes(&mut self, family: Family) {
        self.captures.clear(family).await;
    }

    async fn check_rules(&mut self, family: Family) -> Result<bool, CaptureError> {
        self.captures.check(family).await
    }

    async fn answer_health_checks(&mut self, wanted: &[HealthCheck]) -> Vec<Unbound> {
        self.health_checks.set(wanted).await
    }

    fn tell(&mut self, notice: Notice) {
        self.notices.tell(notice);
    }
}
