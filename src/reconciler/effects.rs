//! The real effects: the data path, the published table and the kernel.

use std::net::SocketAddr;
use std::sync::Arc;

use tracing::{info, warn};

use crate::capture::plan::{Arrival, ListenerId, ListenerSpec, Rules};
use crate::capture::{Capture, CaptureError};
use crate::dataplane::{Dataplane, OpenError};
use crate::health_checks::{HealthCheckPorts, Unbound};
use crate::model::{Family, Frontend, Protocol, ServicePortKey};
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

    /// Tells balancers to go elsewhere and captures nothing new. What is returned still translates the flows that
    /// there are, until it is released.
    pub(super) async fn stop_capturing(mut self) -> Vec<Box<dyn Capture>> {
        self.health_checks.shutdown().await;
        for capture in &mut self.captures {
            if let Err(error) = capture.apply(&translating(capture.family())).await {
                warn!(family = %capture.family(), %error, "flows may still be captured while others drain");
            }
        }
        self.captures
    }

    fn capture(&mut self, family: Family) -> Option<&mut Box<dyn Capture>> {
        self.captures
            .iter_mut()
            .find(|capture| capture.family() == family)
    }
}

// Rules that capture nobody: their only redirect is for an address that no packet has. It keeps the kernel's connection
// tracking and NAT at work, which it takes down with the last rule that needs them, and established flows with it.
fn translating(family: Family) -> Rules {
    let mut rules = Rules::none(family);
    let nobody = Frontend {
        ip: family.unspecified(),
        port: 1,
        protocol: Protocol::Tcp,
    };
    rules.redirects.insert(nobody, 1);
    rules
}

/// Removes our rules from the kernel.
pub(super) async fn release(captures: Vec<Box<dyn Capture>>) {
    for mut capture in captures {
        match capture.release().await {
            Ok(()) => info!(family = %capture.family(), "capture released"),
            Err(error) => {
                warn!(family = %capture.family(), %error, "rules could not be removed; `viaduct cleanup` does it")
            }
        }
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
