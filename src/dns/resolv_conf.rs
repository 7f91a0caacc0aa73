//! The `nameserver` lines of `/etc/resolv.conf`, and their changes.
//!
//! `search`, `domain` and `ndots` mean nothing to questions that are forwarded: the client has applied its own. Parsing is pure; [`Watched`]
//! reads the files. A file that cannot be read any more changes nothing.
//!
//! Source: resolv.conf(5).

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
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

/// The resolvers of this host, as far as they were looked at.
#[derive(Debug)]
pub(super) struct Watched {
    resolv_conf: PathBuf,
    uplink: PathBuf,
    versions: [Version; 2],
    servers: Vec<SocketAddr>,
}

// Tells one version of a file from another: when it was written, and its length; nothing where there is none.
type Version = Option<(SystemTime, u64)>;

impl Watched {
    /// The resolvers of this host now, those at `own` addresses left out. If none is left, those behind systemd-resolved.
    pub(super) fn new(own: &[SocketAddr]) -> Self {
        Self::at(RESOLV_CONF.into(), RESOLVED_UPLINK.into(), own)
    }

    fn at(resolv_conf: PathBuf, uplink: PathBuf, own: &[SocketAddr]) -> Self {
        let mut watched = Self {
            versions: [version(&resolv_conf), version(&uplink)],
            resolv_conf,
            uplink,
            servers: Vec::new(),
        };
        watched.servers = watched.read(own).unwrap_or_default();
        watched
    }

    /// Who is to be asked.
    pub(super) fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// Looks at the files again. Returns whether others are to be asked than before.
    pub(super) fn look(&mut self, own: &[SocketAddr]) -> bool {
        let versions = [version(&self.resolv_conf), version(&self.uplink)];
        if versions == self.versions {
            return false;
        }
        // Before the text: what is written after this is another version.
        self.versions = versions;
        let Some(servers) = self.read(own) else {
            return false;
        };
        let is_new = servers != self.servers;
        self.servers = servers;
        is_new
    }

    // Nothing while there is no file: somebody is about to replace it.
    fn read(&self, own: &[SocketAddr]) -> Option<Vec<SocketAddr>> {
        let uplink = fs::read_to_string(&self.uplink).unwrap_or_default();
        match fs::read_to_string(&self.resolv_conf) {
            Ok(text) => Some(choose(&text, &uplink, own)),
            Err(_) if self.servers.is_empty() => Some(choose("", &uplink, own)),
            Err(_) => None,
        }
    }
}

fn version(path: &Path) -> Version {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
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
    fn a_changed_file_is_followed_and_a_missing_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (file, uplink) = (directory.path().join("a"), directory.path().join("b"));
        let own = ["127.0.0.1:53".parse().unwrap()];
        let shown = |watched: &Watched| {
            let servers = watched.servers().iter();
            servers.map(ToString::to_string).collect::<Vec<_>>()
        };
        let mut watched = Watched::at(file.clone(), uplink.clone(), &own);
        assert_eq!(shown(&watched), [""; 0]);
        assert!(!watched.look(&own));
        fs::write(&file, "nameserver 192.0.2.1").unwrap();
        assert!(watched.look(&own));
        assert_eq!(shown(&watched), ["192.0.2.1:53"]);
        assert!(!watched.look(&own));
        // Of another length, so that it is a new version however coarse the clock of the file system is.
        fs::write(&file, "nameserver 192.0.2.1 # again").unwrap();
        assert!(!watched.look(&own), "it names the same");
        fs::remove_file(&file).unwrap();
        assert!(!watched.look(&own));
        assert_eq!(shown(&watched), ["192.0.2.1:53"]);
        // Only we are left, so the uplink counts, whose changes count from then on.
        fs::write(&file, "nameserver 127.0.0.1").unwrap();
        fs::write(&uplink, "nameserver 192.0.2.20").unwrap();
        assert!(watched.look(&own));
        assert_eq!(shown(&watched), ["192.0.2.20:53"]);
        fs::write(&uplink, "nameserver 192.0.2.3").unwrap();
        assert!(watched.look(&own));
        assert_eq!(shown(&watched), ["192.0.2.3:53"]);
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
