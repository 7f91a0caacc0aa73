//! The older tables of the kernel, where the tools over nf_tables do not work: served, healed and cleaned up alike.

use std::net::SocketAddr;
use std::process::Command;

use super::node::{Node, SERVICE, Web};
use crate::world::{Place, World, eventually};

pub(super) fn the_older_tables_serve_where_the_newer_do_not_work(mut node: Node) {
    if !has_older_tables(&node.world) {
        return eprintln!("skipped: this kernel has no ip_tables, which iptables-legacy needs");
    }
    let before = older_rules(&node.world);
    node.hidden = vec!["nft", "iptables-restore"];
    node.apply(&Web::default());
    node.start();
    await_both_families(&node);
    assert!(
        node.log().contains("iptables-legacy-restore"),
        "{}",
        node.log()
    );
    let whole = older_rules(&node.world);
    assert!(whole.contains("VIADUCT-CAPTURE"), "{whole}");

    let flush = "for t in iptables ip6tables; do $t-legacy -t nat -F; $t-legacy -t nat -X; done";
    node.world.shell(Place::Node, flush);
    eventually(|| match older_rules(&node.world) {
        now if now == whole => Ok(()),
        other => Err(other),
    });
    await_both_families(&node);
    assert!(node.end().success());
    assert_eq!(older_rules(&node.world), before);
}

pub(super) fn what_the_older_tables_hold_goes_when_the_newer_are_used(mut node: Node) {
    if !has_older_tables(&node.world) {
        return eprintln!("skipped: this kernel has no ip_tables, which iptables-legacy needs");
    }
    let before = older_rules(&node.world);
    node.apply(&Web::default());
    for heir in ["start", "cleanup"] {
        node.hidden = vec!["nft", "iptables-restore"];
        node.start();
        await_both_families(&node);
        node.kill();
        assert!(older_rules(&node.world).contains("VIADUCT-CAPTURE"));
        node.hidden.clear();
        if heir == "start" {
            node.start();
            await_both_families(&node);
            assert_eq!(older_rules(&node.world), before);
            assert!(node.end().success());
        } else {
            let mut cleanup = Command::new(env!("CARGO_BIN_EXE_viaduct"));
            node.world.output_in(Place::Node, cleanup.arg("cleanup"));
            assert_eq!(older_rules(&node.world), before);
        }
    }
}

fn await_both_families(node: &Node) {
    for ip in SERVICE {
        node.await_served(SocketAddr::new(ip.parse().unwrap(), 80));
    }
}

fn has_older_tables(world: &World) -> bool {
    let list = "iptables-legacy-save -t nat && ip6tables-legacy-save -t nat";
    let mut command = Command::new("sh");
    let listed = world.in_ns(Place::Node, || command.args(["-c", list]).output());
    listed.unwrap().status.success()
}

// Without counters. To list a table makes it, so it is the same before and after.
fn older_rules(world: &World) -> String {
    let line = "for table in nat mangle; do for tool in iptables ip6tables; do \
                    $tool-legacy-save -t $table | grep -v '^#' | sed 's/\\[.*//'; done; done";
    world.shell(Place::Node, line)
}
