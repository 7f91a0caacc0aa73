//! How a simulated Pod behaves at this moment: by the faults that are on for it, else by its own.

use std::sync::Arc;

use tokio::sync::watch;

use crate::faults::{ActiveFaults, Changes, FaultTarget, Injection};

/// What the ports of one Pod ask before each answer.
#[derive(Clone, Debug)]
pub(super) struct Behaviour {
    pod: Arc<str>,
    target: FaultTarget,
    own: watch::Receiver<Arc<Injection>>,
    active: ActiveFaults,
    changes: Changes,
}

impl Behaviour {
    /// Of the Pod of that name, whose own faults `own` tells.
    pub(super) fn new(
        namespace: &str,
        name: &str,
        own: watch::Receiver<Arc<Injection>>,
        active: &ActiveFaults,
    ) -> Self {
        Self {
            pod: name.into(),
            target: FaultTarget::pod(namespace, name),
            own,
            active: active.clone(),
            changes: active.changes(),
        }
    }

    /// The Pod's name.
    pub(super) fn pod(&self) -> &str {
        &self.pod
    }

    /// What is injected now.
    pub(super) fn injection(&self) -> Arc<Injection> {
        self.active
            .of_pod(&self.target)
            .unwrap_or_else(|| self.own.borrow().clone())
    }

    /// Waits until connections are refused.
    pub(super) async fn refuses(&mut self) {
        self.wait_for(true).await;
    }

    /// Waits until they are taken.
    pub(super) async fn takes(&mut self) {
        self.wait_for(false).await;
    }

    async fn wait_for(&mut self, refuse: bool) {
        while self.injection().faults().refuse != refuse {
            tokio::select! {
                () = self.changes.next() => {}
                changed = self.own.changed() => {
                    if changed.is_err() {
                        // The server ends.
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    }
}
