//! `viaduct check`: what an API server would say to manifests, without one and without running anything.
//!
//! Prints; what is wrong is found by `reconciler::verify`, the way the running process finds it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::app::control_plane;
use crate::config::{Config, ConfigError, PortRange, Profile, ReadSettings, Settings, Text};
use crate::reconciler::{Remark, verify};
use crate::sources::manifests::{Directory, Finding, Update};

use super::print;

#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub(super) struct Check {
    /// Directory of manifests, or one file
    #[arg(short, long, value_name = "PATH")]
    filename: PathBuf,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Lines)]
    output: Output,
    /// Configuration file; flags and environment win over it
    #[arg(long, value_name = "FILE", env = "VIADUCT_CONFIG")]
    config: Option<PathBuf>,
    /// CIDRs that cluster IPs are allocated from; the first is the primary family [default: 10.96.0.0/16]
    #[arg(
        long,
        value_name = "CIDR",
        env = "VIADUCT_SERVICE_CLUSTER_IP_RANGE",
        value_delimiter = ','
    )]
    service_cluster_ip_range: Option<Vec<Text<IpNet>>>,
    /// Ports that node ports are allocated from [default: 30000-32767]
    #[arg(
        long,
        value_name = "FIRST-LAST",
        env = "VIADUCT_SERVICE_NODE_PORT_RANGE"
    )]
    service_node_port_range: Option<Text<PortRange>>,
}

const EXIT_STATUS: &str =
    "Exit status: 0 no errors (there may be warnings), 1 errors, 2 usage or configuration error.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// `file:line: Kind namespace/name: field: message`, with `warning:` after the place where it is one
    Lines,
    /// An array of {file, line, object, field, reason, message}; the reason of warnings is `Warning`
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Error,
    Warning,
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut manifests = open(&self.filename)?;
        let config = self.config(manifests.path())?;
        let control = control_plane(&config, Vec::new())?;
        let updates = manifests.scan()?;
        let applied = |update: &&Update| matches!(update, Update::Applied(_));
        let n_objects = updates.iter().filter(applied).count();
        let remarks = verify(control, config.node_name, updates, Timestamp::now());
        let findings = in_reading_order(remarks);
        print(&match self.output {
            Output::Lines => findings.iter().map(line).collect(),
            Output::Json => json(&findings)?,
        })?;
        let count = |wanted| findings.iter().filter(|(s, _)| *s == wanted).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        eprintln!(
            "{}: {}, {}, {}",
            self.filename.display(),
            counted(n_objects, "object"),
            counted(errors, "error"),
            counted(warnings, "warning")
        );
        Ok(if errors == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    // The configuration that would serve these manifests.
    fn config(&self, directory: &Path) -> Result<Config, ConfigError> {
        let file = ReadSettings::of(self.config.as_deref())?.settings;
        let given = Settings {
            manifests: Some(directory.to_owned()),
            service_cluster_ip_range: self.service_cluster_ip_range.clone(),
            service_node_port_range: self.service_node_port_range.clone(),
            ..Settings::default()
        };
        let settings = Settings {
            kubeconfig: None,
            master: None,
            ..given.or(file)
        };
        Config::resolve(settings, Profile::Run)
    }
}

fn open(path: &Path) -> Result<Directory, ConfigError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(Directory::new(path.to_owned())),
        Ok(_) => Ok(Directory::of_file(path.to_owned())),
        Err(error) => Err(ConfigError::Value {
            flag: "filename",
            message: format!("{}: {error}", path.display()),
        }),
    }
}

fn in_reading_order(remarks: Vec<Remark>) -> Vec<(Severity, Finding)> {
    let mut findings: Vec<_> = remarks
        .into_iter()
        .filter_map(|remark| match remark {
            Remark::Problem(finding) => Some((Severity::Error, finding)),
            Remark::Warning(finding) => Some((Severity::Warning, finding)),
            // Said of an object without a file; what it was made from has been spoken of. The others tell of an earlier
            // state, and there is none.
            Remark::Derived(..)
            | Remark::Healed(_)
            | Remark::Accepted(_)
            | Remark::Probed { .. } => None,
        })
        .collect();
    findings.sort_by(|(_, a), (_, b)| (&a.file, a.line).cmp(&(&b.file, b.line)));
    findings
}

fn line((severity, finding): &(Severity, Finding)) -> String {
    match severity {
        Severity::Error => format!("{finding}\n"),
        Severity::Warning => {
            let place = format!("{}:{}: ", finding.file.display(), finding.line);
            let shown = finding.to_string();
            format!("{place}warning: {}\n", &shown[place.len()..])
        }
    }
}

fn json(findings: &[(Severity, Finding)]) -> anyhow::Result<String> {
    let findings: Vec<&Finding> = findings.iter().map(|(_, finding)| finding).collect();
    let text = serde_json::to_string_pretty(&findings).context("writing JSON")?;
    Ok(text + "\n")
}

fn counted(n: usize, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}
