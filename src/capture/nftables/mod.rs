//! Capture by nf_tables: one table of our own per family, driven by the `nft` tool.
//!
//! `render` says what the table contains, `listing` reads it back; here they are run and the state that was applied
//! is remembered. No other table is ever named.

mod listing;
mod render;

use std::net::IpAddr;

use async_trait::async_trait;
use tracing::warn;

use crate::model::Family;

use super::plan::{Arrival, Rules};
use super::stale_flows::{Before, StaleFlows, forget};
use super::tool::run;
use super::{Capture, CaptureError, Mode};

use listing::{Listing, parse_listing};
use render::Elements;

const NFT: &str = "nft";

/// One family's table. Owns what it believes to be in the kernel.
pub(super) struct Nftables {
    family: Family,
    /// What the kernel holds; `None` while that is not known.
    applied: Option<Applied>,
    /// What has been captured so far, for the flows that may have to be forgotten.
    captured: Rules,
}

struct Applied {
    landing: Option<IpAddr>,
    elements: Elements,
    skeleton: String,
    /// This `nft` lists elements as they are written here, so that they can be compared.
    comparable: bool,
}

impl Nftables {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            applied: None,
            captured: Rules::none(family),
        }
    }

    async fn change(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        let elements = render::plan_elements(rules);
        let landed = self.applied.as_ref().and_then(|applied| applied.landing);
        let landing = rules.landing(landed);
        if let Some(applied) = &mut self.applied
            && applied.landing == landing
        {
            let change = render::render_change(self.family, &applied.elements, &elements);
            let outcome = match change {
                Some(change) => load(&change).await,
                None => Ok(()),
            };
            match outcome {
                Ok(()) => {
                    applied.elements = elements;
                    return Ok(());
                }
                Err(error) => {
                    warn!(family = %self.family, %error, "the table is not as it was left; it is replaced");
                }
            }
        }
        self.replace(landing, elements).await
    }

    async fn replace(
        &mut self,
        landing: Option<IpAddr>,
        elements: Elements,
    ) -> Result<(), CaptureError> {
        self.applied = None;
        match load(&render::render_replacement(self.family, landing, &elements)).await {
            Err(error) if error.says_too_long() => {
                for piece in render::render_pieces(self.family, landing, &elements) {
                    load(&piece).await?;
                }
            }
            outcome => outcome?,
        }
        let listing = list(self.family).await?;
        let comparable = same_elements(&elements, &listing);
        if !comparable {
            warn!(family = %self.family, "this nft lists elements in its own way; only whole rules are watched");
        }
        self.applied = Some(Applied {
            landing,
            elements,
            skeleton: listing.skeleton,
            comparable,
        });
        Ok(())
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
        let state = if self.applied.is_some() {
            Before::Known
        } else {
            Before::Unknown
        };
        let stale = StaleFlows::between(&self.captured, rules, state);
        forget(self.family, stale.clone().uncaptured(&self.captured)).await;
        self.change(rules).await?;
        forget(self.family, stale).await;
        self.captured = rules.clone();
        Ok(())
    }

    async fn reassert(&mut self) -> Result<bool, CaptureError> {
        let Some(applied) = &self.applied else {
            return Ok(false);
        };
        match list(self.family).await {
            Ok(listing) if applied.is_listed(&listing) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.says_absent() => {}
            Err(error) => return Err(error),
        }
        let (landing, elements) = (applied.landing, applied.elements.clone());
        self.replace(landing, elements).await?;
        // Datagrams that passed uncaptured have made flows that would go on passing.
        let stale = StaleFlows::between(&self.captured, &self.captured, Before::Unknown);
        forget(self.family, stale).await;
        Ok(true)
    }

    async fn release(&mut self) -> Result<(), CaptureError> {
        self.applied = None;
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

impl Applied {
    fn is_listed(&self, listing: &Listing) -> bool {
        let elements = !self.comparable || same_elements(&self.elements, listing);
        self.skeleton == listing.skeleton && elements
    }
}

fn same_elements(expected: &Elements, listing: &Listing) -> bool {
    let expected = expected.iter().filter(|(_, all)| !all.is_empty());
    let expected = expected.map(|(set, all)| (*set, all));
    let listed = listing.elements.iter();
    expected.eq(listed.map(|(set, all)| (set.as_str(), all)))
}

/// Checks that a table like ours loads.
pub(super) async fn probe(family: Family) -> Result<(), CaptureError> {
    load(&render::render_probe(family)).await
}

/// Removes our table of that family, if it is there.
pub(super) async fn remove(family: Family) -> Result<(), CaptureError> {
    match load(&render::render_removal(family)).await {
        Err(error) if error.says_impossible() => Ok(()),
        outcome => outcome,
    }
}

async fn load(text: &str) -> Result<(), CaptureError> {
    run(NFT, &["-f", "-"], text).await.map(drop)
}

async fn list(family: Family) -> Result<Listing, CaptureError> {
    let text = run(NFT, &render::listing_arguments(family), "").await?;
    Ok(parse_listing(&text))
}
