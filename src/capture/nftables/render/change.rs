//! What leads from some elements of a table to others: as text for `nft`, or as edits for the kernel itself. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::net::nf_tables::{Datum, Edit, MAX_EDITS, Verb};

use super::{Elements, Shape, Table, element};

/// The elements that come and go in one transaction. Never nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::capture::nftables) struct Change {
    pub(in crate::capture::nftables) table: Table,
    sets: Vec<SetChange>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct SetChange {
    name: &'static str,
    shape: Shape,
    /// Keys.
    gone: Vec<String>,
    /// Keys and values.
    come: Vec<(String, String)>,
}

impl Change {
    /// From `before` to `after`; `None` if they are the same. Intervals are replaced as a whole.
    pub(super) fn between(table: Table, before: &Elements, after: &Elements) -> Option<Self> {
        let nothing = BTreeMap::new();
        let mut sets = Vec::new();
        for (name, _, shape) in table.sets() {
            let old = before.get(name).unwrap_or(&nothing);
            let new = after.get(name).unwrap_or(&nothing);
            if old == new {
                continue;
            }
            let stays = |key: &String, value: &String, other: &BTreeMap<String, String>| {
                shape != Shape::Intervals && other.get(key) == Some(value)
            };
            let gone = old.iter().filter(|(key, value)| !stays(key, value, new));
            let come = new.iter().filter(|(key, value)| !stays(key, value, old));
            sets.push(SetChange {
                name,
                shape,
                gone: gone.map(|(key, _)| key.clone()).collect(),
                come: come
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect(),
            });
        }
        (!sets.is_empty()).then_some(Self { table, sets })
    }

    /// For `nft -f -`.
    pub(in crate::capture::nftables) fn render(&self) -> String {
        let mut text = String::new();
        for change in &self.sets {
            let set = format!("{} {}", self.table.full_name(), change.name);
            let come = change.come.iter().map(|(key, value)| element(key, value));
            if change.shape != Shape::Intervals {
                push_elements(&mut text, "delete", &set, change.gone.iter().cloned());
            } else if !change.gone.is_empty() {
                // Taking single intervals out of a set and putting others in, in one transaction, fails on some kernels.
                let _ = writeln!(text, "flush set {set}");
            }
            push_elements(&mut text, "add", &set, come);
        }
        text
    }

    /// The same one by one, in order; `None` if that takes `nft`: for intervals, and for more than one transaction has.
    pub(in crate::capture::nftables) fn edits(&self) -> Option<Vec<Edit>> {
        let mut edits = Vec::new();
        for change in &self.sets {
            let n_edits = edits.len() + change.gone.len() + change.come.len();
            if change.shape == Shape::Intervals || n_edits > MAX_EDITS {
                return None;
            }
            for key in &change.gone {
                edits.push(edit(Verb::Delete, change.name, key, "")?);
            }
            for (key, value) in &change.come {
                edits.push(edit(Verb::Add, change.name, key, value)?);
            }
        }
        Some(edits)
    }
}

fn push_elements(text: &mut String, verb: &str, set: &str, elements: impl Iterator<Item = String>) {
    let all: Vec<String> = elements.collect();
    if !all.is_empty() {
        let _ = writeln!(text, "{verb} element {set} {{ {} }}", all.join(",\n\t"));
    }
}

fn edit(verb: Verb, set: &'static str, key: &str, value: &str) -> Option<Edit> {
    let key = key.split(" . ").map(datum).collect::<Option<_>>()?;
    let value = if value.is_empty() {
        None
    } else {
        Some(datum(value)?)
    };
    Some(Edit {
        verb,
        set,
        key,
        value,
    })
}

// A part of an element as it is spelt here and listed by `nft`.
fn datum(word: &str) -> Option<Datum> {
    match word {
        "tcp" => Some(Datum::Protocol(6)),
        "udp" => Some(Datum::Protocol(17)),
        number_or_address => {
            let port = number_or_address.parse().map(Datum::Port);
            port.or_else(|_| number_or_address.parse().map(Datum::Address))
                .ok()
        }
    }
}
