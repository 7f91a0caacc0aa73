//! Capture by x_tables: chains of our own, driven by `iptables-save` and `iptables-restore`, whichever variant of them
//! the system prefers.
//!
//! `render` says what the chains contain, and what leads from one state to another; here that is run, and what was
//! applied is remembered. Rules of others are read, never written.

mod render;

use std::collections::BTreeMap;
use std::net::IpAddr;

use async_trait::async_trait;
use tracing::warn;

use crate::model::Family;

use super::metrics::Extent;
use super::plan::{Arrival, Rules};
use super::stale_flows::{Before, StaleFlows, forget};
use super::tool::run;
use super::{Capture, CaptureError, Metrics, Mode};

use render::{Chains, Table, parse_saved, plan_chains, render_restore};

/// One family's chains. Owns what it believes to be in the kernel.
pub(super) struct Iptables {
    family: Family,
    /// What the kernel holds, of the tables where that is known.
    applied: BTreeMap<Table, Chains>,
    /// Where captured traffic is led; `None` = the address of the interface it came in by.
    landing: Option<IpAddr>,
    /// What has been captured so far: what must be there, and the flows that may have to be forgotten.
    captured: Rules,
    metrics: Metrics,
}

impl Iptables {
    pub(super) fn new(family: Family, metrics: Metrics) -> Self {
        metrics.forgets(family);
        metrics.has_chains(family);
        Self {
            family,
            applied: BTreeMap::new(),
            landing: None,
            captured: Rules::none(family),
            metrics,
        }
    }

    // True if anything had to be changed.
    async fn change(&mut self, table: Table, wanted: Chains) -> Result<bool, CaptureError> {
        let written = match self.write_difference(table, &wanted).await {
            Some(written) => written,
            None => replace(self.family, table, &wanted)
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
        match restore(self.family, &text).await {
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
        remove(self.family).await?;
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

/// Checks that rules like ours load.
pub(super) async fn probe(family: Family) -> Result<(), CaptureError> {
    restore(family, &render::render_probe()).await
}

/// Removes our chains of that family, and what leads to them.
pub(super) async fn remove(family: Family) -> Result<(), CaptureError> {
    let mut outcome = Ok(());
    for table in Table::ALL {
        let removed = replace(family, table, &Chains::default()).await;
        outcome = outcome.and(removed.map(drop));
    }
    outcome
}

// Whatever is there becomes `wanted`. What was written for it; `None` if it was so already.
async fn replace(
    family: Family,
    table: Table,
    wanted: &Chains,
) -> Result<Option<String>, CaptureError> {
    let there = match saved(family, table).await {
        Ok(there) => there,
        // A table that the kernel does not have holds nothing of ours.
        Err(error) if error.says_impossible() && wanted.chains.is_empty() => return Ok(None),
        Err(error) => return Err(error),
    };
    match render_restore(table, &there, wanted) {
        Some(text) => restore(family, &text).await.map(|()| Some(text)),
        None => Ok(None),
    }
}

async fn saved(family: Family, table: Table) -> Result<Chains, CaptureError> {
    let tool = match family {
        Family::V4 => "iptables-save",
        Family::V6 => "ip6tables-save",
    };
    let text = run(tool, &["-t", table.as_str()], "").await?;
    Ok(parse_saved(&text))
}

async fn restore(family: Family, text: &str) -> Result<(), CaptureError> {
    let tool = match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    // Five seconds for the lock that all users of iptables share.
    let arguments = ["--noflush", "-w", "5"];
    match run(tool, &arguments, text).await {
        Err(error) if error.says_too_long() => {
            for piece in render::pieces(text) {
                run(tool, &arguments, &piece).await?;
            }
            Ok(())
        }
        outcome => outcome.map(drop),
    }
}
