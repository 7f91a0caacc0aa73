//! The real effects: the data path, the published table and the kernel.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::{info, warn};

use crate::capture::plan::{Arrival, ListenerId, ListenerSpec, Rules};
use crate::capture::{Capture, CaptureError, Mode};
use crate::dataplane::{Dataplane, OpenError, Opened};
use crate::health_checks::{HealthCheckPorts, Unbound};
use crate::model::{Family, ServicePortKey};
use crate::routing::{HealthCheck, Published, RoutingTable};
use crate::sources::kube::{Notice, Notices};

use super::handover::{Claim, Predecessor, Standing};
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

/// The families that are captured, as long as this process owns the node's rules.
pub(super) struct Captured {
    captures: Vec<Box<dyn Capture>>,
    predecessor: Option<Predecessor>,
    owner: Option<PathBuf>,
    claim: Option<Claim>,
    // Of which the kernel may hold what a successor wrote.
    doubtful: BTreeSet<Family>,
}

impl Captured {
    /// Nothing is claimed before there is something to do. Without an `owner` file nobody else can claim it.
    pub(super) fn new(captures: Vec<Box<dyn Capture>>, owner: Option<PathBuf>) -> Self {
        Self {
            captures,
            predecessor: owner.as_deref().and_then(Predecessor::find),
            owner,
            claim: None,
            doubtful: BTreeSet::new(),
        }
    }

    // Once it has ended it is not looked for again.
    fn predecessor_lives(&mut self) -> bool {
        let lives = self.predecessor.as_ref().is_some_and(Predecessor::lives);
        if !lives {
            self.predecessor = None;
        }
        lives
    }

    /// Removes our rules from the kernel.
    pub(super) async fn release(mut self) {
        if self.is_superseded() {
            return info!("another viaduct serves this node; its rules stay");
        }
        let predecessor_lives = self.predecessor_lives();
        for mut capture in self.captures {
            // Addresses lead to both; rules would lead to us alone.
            if predecessor_lives && capture.mode() == Mode::Local {
                info!(family = %capture.family(), "the viaduct before this one still serves; addresses stay");
                continue;
            }
            match capture.release().await {
                Ok(()) => info!(family = %capture.family(), "capture released"),
                Err(error) => {
                    warn!(family = %capture.family(), %error, "rules could not be removed; `viaduct cleanup` does it")
                }
            }
        }
    }

    async fn stop(&mut self) {
        if self.is_superseded() {
            return;
        }
        for capture in &mut self.captures {
            if let Err(error) = capture.drain().await {
                warn!(family = %capture.family(), %error, "flows may still be captured while others drain");
            }
        }
    }

    // Without a claim nobody else can have one.
    fn standing(&self) -> Standing {
        self.claim.as_ref().map_or(Standing::Ours, Claim::standing)
    }

    fn is_superseded(&self) -> bool {
        self.standing() == Standing::Superseded
    }

    // Takes the rules over again from a successor that has ended. True if it did.
    fn regain(&mut self) -> bool {
        let Some(claim) = &mut self.claim else {
            return false;
        };
        if claim.standing() != Standing::Abandoned {
            return false;
        }
        if let Err(error) = claim.renew() {
            warn!(%error, "the process that took over has ended, but its rules cannot be claimed");
            return false;
        }
        let families = self.captures.iter().map(|capture| capture.family());
        self.doubtful.extend(families);
        true
    }

    // Takes the rules over, the first time.
    fn claim(&mut self) {
        if let Some(path) = self.owner.take() {
            match Claim::take(&path) {
                Ok(claim) => self.claim = Some(claim),
                Err(error) => {
                    warn!(path = %path.display(), %error, "a process that starts beside this one cannot take over from it")
                }
            }
        }
    }

    // The family's capture, if the rules are ours.
    fn owned(&mut self, family: Family) -> Option<&mut Box<dyn Capture>> {
        self.claim();
        match self.standing() {
            Standing::Ours => {}
            // What was abandoned is regained first.
            Standing::Superseded | Standing::Abandoned => return None,
        }
        let mut captures = self.captures.iter_mut();
        captures.find(|capture| capture.family() == family)
    }

    // What has been written before is brought back first, where a successor wrote since: a change builds on it.
    async fn apply(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        let is_doubtful = self.doubtful.contains(&rules.family);
        let Some(capture) = self.owned(rules.family) else {
            return Ok(());
        };
        if is_doubtful {
            capture.reassert().await?;
        }
        capture.apply(rules).await?;
        self.doubtful.remove(&rules.family);
        Ok(())
    }
}

impl Effects for Live {
    fn arrival(&self, family: Family) -> Option<Arrival> {
        let mut captures = self.captures.captures.iter();
        let capture = captures.find(|capture| capture.family() == family);
        capture.map(|capture| capture.arrival())
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
        let captures = self.captures.captures.iter();
        captures.map(|capture| capture.family()).collect()
    }

    async fn write_rules(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        self.captures.apply(rules).await
    }

    async fn check_rules(&mut self, family: Family) -> Result<bool, CaptureError> {
        match self.captures.owned(family) {
            Some(capture) => capture.reassert().await,
            None => Ok(false),
        }
    }

    async fn answer_health_checks(&mut self, wanted: &[HealthCheck]) -> Vec<Unbound> {
        self.health_checks.set(wanted).await
    }

    fn tell(&mut self, notice: Notice) {
        self.notices.tell(notice);
    }
}
