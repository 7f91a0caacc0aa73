//! One table in the kernel: what was applied last, the way from there to what is wanted, and whether it is still so.

use std::net::IpAddr;

use tracing::{debug, warn};

use crate::capture::CaptureError;
use crate::capture::plan::{Rules, Silence};
use crate::capture::tool::run;
use crate::model::{Family, Frontend, Protocol};

use super::listing::{Listing, parse_listing};
use super::render::{Change, Elements, Layout, Table};
use super::shortcut::Shortcut;

const NFT: &str = "nft";

/// What a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture) enum Purpose {
    /// Leads traffic elsewhere by NAT.
    Translate,
    /// Leads it to transparent sockets as it is.
    Divert,
}

impl Purpose {
    /// Its table where nothing is known about the node.
    pub(super) fn table(self, family: Family) -> Table {
        self.landing_at(family, None)
    }

    fn landing_at(self, family: Family, landing: Option<IpAddr>) -> Table {
        let layout = match self {
            Self::Translate => Layout::Translate { landing },
            Self::Divert => Layout::Divert,
        };
        Table { family, layout }
    }
}

/// A table of ours. Owns what it believes to be in the kernel.
pub(in crate::capture) struct Loaded {
    family: Family,
    purpose: Purpose,
    /// What the kernel holds; `None` while that is not known.
    applied: Option<Applied>,
    shortcut: Shortcut,
}

struct Applied {
    table: Table,
    rules: Rules,
    skeleton: String,
    elements: Comparison,
}

/// Whether this `nft` lists elements as they are written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    /// It has not been asked yet: 20,000 take it longer to list than to load.
    Untried,
    /// It does, so they can be compared.
    Possible,
    /// It has a way of its own.
    Impossible,
}

impl Loaded {
    pub(in crate::capture) fn new(family: Family, purpose: Purpose) -> Self {
        Self {
            family,
            purpose,
            applied: None,
            shortcut: Shortcut::default(),
        }
    }

    /// Whether the kernel is known to hold what was applied last.
    pub(in crate::capture) fn is_known(&self) -> bool {
        self.applied.is_some()
    }

    /// Makes the table do what `rules` ask for, by as few elements as that takes.
    pub(in crate::capture) async fn change(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        let before = self.applied.as_ref().map(|applied| applied.table.layout);
        let landed = before.and_then(Layout::landing);
        let table = self.purpose.landing_at(self.family, rules.landing(landed));
        if let Some(applied) = &mut self.applied
            && applied.table == table
        {
            let outcome = match table.plan_change(&applied.rules, rules) {
                Some(change) => carry_out(&change, &mut self.shortcut).await,
                None => Ok(()),
            };
            match outcome {
                Ok(()) => {
                    applied.rules.clone_from(rules);
                    return Ok(());
                }
                Err(error) => {
                    warn!(family = %self.family, %error, "the table is not as it was left; it is replaced");
                }
            }
        }
        self.replace(table, rules.clone(), Look::Brief).await
    }

    /// Gives no answer to new connections at these from now on, until [`Self::change`]; everything else stays. Without a
    /// known table it does nothing.
    pub(in crate::capture) async fn silence(
        &mut self,
        frontends: impl Iterator<Item = &Frontend>,
    ) -> Result<(), CaptureError> {
        let Some(applied) = &mut self.applied else {
            return Ok(());
        };
        let mut rules = applied.rules.clone();
        let connections = frontends.filter(|frontend| frontend.protocol == Protocol::Tcp);
        rules
            .silent
            .extend(connections.map(|frontend| (*frontend, Silence::Everyone)));
        if let Some(change) = applied.table.plan_change(&applied.rules, &rules) {
            carry_out(&change, &mut self.shortcut).await?;
        }
        applied.rules = rules;
        Ok(())
    }

    /// Restores the table in one transaction if it is not as it was left. True if it was not.
    pub(in crate::capture) async fn reassert(&mut self) -> Result<bool, CaptureError> {
        let Some(applied) = &mut self.applied else {
            return Ok(false);
        };
        match list(applied.table, Look::Thorough).await {
            Ok(listing) if applied.is_listed(&listing) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.says_absent() => {}
            Err(error) => return Err(error),
        }
        let (table, rules) = (applied.table, applied.rules.clone());
        self.replace(table, rules, Look::Thorough).await?;
        Ok(true)
    }

    /// Removes the table.
    pub(in crate::capture) async fn release(&mut self) -> Result<(), CaptureError> {
        self.applied = None;
        remove(self.purpose.table(self.family)).await
    }

    async fn replace(
        &mut self,
        table: Table,
        rules: Rules,
        look: Look,
    ) -> Result<(), CaptureError> {
        self.applied = None;
        let elements = table.plan_elements(&rules);
        match load(&table.render_replacement(&elements)).await {
            Err(error) if error.says_too_long() => {
                for piece in table.render_pieces(&elements) {
                    load(&piece).await?;
                }
            }
            outcome => outcome?,
        }
        let listing = list(table, look).await?;
        let comparison = match look {
            Look::Brief => Comparison::Untried,
            Look::Thorough if same_elements(&elements, &listing) => Comparison::Possible,
            Look::Thorough => {
                warn!(family = %self.family, "this nft lists elements in its own way; only whole rules are watched");
                Comparison::Impossible
            }
        };
        self.applied = Some(Applied {
            table,
            rules,
            skeleton: listing.skeleton,
            elements: comparison,
        });
        Ok(())
    }
}

impl Applied {
    fn is_listed(&mut self, listing: &Listing) -> bool {
        let has_elements = || same_elements(&self.table.plan_elements(&self.rules), listing);
        if self.skeleton != listing.skeleton {
            return false;
        }
        match self.elements {
            Comparison::Impossible => true,
            Comparison::Untried | Comparison::Possible if has_elements() => {
                self.elements = Comparison::Possible;
                true
            }
            Comparison::Untried | Comparison::Possible => false,
        }
    }
}

fn same_elements(expected: &Elements, listing: &Listing) -> bool {
    let expected = expected.iter().filter(|(_, all)| !all.is_empty());
    let expected = expected.map(|(set, all)| (*set, all));
    let listed = listing.elements.iter();
    expected.eq(listed.map(|(set, all)| (set.as_str(), all)))
}

/// Checks that a table like that loads.
pub(super) async fn probe(table: Table) -> Result<(), CaptureError> {
    load(&table.render_probe()).await
}

/// Removes a table, if it is there.
pub(super) async fn remove(table: Table) -> Result<(), CaptureError> {
    match load(&table.render_removal()).await {
        Err(error) if error.says_impossible() => Ok(()),
        outcome => outcome,
    }
}

async fn carry_out(change: &Change, shortcut: &mut Shortcut) -> Result<(), CaptureError> {
    if let Some(edits) = change.edits() {
        match shortcut.commit(change.table, edits).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                let family = change.table.family;
                debug!(%family, %error, "the kernel refuses elements from us; nft is asked to change them");
            }
        }
    }
    load(&change.render()).await
}

async fn load(text: &str) -> Result<(), CaptureError> {
    run(NFT, &["-f", "-"], text).await.map(drop)
}

/// How a table is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Without its elements, where `nft` can leave them out (0.9.2).
    Brief,
    /// All of it.
    Thorough,
}

async fn list(table: Table, look: Look) -> Result<Listing, CaptureError> {
    let listing = table.listing_arguments();
    let text = match look {
        Look::Thorough => None,
        Look::Brief => {
            let brief: Vec<&str> = ["-t"].into_iter().chain(listing).collect();
            // Who knows no such option is asked for everything.
            run(NFT, &brief, "").await.ok()
        }
    };
    let text = match text {
        Some(text) => text,
        None => run(NFT, &listing, "").await?,
    };
    Ok(parse_listing(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied() -> Applied {
        Applied {
            table: Purpose::Translate.table(Family::V4),
            rules: Rules {
                node_addresses: ["192.0.2.1".parse().unwrap()].into(),
                ..Rules::none(Family::V4)
            },
            skeleton: "table ip viaduct { }".to_owned(),
            elements: Comparison::Untried,
        }
    }

    fn listing(elements: &str) -> Listing {
        let set = format!("set node_addresses {{\n elements = {{ {elements} }} }}");
        let skeleton = "table ip viaduct { }".to_owned();
        let elements = parse_listing(&set).elements;
        Listing { skeleton, elements }
    }

    #[test]
    fn elements_are_compared_from_the_first_look_on() {
        let mut applied = applied();
        assert!(!applied.is_listed(&listing("192.0.2.2")));
        assert_eq!(applied.elements, Comparison::Untried);
        assert!(applied.is_listed(&listing("192.0.2.1")));
        assert_eq!(applied.elements, Comparison::Possible);
        assert!(!applied.is_listed(&listing("192.0.2.2")));
    }

    #[test]
    fn where_elements_cannot_be_compared_the_rules_are() {
        let mut applied = applied();
        applied.elements = Comparison::Impossible;
        let other = listing("192.0.2.1-192.0.2.1");
        assert!(applied.is_listed(&other));
        let skeleton = "table ip viaduct { flags dormant; }".to_owned();
        assert!(!applied.is_listed(&Listing { skeleton, ..other }));
    }
}
