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

use super::plan::{Arrival, Rules};
use super::stale_flows::{Before, StaleFlows, forget};
use super::tool::run;
use super::{Capture, CaptureError, Mode};

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
}

impl Iptables {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            applied: BTreeMap::new(),
            landing: None,
            captured: Rules::none(family),
        }
    }

    // True if anything had to be changed.
    async fn change(&mut self, table: Table, wanted: Chains) -> Result<bool, CaptureError> {
        if let Some(applied) = self.applied.remove(&table) {
            match render_restore(table, &applied, &wanted) {
                None => {
                    self.applied.insert(table, wanted);
                    return Ok(false);
                }
                Some(text) => match restore(self.family, &text).await {
                    Ok(()) => {
                        self.applied.insert(table, wanted);
                        return Ok(true);
                    }
                    Err(error) => {
                        warn!(family = %self.family, %error, "chains are not as they were left; they are replaced");
                    }
                },
            }
        }
        let changed = replace(self.family, table, &wanted).await?;
        self.applied.insert(table, wanted);
        Ok(changed)
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
        forget(self.family, stale.clone().uncaptured(&self.captured)).await;
        self.change_all(rules).await?;
        forget(self.family, stale).await;
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
            forget(
                self.family,
                StaleFlows::between(&rules, &rules, Before::Unknown),
            )
            .await;
        }
        Ok(restored)
    }

    async fn release(&mut self) -> Result<(), CaptureError> {
        self.applied.clear();
        remove(self.family).await?;
        let nothing = Rules::none(self.family);
        let captured = std::mem::replace(&mut self.captured, nothing.clone());
        forget(
            self.family,
            StaleFlows::between(&captured, &nothing, Before::Known),
        )
        .await;
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

// Whatever is there becomes `wanted`. True if it was not so already.
async fn replace(family: Family, table: Table, wanted: &Chains) -> Result<bool, CaptureError> {
    let there = match saved(family, table).await {
        Ok(there) => there,
        // A table that the kernel does not have holds nothing of ours.
        Err(error) if error.says_impossible() && wanted.chains.is_empty() => return Ok(false),
        Err(error) => return Err(error),
    };
    match render_restore(table, &there, wanted) {
        Some(text) => restore(family, &text).await.map(|()| true),
        None => Ok(false),
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
