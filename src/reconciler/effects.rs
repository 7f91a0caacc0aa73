//! The real effects: the data path, the published table and the kernel.

use std::net::SocketAddr;
use std::sync::Arc;

use tracing::{info, warn};

use crate::capture::plan::{Arrival, ListenerId, ListenerSpec, Rules};
use crate::capture::{Capture, CaptureError};
use crate::dataplane::{Dataplane, OpenError};
use crate::health_checks::{HealthCheckPorts, Unbound};
use crate::model::{Family, ServicePortKey};
use crate::routing::{HealthCheck, Published, RoutingTable};

use super::program::Effects;

/// Does what the programmer decides.
pub(super) struct Live {
    dataplane: Arc<Dataplane>,
    captures: Vec<Box<dyn Capture>>,
    table: Published,
    health_checks: HealthCheckPorts,
}

impl Live {
    pub(super) fn new(
        dataplane: Arc<Dataplane>,
        captures: Vec<Box<dyn Capture>>,
        table: Published,
        health_checks: HealthCheckPorts,
    ) -> Self {
        Self {
            dataplane,
            captures,
            table,
            health_checks,
        }
    }

    /// Tells balancers to go elsewhere and removes our rules from the kernel; listeners stay for the drain.
    pub(super) async fn release(mut self) {
        self.health_checks.shutdown().await;
        for capture in &mut self.captures {
            match capture.release().await {
                Ok(()) => info!(family = %capture.family(), "capture released"),
                Err(error) => {
                    warn!(family = %capture.family(), %error, "rules could not be removed; `viaduct cleanup` does it")
                }
            }
        }
    }

    fn capture(&mut self, family: Family) -> Option<&mut Box<dyn Capture>> {
        self.captures
            .iter_mut()
            .find(|capture| capture.family() == family)
    }
}

impl Effects for Live {
    fn arrival(&self) -> Option<Arrival> {
        self.captures.first().map(|capture| capture.arrival())
    }

    async fn open(&mut self, spec: &ListenerSpec) -> Result<SocketAddr, OpenError> {
        self.dataplane.open(spec).await
    }

    async fn close(&mut self, id: &ListenerId) {
        self.dataplane.close(id).await;
    }

    fn publish(&mut self, table: Arc<RoutingTable>, changed: &[ServicePortKey]) {
        self.table.publish(table);
        self.dataplane.routes_changed(changed);
    }

    fn families(&self) -> Vec<Family> {
        self.captures
            .iter()
            .map(|capture| capture.family())
            .collect()
    }

    async fn write_rules(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        match self.capture(rules.family) {
            Some(capture) => capture.apply(rules).await,
            None => Ok(()),
        }
    }

    async fn check_rules(&mut self, family: Family) -> Result<bool, CaptureError> {
        match self.capture(family) {
            Some(capture) => capture.reassert().await,
            None => Ok(false),
        }
    }

    async fn answer_health_checks(&mut self, wanted: &[HealthCheck]) -> Vec<Unbound> {
        self.health_checks.set(wanted).await
    }
}
