//! Logs: for people on a terminal, JSON on request. Written to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A line for people, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Installs the process's subscriber. `directives` is a filter such as `info,viaduct::dns=debug`.
///
/// # Errors
///
/// A filter that does not parse, by its own words. Installing twice is an error too.
pub fn init(
    format: Format,
    directives: &str,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // The Kubernetes client prints whole answers that it cannot read; what follows from them, `sources::kube` says.
    let filter = EnvFilter::try_new(directives)?
        .add_directive("kube_client=off".parse()?)
        .add_directive("kube_runtime=off".parse()?);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A reader that is gone (`viaduct run 2>&1 | head`) must not end a task: the complaint about a lost line would
        // go to standard error too, and panic there.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match format {
        Format::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    }
}
