//! What our chains say, as text for `iptables-restore`. Pure.
//!
//! ```text
//!   mangle PREROUTING, OUTPUT ─► VIADUCT-SILENCE                    datagrams from outside the source ranges: DROP
//!   nat    PREROUTING ─► VIADUCT-INCOMING ─► VIADUCT-OUTSIDE        connections that get no answer: to port 0
//!                 └──────────┬─┘         ┌─► VIADUCT-SILENCE        so do these, whoever calls
//!   nat    OUTPUT ───► VIADUCT-CAPTURE ──┼─► VIADUCT-10.96.0.0 …    frontends, by the network they are in
//!                                        ├─► VIADUCT-NODEPORTS      at the node's addresses
//!                                        └─► VIADUCT-GUARD          UDP proxy ports: to port 0, which refuses
//!   filter INPUT, OUTPUT ─► VIADUCT-SILENCE                         connections to port 0: DROP
//! ```
//!
//! `nat` sees first packets only, so a connection that is open goes on when its frontend falls silent; but it refuses to drop.
//! So what should meet silence is sent to port 0, which nobody has, and dropped there.
//!
//! Every rule is spelt as `iptables-save` lists it, so what is there can be compared with what should be. Matches are
//! `-s -d -p --dport`, targets DNAT, REDIRECT, RETURN, DROP and own chains: little, for kernels that have little. A packet
//! passes one rule per network and those of its own network, not one per Service.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::capture::plan::{Rules, Silence, local_network};
use crate::model::{Family, Frontend, Protocol};

/// Every chain of ours begins so.
pub(super) const PREFIX: &str = "VIADUCT-";

const INCOMING: &str = "VIADUCT-INCOMING";
const CAPTURE: &str = "VIADUCT-CAPTURE";
const NODE_PORTS: &str = "VIADUCT-NODEPORTS";
const GUARD: &str = "VIADUCT-GUARD";
const SILENCE: &str = "VIADUCT-SILENCE";
const OUTSIDE: &str = "VIADUCT-OUTSIDE";

/// Where connections go that get no answer.
const HUSH: &str = "-j REDIRECT --to-ports 0";

/// The tables that we have chains in, in the order in which they are written: nothing is sent to port 0 before it is
/// silent, and nothing captured before who may not call is kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    Filter,
    Mangle,
    Nat,
}

impl Table {
    pub(super) const ALL: [Self; 3] = [Self::Filter, Self::Mangle, Self::Nat];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
        }
    }
}

/// What is ours in one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chains {
    /// Our chains with their rules, without `-A CHAIN`.
    pub(super) chains: BTreeMap<String, Vec<String>>,
    /// Rules of other chains that lead to ours: `PREROUTING -j VIADUCT-CAPTURE`.
    pub(super) jumps: BTreeSet<String>,
}

impl Chains {
    /// How many rules they are, those that lead to our chains included.
    pub(super) fn n_rules(&self) -> usize {
        self.chains.values().map(Vec::len).sum::<usize>() + self.jumps.len()
    }
}

/// What must be ours in `table` under `rules`. Captured traffic is led to the address `landing`, or to that of the
/// interface it came in by.
pub(super) fn plan_chains(table: Table, rules: &Rules, landing: Option<IpAddr>) -> Chains {
    match table {
        Table::Filter => plan_port_zero(rules),
        Table::Mangle => plan_datagrams(rules),
        Table::Nat => plan_capture(rules, landing),
    }
}

/// The transaction that leads from `before` to `after`; `None` if they are the same.
pub(super) fn render_restore(table: Table, before: &Chains, after: &Chains) -> Option<String> {
    if before == after {
        return None;
    }
    let changed = after.chains.iter();
    let changed: Vec<_> = changed
        .filter(|(name, rules)| before.chains.get(*name) != Some(rules))
        .collect();
    let gone: Vec<_> = before
        .chains
        .keys()
        .filter(|name| !after.chains.contains_key(*name))
        .collect();
    let mut text = format!("*{}\n", table.as_str());
    // Naming a chain empties it.
    for name in changed
        .iter()
        .map(|(name, _)| *name)
        .chain(gone.iter().copied())
    {
        let _ = writeln!(text, ":{name} - [0:0]");
    }
    for (name, rules) in changed {
        for rule in rules {
            let _ = writeln!(text, "-A {name} {rule}");
        }
    }
    for jump in before.jumps.difference(&after.jumps) {
        let _ = writeln!(text, "-D {jump}");
    }
    for jump in after.jumps.difference(&before.jumps) {
        let _ = writeln!(text, "-I {jump}");
    }
    for name in gone {
        let _ = writeln!(text, "-X {name}");
    }
    text.push_str("COMMIT\n");
    Some(text)
}

/// How many rules a transaction of [`render_restore`] adds.
pub(super) fn count_rules(restore: &str) -> usize {
    let adds = |line: &&str| line.starts_with("-A ") || line.starts_with("-I ");
    restore.lines().filter(adds).count()
}

/// A transaction of [`render_restore`] as several, for where one would be too long. Chains are named before rules lead
/// to them, as in the whole.
pub(super) fn pieces(restore: &str) -> Vec<String> {
    let mut lines = restore.lines();
    let table = lines.next().unwrap_or_default();
    let lines: Vec<&str> = lines.filter(|line| *line != "COMMIT").collect();
    let piece = |some: &[&str]| format!("{table}\n{}\nCOMMIT\n", some.join("\n"));
    lines.chunks(PIECE).map(piece).collect()
}

/// Lines in one transaction of several. Over nf_tables a rule takes up to 400 bytes; the least that `net.core.wmem_max` is
/// by default is 208 KiB.
const PIECE: usize = 250;

/// A transaction that shows that rules like those that we have in `table` load. Nothing leads to them.
pub(super) fn render_probe(table: Table, family: Family) -> String {
    let nowhere = family.unspecified();
    let rules = match table {
        Table::Filter => vec![format!("{} -j DROP", port_match(Protocol::Tcp, 0))],
        Table::Mangle => vec![
            format!("{}-j RETURN", from(nowhere.into())),
            format!("{} -j DROP", port_match(Protocol::Udp, 1)),
        ],
        Table::Nat => vec![
            format!("{}-j RETURN", to(nowhere.into())),
            format!("{} -j REDIRECT --to-ports 1", port_match(Protocol::Udp, 1)),
            format!(
                "{} -j DNAT --to-destination {}",
                port_match(Protocol::Tcp, 1),
                SocketAddr::new(nowhere, 1)
            ),
        ],
    };
    let rules: String = rules
        .iter()
        .map(|rule| format!("-A {PROBE} {rule}\n"))
        .collect();
    format!("*{}\n:{PROBE} - [0:0]\n{rules}COMMIT\n", table.as_str())
}

/// A transaction that takes them back, whether they loaded or not. It is one of its own: what comes and goes in the same
/// one, the older tools do not show to the kernel.
pub(super) fn render_probe_removal(table: Table) -> String {
    let table = table.as_str();
    format!("*{table}\n:{PROBE} - [0:0]\n-X {PROBE}\nCOMMIT\n")
}

const PROBE: &str = "VIADUCT-PROBE";

/// What is ours in a table as `iptables-save` lists it.
pub(super) fn parse_saved(text: &str) -> Chains {
    let mut found = Chains::default();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix(':') {
            let name = header.split(' ').next().unwrap_or_default();
            if name.starts_with(PREFIX) {
                found.chains.entry(name.to_owned()).or_default();
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rest) = rule.split_once(' ').unwrap_or((rule, ""));
            if chain.starts_with(PREFIX) {
                found
                    .chains
                    .entry(chain.to_owned())
                    .or_default()
                    .push(rest.to_owned());
            } else if rest
                .rsplit(' ')
                .next()
                .is_some_and(|target| target.starts_with(PREFIX))
            {
                found.jumps.insert(rule.to_owned());
            }
        }
    }
    found
}

fn plan_capture(rules: &Rules, landing: Option<IpAddr>) -> Chains {
    let lead = |port: &u16| match landing {
        Some(address) => format!(
            "-j DNAT --to-destination {}",
            SocketAddr::new(address, *port)
        ),
        None => format!("-j REDIRECT --to-ports {port}"),
    };
    let mut chains = plan_silence(rules);
    let mut main = Vec::new();
    if chains.contains_key(SILENCE) {
        main.push(format!("-j {SILENCE}"));
    }
    let mut networks = BTreeSet::new();
    for (frontend, port) in &rules.redirects {
        let network = network_of(frontend.ip);
        let name = network_chain(network);
        if networks.insert(network) {
            main.push(format!("{}-j {name}", to(network)));
        }
        let rule = format!("{} {}", dialled(frontend), lead(port));
        chains.entry(name).or_default().push(rule);
    }
    let node =
        |(address, chain): (&IpAddr, &str)| format!("{}{chain}", to(local_network(*address)));
    let jump = format!("-j {NODE_PORTS}");
    main.extend(
        rules
            .node_addresses
            .iter()
            .map(|ip| node((ip, jump.as_str()))),
    );
    let jump = format!("-p udp -j {GUARD}");
    main.extend(
        rules
            .local_addresses
            .iter()
            .map(|ip| node((ip, jump.as_str()))),
    );

    let node_ports = rules.node_ports.iter();
    let node_ports = node_ports.map(|((protocol, port), target)| {
        format!("{} {}", port_match(*protocol, *port), lead(target))
    });
    chains.insert(NODE_PORTS.to_owned(), node_ports.collect());
    let guarded = rules.guarded_udp_ports.iter();
    let guarded = guarded.map(|port| {
        format!(
            "{} -j REDIRECT --to-ports 0",
            port_match(Protocol::Udp, *port)
        )
    });
    chains.insert(GUARD.to_owned(), guarded.collect());
    chains.insert(CAPTURE.to_owned(), main);
    // One jump from each, so that nobody who removes one of two can change their order.
    let first = if chains.contains_key(OUTSIDE) {
        let both = [OUTSIDE, CAPTURE].map(|chain| format!("-j {chain}"));
        chains.insert(INCOMING.to_owned(), both.into());
        INCOMING
    } else {
        CAPTURE
    };
    let jumps = [
        format!("PREROUTING -j {first}"),
        format!("OUTPUT -j {CAPTURE}"),
    ];
    Chains {
        chains,
        jumps: jumps.into(),
    }
}

// The chains for connections that get no answer. Silent UDP has none: a datagram that is refused is told from one that is
// not by the port alone, and both would be port 0. The listener gives no answer by itself.
fn plan_silence(rules: &Rules) -> BTreeMap<String, Vec<String>> {
    let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut everyone, mut outside) = (Vec::new(), Vec::new());
    for (frontend, silence) in rules.silenced().into_iter().filter(|(f, _)| is_tcp(f)) {
        let rule = format!("{} {HUSH}", dialled(&frontend));
        match silence {
            Silence::Everyone => everyone.push(rule),
            Silence::Outside => outside.push(rule),
        }
    }
    everyone.extend(guard_sources(
        rules,
        Protocol::Tcp,
        &format!("-p tcp {HUSH}"),
        &mut chains,
    ));
    if !everyone.is_empty() {
        chains.insert(SILENCE.to_owned(), everyone);
    }
    if !outside.is_empty() {
        let pods = rules
            .pod_cidrs
            .iter()
            .map(|cidr| format!("{}-j RETURN", from(*cidr)));
        chains.insert(OUTSIDE.to_owned(), pods.chain(outside).collect());
    }
    chains
}

// Datagrams have no first packet that could be told from later ones.
fn plan_datagrams(rules: &Rules) -> Chains {
    let mut chains = BTreeMap::new();
    let guarded = guard_sources(rules, Protocol::Udp, "-j DROP", &mut chains);
    with_jumps(chains, guarded, ["PREROUTING", "OUTPUT"])
}

fn plan_port_zero(rules: &Rules) -> Chains {
    let silenced = rules.silenced();
    let silent = silenced
        .keys()
        .chain(rules.source_ranges.keys())
        .any(is_tcp);
    let rule = format!("{} -j DROP", port_match(Protocol::Tcp, 0));
    let rules = Vec::from_iter(silent.then_some(rule));
    with_jumps(BTreeMap::new(), rules, ["INPUT", "OUTPUT"])
}

fn with_jumps(
    mut chains: BTreeMap<String, Vec<String>>,
    silence: Vec<String>,
    origins: [&str; 2],
) -> Chains {
    if silence.is_empty() {
        return Chains::default();
    }
    chains.insert(SILENCE.to_owned(), silence);
    let jumps = origins.map(|origin| format!("{origin} -j {SILENCE}"));
    Chains {
        chains,
        jumps: jumps.into(),
    }
}

// Rules for the frontends that answer some networks only, each leading to a chain that lets these return.
fn guard_sources(
    rules: &Rules,
    protocol: Protocol,
    otherwise: &str,
    chains: &mut BTreeMap<String, Vec<String>>,
) -> Vec<String> {
    let guarded = rules.source_ranges.iter();
    let guarded = guarded.filter(|(frontend, _)| frontend.protocol == protocol);
    let rule = |(frontend, ranges): (&Frontend, &Vec<IpNet>)| {
        let name = sources_chain(ranges);
        let rule = format!("{} -j {name}", dialled(frontend));
        chains.entry(name).or_insert_with(|| {
            let allowed = ranges
                .iter()
                .map(|range| format!("{}-j RETURN", from(*range)));
            allowed.chain([otherwise.to_owned()]).collect()
        });
        rule
    };
    guarded.map(rule).collect()
}

fn is_tcp(frontend: &Frontend) -> bool {
    frontend.protocol == Protocol::Tcp
}

fn dialled(frontend: &Frontend) -> String {
    let port = port_match(frontend.protocol, frontend.port);
    format!("{}{port}", to(frontend.ip.into()))
}

fn port_match(protocol: Protocol, port: u16) -> String {
    let protocol = protocol.lower();
    format!("-p {protocol} -m {protocol} --dport {port}")
}

fn to(network: IpNet) -> String {
    address_match("-d", network)
}

fn from(network: IpNet) -> String {
    address_match("-s", network)
}

// With a blank at the end; a network of all addresses is no match at all.
fn address_match(flag: &str, network: IpNet) -> String {
    if network.prefix_len() == 0 {
        String::new()
    } else {
        format!("{flag} {} ", network.trunc())
    }
}

// 256 addresses: a service range of 65,536 makes at most 256 networks.
fn network_of(ip: IpAddr) -> IpNet {
    let host = IpNet::from(ip);
    IpNet::new(ip, host.max_prefix_len() - 8)
        .expect("eight bits less than all is a valid length")
        .trunc()
}

fn network_chain(network: IpNet) -> String {
    match network {
        IpNet::V4(v4) => format!("{PREFIX}{}", v4.addr()),
        IpNet::V6(v6) => format!("{PREFIX}{:016x}", fingerprint(&v6.addr().octets())),
    }
}

fn sources_chain(ranges: &[IpNet]) -> String {
    let text: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
    format!(
        "{PREFIX}FROM-{:012x}",
        fingerprint(text.join(" ").as_bytes()) >> 16
    )
}

// FNV-1a. Chain names have at most 28 characters and must be the same after a restart.
fn fingerprint(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests;
