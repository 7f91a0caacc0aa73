//! `viaduct run`: the node proxy.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use tracing::{error, info, warn};

use crate::app::App;
use crate::config::{
    Config, ConfigError, FileChanges, Given, KubeProxyFlags, LIVE_KEYS, Profile, Settings,
};
use crate::shutdown::{Reloads, Shutdown};

use super::cleanup::Cleanup;
use super::print;

#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub(super) struct Run {
    /// Configuration file, ours or a KubeProxyConfiguration; flags and environment win over ours, kube-proxy's over them
    #[arg(long, value_name = "FILE", env = "VIADUCT_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    kube_proxy: KubeProxyFlags,
}

/// How a command that serves has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// As it should.
    Done,
    /// To begin again with another configuration.
    ToRestart,
}

impl Run {
    /// The log filter that `-v` asks for. Source: what kube-proxy logs at its levels.
    pub(super) fn log_filter(&self) -> &'static str {
        match self.kube_proxy.v {
            Some(6..) => "trace",
            Some(4..=5) => "debug",
            Some(_) | None => "info",
        }
    }

    pub(super) async fn run(self) -> anyhow::Result<Ended> {
        if self.kube_proxy.cleanup == Some(true) {
            return Cleanup {}.run().await.map(|()| Ended::Done);
        }
        let write_to = self.kube_proxy.write_config_to.clone();
        let init_only = self.kube_proxy.init_only == Some(true);
        let given = Given {
            file: self.config,
            settings: self.settings,
            kube_proxy: self.kube_proxy,
        };
        // Before the file is read, so that no change falls in between.
        let changes = FileChanges::of(given.file.clone());
        let read = given.read()?;
        if let Some(path) = write_to {
            return write_config(&path, read.settings).map(|()| Ended::Done);
        }
        read.warn();
        let config = Config::resolve(read.settings, Profile::Run)?;
        if init_only {
            info!(flag = "init-only", "nothing to prepare");
            return Ok(Ended::Done);
        }
        let (shutdown, reloads) = catch_signals()?;
        let app = App::build(config.clone()).await?;
        let follow = Following {
            given,
            profile: Profile::Run,
            config,
            changes,
            reloads,
        };
        follow.serve(app, &shutdown).await
    }
}

/// A running process, and where its configuration comes from.
pub(super) struct Following {
    pub(super) given: Given,
    pub(super) profile: Profile,
    pub(super) config: Config,
    pub(super) changes: FileChanges,
    pub(super) reloads: Reloads,
}

impl Following {
    /// Serves until the end begins, or until a change of the configuration that needs a new process. Every other change
    /// is taken over; what cannot be read is reported, and the last good state runs on.
    pub(super) async fn serve(
        mut self,
        mut app: App,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Ended> {
        loop {
            tokio::select! {
                () = shutdown.begun().cancelled() => break,
                error = app.failed() => return stop(app, shutdown).await.and(Err(error)),
                () = self.changes.next() => {}
                () = self.reloads.requested() => info!("SIGHUP: reading the configuration again"),
            }
            let config = match self.read_again() {
                Ok(config) => config,
                Err(error) => {
                    error!(%error, "the configuration cannot be used; the last good one runs on");
                    continue;
                }
            };
            if self.take_over(config, &mut app) == Ended::ToRestart {
                stop(app, shutdown).await?;
                let ending = shutdown.begun().is_cancelled();
                return Ok(if ending {
                    Ended::Done
                } else {
                    Ended::ToRestart
                });
            }
        }
        stop(app, shutdown).await.map(|()| Ended::Done)
    }

    fn read_again(&self) -> Result<Config, ConfigError> {
        let read = self.given.read()?;
        read.warn();
        Config::resolve(read.settings, self.profile)
    }

    fn take_over(&mut self, config: Config, app: &mut App) -> Ended {
        let changed = self.config.changed_keys(&config);
        let is_live = |key: &String| LIVE_KEYS.contains(&key.as_str());
        let (live, fixed): (Vec<_>, Vec<_>) = changed.into_iter().partition(is_live);
        if !fixed.is_empty() {
            warn!(keys = ?fixed, "restarting: these keys cannot change while it runs");
            return Ended::ToRestart;
        }
        if live.is_empty() {
            info!("nothing has changed in the configuration");
        } else {
            app.take_over(&config);
            info!(keys = ?live, "configuration taken over");
        }
        self.config = config;
        Ended::Done
    }
}

// Every key as it would hold, in the form that --config takes.
fn write_config(path: &Path, settings: Settings) -> anyhow::Result<()> {
    let settings = settings.or(Settings::defaults(Profile::Run));
    let text = serde_saphyr::to_string(&settings).context("writing the configuration")?;
    if path == Path::new("-") {
        return print(&text);
    }
    std::fs::write(path, text).with_context(|| format!("--write-config-to {}", path.display()))
}

/// A shutdown that SIGTERM and SIGINT drive from now on, and the requests to reload.
pub(super) fn catch_signals() -> anyhow::Result<(Shutdown, Reloads)> {
    let shutdown = Shutdown::new();
    // It lives as long as the process; the runtime's end is its end.
    tokio::spawn(shutdown.signal().context("catching signals")?);
    let reloads = Reloads::catch().context("catching signals")?;
    Ok((shutdown, reloads))
}

/// Ends `app` in order, or at once when a second signal comes.
pub(super) async fn stop(app: App, shutdown: &Shutdown) -> anyhow::Result<()> {
    tokio::select! {
        () = app.stop() => Ok(()),
        () = shutdown.hurried().cancelled() => anyhow::bail!("ended by a second signal before everything was drained"),
    }
}
