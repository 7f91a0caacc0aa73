//! `viaduct run`: the node proxy.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use tracing::info;

use crate::app::App;
use crate::config::{Config, Profile, Settings};
use crate::shutdown::{Reloads, Shutdown};

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Configuration file; flags and environment win over it
    #[arg(long, value_name = "FILE", env = "VIADUCT_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Run {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let file = self
            .config
            .as_deref()
            .map(Settings::read)
            .transpose()?
            .unwrap_or_default();
        let config = Config::resolve(self.settings.or(file), Profile::Run)?;
        let shutdown = catch_signals()?;
        let mut app = App::build(config).await?;
        tokio::select! {
            () = shutdown.begun().cancelled() => stop(app, &shutdown).await,
            error = app.failed() => stop(app, &shutdown).await.and(Err(error)),
        }
    }
}

/// A shutdown that SIGTERM and SIGINT drive from now on.
pub(super) fn catch_signals() -> anyhow::Result<Shutdown> {
    let shutdown = Shutdown::new();
    // Both live as long as the process; the runtime's end is their end.
    tokio::spawn(shutdown.signal().context("catching signals")?);
    let mut reloads = Reloads::catch().context("catching signals")?;
    tokio::spawn(async move {
        loop {
            reloads.requested().await;
            info!(
                "nothing to reload: manifests are followed as they change, the configuration is read at start"
            );
        }
    });
    Ok(shutdown)
}

/// Ends `app` in order, or at once when a second signal comes.
pub(super) async fn stop(app: App, shutdown: &Shutdown) -> anyhow::Result<()> {
    tokio::select! {
        () = app.stop() => Ok(()),
        () = shutdown.hurried().cancelled() => anyhow::bail!("ended by a second signal before everything was drained"),
    }
}
