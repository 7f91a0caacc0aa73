//! What there is to tell the authors of manifests, as data: the running process logs it, `viaduct check` prints it.

use std::path::Path;
use std::sync::Arc;

use tracing::{error, info, warn};

use crate::control::{Kind, ObjectKey};
use crate::sources::convert::Note;
use crate::sources::kube::Notice;
use crate::sources::manifests::Finding;

/// Something to tell about a manifest.
#[derive(Clone, Debug, PartialEq)]
pub enum Remark {
    /// A document is refused, or cannot be read; what was good before it stays.
    Problem(Finding),
    /// It works, but probably not as meant.
    Warning(Finding),
    /// The same about an object that no file describes, such as a slice that was made for a Service.
    Derived(ObjectKey, Note),
    /// Nothing is wrong with this file any longer.
    Healed(Arc<Path>),
    /// An object that had been refused is accepted after all.
    Accepted(ObjectKey),
    /// The probes of a container have come to another result.
    Probed {
        /// The Pod.
        pod: ObjectKey,
        /// The container.
        container: Arc<str>,
        /// What they say now.
        ready: bool,
        /// What the last one met; empty if all was well.
        reason: String,
    },
}

impl Remark {
    /// What the author of an object in the cluster is told, if he can mend it: no log of ours reaches him.
    pub(super) fn notice(&self) -> Option<Notice> {
        match self {
            Self::Derived(key, note)
                if key.kind == Kind::Service && note.field.starts_with("metadata.annotations") =>
            {
                Some(Notice::annotation(key.clone(), note.to_string()))
            }
            Self::Problem(_)
            | Self::Warning(_)
            | Self::Derived(..)
            | Self::Healed(_)
            | Self::Accepted(_)
            | Self::Probed { .. } => None,
        }
    }

    /// Logs it.
    pub(super) fn log(&self) {
        match self {
            Self::Problem(finding) => {
                error!(file = %finding.file.display(), line = finding.line, "{finding}");
            }
            Self::Warning(finding) => {
                warn!(file = %finding.file.display(), line = finding.line, "{finding}");
            }
            Self::Derived(key, note) => {
                warn!(object = %key, field = note.field, "{}", note.message);
            }
            Self::Healed(file) => info!(file = %file.display(), "manifest is good again"),
            Self::Probed {
                pod,
                container,
                ready,
                reason,
            } => {
                info!(object = %pod, container = &**container, ready, reason, "readiness changed");
            }
            Self::Accepted(key) => info!(object = %key, "accepted after all"),
        }
    }
}
