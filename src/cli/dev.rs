//! `viaduct dev`: a local cluster from a directory of manifests, without root.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::admin::{Resource, Selection};
use crate::app::App;
use crate::config::{Config, FileChanges, Given, Profile, Settings};

use super::get::align;
use super::run::{Ended, Following, catch_signals, stop};
use super::try_commands::{Tools, try_commands};

/// How long the first state may take before the table is printed as far as it is.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Dev {
    /// Directory of manifests; its files are followed while it runs
    #[arg(conflicts_with = "manifests", required_unless_present = "manifests")]
    directory: Option<PathBuf>,
    /// Configuration file; flags and environment win over it
    #[arg(long, value_name = "FILE", env = "VIADUCT_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Dev {
    pub(super) async fn run(self) -> anyhow::Result<Ended> {
        let given = Given {
            file: self.config,
            settings: Settings {
                manifests: self.directory.or(self.settings.manifests),
                ..self.settings
            },
            ..Given::default()
        };
        let changes = FileChanges::of(given.file.clone());
        let config = Config::resolve(given.read()?.settings, Profile::Dev)?;
        let (shutdown, reloads) = catch_signals()?;
        let domain = config.dns.domains.first().cloned().unwrap_or_default();
        let mut app = App::build(config.clone()).await?;
        let readiness = app.readiness().clone();
        tokio::select! {
            _ = tokio::time::timeout(PATIENCE, readiness.ready()) => {}
            error = app.failed() => return stop(app, &shutdown).await.and(Err(error)),
            () = shutdown.begun().cancelled() => return stop(app, &shutdown).await.map(|()| Ended::Done),
        }
        let greeting = greeting(&app, &domain);
        // One write and a flush, so that who reads a pipe sees all of it at once.
        let mut out = std::io::stdout().lock();
        let written = out
            .write_all(greeting.as_bytes())
            .and_then(|()| out.flush());
        drop(out);
        if let Err(error) = written {
            let error = anyhow::Error::new(error).context("writing to standard output");
            return stop(app, &shutdown).await.and(Err(error));
        }
        let follow = Following {
            given,
            profile: Profile::Dev,
            config,
            changes,
            reloads,
        };
        follow.serve(app, &shutdown).await
    }
}

fn greeting(app: &App, domain: &str) -> String {
    let snapshot = app.sources().snapshot();
    let table = snapshot.table(Resource::Services, &Selection::default());
    let mut text = align(&table, true);
    let addresses = app.addresses();
    let join = |list: Vec<String>| {
        if list.is_empty() {
            "off".to_owned()
        } else {
            list.join(", ")
        }
    };
    text.push_str(&format!(
        "\nDNS     {}\n",
        join(addresses.dns.iter().map(ToString::to_string).collect())
    ));
    text.push_str(&format!(
        "Health  {}\n",
        join(
            addresses
                .healthz
                .iter()
                .map(|at| format!("http://{at}/healthz"))
                .collect()
        )
    ));
    text.push_str(&format!(
        "Metrics {}\n",
        join(
            addresses
                .metrics
                .iter()
                .map(|at| format!("http://{at}/metrics"))
                .collect()
        )
    ));
    let commands = try_commands(
        &snapshot,
        addresses.dns.first().map(|server| (*server, domain)),
        &Tools::found(),
    );
    if !commands.is_empty() {
        text.push_str("\nTry:\n");
    }
    for command in commands {
        text.push_str(&format!("  {command}\n"));
    }
    text.push_str("\nFiles are followed as they change. Ctrl-C ends it.\n");
    text
}
