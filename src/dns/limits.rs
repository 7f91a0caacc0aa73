//! The bounds of the DNS server, each with its default. What happens at each is said here and done where it applies.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use super::wire::{MAX_UDP, PLAIN_UDP};

/// The largest reply over UDP that may be configured.
const LARGEST_UDP: u16 = 4096;

/// How much of everything, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Clients that may wait for upstreams at the same time, about 2 KB each. More are refused.
    pub forwards: usize,
    /// Of one client address.
    pub forwards_of_one: usize,
    /// TCP connections. For one more, the oldest that is idle is closed; if none is, the new one is.
    pub connections: usize,
    /// Of one client address.
    pub connections_of_one: usize,
    /// Questions under way on one connection. Past it, nothing more is read from it.
    pub pipelined: usize,
    /// A connection without a question is closed after this.
    pub idle_timeout: Duration,
    /// A message that has begun must be complete after this, or the connection is closed.
    pub read_timeout: Duration,
    /// A client that takes no replies is left after this.
    pub write_timeout: Duration,
    /// The longest reply over UDP; what does not fit is cut, and says so.
    pub max_udp: u16,
    /// Aliases that are followed within the cluster.
    pub aliases: usize,
    /// Octets of the cache; at the bound, what was not asked for again goes first.
    pub cache_octets: usize,
    /// How long answers are good beyond their time, should nobody have newer ones; zero = not at all.
    pub serve_stale: Duration,
    /// Clients that get answers besides those of this node, of private and of Pod addresses. Others are refused.
    pub allowed: Vec<IpNet>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            forwards: 1000,
            forwards_of_one: 200,
            connections: 1024,
            connections_of_one: 64,
            pipelined: 64,
            idle_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(3),
            write_timeout: Duration::from_secs(5),
            max_udp: MAX_UDP,
            aliases: 10,
            cache_octets: 32 << 20,
            serve_stale: Duration::from_secs(3600),
            allowed: Vec::new(),
        }
    }
}

/// One bound of [`Limits`], as users write it: `NAME=VALUE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `forwards`.
    Forwards(usize),
    /// `client-forwards`.
    ForwardsOfOne(usize),
    /// `connections`.
    Connections(usize),
    /// `client-connections`.
    ConnectionsOfOne(usize),
    /// `pipelined`.
    Pipelined(usize),
    /// `idle-timeout`, in seconds.
    IdleTimeout(Duration),
    /// `read-timeout`, in seconds.
    ReadTimeout(Duration),
    /// `write-timeout`, in seconds.
    WriteTimeout(Duration),
    /// `udp-size`, in octets.
    MaxUdp(u16),
    /// `aliases`.
    Aliases(usize),
    /// `cache`, in MiB.
    CacheOctets(usize),
    /// `serve-stale`, in seconds.
    ServeStale(Duration),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forwards(n) => write!(f, "forwards={n}"),
            Self::ForwardsOfOne(n) => write!(f, "client-forwards={n}"),
            Self::Connections(n) => write!(f, "connections={n}"),
            Self::ConnectionsOfOne(n) => write!(f, "client-connections={n}"),
            Self::Pipelined(n) => write!(f, "pipelined={n}"),
            Self::IdleTimeout(time) => write!(f, "idle-timeout={}", time.as_secs()),
            Self::ReadTimeout(time) => write!(f, "read-timeout={}", time.as_secs()),
            Self::WriteTimeout(time) => write!(f, "write-timeout={}", time.as_secs()),
            Self::MaxUdp(octets) => write!(f, "udp-size={octets}"),
            Self::Aliases(n) => write!(f, "aliases={n}"),
            Self::CacheOctets(octets) => write!(f, "cache={}", octets >> 20),
            Self::ServeStale(time) => write!(f, "serve-stale={}", time.as_secs()),
        }
    }
}

/// The names, in the order of [`Limit`].
const NAMES: &str = "forwards, client-forwards, connections, client-connections, pipelined, idle-timeout, \
    read-timeout, write-timeout, udp-size, aliases, cache, serve-stale";

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("not NAME=NUMBER")?;
        let number: u32 = value
            .parse()
            .map_err(|_| format!("{name}: {value} is not a number"))?;
        let within = |least: u32, most: u32| {
            if (least..=most).contains(&number) {
                usize::try_from(number).map_err(|error| error.to_string())
            } else {
                Err(format!("{name}: {number} is not within {least}-{most}"))
            }
        };
        let seconds = |least| within(least, 86_400).map(|_| Duration::from_secs(u64::from(number)));
        match name {
            "forwards" => within(1, 1_000_000).map(Self::Forwards),
            "client-forwards" => within(1, 1_000_000).map(Self::ForwardsOfOne),
            "connections" => within(1, 1_000_000).map(Self::Connections),
            "client-connections" => within(1, 1_000_000).map(Self::ConnectionsOfOne),
            "pipelined" => within(1, 10_000).map(Self::Pipelined),
            "idle-timeout" => seconds(1).map(Self::IdleTimeout),
            "read-timeout" => seconds(1).map(Self::ReadTimeout),
            "write-timeout" => seconds(1).map(Self::WriteTimeout),
            "udp-size" => {
                let least = u32::try_from(PLAIN_UDP).map_err(|error| error.to_string())?;
                within(least, LARGEST_UDP.into())?;
                u16::try_from(number)
                    .map(Self::MaxUdp)
                    .map_err(|error| error.to_string())
            }
            "aliases" => within(1, 100).map(Self::Aliases),
            "cache" => within(1, 4095).map(|mebibytes| Self::CacheOctets(mebibytes << 20)),
            "serve-stale" => seconds(0).map(Self::ServeStale),
            _ => Err(format!("{name} is none of {NAMES}")),
        }
    }
}

impl Limits {
    /// These, with one of them replaced.
    #[must_use]
    pub fn with(mut self, limit: Limit) -> Self {
        match limit {
            Limit::Forwards(n) => self.forwards = n,
            Limit::ForwardsOfOne(n) => self.forwards_of_one = n,
            Limit::Connections(n) => self.connections = n,
            Limit::ConnectionsOfOne(n) => self.connections_of_one = n,
            Limit::Pipelined(n) => self.pipelined = n,
            Limit::IdleTimeout(time) => self.idle_timeout = time,
            Limit::ReadTimeout(time) => self.read_timeout = time,
            Limit::WriteTimeout(time) => self.write_timeout = time,
            Limit::MaxUdp(octets) => self.max_udp = octets,
            Limit::Aliases(n) => self.aliases = n,
            Limit::CacheOctets(octets) => self.cache_octets = octets,
            Limit::ServeStale(time) => self.serve_stale = time,
        }
        self
    }

    /// Whether `client` is among those that were allowed by hand.
    pub(super) fn allows(&self, client: IpAddr) -> bool {
        self.allowed.iter().any(|net| net.contains(&client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_can_be_set_within_reason() {
        let mut limits = Limits::default();
        for text in [
            "forwards=1",
            "client-forwards=2",
            "connections=3",
            "client-connections=4",
            "pipelined=5",
            "idle-timeout=6",
            "read-timeout=7",
            "write-timeout=8",
            "udp-size=512",
            "aliases=9",
            "cache=1",
            "serve-stale=0",
        ] {
            let before = limits.clone();
            let limit: Limit = text.parse().unwrap();
            assert_eq!(limit.to_string(), text);
            limits = limits.with(limit);
            assert_ne!(limits, before, "{text} changes something");
        }
        for bad in [
            "",
            "forwards",
            "forwards=",
            "forwards=0",
            "forwards=-1",
            "udp-size=511",
            "udp-size=4097",
            "cache=4096",
            "caches=1",
        ] {
            assert!(bad.parse::<Limit>().is_err(), "{bad}");
        }
    }
}
