//! The reconciler: the one task that owns all service state.
//!
//! ```text
//!  manifests ─► intake (control plane) ─┐
//!  API server ──────────────────────────┴─► store ─► events ─► TableBuilder ─► program: listeners, table, rules
//!  interfaces ────────────────────────────────────► NodeView ──────┘
//! ```
//!
//! It reacts at once to what a source says, publishes a new table, and drives capture and listeners in a fixed order
//! (`program`). Nothing downstream writes to it, but for the one loop: it tells the prober what to probe, and hears what
//! came of it as from any source.

mod captured;
mod cluster;
mod effects;
mod facts;
mod handover;
mod health_checks;
mod intake;
mod kept;
mod metrics;
mod pace;
mod program;
#[cfg(test)]
mod program_tests;
mod remark;
mod rules;
mod simulated;
mod standalone;
mod store;
mod verify;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::capture::Capture;
use crate::control::PublishedObjects;
use crate::dataplane::Dataplane;
use crate::health_checks::HealthCheckPorts;
use crate::model::{Event, Node, NodeName};
use crate::net::heap;
use crate::readiness::Blocker;
use crate::routing::{NodePortAddresses, NodeView, Published, TableBuilder};
use crate::sources::kube::Notices;
use crate::sources::prober::Prober;
use crate::telemetry::Health;
use crate::workload::Simulator;

use captured::Captured;
use effects::Live;
use facts::Facts;
use program::Programmer;
use store::Outcome;

pub use facts::{Manifests, Source};
pub use metrics::Metrics;
pub use remark::Remark;
pub use verify::verify;

/// What the reconciler is given. Everything it owns, it owns alone.
pub struct Parts {
    /// The node's name.
    pub node_name: NodeName,
    /// Who counts as a Pod of this node.
    pub local_pods: LocalPods,
    /// The table's builder.
    pub builder: TableBuilder,
    /// Where the table is published.
    pub table: Published,
    /// Where the stored objects are published.
    pub objects: PublishedObjects,
    /// The data path.
    pub dataplane: Arc<Dataplane>,
    /// One capture per family that can be captured; empty with capture `none`.
    pub captures: Vec<Box<dyn Capture>>,
    /// Where the process that owns the node's rules is named; `None` if these are no rules of the kernel.
    pub rules_owner: Option<PathBuf>,
    /// Health-check node ports.
    pub health_checks: HealthCheckPorts,
    /// Simulated Pods.
    pub simulator: Simulator,
    /// Runs the probes of Pods.
    pub prober: Prober,
    /// Where the loop reports that it keeps up.
    pub health: Health,
    /// What the loop counts.
    pub metrics: Metrics,
    /// Where users are told what they can mend.
    pub notices: Notices,
    /// How often rules are checked.
    pub sync_period: Duration,
}

/// What flows in.
pub struct Inputs {
    /// Objects.
    pub source: Source,
    /// The node's interface addresses.
    pub addresses: watch::Receiver<BTreeSet<IpAddr>>,
    /// Networks that Pods of this node are in.
    pub pod_networks: watch::Receiver<BTreeSet<IpNet>>,
    /// What the operator may change while it runs.
    pub tuning: watch::Receiver<Tuning>,
}

/// What the operator may change while it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    /// Which local addresses answer node ports.
    pub node_port_addresses: NodePortAddresses,
    /// Whether 127.0.0.0/8 does, if it is among these.
    pub localhost_node_ports: bool,
    /// The least time between two writes to the kernel; zero = as soon as changes are gathered.
    pub min_sync_period: Duration,
}

/// Who counts as a Pod of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalPods {
    /// Who is in [`Inputs::pod_networks`].
    InNetworks,
    /// Who is in the Pod CIDRs of our Node object.
    OfNode,
}

/// The task's state.
pub struct Reconciler {
    builder: TableBuilder,
    programmer: Programmer<Live>,
    simulator: Simulator,
    prober: Prober,
    notices: Notices,
    objects: PublishedObjects,
    health: Health,
    node: Option<Node>,
    node_name: NodeName,
    local_pods: LocalPods,
    pod_networks: BTreeSet<IpNet>,
}

/// What flows still need while they drain.
pub struct Draining {
    captures: Captured,
    simulator: Simulator,
}

impl Draining {
    /// The flows are over: removes our rules from the kernel and ends simulated Pods.
    pub async fn finish(self) {
        self.captures.release().await;
        self.simulator.shutdown().await;
    }
}

impl Reconciler {
    /// Puts the parts together; nothing happens before [`Self::run`].
    pub fn new(parts: Parts) -> Self {
        let effects = Live::new(
            parts.dataplane,
            Captured::new(parts.captures, parts.rules_owner),
            parts.table,
            parts.health_checks,
            parts.notices.clone(),
        );
        let now = Instant::now();
        Self {
            builder: parts.builder,
            programmer: Programmer::new(
                effects,
                parts.health.clone(),
                parts.metrics,
                parts.sync_period,
                now,
            ),
            simulator: parts.simulator,
            prober: parts.prober,
            notices: parts.notices,
            objects: parts.objects,
            health: parts.health,
            node: None,
            node_name: parts.node_name,
            local_pods: parts.local_pods,
            pod_networks: BTreeSet::new(),
        }
    }

    /// Works until `stop`, then captures nothing new. `synced` is dropped when the first state is in effect. When the
    /// source ends, the last state goes on.
    pub async fn run(
        mut self,
        inputs: Inputs,
        synced: Blocker,
        stop: CancellationToken,
    ) -> Draining {
        let Inputs {
            source,
            mut addresses,
            mut tuning,
            mut pod_networks,
        } = inputs;
        let mut facts = Facts::of(source, self.node_name.clone());
        let mut following = true;
        let mut synced = Some(synced);
        let mut next = Instant::now();
        self.pod_networks = pod_networks.borrow_and_update().clone();
        self.view_node(&addresses.borrow_and_update(), &tuning.borrow_and_update());
        self.programmer
            .set_min_sync_period(tuning.borrow().min_sync_period);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                outcome = facts.next(), if following => {
                    let Some(outcome) = outcome else {
                        following = false;
                        continue;
                    };
                    self.objects.publish(facts.objects().clone());
                    if self.take(outcome).await {
                        self.view_node(&addresses.borrow(), &tuning.borrow());
                    }
                    self.program().await;
                }
                Ok(()) = addresses.changed() => {
                    self.view_node(&addresses.borrow_and_update(), &tuning.borrow());
                    self.program().await;
                }
                Ok(()) = tuning.changed() => {
                    self.view_node(&addresses.borrow(), &tuning.borrow_and_update());
                    self.programmer.set_min_sync_period(tuning.borrow().min_sync_period);
                    self.program().await;
                }
                Ok(()) = pod_networks.changed() => {
                    self.pod_networks = pod_networks.borrow_and_update().clone();
                    self.view_node(&addresses.borrow(), &tuning.borrow());
                    self.program().await;
                }
                () = tokio::time::sleep_until(next.into()) => {}
            }
            if self.programmer.reopen_due(Instant::now()) {
                self.program().await;
            }
            next = self.programmer.write(Instant::now()).await;
            facts.save();
            if self.programmer.has_written() && self.builder.is_synced() && synced.take().is_some()
            {
                // What came in as text is in the table now.
                heap::give_back();
            }
        }
        facts.save();
        self.prober.shutdown().await;
        Draining {
            captures: self.programmer.into_effects().stop_capturing().await,
            simulator: self.simulator,
        }
    }

    // Takes over what has changed; it is in effect once it is programmed. True if the node is among it.
    async fn take(&mut self, outcome: Outcome) -> bool {
        let Outcome {
            events,
            simulated,
            node_eligible,
            probes,
            remarks,
            synced,
        } = outcome;
        for remark in remarks {
            remark.log();
            if let Some(notice) = remark.notice() {
                self.notices.tell(notice);
            }
        }
        if let Some(pods) = simulated {
            for failure in self.simulator.set(pods).await {
                warn!(error = %failure, "simulated Pod cannot answer");
            }
        }
        // After simulated Pods answer, so that their first probe meets somebody.
        self.prober.apply(probes);
        if let Some(eligible) = node_eligible {
            self.health.set_node_eligible(eligible);
        }
        let mut node_changed = false;
        for event in events {
            self.programmer.metrics().changed(&event);
            match event {
                Event::NodeApplied(node) => {
                    self.node = Some(node);
                    node_changed = true;
                }
                Event::NodeDeleted => {
                    self.node = None;
                    node_changed = true;
                }
                Event::ServiceApplied(_)
                | Event::ServiceDeleted(_)
                | Event::SliceApplied(_)
                | Event::SliceDeleted(_)
                | Event::PodApplied(_)
                | Event::PodDeleted(..)
                | Event::NamespaceApplied(_)
                | Event::NamespaceDeleted(_) => self.builder.apply(event),
            }
        }
        if synced && !self.builder.is_synced() {
            self.builder.set_synced();
            info!("initial state is complete");
        }
        node_changed
    }

    // Before the initial state is complete nothing is programmed, and nothing old removed.
    async fn program(&mut self) {
        if !self.builder.is_synced() {
            return;
        }
        self.programmer
            .program(&mut self.builder, Instant::now())
            .await;
    }

    // What routing knows of the node: its object joined with what the interfaces say.
    fn view_node(&mut self, addresses: &BTreeSet<IpAddr>, tuning: &Tuning) {
        let primary = self.node.as_ref().map_or(&[][..], |node| &node.addresses);
        let mut chosen = tuning.node_port_addresses.select(addresses, primary);
        let health_check_addresses = tuning.node_port_addresses.select_binds(&chosen);
        // kube-proxy's flag is about node ports alone.
        chosen.retain(|ip| tuning.localhost_node_ports || !ip.is_loopback());
        self.builder.set_node(NodeView {
            name: Some(self.node_name.clone()),
            zone: self.node.as_ref().and_then(|node| node.zone.clone()),
            pod_cidrs: self.pod_cidrs(),
            local_addresses: addresses.clone(),
            health_check_addresses,
            node_port_addresses: chosen,
            shows_clients: self.programmer.shows_clients(),
        });
    }

    fn pod_cidrs(&self) -> Vec<IpNet> {
        match self.local_pods {
            LocalPods::InNetworks => self.pod_networks.iter().copied().collect(),
            LocalPods::OfNode => {
                let node = self.node.as_ref();
                node.map_or_else(Vec::new, |node| node.pod_cidrs.clone())
            }
        }
    }
}
