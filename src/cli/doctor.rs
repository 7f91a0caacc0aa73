//! `viaduct doctor`: what this machine lets Viaduct do, each finding with its remedy.
//!
//! Asks the kernel what `run --capture auto` would ask, and looks for another proxy's rules. Where a viaduct with DNS
//! runs, asks the resolvers of this node and of its Pods whether they are that one. Nothing stays changed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::admin::TableView;
use crate::capture::{self, Ladder};
use crate::model::Family;

use crate::config::default_admin_socket;

use super::get::align;
use super::print;
use super::resolvers;

#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub(super) struct Doctor {
    /// Admin socket of the viaduct whose DNS is looked for
    #[arg(long, value_name = "PATH", env = "VIADUCT_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
}

const EXIT_STATUS: &str = "Exit status: 0 some capture mode works in a family at least and nobody else serves Services here, \
    and every Pod that is looked at asks this viaduct if it answers DNS; 1 otherwise, 2 usage error.";

impl Doctor {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let mut findings = Vec::new();
        for family in Family::BOTH {
            for mode in Ladder::auto().rungs() {
                let about = format!("capture {mode}");
                let probed = capture::probe(*mode, family).await;
                findings.push(match probed {
                    Ok(tool) => {
                        let by = tool.map_or_else(String::new, |tool| format!(", by {tool}"));
                        Finding::new(about, family, Severity::Works, format!("works here{by}"))
                    }
                    Err(error) => Finding::new(about, family, Severity::Lacking, error.to_string()),
                });
            }
            for words in capture::conflicts(family).await {
                findings.push(Finding::new(
                    "other proxies",
                    family,
                    Severity::Conflict,
                    words,
                ));
            }
        }
        let captures = is_well(&findings);
        let socket = self.admin_socket.unwrap_or_else(default_admin_socket);
        findings.extend(resolvers::look(&socket).await);
        print(&align(&table(&findings), false))?;
        Ok(if captures && is_well(&findings) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// As it should be.
    Works,
    /// Something is missing that something else can stand in for.
    Lacking,
    /// Somebody else does what viaduct should.
    Conflict,
}

/// One row.
#[derive(Debug)]
pub(super) struct Finding {
    about: String,
    family: Family,
    severity: Severity,
    words: String,
}

impl Finding {
    pub(super) fn new(
        about: impl Into<String>,
        family: Family,
        severity: Severity,
        words: impl Into<String>,
    ) -> Self {
        Self {
            about: about.into(),
            family,
            severity,
            words: words.into(),
        }
    }
}

// A kernel may be without one of the families.
fn is_well(findings: &[Finding]) -> bool {
    let any = |severity| findings.iter().any(|finding| finding.severity == severity);
    any(Severity::Works) && !any(Severity::Conflict)
}

fn table(findings: &[Finding]) -> TableView {
    let row = |finding: &Finding| {
        let word = match finding.severity {
            Severity::Works => "ok",
            Severity::Lacking => "no",
            Severity::Conflict => "conflict",
        };
        let (about, family) = (finding.about.clone(), finding.family.to_string());
        // The namespace, which `align` leaves out.
        vec![
            String::new(),
            about,
            family,
            word.to_owned(),
            finding.words.clone(),
        ]
    };
    TableView {
        columns: [
            "NAMESPACE",
            "ABOUT",
            "FAMILY",
            "FOUND",
            "IN ITS OWN WORDS, AND WHAT TO DO",
        ]
        .map(str::to_owned)
        .into(),
        rows: findings.iter().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rung_is_enough_and_a_conflict_is_too_much() {
        let lacking = Finding::new("capture nftables", Family::V4, Severity::Lacking, "no");
        let works = Finding::new("capture local", Family::V4, Severity::Works, "yes");
        let conflict = Finding::new("other proxies", Family::V4, Severity::Conflict, "rules");
        let mut findings = vec![lacking];
        assert!(!is_well(&findings));
        findings.push(works);
        assert!(is_well(&findings));
        findings.push(conflict);
        assert!(!is_well(&findings));
        let text = align(&table(&findings), false);
        let last: Vec<&str> = text
            .lines()
            .last()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        assert_eq!(last, ["other", "proxies", "IPv4", "conflict", "rules"]);
    }
}
