//! Standalone: manifests go through the control plane into the store.
//!
//! Owns the control plane with its manifests, and the file that keeps allocations. `intake` is the way in.

use jiff::Timestamp;

use crate::control::{Change, ObjectKey, Objects};
use crate::model::NodeName;
use crate::sources::convert::Note;
use crate::sources::manifests::Update;
use crate::sources::prober::ProbeReport;

use super::intake::Intake;
use super::kept::KeptAllocations;
use super::remark::Remark;
use super::store::{LoopbackEndpoints, Outcome, Store};

/// The store behind an [`Intake`].
pub(super) struct Standalone {
    intake: Intake,
    store: Store,
    kept: Option<KeptAllocations>,
}

impl Standalone {
    /// `kept` is where allocations outlive the process, if anywhere.
    pub(super) fn new(intake: Intake, node_name: NodeName, kept: Option<KeptAllocations>) -> Self {
        Self {
            intake,
            store: Store::new(node_name, LoopbackEndpoints::Allowed, Objects::default()),
            kept,
        }
    }

    /// The stored objects.
    pub(super) fn objects(&self) -> &Objects {
        self.store.objects()
    }

    /// A remark about an object, see [`Intake::remark`].
    pub(super) fn remark(&self, key: &ObjectKey, note: &Note) -> Remark {
        self.intake.remark(key, note)
    }

    /// Takes a batch of updates through the control plane.
    pub(super) fn take(&mut self, updates: Vec<Update>, now: Timestamp) -> Outcome {
        let (changes, remarks) = self.intake.take(updates, now);
        Outcome {
            // The first batch is the initial scan.
            synced: true,
            ..self.outcome(&changes, remarks)
        }
    }

    /// Takes what probes have found out through the control plane.
    pub(super) fn hear(&mut self, reports: Vec<ProbeReport>, now: Timestamp) -> Outcome {
        let (changes, remarks) = self.intake.hear(reports, now);
        self.outcome(&changes, remarks)
    }

    fn outcome(&mut self, changes: &[Change], remarks: Vec<Remark>) -> Outcome {
        let mut outcome = Outcome {
            remarks,
            probes: self.intake.take_probe_changes(),
            ..Outcome::default()
        };
        let remark = |key: &ObjectKey, note: &Note| self.intake.remark(key, note);
        self.store.take(changes, &remark, &mut outcome);
        if let Some(kept) = &mut self.kept {
            for change in changes {
                let key = match change {
                    Change::Applied(object) => object.key(),
                    Change::Deleted(key) => key.clone(),
                };
                let holds = self.intake.allocation_of(&key);
                kept.note(key, holds);
            }
        }
        outcome
    }

    /// Keeps allocations for the next start, if there are others than before.
    pub(super) fn save(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.save();
        }
    }
}
