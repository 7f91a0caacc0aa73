//! Transactions of elements over a socket of our own, on the kernel that answers them: all edits or none, and the one that
//! is refused is named.

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;
use viaduct::net::netlink::IpVersion;
use viaduct::net::nf_tables::{CommitError, Datum, Edit, MAX_EDITS, Transactions, Verb};

use super::Case;
use crate::rig::Rig;
use crate::world::Place;

/// Those of nf_tables alone.
pub(super) const CASES: &[Case] = &[(
    "elements_change_all_or_none_and_the_refused_one_is_named",
    elements_change_all_or_none_and_the_refused_one_is_named,
)];

fn elements_change_all_or_none_and_the_refused_one_is_named(rig: Rig) {
    let (family, kind) = if rig.v6() {
        ("ip6", "ipv6_addr")
    } else {
        ("ip", "ipv4_addr")
    };
    let table = format!(
        "nft 'add table {family} viaduct; add set {family} viaduct cluster_ips {{ type {kind}; }}'"
    );
    rig.world.shell(Place::Node, &table);
    let held = || {
        let list = format!("nft list set {family} viaduct cluster_ips");
        let listed = rig.world.shell(Place::Node, &list);
        let count = |word: &&str| word.trim_end_matches(',').parse::<IpAddr>().is_ok();
        listed.split_whitespace().filter(count).count()
    };
    let edit = |verb, number| Edit {
        verb,
        set: "cluster_ips",
        key: vec![Datum::Address(rig.service(number))],
        value: None,
    };
    let transactions = rig
        .world
        .in_ns(Place::Node, || Transactions::open().unwrap());
    let commit = |edits| transactions.commit(version(&rig), "viaduct", edits);

    commit(vec![edit(Verb::Add, 1), edit(Verb::Add, 2)]).unwrap();
    commit(vec![edit(Verb::Delete, 1), edit(Verb::Add, 3)]).unwrap();
    commit(Vec::new()).unwrap();
    assert_eq!(held(), 2);

    let missing = edit(Verb::Delete, 9);
    let edits = vec![edit(Verb::Add, 4), missing.clone(), edit(Verb::Add, 5)];
    match commit(edits) {
        Err(CommitError::Edit { edit, source }) => {
            assert_eq!((edit, errno(&source)), (missing, Errno::ENOENT));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(held(), 2, "none of the others either");

    let too_many = vec![edit(Verb::Add, 6); MAX_EDITS + 1];
    assert!(matches!(commit(too_many), Err(CommitError::TooMany(513))));
    let most = vec![edit(Verb::Add, 6); MAX_EDITS];
    let fresh = rig
        .world
        .in_ns(Place::Node, || Transactions::open().unwrap());
    fresh.commit(version(&rig), "viaduct", most).unwrap();
    assert_eq!(held(), 3);

    let gone = fresh.commit(version(&rig), "viaduct_gone", vec![edit(Verb::Add, 7)]);
    match gone {
        Err(CommitError::Edit { source, .. }) => assert_eq!(errno(&source), Errno::ENOENT),
        other => panic!("{other:?}"),
    }
}

fn version(rig: &Rig) -> IpVersion {
    if rig.v6() {
        IpVersion::V6
    } else {
        IpVersion::V4
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap())
}
