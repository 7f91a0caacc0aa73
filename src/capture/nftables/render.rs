//! What a table says, as text for `nft -f -`. Pure.
//!
//! The chains never change; everything that does is an element of a set or map. So a change is a handful of elements
//! whatever the number of services, and a packet costs one lookup.

mod change;
mod divert;
mod translate;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet, ordset};
use ipnet::IpNet;

use crate::capture::plan::{Rules, Silence, local_network};
use crate::model::{Family, Frontend, Protocol};

pub(super) use change::Change;

/// Elements of our sets and maps, by the name of the set: key → value, which is empty in a set. Spelt as `nft` lists
/// them.
pub(super) type Elements = BTreeMap<&'static str, BTreeMap<String, String>>;

/// A set or map: its name, its type (`ADDR` stands for the family's address type), and whether it holds intervals.
/// Intervals are replaced as a whole when one of them changes.
type Set = (&'static str, &'static str, Shape);

/// What both layouts have.
const COMMON: [Set; 9] = [
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
    ("silent", FRONTENDS, Shape::Set),
    ("silent_outside", FRONTENDS, Shape::Set),
    ("restricted", FRONTENDS, Shape::Set),
    (
        "allowed_sources",
        "ADDR . inet_proto . inet_service . ADDR",
        Shape::Intervals,
    ),
    ("pods", "ADDR", Shape::Intervals),
];

/// UDP proxy ports, which take only what was translated.
const GUARDED: Set = ("guarded", "inet_service", Shape::Set);

/// Everything that is diverted, whether the map then assigns it to a listener or its own address finds it.
const DIVERTED: Set = ("frontends", FRONTENDS, Shape::Set);

const FRONTENDS: &str = "ADDR . inet_proto . inet_service";

/// One of our tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) family: Family,
    pub(super) layout: Layout,
}

/// How a table gets traffic to listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// By NAT to the address `landing`, or to that of the interface it came in by.
    Translate { landing: Option<IpAddr> },
    /// Unchanged, by assigning it to transparent sockets.
    Divert,
}

impl Layout {
    /// The address that traffic is led to.
    pub(super) fn landing(self) -> Option<IpAddr> {
        match self {
            Self::Translate { landing } => landing,
            Self::Divert => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Map,
    Set,
    Intervals,
}

/// Elements in one transaction of several. A thousand take about 40 KB; the least that `net.core.wmem_max` is by default
/// is 208 KiB.
const PIECE: usize = 1000;

impl Table {
    /// What the sets of the table must hold under `rules`.
    pub(super) fn plan_elements(self, rules: &Rules) -> Elements {
        let mut elements: Elements = self
            .sets()
            .map(|(name, ..)| (name, BTreeMap::new()))
            .collect();
        let mut add = |set: &'static str, key: String, value: String| {
            elements.entry(set).or_default().insert(key, value);
        };
        for (frontend, port) in &rules.redirects {
            if self.is_led(frontend.protocol) {
                add("redirects", frontend_key(frontend), port.to_string());
            }
            if self.layout == Layout::Divert {
                add(DIVERTED.0, frontend_key(frontend), String::new());
            }
        }
        for ip in &rules.cluster_ips {
            add("cluster_ips", ip.to_string(), String::new());
        }
        let node_ports = rules.node_ports.iter();
        for ((protocol, port), target) in
            node_ports.filter(|((protocol, _), _)| self.is_led(*protocol))
        {
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
        if self.layout != Layout::Divert {
            for port in guarded(rules) {
                add(GUARDED.0, port.to_string(), String::new());
            }
        }
        elements
    }

    /// The whole table, replacing whatever is there under its name, in one transaction.
    pub(super) fn render_replacement(self, elements: &Elements) -> String {
        format!("{}{}", self.render_removal(), self.render(elements))
    }

    /// A transaction that removes the table whether it is there or not.
    pub(super) fn render_removal(self) -> String {
        let table = self.full_name();
        format!("add table {table}\ndelete table {table}\n")
    }

    /// A transaction that shows that a table like this loads here, and leaves nothing.
    pub(super) fn render_probe(self) -> String {
        let named = format!("table {} ", self.full_name());
        let probe = format!("table {} viaduct_probe ", family_word(self.family));
        let table = self.render(&Elements::new()).replace(&named, &probe);
        format!("{table}delete {probe}\n")
    }

    /// The same as [`Self::render_replacement`] in several transactions, for where one would be too long: the table
    /// without elements first, then some elements at a time.
    pub(super) fn render_pieces(self, elements: &Elements) -> Vec<String> {
        let empty = Elements::new();
        let mut pieces = vec![self.render_replacement(&empty)];
        for (set, all) in elements {
            let all: Vec<_> = all.iter().collect();
            for some in all.chunks(PIECE) {
                let some = some
                    .iter()
                    .map(|(key, value)| ((*key).clone(), (*value).clone()));
                let some = Elements::from([(*set, some.collect())]);
                let change = Change::between(self, &empty, &some);
                pieces.extend(change.as_ref().map(Change::render));
            }
        }
        pieces
    }

    /// The elements to change from `before` to `after`, in one transaction; `None` if they are the same. What both have
    /// is compared as it is and never written out: 20,000 elements as text take longer than the kernel with one of them.
    pub(super) fn plan_change(self, before: &Rules, after: &Rules) -> Option<Change> {
        let elements = |rules: &Rules, other: &Rules| self.plan_elements(&apart_from(rules, other));
        Change::between(self, &elements(before, after), &elements(after, before))
    }

    /// The command line that lists the table without counters.
    pub(super) fn listing_arguments(self) -> [&'static str; 5] {
        ["-s", "list", "table", family_word(self.family), self.name()]
    }

    pub(super) fn name(self) -> &'static str {
        match self.layout {
            Layout::Translate { .. } => "viaduct",
            Layout::Divert => "viaduct_tproxy",
        }
    }

    fn full_name(self) -> String {
        format!("{} {}", family_word(self.family), self.name())
    }

    fn sets(self) -> impl Iterator<Item = Set> {
        let own = match self.layout {
            Layout::Translate { .. } => GUARDED,
            Layout::Divert => DIVERTED,
        };
        COMMON.into_iter().chain([own])
    }

    // Diverted datagrams find the listener that is bound to their destination.
    fn is_led(self, protocol: Protocol) -> bool {
        match self.layout {
            Layout::Translate { .. } => true,
            Layout::Divert => protocol == Protocol::Tcp,
        }
    }

    fn render(self, elements: &Elements) -> String {
        let (ip, kind) = (family_word(self.family), address_type(self.family));
        let mut sets_text = String::new();
        for (name, types, shape) in self.sets() {
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
        let (counters, chains) = match self.layout {
            Layout::Translate { landing } => (
                "\tcounter uncaptured {\n\t}\n\n",
                translate::chains(self.family, landing),
            ),
            Layout::Divert => ("", divert::chains(self.family)),
        };
        format!(
            "table {ip} {} {{\n{counters}{sets_text}{chains}}}\n",
            self.name()
        )
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

// `rules` without what `other` has as well, but for what decides about other elements.
fn apart_from(rules: &Rules, other: &Rules) -> Rules {
    let is_at_node = |frontend: &Frontend| {
        rules.node_addresses.contains(&frontend.ip) || other.node_addresses.contains(&frontend.ip)
    };
    let redirects = apart(&rules.redirects, &other.redirects, |frontend, target| {
        is_at_node(frontend) || is_unmoved(frontend.protocol, frontend.port, *target)
    });
    let node_ports = apart(&rules.node_ports, &other.node_ports, |node_port, target| {
        is_unmoved(node_port.0, node_port.1, *target)
    });
    // A frontend at one of the node's addresses decides there, not the node port.
    let at_node = |rules: &Rules| -> Vec<Frontend> {
        let frontends = rules.redirects.keys().filter(|it| is_at_node(it));
        frontends.copied().collect()
    };
    let same_places =
        rules.node_addresses == other.node_addresses && at_node(rules) == at_node(other);
    Rules {
        redirects,
        node_ports,
        cluster_ips: set_apart(&rules.cluster_ips, &other.cluster_ips, true),
        silent: apart(&rules.silent, &other.silent, |frontend, _| {
            is_at_node(frontend)
        }),
        silent_node_ports: set_apart(
            &rules.silent_node_ports,
            &other.silent_node_ports,
            same_places,
        ),
        // Intervals are replaced as a whole.
        source_ranges: if rules.source_ranges == other.source_ranges {
            OrdMap::new()
        } else {
            rules.source_ranges.clone()
        },
        guarded_udp_ports: set_apart(
            &rules.guarded_udp_ports,
            &other.guarded_udp_ports,
            unmoved(rules) == unmoved(other),
        ),
        family: rules.family,
        node_addresses: rules.node_addresses.clone(),
        local_addresses: rules.local_addresses.clone(),
        pod_cidrs: rules.pod_cidrs.clone(),
    }
}

// The entries that `others` has not, or has otherwise, and those that are wanted besides.
fn apart<K: Ord + Clone, V: PartialEq + Clone>(
    entries: &OrdMap<K, V>,
    others: &OrdMap<K, V>,
    besides: impl Fn(&K, &V) -> bool,
) -> OrdMap<K, V> {
    let differing = entries.diff(others).filter_map(|item| match item {
        DiffItem::Update { old, .. } => Some(old),
        DiffItem::Remove(key, value) => Some((key, value)),
        DiffItem::Add(..) => None,
    });
    let wanted = entries.iter().filter(|(key, value)| besides(key, value));
    let apart = differing.chain(wanted);
    apart
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

// The members that `others` has not, or all of them if that does not do.
fn set_apart<K: Ord + Clone>(members: &OrdSet<K>, others: &OrdSet<K>, does: bool) -> OrdSet<K> {
    if !does {
        return members.clone();
    }
    let missing = members.diff(others).filter_map(|item| match item {
        ordset::DiffItem::Remove(member) => Some(member),
        ordset::DiffItem::Add(_) => None,
    });
    missing.cloned().collect()
}

// A listener may be given the very port that is redirected to it. Such a redirect changes nothing, so the kernel does
// not mark the flow as translated, and it must not be taken for one that was never captured.
fn guarded(rules: &Rules) -> impl Iterator<Item = u16> {
    let unmoved = unmoved(rules);
    let ports = rules.guarded_udp_ports.iter().copied();
    ports.filter(move |port| !unmoved.contains(port))
}

fn unmoved(rules: &Rules) -> BTreeSet<u16> {
    let frontends = rules.redirects.iter();
    let frontends = frontends.map(|(frontend, target)| (frontend.protocol, frontend.port, *target));
    let node_ports = rules.node_ports.iter();
    let node_ports = node_ports.map(|((protocol, port), target)| (*protocol, *port, *target));
    frontends
        .chain(node_ports)
        .filter(|(protocol, port, target)| is_unmoved(*protocol, *port, *target))
        .map(|(_, port, _)| port)
        .collect()
}

fn is_unmoved(protocol: Protocol, port: u16, target: u16) -> bool {
    protocol == Protocol::Udp && port == target
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
