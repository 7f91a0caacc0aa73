//! The chains, a change of them and what is read back, against golden files and bounds.

use proptest::prelude::*;

use crate::capture::samples::{a_little_later, any_rules, assert_golden, many, one_of_everything};
use crate::model::Family;

use super::*;

fn planned(table: Table, rules: &Rules) -> Chains {
    plan_chains(table, rules, rules.landing(None))
}

fn change(before: Option<&Rules>, after: &Rules) -> String {
    let part = |table| {
        let old = before.map_or_else(Chains::default, |rules| planned(table, rules));
        render_restore(table, &old, &planned(table, after))
    };
    Table::ALL.into_iter().filter_map(part).collect()
}

#[test]
fn chains_are_as_recorded() {
    for (family, name) in [
        (Family::V4, "iptables-ipv4.rules"),
        (Family::V6, "iptables-ipv6.rules"),
    ] {
        assert_golden(name, &change(None, &one_of_everything(family)));
    }
}

#[test]
fn a_change_writes_only_the_chains_that_change() {
    let (before, after) = (one_of_everything(Family::V4), a_little_later(Family::V4));
    assert_golden("iptables-change.rules", &change(Some(&before), &after));
    assert_eq!(change(Some(&after), &after), "");
}

#[test]
fn what_is_restored_reads_back_as_what_was_planned() {
    for table in Table::ALL {
        let planned = planned(table, &one_of_everything(Family::V6));
        let restored = render_restore(table, &Chains::default(), &planned).unwrap();
        let saved = restored.replace("-I ", "-A ");
        assert_eq!(parse_saved(&saved), planned);
    }
}

#[test]
fn pieces_hold_every_line_once_and_in_order() {
    let planned = planned(Table::Nat, &many(1_000));
    let whole = render_restore(Table::Nat, &Chains::default(), &planned).unwrap();
    let body = |text: &str| text.replace("*nat\n", "").replace("COMMIT\n", "");
    let pieces = pieces(&whole);
    assert!(
        pieces.len() > 4
            && pieces
                .iter()
                .all(|piece| piece.lines().count() <= PIECE + 2)
    );
    assert_eq!(
        pieces.iter().map(|piece| body(piece)).collect::<String>(),
        body(&whole)
    );
}

#[test]
fn rules_are_counted_whole_and_as_written() {
    let (few, more) = (one_of_everything(Family::V4), a_little_later(Family::V4));
    let (few, more) = (planned(Table::Nat, &few), planned(Table::Nat, &more));
    let all = render_restore(Table::Nat, &Chains::default(), &few).unwrap();
    assert_eq!(count_rules(&all), few.n_rules());
    let difference = render_restore(Table::Nat, &few, &more).unwrap();
    assert!((1..more.n_rules()).contains(&count_rules(&difference)));
    let removal = render_restore(Table::Nat, &more, &Chains::default()).unwrap();
    assert_eq!(count_rules(&removal), 0);
}

#[test]
fn rules_of_others_are_not_ours() {
    let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A PREROUTING -j DOCKER\n-A DOCKER -j RETURN\nCOMMIT\n";
    assert_eq!(parse_saved(saved), Chains::default());
    let jump = "-A PREROUTING -j VIADUCT-CAPTURE\n";
    assert!(
        parse_saved(jump)
            .jumps
            .contains("PREROUTING -j VIADUCT-CAPTURE")
    );
}

#[test]
fn everything_of_an_earlier_run_goes() {
    let left = parse_saved(
        ":VIADUCT-OLD - [0:0]\n-A PREROUTING -j VIADUCT-OLD\n-A VIADUCT-OLD -j RETURN\n",
    );
    let text = render_restore(Table::Nat, &left, &Chains::default()).unwrap();
    assert_eq!(
        text,
        "*nat\n:VIADUCT-OLD - [0:0]\n-D PREROUTING -j VIADUCT-OLD\n-X VIADUCT-OLD\nCOMMIT\n"
    );
}

#[test]
fn a_packet_passes_a_few_hundred_rules_of_ten_thousand_services() {
    let planned = planned(Table::Nat, &many(10_000));
    let longest = planned.chains.values().map(Vec::len).max().unwrap();
    assert!(longest <= 256, "{longest}");
    let names = planned.chains.keys();
    assert!(names.into_iter().all(|name| name.len() <= 28));
}

#[test]
fn chain_names_fit_in_every_family() {
    for family in Family::BOTH {
        for table in Table::ALL {
            let planned = planned(table, &one_of_everything(family));
            assert!(
                planned.chains.keys().all(|name| name.len() <= 28),
                "{planned:?}"
            );
        }
    }
    let longest = network_chain("255.255.255.0/24".parse().unwrap());
    assert!(longest.len() <= 28, "{longest}");
}

#[test]
fn a_network_of_everything_is_no_match() {
    let mut rules = one_of_everything(Family::V4);
    rules.pod_cidrs = vec!["0.0.0.0/0".parse().unwrap()];
    let planned = planned(Table::Nat, &rules);
    assert_eq!(planned.chains[OUTSIDE][0], "-j RETURN");
}

/// What `iptables-restore --noflush` does. Fails where it would.
fn carry_out(restore: &str, held: &mut Chains) {
    for line in restore.lines() {
        let (verb, rest) = line.split_at(2.min(line.len()));
        let rest = rest.trim();
        match verb {
            "-A" => {
                let (chain, rule) = rest.split_once(' ').unwrap();
                held.chains.get_mut(chain).unwrap().push(rule.to_owned());
            }
            "-I" => assert!(held.jumps.insert(rest.to_owned()), "{line}"),
            "-D" => assert!(held.jumps.remove(rest), "{line}"),
            "-X" => assert_eq!(held.chains.remove(rest), Some(Vec::new()), "{line}"),
            _ => {
                if let Some(header) = line.strip_prefix(':') {
                    let name = header.split(' ').next().unwrap();
                    held.chains.insert(name.to_owned(), Vec::new());
                }
            }
        }
        // At every step what leads to a chain of ours leads to one that is there.
        let named = held.jumps.iter().filter_map(|jump| jump.rsplit(' ').next());
        for chain in named {
            assert!(held.chains.contains_key(chain), "{line}");
        }
    }
}

proptest! {
    #[test]
    fn a_change_leads_from_any_rules_to_any_others(before in any_rules(), after in any_rules()) {
        for table in Table::ALL {
            let (mut held, wanted) = (planned(table, &before), planned(table, &after));
            let text = render_restore(table, &held, &wanted);
            prop_assert_eq!(text.is_none(), held == wanted);
            carry_out(&text.unwrap_or_default(), &mut held);
            prop_assert_eq!(held, wanted);
        }
    }

    #[test]
    fn every_chain_that_is_named_is_there(rules in any_rules()) {
        for table in Table::ALL {
            let all = planned(table, &rules);
            for rule in all.chains.values().flatten() {
                let target = rule.split("-j ").nth(1).unwrap().split(' ').next().unwrap();
                prop_assert!(!target.starts_with(PREFIX) || all.chains.contains_key(target), "{}", rule);
            }
        }
    }
}
