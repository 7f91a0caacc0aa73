//! The command line: one file per subcommand. The only place that prints.

#![allow(clippy::print_stdout, reason = "subcommands talk to their user")]

mod ask;
mod check;
mod cleanup;
mod completion;
mod dev;
mod doctor;
mod echo;
mod explain;
mod fault;
mod get;
mod load;
mod man;
mod resolvers;
mod run;
mod try_commands;
mod watch;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};

use tracing::{info, warn};

use crate::config::ConfigError;
use crate::net::heap;
use crate::privileges;
use crate::telemetry::{self, Format};

use run::Ended;

/// A userspace L4 proxy for Kubernetes Services.
///
/// Opens a listener per service port, leads the traffic of virtual addresses to it, balances over ready backends and
/// answers the Services' DNS names. With manifests instead of an API server it is its own control plane.
#[derive(Debug, Parser)]
#[command(name = "viaduct", version, about, after_help = EXIT_STATUS)]
pub struct Cli {
    /// Log filter, as in RUST_LOG: `warn`, `info,viaduct::dns=debug`
    #[arg(long, global = true, value_name = "FILTER", env = "VIADUCT_LOG")]
    log: Option<String>,
    /// Log lines for people or as JSON
    #[arg(long, global = true, value_enum, env = "VIADUCT_LOG_FORMAT", default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str =
    "Exit status: 0 done, 1 failed at run time, 2 usage or configuration error.";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the Services of a manifest directory on this node
    Run(run::Run),
    /// Run a local cluster from a directory of manifests, without root
    Dev(dev::Dev),
    /// Show what a running viaduct knows
    Get(get::Get),
    /// Say why traffic to a Service or an address goes where it goes
    Explain(explain::Explain),
    /// Say what this machine lets viaduct do, and what to do about the rest
    Doctor(doctor::Doctor),
    /// Break something on purpose: delays, resets, losses
    Fault(fault::Fault),
    /// Validate manifests as an API server would, without running
    Check(check::Check),
    /// Send load to a Service or an address and report what came of it
    Load(Box<load::Load>),
    /// Answer as a simulated backend
    Echo(echo::Echo),
    /// Print the completion script of a shell
    Completion(completion::Completion),
    /// Print the manual page
    Man(man::Man),
    /// Remove every rule that viaduct owns
    Cleanup(cleanup::Cleanup),
}

/// Runs the program as the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let default_filter = match &cli.command {
        Command::Dev(_)
        | Command::Doctor(_)
        | Command::Check(_)
        | Command::Load(_)
        | Command::Fault(_)
        | Command::Echo(_)
        | Command::Completion(_)
        | Command::Man(_) => "warn",
        Command::Run(run) => run.log_filter(),
        Command::Get(_) | Command::Explain(_) | Command::Cleanup(_) => "info",
    };
    let format = match cli.log_format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    };
    if let Err(error) = telemetry::init(format, cli.log.as_deref().unwrap_or(default_filter)) {
        eprintln!("error: --log: {error}");
        return ExitCode::from(2);
    }
    // Before there is a second thread.
    heap::share_one();
    if let Command::Run(_) = cli.command {
        match privileges::restrict() {
            Ok(kept) => info!(?kept, "capabilities"),
            Err(error) => warn!(%error, "this process may do more than it needs to"),
        }
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("viaduct-control")
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = |()| Some(ExitCode::SUCCESS);
    let ended = |ended| match ended {
        Ended::Done => Some(ExitCode::SUCCESS),
        Ended::ToRestart => None,
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Run(command) => command.run().await.map(ended),
            Command::Dev(command) => command.run().await.map(ended),
            Command::Get(command) => command.run().await.map(done),
            Command::Doctor(command) => command.run().await.map(Some),
            Command::Explain(command) => command.run().await.map(Some),
            Command::Fault(command) => command.run().await.map(done),
            Command::Check(command) => command.run().map(Some),
            Command::Load(command) => command.run().await.map(Some),
            Command::Echo(command) => command.run().await.map(done),
            Command::Completion(command) => command.run().map(done),
            Command::Man(command) => command.run().map(done),
            Command::Cleanup(command) => command.run().await.map(done),
        }
    });
    // Blocking calls that still hang (a resolver, a full pipe) must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(Some(status)) => status,
        Ok(None) => restart(),
        Err(error) => {
            eprintln!("error: {}", in_one_line(&error));
            ExitCode::from(if error.is::<ConfigError>() { 2 } else { 1 })
        }
    }
}

// Runs the same program with the same arguments in this process's place: its id, and so its supervisor, stay.
fn restart() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "viaduct".into());
    let error = std::process::Command::new("/proc/self/exe")
        .arg0(name)
        .args(arguments)
        .exec();
    eprintln!("error: restarting: {error}");
    ExitCode::FAILURE
}

/// Prints to standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing to standard output"),
    }
}

// The whole chain of causes; many messages say their cause already.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let plain: anyhow::Result<()> = Err(anyhow!("no such file")).context("reading x");
        assert_eq!(in_one_line(&plain.unwrap_err()), "reading x: no such file");
        let doubled: anyhow::Result<()> =
            Err(anyhow!("in use")).context("--flag 1: in use; stop it");
        assert_eq!(
            in_one_line(&doubled.unwrap_err()),
            "--flag 1: in use; stop it"
        );
    }
}
