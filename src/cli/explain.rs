//! `viaduct explain`: why traffic goes where it goes, as the running process decides it.
//!
//! Asks and prints; the explanation is made by `RoutingTable::explain`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::admin::TableView;
use crate::config::default_admin_socket;
use crate::dns::ExplainedName;
use crate::routing::{
    ExplainedFlow, ExplainedFrontend, ExplainedPort, Explanation, Outcome, Standing, Target,
};

use super::ask::{ask, escape, pretty};
use super::get::align;
use super::print;

/// How many backends a line names; the table of endpoints has them all.
const NAMED: usize = 3;

#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub(super) struct Explain {
    /// NAMESPACE/NAME, NAMESPACE/NAME:PORT, IP:PORT, or a DNS name
    target: About,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Admin socket of the viaduct to ask
    #[arg(long, value_name = "PATH", env = "VIADUCT_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
}

const EXIT_STATUS: &str = "Exit status: 0 served, 1 not served or not known, 2 usage error. \
    A DNS name counts as served if it has a record of any type, or if other resolvers decide. \
    A Service is served if each of its ports serves all callers at one of its addresses at least; an address, if it serves all callers.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

// What may be explained.
#[derive(Clone, Debug)]
enum About {
    Traffic(Target),
    Name(String),
}

impl FromStr for About {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(target) => Ok(Self::Traffic(target)),
            Err(_) if text.contains('.') && !text.contains(['/', ':']) => {
                Ok(Self::Name(text.to_owned()))
            }
            Err(invalid) => Err(format!("{invalid}, nor a DNS name with a dot in it")),
        }
    }
}

impl Explain {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let socket = self.admin_socket.unwrap_or_else(default_admin_socket);
        let (resource, target) = match &self.target {
            About::Traffic(target) => ("explain", target.to_string()),
            About::Name(name) => ("names", name.clone()),
        };
        let url = format!("/v1/{resource}?target={}", escape(&target));
        let answer = ask(&socket, &url).await?;
        let (served, words) = match &self.target {
            About::Traffic(_) => {
                let explanation: Explanation =
                    serde_json::from_slice(&answer).context("reading the answer")?;
                (explanation.served, text(&explanation))
            }
            About::Name(_) => {
                let explained: ExplainedName =
                    serde_json::from_slice(&answer).context("reading the answer")?;
                (explained.answered, about_name(&explained))
            }
        };
        print(&match self.output {
            Output::Text => words,
            Output::Json => pretty(&answer)?,
        })?;
        Ok(if served {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn about_name(explained: &ExplainedName) -> String {
    let by = match &*explained.zone {
        "cluster" => "is answered from the cluster's objects",
        "reverse" => "is the reverse name of an address of the cluster",
        _ => "is asked of other resolvers",
    };
    let mut text = format!("{} {by}\n", explained.name);
    for reason in &explained.because {
        text.push_str(&format!("* {reason}\n"));
    }
    for answer in &explained.answers {
        text.push_str(&format!("{:<6} {}\n", answer.kind, answer.says.join(", ")));
    }
    text
}

fn text(explanation: &Explanation) -> String {
    let served = if explanation.served {
        "is served"
    } else {
        "is not served"
    };
    let mut text = format!("{} {served}\n", explanation.target);
    for remark in &explanation.remarks {
        text.push_str(&format!("* {remark}\n"));
    }
    for port in &explanation.service_ports {
        text.push('\n');
        text.push_str(&about_port(port));
    }
    text
}

fn about_port(port: &ExplainedPort) -> String {
    let affinity = port.affinity_seconds;
    let affinity = affinity.map(|seconds| format!(", a client stays for {seconds} s"));
    let mut text = format!(
        "{}  {}/{} over {}, {}{}\n",
        port.service_port,
        port.port,
        port.protocol,
        port.family,
        port.algorithm,
        affinity.unwrap_or_default()
    );
    let remarks = port.remarks.iter().cloned();
    let remarks = remarks.chain(about_callers(port));
    for remark in remarks.chain(about_connections(port)) {
        text.push_str(&format!("* {remark}\n"));
    }
    if !port.frontends.is_empty() {
        text.push_str(&align(&flows(port), true));
    }
    if !port.endpoints.is_empty() {
        text.push('\n');
        text.push_str(&align(&endpoints(port), true));
    }
    text
}

fn about_callers(port: &ExplainedPort) -> impl Iterator<Item = String> {
    let guarded = port
        .frontends
        .iter()
        .filter(|f| !f.source_ranges.is_empty());
    guarded.map(|frontend| {
        format!(
            "{} answers callers in {} alone",
            frontend.address,
            frontend.source_ranges.join(", ")
        )
    })
}

fn about_connections(port: &ExplainedPort) -> impl Iterator<Item = String> {
    let bound = port.connections.and_then(|c| Some((c, c.max?)));
    let bound = bound.map(|(connections, max)| {
        format!(
            "the Service has {} of {max} connections, refused so far: {}",
            connections.active, connections.refused_total
        )
    });
    let header = port.proxy_protocol.as_ref().map(|version| {
        format!("backends are told the client's address by the PROXY protocol {version}")
    });
    bound.into_iter().chain(header)
}

fn flows(port: &ExplainedPort) -> TableView {
    let columns = [
        "ADDRESS", "KIND", "FROM", "POLICY", "TRAFFIC", "BACKENDS", "WHY",
    ];
    let rows = port.frontends.iter().flat_map(|frontend| {
        let flows = frontend.flows.iter();
        flows.map(move |flow| flow_row(frontend, flow))
    });
    view(&columns, rows.collect())
}

fn flow_row(frontend: &ExplainedFrontend, flow: &ExplainedFlow) -> Vec<String> {
    let named: Vec<String> = flow
        .backends
        .iter()
        .take(NAMED)
        .map(ToString::to_string)
        .collect();
    let backends = match flow.backends.len() {
        0 => "-".to_owned(),
        n if n <= NAMED => named.join(","),
        n => format!("{} + {} more", named.join(","), n - NAMED),
    };
    let own_port = format!(":{}", frontend.served_port);
    let moved = if frontend.address.ends_with(&own_port) {
        String::new()
    } else {
        format!("→{}", frontend.served_port)
    };
    let traffic = match flow.outcome {
        Outcome::Served => "served",
        Outcome::Refused => "refused",
        Outcome::Silent => "no answer",
    };
    vec![
        format!("{}{moved}", frontend.address),
        frontend.kind.clone(),
        flow.from.clone(),
        flow.policy.clone(),
        traffic.to_owned(),
        backends,
        flow.why.clone(),
    ]
}

fn endpoints(port: &ExplainedPort) -> TableView {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "<none>".to_owned());
    let rows = port.endpoints.iter().map(|endpoint| {
        vec![
            endpoint.address.to_string(),
            or_none(&endpoint.pod),
            or_none(&endpoint.node),
            standing(endpoint.cluster).to_owned(),
            standing(endpoint.local).to_owned(),
        ]
    });
    let columns = ["ENDPOINT", "POD", "NODE", "POLICY CLUSTER", "POLICY LOCAL"];
    view(&columns, rows.collect())
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Ready => "kept: ready",
        Standing::Fallback => "kept: terminating, still serves",
        Standing::NotReady => "left out: not ready",
        Standing::NotServing => "left out: terminating, serves no more",
        Standing::Terminating => "left out: terminating, others are ready",
        Standing::OtherNode => "left out: not on this node",
        Standing::OtherHint => "left out: hinted elsewhere",
        Standing::Duplicate => "left out: its address is there twice",
    }
}

fn view(columns: &[&str], rows: Vec<Vec<String>>) -> TableView {
    TableView {
        columns: columns.iter().map(|column| (*column).to_owned()).collect(),
        rows,
    }
}
