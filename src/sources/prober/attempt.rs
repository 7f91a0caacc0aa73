//! One attempt at one probe: within its time, within the bound on how many run at once, and counted.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_rustls::rustls::ClientConfig;

use crate::control::{Handler, Outcome, ProbeKind, ProbeSpec};

use super::metrics::Metrics;
use super::{ExecProbes, connect, exec, grpc, http, tls};

/// Connections of probes at a time. Past it a probe waits for its turn before its timeout begins, and is counted; so
/// targets that let every probe time out can delay the others, by their own timeouts.
const MAX_CONNECTIONS: usize = 512;

/// Commands of probes at a time, with the same rule.
const MAX_COMMANDS: usize = 32;

/// Characters of what a probe met that are kept.
const MAX_TEXT: usize = 200;

/// How one attempt went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Well.
    Success,
    /// Well enough, but somebody may want to know.
    Warning(String),
    /// The container did not answer as it should.
    Failure(String),
    /// The probe could not be run.
    Malfunction(String),
}

impl Attempt {
    /// What it counts as.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Success | Self::Warning(_) => Outcome::Success,
            Self::Failure(_) => Outcome::Failure,
            Self::Malfunction(_) => Outcome::Unknown,
        }
    }

    /// What it met, on one line of bounded length; empty if all was well.
    pub(super) fn into_text(self) -> String {
        let text = match self {
            Self::Success => String::new(),
            Self::Warning(text) | Self::Failure(text) | Self::Malfunction(text) => text,
        };
        let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        printable.take(MAX_TEXT).collect()
    }
}

/// What all attempts share.
#[derive(Debug)]
pub(super) struct Attempts {
    exec: ExecProbes,
    connections: Semaphore,
    commands: Semaphore,
    tls: Arc<ClientConfig>,
    /// What is counted.
    pub(super) metrics: Metrics,
}

impl Attempts {
    /// None has been made yet.
    pub(super) fn new(exec: ExecProbes, metrics: Metrics) -> Self {
        Self {
            exec,
            ..Self::with_bounds(MAX_CONNECTIONS, MAX_COMMANDS, metrics)
        }
    }

    /// With other bounds, and commands allowed.
    pub(super) fn with_bounds(connections: usize, commands: usize, metrics: Metrics) -> Self {
        Self {
            exec: ExecProbes::Allowed,
            connections: Semaphore::new(connections),
            commands: Semaphore::new(commands),
            tls: tls::trusting_everybody(),
            metrics,
        }
    }

    /// Makes one.
    pub(super) async fn run(&self, kind: ProbeKind, spec: &ProbeSpec) -> Attempt {
        let attempt = match self.prepare(&spec.handler) {
            Ok((bound, probe)) => self.bounded(bound, spec.timeout, probe).await,
            Err(reason) => Attempt::Malfunction(reason),
        };
        self.metrics.count(kind, attempt.outcome());
        attempt
    }

    // What is to be done, and whose turn it needs. Boxed, so that a worker that waits is small.
    fn prepare<'a>(
        &'a self,
        handler: &'a Handler,
    ) -> Result<(&'a Semaphore, BoxFuture<'a, Attempt>), String> {
        match handler {
            Handler::HttpGet(get) => {
                let probe = http::probe(get, self.tls.clone());
                Ok((&self.connections, probe.boxed()))
            }
            Handler::TcpSocket { host, port } => {
                let probe = connect::probe(host, *port);
                Ok((&self.connections, probe.boxed()))
            }
            Handler::Grpc { ip, port, service } => {
                let probe = grpc::probe(*ip, *port, service);
                Ok((&self.connections, probe.boxed()))
            }
            Handler::Exec(command) => match self.exec {
                ExecProbes::Allowed => Ok((&self.commands, exec::probe(command).boxed())),
                ExecProbes::Refused => Err("exec probes are switched off".to_owned()),
            },
            Handler::Unusable(reason) => Err(reason.clone()),
        }
    }

    async fn bounded(
        &self,
        bound: &Semaphore,
        timeout: Duration,
        probe: BoxFuture<'_, Attempt>,
    ) -> Attempt {
        let turn = match bound.try_acquire() {
            Ok(turn) => Ok(turn),
            Err(_) => {
                self.metrics.delayed.inc();
                bound.acquire().await
            }
        };
        let _turn = turn.expect("these semaphores are never closed");
        let timed = tokio::time::timeout(timeout, probe).await;
        timed.unwrap_or_else(|_| {
            Attempt::Failure(format!("no answer within {}s", timeout.as_secs()))
        })
    }
}
