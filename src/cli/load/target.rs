//! Where a load goes, as users write it, and the address that it means.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, anyhow};
use clap::ValueEnum;

use crate::cli::ask::{ask, escape};
use crate::model::ServiceName;
use crate::routing::{ExplainedPort, Explanation, Target};

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Http,
    Dns,
}

impl Protocol {
    fn transport(self) -> &'static str {
        match self {
            Self::Tcp | Self::Http => "TCP",
            Self::Udp | Self::Dns => "UDP",
        }
    }

    // Where a URL names no port.
    fn default_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Dns => Some(53),
            Self::Tcp | Self::Udp => None,
        }
    }
}

/// A target as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TargetText {
    text: String,
    form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Service(ServiceName, Option<String>),
    Host {
        scheme: Option<Protocol>,
        // With its port.
        host: String,
        path: Option<String>,
    },
}

/// Where a load goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) addr: SocketAddr,
    pub(super) protocol: Protocol,
    /// For the `Host` header.
    pub(super) host: String,
    /// The path of a URL; of a DNS URL, the name.
    pub(super) path: Option<String>,
}

/// A text that is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidTarget {
    #[error("{0:?} is none of ADDR:PORT, HOST:PORT, NAMESPACE/SERVICE[:PORT] or a URL")]
    Form(String),
    #[error("{0} is no scheme of ours; tcp, udp, http and dns are")]
    Scheme(String),
    #[error("{0}: a port is needed")]
    Port(String),
}

impl FromStr for TargetText {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let form = match text.split_once("://") {
            Some((scheme, rest)) => parse_url(scheme, rest)?,
            None => match text.parse::<Target>() {
                Ok(Target::Service(name, port)) => Form::Service(name, port),
                Ok(Target::Address(_)) => host(text),
                Err(_) if is_host_and_port(text) => host(text),
                Err(_) => return Err(InvalidTarget::Form(text.to_owned())),
            },
        };
        Ok(Self {
            text: text.to_owned(),
            form,
        })
    }
}

fn host(text: &str) -> Form {
    Form::Host {
        scheme: None,
        host: text.to_owned(),
        path: None,
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_name = !host.is_empty() && !host.contains([':', '/', ' ']);
        is_name && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

fn parse_url(scheme: &str, rest: &str) -> Result<Form, InvalidTarget> {
    let protocol =
        Protocol::from_str(scheme, true).map_err(|_| InvalidTarget::Scheme(scheme.to_owned()))?;
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, Some(path)),
        None => (rest, None),
    };
    let has_port = authority.parse::<SocketAddr>().is_ok() || is_host_and_port(authority);
    let host = match (has_port, protocol.default_port()) {
        (true, _) => authority.to_owned(),
        (false, Some(port)) if is_host_and_port(&format!("{authority}:{port}")) => {
            format!("{authority}:{port}")
        }
        (false, Some(port)) if authority.starts_with('[') && authority.ends_with(']') => {
            format!("{authority}:{port}")
        }
        (false, _) => return Err(InvalidTarget::Port(format!("{scheme}://{authority}"))),
    };
    let path = path
        .filter(|path| !path.is_empty())
        .map(|path| match protocol {
            Protocol::Http => format!("/{path}"),
            Protocol::Tcp | Protocol::Udp | Protocol::Dns => path.to_owned(),
        });
    Ok(Form::Host {
        scheme: Some(protocol),
        host,
        path,
    })
}

impl fmt::Display for TargetText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TargetText {
    /// The protocol of a URL.
    pub(super) fn scheme(&self) -> Option<Protocol> {
        match self.form {
            Form::Host { scheme, .. } => scheme,
            Form::Service(..) => None,
        }
    }

    /// The address it means, and what is spoken there: what `wanted` says, else TCP, or what the port's name suggests.
    /// Services are asked for at the admin socket.
    pub(super) async fn resolve(
        &self,
        wanted: Option<Protocol>,
        socket: &Path,
    ) -> anyhow::Result<Place> {
        match &self.form {
            Form::Host { host, path, .. } => {
                let protocol = wanted.unwrap_or(Protocol::Tcp);
                let addr = lookup(host).await?;
                Ok(Place {
                    addr,
                    protocol,
                    host: host.clone(),
                    path: path.clone(),
                })
            }
            Form::Service(name, port) => {
                let url = format!("/v1/explain?target={}", escape(&self.text));
                let answer = ask(socket, &url).await?;
                let explanation: Explanation =
                    serde_json::from_slice(&answer).context("reading the answer")?;
                served(&explanation, name, port.as_deref(), wanted)
            }
        }
    }
}

async fn lookup(host: &str) -> anyhow::Result<SocketAddr> {
    let mut found = tokio::net::lookup_host(host)
        .await
        .with_context(|| format!("TARGET {host}: the name does not resolve"))?;
    found
        .next()
        .ok_or_else(|| anyhow!("TARGET {host}: the name has no address"))
}

// The first address of the one service port that is meant, as it is really bound.
fn served(
    explanation: &Explanation,
    name: &ServiceName,
    port: Option<&str>,
    wanted: Option<Protocol>,
) -> anyhow::Result<Place> {
    let fits = |port: &&ExplainedPort| wanted.is_none_or(|p| p.transport() == port.protocol);
    let ports: Vec<&ExplainedPort> = explanation.service_ports.iter().filter(fits).collect();
    let Some(first) = ports.first() else {
        let transport = wanted.map_or("", |wanted| wanted.transport());
        return Err(anyhow!(
            "TARGET {name}: the Service has no {transport} port"
        ));
    };
    let is_other = |port: &&ExplainedPort| {
        port.service_port != first.service_port || port.protocol != first.protocol
    };
    if port.is_none() && ports.iter().any(is_other) {
        let known: Vec<String> = ports
            .iter()
            .filter(|port| port.family == first.family)
            .map(|port| format!("{}/{}", port.port, port.protocol))
            .collect();
        return Err(anyhow!(
            "TARGET {name}: the Service has several ports, name one as {name}:PORT, or the protocol with --protocol; there are {}",
            known.join(", ")
        ));
    }
    let addr = first.frontends.iter().find_map(|frontend| {
        let addr: SocketAddr = frontend.address.parse().ok()?;
        Some(SocketAddr::new(addr.ip(), frontend.served_port))
    });
    let addr = addr.ok_or_else(|| anyhow!("TARGET {name}: the Service has no address"))?;
    Ok(Place {
        addr,
        protocol: wanted.unwrap_or_else(|| suggested(first)),
        host: format!("{}.{}:{}", name.name, name.namespace, first.port),
        path: None,
    })
}

// By the port's name, as service meshes read it.
fn suggested(port: &ExplainedPort) -> Protocol {
    let name = port
        .service_port
        .rsplit_once(':')
        .map_or("", |(_, name)| name);
    match (port.protocol.as_str(), name) {
        ("UDP", "dns") => Protocol::Dns,
        ("UDP", _) => Protocol::Udp,
        (_, "http") => Protocol::Http,
        (_, name) if name.starts_with("http-") => Protocol::Http,
        _ => Protocol::Tcp,
    }
}
