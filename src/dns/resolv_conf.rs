//! The `nameserver` lines of `/etc/resolv.conf`, and their changes.
//!
//! `search`, `domain` and `ndots` mean nothing to questions that are forwarded: the client has applied its own. Parsing is pure; [`State`] reads the
//! files.
//!
//! Source: resolv.conf(5).

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::SystemTime;

use nix::net::if_::if_nametoindex;

/// The resolvers of this host.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What systemd-resolved itself asks: where its stub in `/etc/resolv.conf` leads.
const RESOLVED_UPLINK: &str = "/run/systemd/resolve/resolv.conf";

/// glibc uses three; more than this is a mistake.
const MAX_SERVERS: usize = 8;

/// Kubernetes allows a Pod 32 domains in all.
const MAX_DOMAINS: usize = 29;

const DNS_PORT: u16 = 53;

/// Tells one version of the file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    changed: Option<SystemTime>,
    length: u64,
}

impl State {
    /// The file as it is now.
    pub(super) fn read() -> Self {
        let metadata = fs::metadata(RESOLV_CONF).ok();
        Self {
            changed: metadata
                .as_ref()
                .and_then(|metadata| metadata.modified().ok()),
            length: metadata.map_or(0, |metadata| metadata.len()),
        }
    }
}

/// The domains of the `search` line of this host's `/etc/resolv.conf`, which the kubelet hands on to Pods behind those
/// of the cluster.
///
/// Source: resolv.conf(5): the last of several `search` and `domain` lines counts.
pub fn search_domains() -> Vec<String> {
    parse_search(&fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

/// The resolvers that this host's programs ask.
pub fn host_resolvers() -> Vec<SocketAddr> {
    parse(&fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

/// The resolvers in the text of a `resolv.conf`, and the domains of its search list.
pub fn read_resolvers(text: &str) -> (Vec<SocketAddr>, Vec<String>) {
    (parse(text), parse_search(text))
}

fn parse_search(text: &str) -> Vec<String> {
    let mut domains = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if matches!(words.next(), Some("search" | "domain")) {
            domains = words
                .filter(|domain| *domain != ".")
                .take(MAX_DOMAINS)
                .map(str::to_owned)
                .collect();
        }
    }
    domains
}

/// The resolvers of this host, those at `own` addresses left out. If none is left, those behind systemd-resolved.
pub(super) fn servers(own: &[SocketAddr]) -> Vec<SocketAddr> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    choose(&read(RESOLV_CONF), &read(RESOLVED_UPLINK), own)
}

fn choose(resolv_conf: &str, uplink: &str, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let foreign = |text| {
        let mut servers = parse(text);
        servers.retain(|server| !own.contains(server));
        servers
    };
    let servers = foreign(resolv_conf);
    if servers.is_empty() {
        foreign(uplink)
    } else {
        servers
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(server) = words.next().and_then(parse_server)
            && !servers.contains(&server)
            && servers.len() < MAX_SERVERS
        {
            servers.push(server);
        }
    }
    servers
}

// A link-local address carries the interface behind a percent sign.
fn parse_server(text: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, DNS_PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let scope = interface
        .parse()
        .ok()
        .or_else(|| if_nametoindex(interface).ok())?;
    Some(SocketAddrV6::new(address, DNS_PORT, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nameserver_lines_count() {
        let text = "# nameserver 192.0.2.9\n; nameserver 192.0.2.8\nsearch example.com\nnameserver 192.0.2.1\n\
                    nameserver\t2001:db8::1 # second\nnameserver nonsense\nnameserver 192.0.2.1\noptions ndots:5\n\
                    nameserver fe80::1%7\nnameservers 192.0.2.7\nnameserver";
        let servers: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(
            servers,
            ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%7]:53"]
        );
    }

    #[test]
    fn the_uplink_counts_when_only_we_are_left() {
        let own = ["127.0.0.1:53".parse().unwrap()];
        let chosen = |resolv_conf, uplink| {
            let servers = choose(resolv_conf, uplink, &own);
            servers.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let (us, stub, up) = (
            "nameserver 127.0.0.1",
            "nameserver 127.0.0.1\nnameserver 127.0.0.53",
            "nameserver 192.0.2.1\nnameserver 127.0.0.1",
        );
        assert_eq!(chosen(us, up), ["192.0.2.1:53"]);
        assert_eq!(chosen(stub, up), ["127.0.0.53:53"]);
        assert_eq!(chosen("", up), ["192.0.2.1:53"]);
        assert_eq!(chosen(us, ""), [""; 0]);
    }

    #[test]
    fn the_last_search_line_counts() {
        let text = "search a.example\n#search x\ndomain b.example\nsearch c.example . d.example\nnameserver 192.0.2.1";
        assert_eq!(parse_search(text), ["c.example", "d.example"]);
        assert_eq!(parse_search("nameserver 192.0.2.1"), [""; 0]);
    }

    #[test]
    fn a_long_list_is_cut() {
        let text: String = (1..=20)
            .map(|n| format!("nameserver 192.0.2.{n}\n"))
            .collect();
        assert_eq!(parse(&text).len(), MAX_SERVERS);
    }
}
