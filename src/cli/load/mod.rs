//! `viaduct load`: sends requests to a target, shows how it goes and reports what came of it.

mod print;
mod progress;
mod source;
mod target;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;

use crate::config::{ConfigError, GoDuration, default_admin_socket};
use crate::workload::load::{
    DnsWork, Expectation, HttpWork, LoadError, Origins, Pace, Plan, Progress, Rate, Report,
    TcpWork, Work, run,
};

use super::print as print_out;
use source::SourceText;
use target::{Place, Protocol, TargetText};

/// Connections that a rate may use where the command line does not say.
const MAX_CONNECTIONS: NonZeroUsize = NonZeroUsize::new(1000).expect("a literal above 0");

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Load {
    /// ADDR:PORT, HOST:PORT, a URL (tcp, udp, http, dns) or NAMESPACE/SERVICE[:PORT] of a running viaduct
    target: TargetText,
    /// What a request is [default: from the URL; http for a service port of that name; else the transport of the target]
    #[arg(short, long, value_enum)]
    protocol: Option<Protocol>,

    /// Requests a second, or a ramp over the whole time; sent when due, whatever became of those before [default: 1000]
    #[arg(short, long, value_name = "RATE|FROM..TO")]
    rate: Option<Rate>,
    /// Connections or UDP flows, which take turns [default: as many as the rate needs, up to 1000]; without a rate each sends when it has its answer
    #[arg(short, long, value_name = "N")]
    connections: Option<NonZeroUsize>,
    /// Threads that generate load
    #[arg(long, value_name = "N", default_value = "1")]
    threads: NonZeroUsize,
    /// For how long requests are counted
    #[arg(short, long, value_name = "DURATION", default_value = "10s")]
    duration: GoDuration,
    /// Load before that, not counted
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    warm_up: GoDuration,
    /// How long an answer may take before it is an error
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    timeout: GoDuration,

    /// Bytes of a request: of the line (tcp), the datagram (udp), the body (http, then a POST) [default: 64; http: 0]
    #[arg(long, value_name = "BYTES")]
    request_size: Option<u32>,
    /// Bytes of an answer over tcp, for servers that do not send the line back [default: a line that ends with the request]
    #[arg(long, value_name = "BYTES")]
    response_size: Option<u32>,
    /// A new connection for each request (tcp, http)
    #[arg(long)]
    reconnect: bool,
    /// As many bytes as will go over each connection, both ways (tcp)
    #[arg(long, conflicts_with_all = ["rate", "reconnect", "response_size"])]
    bulk: bool,
    /// Path and query of a request (http) [default: that of the URL, or /]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Name to ask for (dns) [default: that of the URL]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Type of record to ask for (dns)
    #[arg(long = "type", value_name = "TYPE", default_value = "A")]
    record_type: String,
    /// Own addresses that connections come from, each in turn; with ports, one connection each
    #[arg(long, value_name = "ADDR[:PORT[-LAST]]", value_delimiter = ',')]
    source: Vec<SourceText>,

    /// Conditions that make the exit status 1 where they do not hold, as p99<5ms,errors=0
    #[arg(long, value_name = "CONDITION", value_delimiter = ',')]
    expect: Vec<Expectation>,
    /// File for the distribution of the latency, in HdrHistogram's text format
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// How to print the report
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// No progress line
    #[arg(short, long)]
    quiet: bool,
    /// Admin socket of the viaduct to ask for a Service
    #[arg(long, value_name = "PATH", env = "VIADUCT_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Latency counts from when a request was due, so that a server which stalls is charged for those that had to wait.
Requests over tcp are lines, over udp datagrams; an answer must end with the request and may begin with `NAME: `,
the backend's name. Over http the header X-Pod names it. `viaduct echo` and simulated Pods answer so.

Figures for --expect: p50 p90 p99 p99.9 p99.99 max mean (times: 5ms), errors (a number or 0.1%), done, sent, rate.
Exit status: 0 done, 1 an expectation does not hold or nothing was answered, 2 usage error.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Load {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let socket = self
            .admin_socket
            .clone()
            .unwrap_or_else(default_admin_socket);
        let place = self.target.resolve(self.protocol()?, &socket).await?;
        let plan = self.plan(&place)?;
        let stop = CancellationToken::new();
        let interrupt = tokio::spawn(stop_on_interrupt(stop.clone()));
        let progress = Arc::new(Progress::default());
        let shown = (!self.quiet)
            .then(|| tokio::spawn(progress::show(progress.clone(), plan.warm_up + plan.length)));
        let bulk = matches!(plan.work, Work::Bulk { .. });
        let outcome = run(plan, progress, stop).await;
        interrupt.abort();
        if let Some(shown) = shown {
            shown.abort();
            progress::clear();
        }
        let report = outcome.map_err(usage)?;
        if let Some(file) = &self.hgrm {
            write_hgrm(file, &report)?;
        }
        print_out(&match self.output {
            Output::Text => print::text(&self.target.to_string(), &report, bulk),
            Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        })?;
        self.judge(&report, bulk)
    }

    fn protocol(&self) -> anyhow::Result<Option<Protocol>> {
        match (self.target.scheme(), self.protocol) {
            (Some(scheme), Some(flag)) if scheme != flag => {
                let message = format!("the target {} says otherwise", self.target);
                Err(misuse("protocol", message))
            }
            (scheme, flag) => {
                let implied = self.bulk.then_some(Protocol::Tcp);
                Ok(flag.or(scheme).or(implied))
            }
        }
    }

    fn plan(&self, place: &Place) -> anyhow::Result<Plan> {
        let pace = match (self.rate, self.connections) {
            (Some(rate), _) => Pace::Rate(rate),
            (None, Some(_)) => Pace::Answers,
            (None, None) => Pace::Rate("1000".parse()?),
        };
        let origins = self.origins(place)?;
        let connections = self.connections(&origins)?;
        // Whoever says how many, or from where, wants all of them.
        let in_turn = self.connections.map_or(origins.len(), NonZeroUsize::get);
        let length = positive("duration", self.duration)?;
        let patience = positive("timeout", self.timeout)?;
        Ok(Plan {
            work: self.work(place)?,
            pace,
            connections,
            in_turn: in_turn.min(connections.get()),
            threads: self.threads,
            warm_up: self.warm_up.0,
            length,
            patience,
            origins: Origins(origins),
        })
    }

    fn work(&self, place: &Place) -> anyhow::Result<Work> {
        let target = place.addr;
        if self.bulk && place.protocol != Protocol::Tcp {
            return Err(misuse("bulk", "only over tcp"));
        }
        let size = |default: usize| self.request_size.map_or(default, |n| n as usize);
        match place.protocol {
            Protocol::Tcp if self.bulk => Ok(Work::Bulk { target }),
            Protocol::Tcp => Ok(Work::Tcp(TcpWork {
                target,
                request_size: self.size_within(size(64), 1..=16 << 20)?,
                response_size: self.response_size.map(|n| n as usize),
                keep: !self.reconnect,
            })),
            Protocol::Udp => Ok(Work::Udp {
                target,
                size: self.size_within(size(64), 1..=65_507)?,
            }),
            Protocol::Http => Ok(Work::Http(HttpWork {
                target,
                host: place.host.as_str().into(),
                path: self.http_path(place)?.into(),
                body_size: self.size_within(size(0), 0..=16 << 20)?,
                keep: !self.reconnect,
            })),
            Protocol::Dns => {
                let name = self.name.as_deref().or(place.path.as_deref());
                let name = name.ok_or_else(|| misuse("name", "which name is to be asked for?"))?;
                let work = DnsWork::new(target, name, &self.record_type);
                Ok(Work::Dns(work.map_err(|error| {
                    misuse(error.flag(), error.to_string())
                })?))
            }
        }
    }

    fn size_within(
        &self,
        size: usize,
        range: std::ops::RangeInclusive<usize>,
    ) -> anyhow::Result<usize> {
        if range.contains(&size) {
            return Ok(size);
        }
        let (first, last) = range.into_inner();
        Err(misuse(
            "request-size",
            format!("{size} is not from {first} to {last}"),
        ))
    }

    fn http_path(&self, place: &Place) -> anyhow::Result<String> {
        let path = self.path.clone().or_else(|| place.path.clone());
        let path = path.unwrap_or_else(|| "/".to_owned());
        match path.parse::<hyper::Uri>() {
            Ok(_) if path.starts_with('/') => Ok(path),
            Ok(_) => Err(misuse("path", format!("{path:?} does not begin with /"))),
            Err(error) => Err(misuse("path", format!("{path:?}: {error}"))),
        }
    }

    // A port of our own serves one connection.
    fn connections(&self, origins: &[SocketAddr]) -> anyhow::Result<NonZeroUsize> {
        let ports = NonZeroUsize::new(origins.len());
        let ports = ports.filter(|_| origins.iter().any(|origin| origin.port() != 0));
        match (self.connections, ports) {
            (Some(n), Some(ports)) if n > ports => Err(misuse(
                "connections",
                format!("{n} are more than the {ports} ports that --source names; name more"),
            )),
            (Some(n), _) => Ok(n),
            (None, Some(ports)) => Ok(ports),
            (None, None) if self.bulk => Ok(NonZeroUsize::MIN),
            (None, None) => Ok(MAX_CONNECTIONS),
        }
    }

    fn origins(&self, place: &Place) -> anyhow::Result<Vec<SocketAddr>> {
        let all: Vec<SocketAddr> = self.source.iter().flat_map(|s| s.0.clone()).collect();
        let foreign = all
            .iter()
            .find(|origin| origin.is_ipv4() != place.addr.is_ipv4());
        match foreign {
            Some(origin) => Err(misuse(
                "source",
                format!(
                    "{origin} is of another family than the target {}",
                    place.addr
                ),
            )),
            None => Ok(all),
        }
    }

    fn judge(&self, report: &Report, bulk: bool) -> anyhow::Result<ExitCode> {
        let mut status = ExitCode::SUCCESS;
        for expectation in &self.expect {
            if let Err(unmet) = expectation.judge(report) {
                eprintln!("error: --expect {unmet}");
                status = ExitCode::FAILURE;
            }
        }
        let moved = report.bytes_received > 0 || report.bytes_sent > 0;
        let answered = if bulk { moved } else { report.done > 0 };
        if !answered {
            let worst = report.errors.iter().max_by_key(|(_, n)| **n);
            let kind = worst.map_or("the time was too short", |(kind, _)| kind.as_str());
            bail!(
                "{} ({}): not one answer: {kind}; does anything listen there, and speak that protocol (--protocol)?",
                self.target,
                report.target
            );
        }
        Ok(status)
    }
}

fn positive(flag: &'static str, duration: GoDuration) -> anyhow::Result<Duration> {
    match duration.0 {
        Duration::ZERO => Err(misuse(flag, "must be more than 0")),
        length => Ok(length),
    }
}

fn misuse(flag: &'static str, message: impl Into<String>) -> anyhow::Error {
    let message = message.into();
    ConfigError::Value { flag, message }.into()
}

fn usage(error: LoadError) -> anyhow::Error {
    match error {
        LoadError::Descriptors { .. } => misuse("connections", error.to_string()),
        LoadError::Thread(_) => error.into(),
    }
}

fn write_hgrm(file: &Path, report: &Report) -> anyhow::Result<()> {
    std::fs::write(file, &report.hgrm).with_context(|| format!("--hgrm {}", file.display()))
}

// The load ends early and what there is so far is reported.
async fn stop_on_interrupt(stop: CancellationToken) {
    if tokio::signal::ctrl_c().await.is_ok() {
        stop.cancel();
    }
}
