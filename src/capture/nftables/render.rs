//! What the table says, as text for `nft -f -`. Pure.
//!
//! ```text
//!   packet ─► conntrack ─► nat (-110): silence, capture ─► routing ─► guard (input) ─► listener
//!                            output: what was not captured, refuse
//!                                                         └─► refuse (forward)
//! ```
//!
//! The kernel asks `nat` about the first packet of a flow alone, so silence and refusal cost the others nothing: a filter
//! chain in output cost 2.5 % of small requests. (A drop in `nat` is nftables' privilege; iptables refuses it.)
//!
//! The chains never change; everything that does is an element of a set or map. So a change is a handful of elements
//! whatever the number of services, and a packet costs one lookup.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::capture::plan::{Rules, Silence, local_network};
use crate::model::{Family, Frontend, Protocol};

/// Elements of our sets and maps, by the name of the set: key → value, which is empty in a set. Spelt as `nft` lists
/// them.
pub(super) type Elements = BTreeMap<&'static str, BTreeMap<String, String>>;

/// The name of our table in each family.
pub(super) const TABLE: &str = "viaduct";

/// Every set and map of the table: its name, its type (`ADDR` stands for the family's address type), and whether it
/// holds intervals. Intervals are replaced as a whole when one of them changes.
const SETS: [(&str, &str, Shape); 10] = [
    (
        "redirects",
        "ADDR . inet_proto . inet_service : inet_service",
        Shape::Map,
    ),
    (
        "node_ports",
        "inet_proto . inet_service : inet_service",
        Shape::Map,
    ),
    ("cluster_ips", "ADDR", Shape::Set),
    ("node_addresses", "ADDR", Shape::Intervals),
    ("silent", "ADDR . inet_proto . inet_service", Shape::Set),
    (
        "silent_outside",
        "ADDR . inet_proto . inet_service",
        Shape::Set,
    ),
    ("restricted", "ADDR . inet_proto . inet_service", Shape::Set),
    (
        "allowed_sources",
        "ADDR . inet_proto . inet_service . ADDR",
        Shape::Intervals,
    ),
    ("pods", "ADDR", Shape::Intervals),
    ("guarded", "inet_service", Shape::Set),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Map,
    Set,
    Intervals,
}

/// What the sets of the table must hold under `rules`.
pub(super) fn plan_elements(rules: &Rules) -> Elements {
    let mut elements: Elements = SETS
        .into_iter()
        .map(|(name, ..)| (name, BTreeMap::new()))
        .collect();
    let mut add = |set: &'static str, key: String, value: String| {
        elements.entry(set).or_default().insert(key, value);
    };
    for (frontend, port) in &rules.redirects {
        add("redirects", frontend_key(frontend), port.to_string());
    }
    for ip in &rules.cluster_ips {
        add("cluster_ips", ip.to_string(), String::new());
    }
    for ((protocol, port), target) in &rules.node_ports {
        let key = format!("{} . {port}", protocol.lower());
        add("node_ports", key, target.to_string());
    }
    let node: Vec<IpNet> = rules
        .node_addresses
        .iter()
        .copied()
        .map(local_network)
        .collect();
    for range in disjoint(&node) {
        add("node_addresses", network(range), String::new());
    }
    for (frontend, silence) in rules.silenced() {
        let set = match silence {
            Silence::Everyone => "silent",
            Silence::Outside => "silent_outside",
        };
        add(set, frontend_key(&frontend), String::new());
    }
    for (frontend, ranges) in &rules.source_ranges {
        let key = frontend_key(frontend);
        for range in disjoint(ranges) {
            add(
                "allowed_sources",
                format!("{key} . {}", network(range)),
                String::new(),
            );
        }
        add("restricted", key, String::new());
    }
    for cidr in disjoint(&rules.pod_cidrs) {
        add("pods", network(cidr), String::new());
    }
    for port in guarded(rules) {
        add("guarded", port.to_string(), String::new());
    }
    elements
}

/// The whole table, replacing whatever is there under its name, in one transaction.
/// Captured traffic is led to the address `landing`, or to that of the interface it came in by.
pub(super) fn render_replacement(
    family: Family,
    landing: Option<IpAddr>,
    elements: &Elements,
) -> String {
    let table = table(family);
    format!(
        "add table {table}\ndelete table {table}\n{}",
        render_table(family, landing, elements)
    )
}

/// A transaction that removes the table whether it is there or not.
pub(super) fn render_removal(family: Family) -> String {
    let table = table(family);
    format!("add table {table}\ndelete table {table}\n")
}

/// A transaction that shows that a table like ours loads here, and leaves nothing.
pub(super) fn render_probe(family: Family) -> String {
    let landing = Some(family.unspecified());
    let probe = render_table(family, landing, &Elements::new()).replace(TABLE, "viaduct_probe");
    format!(
        "{probe}delete table {} viaduct_probe\n",
        family_word(family)
    )
}

/// The same as [`render_replacement`] in several transactions, for where one would be too long: the table without
/// elements first, then some elements at a time.
pub(super) fn render_pieces(
    family: Family,
    landing: Option<IpAddr>,
    elements: &Elements,
) -> Vec<String> {
    let empty = Elements::new();
    let mut pieces = vec![render_replacement(family, landing, &empty)];
    for (set, all) in elements {
        let all: Vec<_> = all.iter().collect();
        for some in all.chunks(PIECE) {
            let some = some
                .iter()
                .map(|(key, value)| ((*key).clone(), (*value).clone()));
            let some = Elements::from([(*set, some.collect())]);
            pieces.extend(render_change(family, &empty, &some));
        }
    }
    pieces
}

/// Elements in one transaction of several. A thousand take about 40 KB; the least that `net.core.wmem_max` is by default
/// is 208 KiB.
const PIECE: usize = 1000;

/// The elements to change from `before` to `after`, in one transaction; `None` if they are the same.
pub(super) fn render_change(family: Family, before: &Elements, after: &Elements) -> Option<String> {
    let mut text = String::new();
    let nothing = BTreeMap::new();
    for (name, _, shape) in SETS {
        let old = before.get(name).unwrap_or(&nothing);
        let new = after.get(name).unwrap_or(&nothing);
        if old == new {
            continue;
        }
        let set = format!("{} {name}", table(family));
        let kept =
            |key: &String, value: &String| shape != Shape::Intervals && new.get(key) == Some(value);
        if shape == Shape::Intervals {
            // Taking single intervals out of a set and putting others in, in one transaction, fails on some kernels.
            if !old.is_empty() {
                let _ = writeln!(text, "flush set {set}");
            }
        } else {
            let gone = old.iter().filter(|(key, value)| !kept(key, value));
            push_elements(&mut text, "delete", &set, gone.map(|(key, _)| key.clone()));
        }
        let come = new
            .iter()
            .filter(|(key, value)| shape == Shape::Intervals || old.get(*key) != Some(value));
        push_elements(
            &mut text,
            "add",
            &set,
            come.map(|(key, value)| element(key, value)),
        );
    }
    (!text.is_empty()).then_some(text)
}

/// The command line that lists the table without counters.
pub(super) fn listing_arguments(family: Family) -> [&'static str; 5] {
    ["-s", "list", "table", family_word(family), TABLE]
}

fn render_table(family: Family, landing: Option<IpAddr>, elements: &Elements) -> String {
    let (ip, kind) = (family_word(family), address_type(family));
    let icmp = match family {
        Family::V4 => "icmp",
        Family::V6 => "icmpv6",
    };
    let lead = match landing {
        Some(IpAddr::V4(address)) => format!("dnat to {address} :"),
        Some(IpAddr::V6(address)) => format!("dnat to [{address}] :"),
        None => "redirect to :".to_owned(),
    };
    let mut sets_text = String::new();
    for (name, types, shape) in SETS {
        let word = if shape == Shape::Map { "map" } else { "set" };
        let _ = writeln!(
            sets_text,
            "\t{word} {name} {{\n\t\ttype {}",
            types.replace("ADDR", kind)
        );
        if shape == Shape::Intervals {
            sets_text.push_str("\t\tflags interval\n");
        }
        let all = elements.get(name).into_iter().flatten();
        let all: Vec<String> = all.map(|(key, value)| element(key, value)).collect();
        if !all.is_empty() {
            let _ = writeln!(sets_text, "\t\telements = {{ {} }}", all.join(",\n\t\t\t"));
        }
        sets_text.push_str("\t}\n\n");
    }
    format!(
        "table {ip} {TABLE} {{
\tcounter uncaptured {{
\t}}

{sets_text}\tchain silence {{
\t\t{ip} daddr . meta l4proto . th dport @silent drop
\t\t{ip} daddr . meta l4proto . th dport @restricted {ip} daddr . meta l4proto . th dport . {ip} saddr != @allowed_sources drop
\t}}

\tchain capture {{
\t\tmeta l4proto {{ tcp, udp }} {lead} {ip} daddr . meta l4proto . th dport map @redirects
\t\t{ip} daddr @node_addresses meta l4proto {{ tcp, udp }} {lead} meta l4proto . th dport map @node_ports
\t}}

\tchain refuse {{
\t\t{ip} daddr @cluster_ips meta l4proto tcp reject with tcp reset
\t\t{ip} daddr @cluster_ips meta l4proto udp reject with {icmp} type port-unreachable
\t}}

\tchain capture_in {{
\t\ttype nat hook prerouting priority -110; policy accept;
\t\tjump silence
\t\t{ip} saddr != @pods {ip} daddr . meta l4proto . th dport @silent_outside drop
\t\tjump capture
\t}}

\tchain capture_out {{
\t\ttype nat hook output priority -110; policy accept;
\t\tjump silence
\t\tjump capture
\t\tjump refuse
\t}}

\tchain refuse_forward {{
\t\ttype filter hook forward priority 0; policy accept;
\t\tct status confirmed accept
\t\tjump refuse
\t}}

\tchain guard {{
\t\ttype filter hook input priority -150; policy accept;
\t\tudp dport @guarded ct status & dnat == 0 counter name uncaptured drop
\t}}
}}
"
    )
}

fn push_elements(text: &mut String, verb: &str, set: &str, elements: impl Iterator<Item = String>) {
    let all: Vec<String> = elements.collect();
    if !all.is_empty() {
        let _ = writeln!(text, "{verb} element {set} {{ {} }}", all.join(",\n\t"));
    }
}

fn element(key: &str, value: &str) -> String {
    if value.is_empty() {
        key.to_owned()
    } else {
        format!("{key} : {value}")
    }
}

fn frontend_key(frontend: &Frontend) -> String {
    let Frontend { ip, port, protocol } = frontend;
    format!("{ip} . {} . {port}", protocol.lower())
}

// A listener may be given the very port that is redirected to it. Such a redirect changes nothing, so the kernel does
// not mark the flow as translated, and it must not be taken for one that was never captured.
fn guarded(rules: &Rules) -> BTreeSet<u16> {
    let frontends = rules.redirects.iter();
    let frontends = frontends.map(|(frontend, target)| (frontend.protocol, frontend.port, *target));
    let node_ports = rules.node_ports.iter();
    let node_ports = node_ports.map(|((protocol, port), target)| (*protocol, *port, *target));
    let unmoved: BTreeSet<u16> = frontends
        .chain(node_ports)
        .filter(|(protocol, port, target)| *protocol == Protocol::Udp && port == target)
        .map(|(_, port, _)| port)
        .collect();
    rules
        .guarded_udp_ports
        .difference(&unmoved)
        .copied()
        .collect()
}

// Sets of intervals refuse those that overlap.
fn disjoint(networks: &[IpNet]) -> Vec<IpNet> {
    IpNet::aggregate(&networks.iter().map(IpNet::trunc).collect())
}

// A network of one address is listed as the address.
fn network(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

fn table(family: Family) -> String {
    format!("{} {TABLE}", family_word(family))
}

fn family_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

#[cfg(test)]
mod tests;
