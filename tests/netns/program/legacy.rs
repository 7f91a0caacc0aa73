//! The older tables of the kernel, where the tools over nf_tables do not work: served, healed and cleaned up alike.

use std::net::SocketAddr;
use std::process::Command;

use super::node::{Node, SERVICE, Web};
use crate::world::{Place, World, eventually};

/// Whether this kernel has them, for both families; asked where we are.
///
/// # Errors
/// It has not: what a trial needs.
pub(super) fn has_older_tables() -> Result<(), String> {
    for tool in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let listed = Command::new(tool).args(["-t", "nat"]).output();
        if !listed.is_ok_and(|output| output.status.success()) {
            return Err(format!("what {tool} lists: a kernel with ip_tables"));
        }
    }
    Ok(())
}

pub(super) fn the_older_tables_serve_where_the_newer_do_not_work(mut node: Node) {
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

// Without counters. To list a table makes it, so it is the same before and after.
fn older_rules(world: &World) -> String {
    let line = "for table in nat mangle filter; do for tool in iptables ip6tables; do \
                    $tool-legacy-save -t $table | grep -v '^#' | sed 's/\\[.*//'; done; done";
    world.shell(Place::Node, line)
}
