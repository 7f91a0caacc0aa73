//! Capture by x_tables: chains of our own, driven by `iptables-save` and `iptables-restore`, in the variant of them that
//! works here.
//!
//! `render` says what the chains contain, and what leads from one state to another; `variant` which tools there are. Here
//! they are run, and what was applied is remembered. Rules of others are read, never written.

mod render;
mod variant;

use std::collections::BTreeMap;
use std::net::IpAddr;

use async_trait::async_trait;
use tracing::{debug, info, warn};

use crate::model::Family;

use super::metrics::Extent;
use super::plan::{Arrival, Rules};
use super::stale_flows::{Before, StaleFlows, forget};
use super::tool::run;
use super::{Capture, CaptureError, Metrics, Mode};

use render::{Chains, Table, parse_saved, plan_chains, render_restore};
use variant::Variant;

/// One family's chains. Owns what it believes to be in the kernel.
pub(super) struct Iptables {
    family: Family,
    variant: Variant,
    /// What the kernel holds, of the tables where that is known.
    applied: BTreeMap<Table, Chains>,
    /// Where captured traffic is led; `None` = the address of the interface it came in by.
    landing: Option<IpAddr>,
    /// What has been captured so far: what must be there, and the flows that may have to be forgotten.
    captured: Rules,
    metrics: Metrics,
}

impl Iptables {
    /// By the tools that work here. What those that are not used may have left is removed.
    ///
    /// # Errors
    /// None works.
    pub(super) async fn open(family: Family, metrics: Metrics) -> Result<Self, CaptureError> {
        let variant = Variant::find(family).await?;
        for other in Variant::candidates(family).await {
            if other == variant {
                continue;
            }
            // Tools that do not work here cannot have left anything that works.
            if let Err(error) = remove_by(other, family).await {
                debug!(%family, tool = other.restore(family), %error, "nothing of other tools could be removed");
            }
        }
        if variant != Variant::Preferred {
            info!(%family, tool = variant.restore(family), "the iptables that the system prefers does not work");
        }
        metrics.forgets(family);
        metrics.has_chains(family);
        Ok(Self {
            family,
            variant,
            applied: BTreeMap::new(),
            landing: None,
            captured: Rules::none(family),
            metrics,
        })
    }

    // True if anything had to be changed.
    async fn change(&mut self, table: Table, wanted: Chains) -> Result<bool, CaptureError> {
        let written = match self.write_difference(table, &wanted).await {
            Some(written) => written,
            None => replace(self.variant, self.family, table, &wanted)
                .await
                .inspect_err(|_| self.metrics.chains_refused(self.family, Extent::Full))?,
        };
        let n_written = written.as_deref().map_or(0, render::count_rules);
        self.metrics
            .wrote_chains(self.family, table.as_str(), wanted.n_rules(), n_written);
        self.applied.insert(table, wanted);
        Ok(written.is_some())
    }

    // What was written, if anything had to be. `None` where that cannot be done: it is not known what is there, or it
    // is not what it was thought to be.
    async fn write_difference(&mut self, table: Table, wanted: &Chains) -> Option<Option<String>> {
        let applied = self.applied.remove(&table)?;
        let Some(text) = render_restore(table, &applied, wanted) else {
            return Some(None);
        };
        match restore(self.variant, self.family, &text).await {
            Ok(()) => Some(Some(text)),
            Err(error) => {
                warn!(family = %self.family, %error, "chains are not as they were left; they are replaced");
                self.metrics.chains_refused(self.family, Extent::Partial);
                None
            }
        }
    }

    // Every table is tried even if one fails. True if anything had to be changed.
    async fn change_all(&mut self, rules: &Rules) -> Result<bool, CaptureError> {
        let landing = rules.landing(self.landing);
        self.landing = landing;
        let mut outcome = Ok(false);
        for table in Table::ALL {
            let changed = self.change(table, plan_chains(table, rules, landing)).await;
            outcome = match (outcome, changed) {
                (Ok(before), Ok(now)) => Ok(before || now),
                (Err(error), _) | (Ok(_), Err(error)) => Err(error),
            };
        }
        outcome
    }
}

#[async_trait]
impl Capture for Iptables {
    fn family(&self) -> Family {
        self.family
    }

    fn mode(&self) -> Mode {
        Mode::Iptables
    }

    fn arrival(&self) -> Arrival {
        Arrival::Redirected
    }

    async fn apply(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        let known = self.applied.contains_key(&Table::Nat);
        let state = if known {
            Before::Known
        } else {
            Before::Unknown
        };
        let stale = StaleFlows::between(&self.captured, rules, state);
        let uncaptured = stale.clone().uncaptured(&self.captured);
        forget(self.family, uncaptured, &self.metrics).await;
        self.change_all(rules).await?;
        forget(self.family, stale, &self.metrics).await;
        self.captured = rules.clone();
        Ok(())
    }

    async fn reassert(&mut self) -> Result<bool, CaptureError> {
        if self.applied.is_empty() {
            return Ok(false);
        }
        self.applied.clear();
        let rules = self.captured.clone();
        let restored = self.change_all(&rules).await?;
        if restored {
            // Datagrams that passed uncaptured have made flows that would go on passing.
            let stale = StaleFlows::between(&rules, &rules, Before::Unknown);
            forget(self.family, stale, &self.metrics).await;
        }
        Ok(restored)
    }

    async fn release(&mut self) -> Result<(), CaptureError> {
        self.applied.clear();
        remove_by(self.variant, self.family).await?;
        for table in Table::ALL {
            self.metrics.wrote_chains(self.family, table.as_str(), 0, 0);
        }
        let nothing = Rules::none(self.family);
        let captured = std::mem::replace(&mut self.captured, nothing.clone());
        let stale = StaleFlows::between(&captured, &nothing, Before::Known);
        forget(self.family, stale, &self.metrics).await;
        Ok(())
    }
}

/// Checks that rules like ours load. Returns what by, in the tool's own words.
pub(super) async fn probe(family: Family) -> Result<String, CaptureError> {
    let variant = Variant::find(family).await?;
    variant.version(family).await
}

/// Removes our chains of that family, and what leads to them, whichever tools made them.
pub(super) async fn remove(family: Family) -> Result<(), CaptureError> {
    let mut outcome = Ok(());
    for variant in Variant::candidates(family).await {
        outcome = outcome.and(remove_by(variant, family).await);
    }
    outcome
}

async fn remove_by(variant: Variant, family: Family) -> Result<(), CaptureError> {
    let mut outcome = Ok(());
    for table in Table::ALL {
        if variant.may_hold(family, table) {
            let removed = replace(variant, family, table, &Chains::default()).await;
            outcome = outcome.and(removed.map(drop));
        }
    }
    outcome
}

// Whatever is there becomes `wanted`. What was written for it; `None` if it was so already.
async fn replace(
    variant: Variant,
    family: Family,
    table: Table,
    wanted: &Chains,
) -> Result<Option<String>, CaptureError> {
    let there = match saved(variant, family, table).await {
        Ok(there) => there,
        // A table that the kernel does not have holds nothing of ours.
        Err(error) if error.says_impossible() && wanted.chains.is_empty() => return Ok(None),
        Err(error) => return Err(error),
    };
    match render_restore(table, &there, wanted) {
        Some(text) => restore(variant, family, &text).await.map(|()| Some(text)),
        None => Ok(None),
    }
}

async fn saved(variant: Variant, family: Family, table: Table) -> Result<Chains, CaptureError> {
    let text = run(variant.save(family), &["-t", table.as_str()], "").await?;
    Ok(parse_saved(&text))
}

async fn restore(variant: Variant, family: Family, text: &str) -> Result<(), CaptureError> {
    let tool = variant.restore(family);
    match run(tool, &RESTORE, text).await {
        Err(error) if error.says_too_long() => {
            for piece in render::pieces(text) {
                run(tool, &RESTORE, &piece).await?;
            }
            Ok(())
        }
        outcome => outcome.map(drop),
    }
}

/// Five seconds for the lock that all users of iptables share.
const RESTORE: [&str; 3] = ["--noflush", "-w", "5"];
