//! The cluster's DNS: names of Services and Pods from the routing table, everything else from upstream resolvers.
//!
//! ```text
//!  client ─► udp, tcp ─► exchange ─┬─► records ◄── RoutingTable       names under the cluster domain
//!              │                   └─► forward ─► cache, upstream     all other names
//!              └─► memo: the reply that the same question got before, while it is right
//! ```
//!
//! hickory-proto decodes and encodes; sockets are our own. `udp` answers what was asked before without leaving the
//! datagram it lies in, everything else goes through `exchange`. `listen` binds, `upstream` asks others, `resolv_conf`
//! reads files; `records`, `message`, `simple`, `memo`, `relayed`, `lasting`, `wire`, `cache` and what they use are pure. Names
//! under the cluster domain are never forwarded and never cached beyond what their table says: the table is the answer.

mod cache;
mod clients;
mod completion;
mod exchange;
mod explain;
#[cfg(test)]
mod fixture;
mod forward;
mod health;
mod identity;
mod labels;
mod lasting;
mod limits;
mod listen;
mod memo;
mod message;
mod metrics;
mod names;
mod packet_path;
mod pointers;
mod records;
mod relayed;
mod resolv_conf;
mod reverse;
mod serial;
mod server;
mod services;
mod simple;
#[cfg(test)]
mod stub;
mod succession;
mod tcp;
mod udp;
mod upstream;
mod wire;

pub use explain::{ExplainedAnswer, ExplainedName};
pub use identity::{AskWhoError, Identity, Whereabouts, ask_who};
pub use limits::{Limit, Limits};
pub use listen::StartError;
pub use metrics::Metrics;
pub use names::InvalidDomain;
pub use packet_path::PacketPath;
pub use resolv_conf::{host_resolvers, read_resolvers, search_domains};
pub use server::{Names, Server};
pub use upstream::UpstreamOrder;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;

use crate::model::ServiceName;

/// What the server needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen, over UDP and TCP. Port 0 means any, the same one for both.
    pub listen: Vec<SocketAddr>,
    /// The cluster domains, usually `cluster.local` alone. Every name exists under each; addresses have their names
    /// under the first.
    pub domains: Vec<String>,
    /// Who is asked about other names; empty = the `nameserver` lines of `/etc/resolv.conf`, followed as they change.
    pub upstreams: Vec<SocketAddr>,
    /// Which of several upstreams is asked first.
    pub upstream_order: UpstreamOrder,
    /// Who is asked about names under a domain instead; the longest domain wins, and one domain may have several.
    pub domain_upstreams: Vec<(String, SocketAddr)>,
    /// Which pod names exist.
    pub pods: PodMode,
    /// The Service whose cluster IPs `ns.dns` names; without it, the listen addresses are named.
    pub dns_service: ServiceName,
    /// Services with cluster IPs and without a ready endpoint have no names.
    pub hide_empty: bool,
    /// Follow the search list of a Pod that asks for a name of it, and give the first name that exists. The domains that
    /// Pods have in that list behind those of the cluster; `None` = leave it to them.
    pub search_completion: Option<Vec<String>>,
    /// Seconds that a client may keep a record of the cluster.
    pub ttl: u32,
    /// Seconds that a client may keep the absence of one.
    pub negative_ttl: u32,
    /// The bounds of everything.
    pub limits: Limits,
    /// The file that tells a server's number to the next one, which may then share its ports; `None` = nobody does.
    pub succession: Option<PathBuf>,
    /// The Services' address ranges: the reverse name of an unused address in them is answered here, not upstream.
    pub owned_ranges: Vec<IpNet>,
}

/// Which names `a-b-c-d.NAMESPACE.pod` exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodMode {
    /// None.
    Disabled,
    /// Every one whose label is an address and whose namespace exists.
    Insecure,
    /// Those of addresses that a running Pod of that namespace has.
    Verified,
}

impl PodMode {
    const ALL: [(&'static str, Self); 3] = [
        ("disabled", Self::Disabled),
        ("insecure", Self::Insecure),
        ("verified", Self::Verified),
    ];
}

impl FromStr for PodMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(name, _)| *name == text);
        known
            .map(|(_, mode)| *mode)
            .ok_or_else(|| format!("{text} is not disabled, insecure or verified"))
    }
}

impl fmt::Display for PodMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, mode)| mode == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}
