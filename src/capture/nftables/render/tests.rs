//! The table, a change of it and its pieces as text, against golden files and bounds.

use proptest::prelude::*;

use crate::capture::samples::{a_little_later, any_rules, assert_golden, many, one_of_everything};

use crate::capture::nftables::listing::parse_listing;

use crate::net::nf_tables::MAX_EDITS;

use super::*;

const V4: Table = translating(Family::V4, None);
const DIVERT: Table = Table {
    family: Family::V4,
    layout: Layout::Divert,
};

fn render_change(table: Table, before: &Rules, after: &Rules) -> Option<String> {
    let change = table.plan_change(before, after);
    change.map(|change| change.render())
}

const fn translating(family: Family, landing: Option<IpAddr>) -> Table {
    Table {
        family,
        layout: Layout::Translate { landing },
    }
}

#[test]
fn tables_are_as_recorded() {
    for (family, name) in [
        (Family::V4, "nftables-ipv4.nft"),
        (Family::V6, "nftables-ipv6.nft"),
    ] {
        let elements = V4.plan_elements(&one_of_everything(family));
        assert_golden(
            name,
            &translating(family, one_of_everything(family).landing(None))
                .render_replacement(&elements),
        );
    }
}

#[test]
fn diverting_tables_are_as_recorded() {
    for (family, name) in [
        (Family::V4, "tproxy-ipv4.nft"),
        (Family::V6, "tproxy-ipv6.nft"),
    ] {
        let table = Table { family, ..DIVERT };
        let elements = table.plan_elements(&one_of_everything(family));
        assert_golden(name, &table.render_replacement(&elements));
    }
}

#[test]
fn one_more_of_ten_thousand_diverted_services_is_two_elements() {
    let change = render_change(DIVERT, &many(9_999), &many(10_000));
    let change = change.unwrap_or_default();
    let added: Vec<&str> = change.lines().collect();
    assert_eq!(
        added,
        [
            "add element ip viaduct_tproxy redirects { 10.96.39.15 . tcp . 80 : 40000 }",
            "add element ip viaduct_tproxy frontends { 10.96.39.15 . tcp . 80 }",
        ]
    );
}

#[test]
fn a_change_names_only_what_changes() {
    let (before, after) = (one_of_everything(Family::V4), a_little_later(Family::V4));
    let change = render_change(V4, &before, &after).unwrap();
    assert_golden("nftables-change.nft", &change);
    assert_eq!(render_change(V4, &after, &after), None);
}

#[test]
fn a_change_of_the_pods_replaces_that_set_as_a_whole() {
    let mut rules = one_of_everything(Family::V4);
    let before = rules.clone();
    rules.pod_cidrs.push("10.245.0.0/24".parse().unwrap());
    let change = render_change(V4, &before, &rules).unwrap();
    let expected = "flush set ip viaduct pods\nadd element ip viaduct pods { 10.244.0.0/24,\n\t10.245.0.0/24 }\n";
    assert_eq!(change, expected);
}

#[test]
fn overlapping_networks_become_one() {
    let mut rules = Rules::none(Family::V4);
    rules.pod_cidrs = vec![
        "10.244.1.0/24".parse().unwrap(),
        "10.244.0.0/16".parse().unwrap(),
    ];
    rules.node_addresses = ["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()].into();
    let elements = V4.plan_elements(&rules);
    assert!(elements["pods"].keys().eq(["10.244.0.0/16"]));
    assert!(elements["node_addresses"].keys().eq(["127.0.0.0/8"]));
}

#[test]
fn a_frontend_decides_before_the_node_port_of_another_service() {
    let mut rules = Rules::none(Family::V4);
    let node = "172.18.0.2".parse().unwrap();
    rules.node_addresses = [node].into();
    rules.silent_node_ports = [(Protocol::Tcp, 80)].into_iter().collect();
    assert_eq!(V4.plan_elements(&rules)["silent_outside"].len(), 1);
    let external = Frontend {
        ip: node,
        port: 80,
        protocol: Protocol::Tcp,
    };
    rules.redirects.insert(external, 40000);
    assert_eq!(V4.plan_elements(&rules)["silent_outside"].len(), 0);
}

#[test]
fn a_port_that_is_redirected_to_itself_is_not_guarded() {
    let mut rules = Rules::none(Family::V4);
    rules.guarded_udp_ports = [40000_u16, 40001].into_iter().collect();
    rules.node_ports = [
        ((Protocol::Udp, 40000), 40000_u16),
        ((Protocol::Udp, 40001), 40000),
    ]
    .into_iter()
    .collect();
    assert!(V4.plan_elements(&rules)["guarded"].keys().eq(["40001"]));
}

#[test]
fn rules_do_not_grow_with_services() {
    let lines = |services| {
        let text = V4.render_replacement(&V4.plan_elements(&many(services)));
        text.lines()
            .filter(|line| line.contains("redirect to"))
            .count()
    };
    assert_eq!(lines(1_000), lines(10_000));
}

#[test]
fn pieces_hold_every_element_once() {
    let elements = V4.plan_elements(&many(2_500));
    let pieces = V4.render_pieces(&elements);
    assert_eq!(pieces.len(), 4);
    let sizes: Vec<usize> = pieces
        .iter()
        .map(|piece| piece.matches(" . tcp . ").count())
        .collect();
    assert_eq!(sizes, [0, 1_000, 1_000, 500]);
}

#[test]
fn one_more_of_ten_thousand_services_is_one_element() {
    let change = render_change(V4, &many(9_999), &many(10_000)).unwrap();
    assert_eq!(
        change,
        "add element ip viaduct redirects { 10.96.39.15 . tcp . 80 : 40000 }\n"
    );
}

#[test]
fn a_change_of_more_than_one_transaction_takes_nft() {
    let edits = |services| {
        let change = V4.plan_change(&many(0), &many(services)).unwrap();
        change.edits().map(|edits| edits.len())
    };
    let most = u16::try_from(MAX_EDITS).unwrap();
    assert_eq!(edits(most), Some(MAX_EDITS));
    assert_eq!(edits(most + 1), None);
}

/// What `nft` does with a change, as far as elements are concerned. Fails where `nft` would.
fn carry_out(change: &str, elements: &mut Elements) {
    for command in change.replace(",\n\t", ", ").lines() {
        let (words, listed) = command.split_once(" { ").unwrap_or((command, "}"));
        let name = words.rsplit(' ').next().unwrap();
        let set = elements
            .iter_mut()
            .find(|(set, _)| **set == name)
            .unwrap()
            .1;
        let listed = listed.trim_end_matches('}').trim();
        for element in listed.split(", ").filter(|element| !element.is_empty()) {
            let (key, value) = element.split_once(" : ").unwrap_or((element, ""));
            if command.starts_with("delete") {
                assert!(set.remove(key).is_some(), "{command}");
            } else {
                let before = set.insert(key.to_owned(), value.to_owned());
                assert!(before.is_none(), "{command}");
            }
        }
        if command.starts_with("flush") {
            set.clear();
        }
    }
}

proptest! {
    // What decides about several elements is seldom drawn.
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_change_leads_from_any_rules_to_any_others(before in any_rules(), after in any_rules()) {
        for table in [V4, DIVERT] {
            let (mut held, wanted) = (table.plan_elements(&before), table.plan_elements(&after));
            let change = render_change(table, &before, &after);
            prop_assert_eq!(change.is_none(), held == wanted);
            carry_out(&change.unwrap_or_default(), &mut held);
            prop_assert_eq!(held, wanted);
        }
    }

    #[test]
    fn edits_are_what_the_text_says(before in any_rules(), after in any_rules()) {
        for table in [V4, DIVERT] {
            let Some(change) = table.plan_change(&before, &after) else { continue };
            let text = change.render();
            let intervals = ["node_addresses", "allowed_sources", "pods"];
            let has_intervals = intervals.iter().any(|set| text.contains(&format!(" {set}")));
            let edits = change.edits();
            prop_assert_eq!(edits.is_none(), has_intervals);
            let shown = edits.into_iter().flatten().map(|edit| edit.to_string());
            let mut told = Vec::new();
            for command in text.replace(",\n\t", ", ").lines().filter(|_| !has_intervals) {
                let named = command.replace(&format!("{} ", table.full_name()), "");
                let (head, elements) = named.trim_end_matches(" }").split_once(" { ").unwrap();
                for element in elements.split(", ") {
                    let element = element.replace("tcp", "6").replace("udp", "17");
                    told.push(format!("{head} {{ {element} }}"));
                }
            }
            prop_assert_eq!(shown.collect::<Vec<_>>(), told);
        }
    }

    #[test]
    fn a_listing_reads_back_as_what_was_written(rules in any_rules()) {
        let wanted = V4.plan_elements(&rules);
        let listing = parse_listing(&V4.render_replacement(&wanted));
        let filled = wanted.iter().filter(|(_, all)| !all.is_empty());
        let filled = filled.map(|(set, all)| ((*set).to_owned(), all.clone()));
        prop_assert_eq!(listing.elements, filled.collect());
    }
}
