//! The variants of the iptables tools: over nf_tables, or over the kernel's older tables (legacy). Which are here, and
//! which of them works.
//!
//! Each sees its own rules only, so one is used throughout, and what the other may have left is removed by the other.

use std::fs;
use std::io;

use crate::capture::CaptureError;
use crate::capture::tool::run;
use crate::model::Family;

use super::RESTORE;
use super::render::{Table, render_probe, render_probe_removal};

/// One set of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// What the system calls `iptables`, whichever it is.
    Preferred,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

impl Variant {
    /// Those that may be here, the one that the system prefers first. The second is what the first is not.
    pub(super) async fn candidates(family: Family) -> [Self; 2] {
        match Self::Preferred.version(family).await {
            Ok(version) => Self::beside(&version),
            Err(_missing) => [Self::Nft, Self::Legacy],
        }
    }

    // Before 1.8 there was nothing but the older tables, and no word about them.
    fn beside(version: &str) -> [Self; 2] {
        if version.contains("nf_tables") {
            [Self::Preferred, Self::Legacy]
        } else {
            [Self::Preferred, Self::Nft]
        }
    }

    /// The first that rules like ours load with.
    ///
    /// # Errors
    /// None: why not the one that the system prefers, or that is there at all.
    pub(super) async fn find(family: Family) -> Result<Self, CaptureError> {
        let mut refusal = None;
        for variant in Self::candidates(family).await {
            match (variant.try_out(family).await, &refusal) {
                (Ok(()), _) => return Ok(variant),
                (Err(error), None | Some(CaptureError::ToolMissing { .. })) => {
                    refusal = Some(error)
                }
                (Err(_), Some(_)) => {}
            }
        }
        Err(refusal.unwrap_or(CaptureError::ToolMissing {
            tool: Self::Preferred.restore(family),
        }))
    }

    // In every table that we use, each by itself, so that the one that is refused can be named.
    async fn try_out(self, family: Family) -> Result<(), CaptureError> {
        let tool = self.restore(family);
        for table in Table::ALL {
            let loaded = run(tool, &RESTORE, &render_probe(table, family)).await;
            let removed = run(tool, &RESTORE, &render_probe_removal(table)).await;
            let tried = loaded.and(removed);
            tried.map_err(|error| error.about(format_args!("table {}", table.as_str())))?;
        }
        Ok(())
    }

    /// What the tools say that they are: `iptables-restore v1.8.9 (nf_tables)`.
    pub(super) async fn version(self, family: Family) -> Result<String, CaptureError> {
        let words = run(self.restore(family), &["--version"], "").await?;
        Ok(words.trim().to_owned())
    }

    /// Whether a table may hold anything. To ask the older tools about a table makes it, and it stays.
    pub(super) fn may_hold(self, family: Family, table: Table) -> bool {
        let names = match family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        match (self, fs::read_to_string(names)) {
            (Self::Legacy, Ok(names)) => names.lines().any(|name| name == table.as_str()),
            (Self::Legacy, Err(error)) => error.kind() != io::ErrorKind::NotFound,
            (Self::Preferred | Self::Nft, _) => true,
        }
    }

    /// The tool that lists.
    pub(super) fn save(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Preferred, Family::V4) => "iptables-save",
            (Self::Preferred, Family::V6) => "ip6tables-save",
            (Self::Nft, Family::V4) => "iptables-nft-save",
            (Self::Nft, Family::V6) => "ip6tables-nft-save",
            (Self::Legacy, Family::V4) => "iptables-legacy-save",
            (Self::Legacy, Family::V6) => "ip6tables-legacy-save",
        }
    }

    /// The tool that writes.
    pub(super) fn restore(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Preferred, Family::V4) => "iptables-restore",
            (Self::Preferred, Family::V6) => "ip6tables-restore",
            (Self::Nft, Family::V4) => "iptables-nft-restore",
            (Self::Nft, Family::V6) => "ip6tables-nft-restore",
            (Self::Legacy, Family::V4) => "iptables-legacy-restore",
            (Self::Legacy, Family::V6) => "ip6tables-legacy-restore",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_candidate_is_what_the_first_is_not() {
        for (version, second) in [
            ("iptables-restore v1.8.9 (nf_tables)", Variant::Legacy),
            ("iptables-restore v1.8.9 (legacy)", Variant::Nft),
            ("iptables-restore v1.6.1", Variant::Nft),
        ] {
            assert_eq!(Variant::beside(version), [Variant::Preferred, second]);
        }
    }
}
