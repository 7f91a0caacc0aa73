//! What the kernel is left with: only what is ours is ever touched, all of it comes back when it vanishes, and nothing of
//! it stays.

use std::net::SocketAddr;

use viaduct::capture::{self, Mode, remove_others};
use viaduct::model::{Family, Protocol};

use super::Case;
use crate::rig::{PORT, Rig, open, runtime};
use crate::world::Place;

/// Those in which nobody is served.
pub(super) const KERNEL_CASES: &[Case] = &[
    (
        "rules_of_others_stay_as_they_are",
        rules_of_others_stay_as_they_are,
    ),
    (
        "what_is_intact_is_not_restored",
        what_is_intact_is_not_restored,
    ),
    (
        "rules_come_back_after_a_part_is_removed",
        rules_come_back_after_a_part_is_removed,
    ),
    (
        "a_new_start_keeps_what_it_needs_and_removes_the_rest",
        a_new_start_keeps_what_it_needs_and_removes_the_rest,
    ),
    (
        "another_mode_removes_what_this_one_left",
        another_mode_removes_what_this_one_left,
    ),
    (
        "cleanup_removes_both_families",
        cleanup_removes_both_families,
    ),
];

/// Those in which callers meet stand-ins that traffic is led to.
pub(super) const CASES: &[Case] = &[
    (
        "rules_come_back_after_a_foreign_flush",
        rules_come_back_after_a_foreign_flush,
    ),
    (
        "a_change_after_a_foreign_flush_brings_everything_back",
        a_change_after_a_foreign_flush_brings_everything_back,
    ),
    ("release_leaves_nothing", release_leaves_nothing),
    (
        "a_new_start_replaces_what_a_crash_left",
        a_new_start_replaces_what_a_crash_left,
    ),
];

const FOREIGN: &str = "
ip addr add 10.98.0.1/32 dev lo; ip -6 addr add fd00:10:98::1/128 dev lo nodad
ip route add local 10.99.0.1 dev lo; ip -6 route add local fd00:10:99::1 dev lo
for v in 4 6; do ip -$v rule add fwmark 0x7 lookup 77; ip -$v route add local default dev lo table 77; done
nft 'add table ip foreign; add chain ip foreign in { type nat hook prerouting priority -100; }; \
     add rule ip foreign in tcp dport 7 redirect to :8; add set ip foreign viaduct { type ipv4_addr; }; \
     add table inet viaduct; add chain inet viaduct c; add table ip6 foreign; add chain ip6 foreign c'
for t in iptables ip6tables; do
  $t -t nat -N OTHER; $t -t nat -A OTHER -p tcp --dport 7 -j RETURN; $t -t nat -A PREROUTING -j OTHER; $t -t nat -A OUTPUT -j OTHER
  $t -t mangle -A PREROUTING -p tcp --dport 9 -j ACCEPT; $t -A INPUT -p udp --dport 9 -j ACCEPT
done";

fn rules_of_others_stay_as_they_are(mut rig: Rig) {
    rig.world.shell(Place::Node, FOREIGN);
    let before = rig.all_rules();
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    silence_something(&mut rig);
    rig.apply();
    let frontend = rig.frontend(2, Protocol::Tcp);
    rig.rules.redirects.insert(frontend, stand_in.tcp);
    rig.apply();
    assert_ne!(rig.all_rules(), before);
    rig.restart();
    rig.apply();
    rig.reassert();
    rig.release();
    assert_eq!(rig.all_rules(), before);
}

fn what_is_intact_is_not_restored(mut rig: Rig) {
    assert!(!rig.reassert(), "nothing was asked for yet");
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    silence_something(&mut rig);
    rig.apply();
    assert!(!rig.reassert());
    rig.world.shell(Place::Node, FOREIGN);
    assert!(!rig.reassert(), "rules of others are no reason");
    rig.apply();
    assert!(!rig.reassert());
}

fn rules_come_back_after_a_foreign_flush(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    let to = SocketAddr::new(rig.service(1), PORT);
    // A client that sends in between must not be lost for as long as it keeps its port.
    let client = rig.world.udp_client(Place::Pod, to);
    rig.world.shell(
        Place::Node,
        "nft flush ruleset; for t in iptables ip6tables; do $t -t nat -F; $t -t nat -X; done",
    );
    client.send(b"too early").unwrap();
    rig.assert_silent(Place::Pod, Protocol::Udp, to);
    assert!(rig.reassert());
    assert!(!rig.reassert());
    assert_eq!(
        crate::world::ask_again(&client, crate::world::patience()).words(),
        "here"
    );
    assert_eq!(
        rig.ask(Place::Outside, Protocol::Tcp, to).words(),
        to.to_string()
    );
}

fn rules_come_back_after_a_part_is_removed(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    let (service, family) = (rig.service(1), if rig.v6() { "ip6" } else { "ip" });
    let tool = if rig.v6() { "ip6tables" } else { "iptables" };
    let flag = if rig.v6() { "-6" } else { "-4" };
    let removals = match rig.mode {
        Mode::Nftables => vec![
            format!(
                "nft delete element {family} viaduct redirects '{{ {service} . tcp . {PORT} }}'"
            ),
            format!("nft flush chain {family} viaduct capture_in"),
            format!("nft add element {family} viaduct guarded '{{ 1 }}'"),
        ],
        Mode::Iptables => vec![
            format!("{tool} -t nat -D PREROUTING -j VIADUCT-CAPTURE"),
            format!("{tool} -t nat -F VIADUCT-CAPTURE"),
            format!("{tool} -t nat -A VIADUCT-GUARD -p udp --dport 1 -j RETURN"),
        ],
        Mode::Tproxy => vec![
            format!(
                "nft delete element {family} viaduct_tproxy redirects '{{ {service} . tcp . {PORT} }}'"
            ),
            format!("nft delete table {family} viaduct_tproxy"),
            format!("ip {flag} rule del fwmark 0x1000/0x1000"),
            format!("ip {flag} route flush table 8600"),
            format!("ip {flag} route del local {service} dev lo table local"),
        ],
        Mode::Local => vec![format!(
            "ip {flag} route del local {service} dev lo table local"
        )],
        Mode::Loopback | Mode::None => unreachable!("these write no rules"),
    };
    let whole = rig.all_rules();
    for removal in removals {
        rig.world.shell(Place::Node, &removal);
        assert_ne!(rig.all_rules(), whole, "{removal}");
        assert!(rig.reassert(), "{removal}");
        assert_eq!(rig.all_rules(), whole, "{removal}");
    }
}

fn a_change_after_a_foreign_flush_brings_everything_back(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    rig.world.shell(Place::Node, "nft flush ruleset");
    rig.lead(2, &stand_in);
    rig.rules.redirects.remove(&rig.frontend(1, Protocol::Udp));
    rig.apply();
    for number in [1, 2] {
        let to = SocketAddr::new(rig.service(number), PORT);
        let restored = rig.reassert();
        assert_eq!(
            rig.ask(Place::Pod, Protocol::Tcp, to).words(),
            to.to_string(),
            "{restored}"
        );
    }
}

fn release_leaves_nothing(mut rig: Rig) {
    let before = rig.all_rules();
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    silence_something(&mut rig);
    rig.apply();
    assert_ne!(rig.all_rules(), before);
    rig.release();
    assert_eq!(rig.all_rules(), before);
    rig.release();
    rig.apply();
    let to = SocketAddr::new(rig.service(1), PORT);
    assert_eq!(rig.ask(Place::Outside, Protocol::Udp, to).words(), "here");
}

fn a_new_start_replaces_what_a_crash_left(mut rig: Rig) {
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.lead(2, &stand_in);
    silence_something(&mut rig);
    rig.apply();
    rig.restart();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        rig.rules.redirects.remove(&rig.frontend(2, protocol));
    }
    rig.rules.silent.clear();
    rig.rules.source_ranges.clear();
    rig.apply();
    let replaced = rig.all_rules();
    let (kept, gone) = (
        SocketAddr::new(rig.service(1), PORT),
        SocketAddr::new(rig.service(2), PORT),
    );
    assert_eq!(
        rig.ask(Place::Pod, Protocol::Tcp, kept).words(),
        kept.to_string()
    );
    rig.assert_silent(Place::Pod, Protocol::Tcp, gone);
    rig.release();
    rig.apply();
    assert_eq!(rig.all_rules(), replaced);
}

fn a_new_start_keeps_what_it_needs_and_removes_the_rest(mut rig: Rig) {
    rig.world.shell(Place::Node, FOREIGN);
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    silence_something(&mut rig);
    rig.apply();
    let wanted = rig.all_rules();
    rig.lead(2, &stand_in);
    rig.apply();
    assert_ne!(rig.all_rules(), wanted);
    rig.restart();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        rig.rules.redirects.remove(&rig.frontend(2, protocol));
    }
    rig.apply();
    assert_eq!(rig.all_rules(), wanted);
    assert!(!rig.reassert());
}

fn another_mode_removes_what_this_one_left(mut rig: Rig) {
    let before = rig.all_rules();
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    silence_something(&mut rig);
    rig.apply();
    let other = if rig.mode == Mode::Nftables {
        Mode::Iptables
    } else {
        Mode::Nftables
    };
    let captured = rig.all_rules();
    drop(open(&rig.world, other, rig.family));
    assert_eq!(
        rig.all_rules(),
        captured,
        "not before there is something else"
    );
    rig.world.in_ns(Place::Node, || {
        runtime().block_on(remove_others(other, rig.family));
    });
    assert_eq!(rig.all_rules(), before);
}

fn cleanup_removes_both_families(mut rig: Rig) {
    let before = rig.all_rules();
    let stand_in = rig.stand_in("here");
    rig.lead(1, &stand_in);
    rig.apply();
    let other = if rig.v6() { Family::V4 } else { Family::V6 };
    let mut second = open(&rig.world, rig.mode, other);
    let nothing = capture::plan::Rules::none(other);
    let cleanup = async {
        second.apply(&nothing).await?;
        capture::cleanup().await?;
        capture::cleanup().await
    };
    rig.world
        .in_ns(Place::Node, || runtime().block_on(cleanup))
        .unwrap();
    assert_eq!(rig.all_rules(), before);
}

fn silence_something(rig: &mut Rig) {
    let (one, two) = (
        rig.frontend(8, Protocol::Tcp),
        rig.frontend(9, Protocol::Tcp),
    );
    rig.rules
        .silent
        .insert(one, capture::plan::Silence::Outside);
    rig.rules
        .silent
        .insert(two, capture::plan::Silence::Everyone);
    let ranges = rig.rules.pod_cidrs.clone();
    rig.rules.source_ranges.insert(one, ranges);
}
