//! Tables of our own in nf_tables, one per family, driven by the `nft` tool; and the capture mode that is nothing else.
//!
//! `render` says what a table contains, `listing` reads it back, `table` runs them and remembers what was applied;
//! `shortcut` spares a few elements the tool. No other table is ever named.

mod listing;
mod render;
mod shortcut;
mod table;

use async_trait::async_trait;

use crate::model::Family;

use super::plan::{Arrival, Rules};
use super::stale_flows::{Before, StaleFlows, forget};
use super::{Capture, CaptureError, Metrics, Mode};

pub(super) use table::{Loaded, Purpose};

/// The mark of packets that go to transparent sockets, beside whatever other marks they have: a bit that kube-proxy
/// (0x4000, 0x8000), Calico (0xffff0000) and Cilium (0x0f00) leave free.
pub(super) const MARK: u32 = 0x1000;

/// One family's table. Owns what it believes to be in the kernel.
pub(super) struct Nftables {
    family: Family,
    table: Loaded,
    /// What has been captured so far, for the flows that may have to be forgotten.
    captured: Rules,
    metrics: Metrics,
}

impl Nftables {
    pub(super) fn new(family: Family, metrics: Metrics) -> Self {
        metrics.forgets(family);
        metrics.has_table(family);
        Self {
            family,
            table: Loaded::new(family, Purpose::Translate),
            captured: Rules::none(family),
            metrics,
        }
    }
}

#[async_trait]
impl Capture for Nftables {
    fn family(&self) -> Family {
        self.family
    }

    fn mode(&self) -> Mode {
        Mode::Nftables
    }

    fn arrival(&self) -> Arrival {
        Arrival::Redirected
    }

    async fn apply(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        let state = if self.table.is_known() {
            Before::Known
        } else {
            Before::Unknown
        };
        let stale = StaleFlows::between(&self.captured, rules, state);
        let uncaptured = stale.clone().uncaptured(&self.captured);
        forget(self.family, uncaptured, &self.metrics).await;
        let changed = self.table.change(rules).await;
        changed.inspect_err(|_| self.metrics.table_refused(self.family))?;
        forget(self.family, stale, &self.metrics).await;
        self.captured = rules.clone();
        Ok(())
    }

    async fn reassert(&mut self) -> Result<bool, CaptureError> {
        let restored = self.table.reassert().await;
        if !restored.inspect_err(|_| self.metrics.table_refused(self.family))? {
            return Ok(false);
        }
        // Datagrams that passed uncaptured have made flows that would go on passing.
        let stale = StaleFlows::between(&self.captured, &self.captured, Before::Unknown);
        forget(self.family, stale, &self.metrics).await;
        Ok(true)
    }

    async fn release(&mut self) -> Result<(), CaptureError> {
        self.table.release().await?;
        let nothing = Rules::none(self.family);
        let captured = std::mem::replace(&mut self.captured, nothing.clone());
        let stale = StaleFlows::between(&captured, &nothing, Before::Known);
        forget(self.family, stale, &self.metrics).await;
        Ok(())
    }
}

/// Checks that a table like ours loads.
pub(super) async fn probe(family: Family, purpose: Purpose) -> Result<(), CaptureError> {
    table::probe(purpose.table(family)).await
}

/// Removes our table of that family, if it is there.
pub(super) async fn remove(family: Family, purpose: Purpose) -> Result<(), CaptureError> {
    table::remove(purpose.table(family)).await
}
