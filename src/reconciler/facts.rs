//! Facts: what a source says, whichever source it is.
//!
//! Owns the receiving end of the source and the objects behind it. Another source is another variant here.

use std::path::PathBuf;

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::control::{ControlPlane, Objects};
use crate::model::NodeName;
use crate::sources::prober::ProbeReport;
use crate::sources::{kube, manifests};

use super::cluster::Cluster;
use super::intake::Intake;
use super::kept::KeptAllocations;
use super::standalone::Standalone;
use super::store::Outcome;

/// Where the facts come from.
pub enum Source {
    /// Manifests, with our own control plane behind them.
    Manifests(Box<Manifests>),
    /// An API server: batches of what it says.
    Cluster(mpsc::Receiver<Vec<kube::Update>>),
}

/// What serving manifests takes.
pub struct Manifests {
    /// The standalone control plane.
    pub control: ControlPlane,
    /// Where its allocations are kept.
    pub state_file: PathBuf,
    /// In `dev`: cluster IPs outside this range are replaced.
    pub replace_outside: Option<IpNet>,
    /// Batches of the manifest directory; the first is the initial scan.
    pub updates: mpsc::Receiver<Vec<manifests::Update>>,
    /// What probes find out.
    pub probes: mpsc::Receiver<ProbeReport>,
}

/// Reports of probes that are taken at once, so that manifests wait for no more than these.
const MAX_REPORTS: usize = 1024;

/// The source with the state behind it.
pub(super) enum Facts {
    Manifests(Box<Heard>),
    Cluster(Box<Cluster>, mpsc::Receiver<Vec<kube::Update>>),
}

/// Manifests, and the probes of their Pods.
pub(super) struct Heard {
    standalone: Standalone,
    updates: mpsc::Receiver<Vec<manifests::Update>>,
    probes: mpsc::Receiver<ProbeReport>,
}

impl Facts {
    /// Nothing has been said yet.
    pub(super) fn of(source: Source, node_name: NodeName) -> Self {
        match source {
            Source::Manifests(given) => {
                let kept = KeptAllocations::at(given.state_file);
                let intake = Intake::new(given.control, kept.read(), given.replace_outside);
                let standalone = Standalone::new(intake, node_name, Some(kept));
                Self::Manifests(Box::new(Heard {
                    standalone,
                    updates: given.updates,
                    probes: given.probes,
                }))
            }
            Source::Cluster(updates) => Self::Cluster(Box::new(Cluster::new(node_name)), updates),
        }
    }

    /// Keeps what outlives the process, if anything. Takes milliseconds with 10,000 Services, so it comes after the effects.
    pub(super) fn save(&mut self) {
        match self {
            Self::Manifests(heard) => heard.standalone.save(),
            // Its source keeps it.
            Self::Cluster(..) => {}
        }
    }

    /// The stored objects.
    pub(super) fn objects(&self) -> &Objects {
        match self {
            Self::Manifests(heard) => heard.standalone.objects(),
            Self::Cluster(cluster, _) => cluster.objects(),
        }
    }

    /// What everything that waits to be heard comes to; `None` when the source has ended. Nothing is lost if the caller
    /// stops waiting.
    pub(super) async fn next(&mut self) -> Option<Outcome> {
        match self {
            Self::Manifests(heard) => heard.next().await,
            Self::Cluster(cluster, updates) => {
                let batch = drained(updates).await?;
                Some(cluster.take(batch))
            }
        }
    }
}

impl Heard {
    // When manifests are not followed any more, their Pods are still probed.
    async fn next(&mut self) -> Option<Outcome> {
        tokio::select! {
            biased;
            Some(batch) = drained(&mut self.updates) => {
                Some(self.standalone.take(batch, Timestamp::now()))
            }
            Some(report) = self.probes.recv() => {
                let mut reports = vec![report];
                while reports.len() < MAX_REPORTS && let Ok(more) = self.probes.try_recv() {
                    reports.push(more);
                }
                Some(self.standalone.hear(reports, Timestamp::now()))
            }
            else => None,
        }
    }
}

async fn drained<T>(batches: &mut mpsc::Receiver<Vec<T>>) -> Option<Vec<T>> {
    let mut batch = batches.recv().await?;
    while let Ok(more) = batches.try_recv() {
        batch.extend(more);
    }
    Some(batch)
}
