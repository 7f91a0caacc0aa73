//! The rules of `records`, each a row: question, type, answer.
//!
//! Answers are written as the records in them: aliases first, then the data; `nodata`, `nxdomain`, `unsynced`,
//! `outside` or `forward` where there is none.

mod aliases;
mod names;
mod services;

use super::super::fixture::{authority, cluster, ready, service, slice, table, tcp};
use super::*;
use crate::model::{Event, Port, Protocol, SctpPort};

fn ask(authority: &Authority, table: &RoutingTable, name: &str, kind: RecordType) -> Answer {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    authority.answer(table, 42, &name, kind)
}

fn show(answer: Answer) -> String {
    let local = match answer {
        Answer::Cluster(local) | Answer::Reverse(local) => local,
        Answer::Forward => return "forward".to_owned(),
    };
    let mut words: Vec<String> = local
        .aliases
        .iter()
        .map(|alias| alias.data.to_string())
        .collect();
    match local.end {
        End::Records { answers, .. } => {
            words.extend(answers.iter().map(|one| one.data.to_string()))
        }
        End::NoData(_) => words.push("nodata".to_owned()),
        End::NxDomain(_) => words.push("nxdomain".to_owned()),
        End::Unsynced => words.push("unsynced".to_owned()),
        End::Outside(target) => words.push(format!("outside {target}")),
    }
    words.join(", ").replace(".cluster.local.", ".Z")
}

fn check(authority: &Authority, table: &RoutingTable, rows: &[(&str, RecordType, &str)]) {
    for (name, kind, expected) in rows {
        let name = name.replace(".Z", ".cluster.local");
        assert_eq!(
            show(ask(authority, table, &name, *kind)),
            *expected,
            "{name} {kind}"
        );
    }
}

use RecordType::{
    A, AAAA, ANY, CNAME, HTTPS, MX, NS as NAME_SERVER, PTR as POINTER, SOA as START, SRV as PORT,
    TXT as TEXT,
};
