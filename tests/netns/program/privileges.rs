//! What the program may do once it serves: every thread of it, and after it has put itself in its own place.

use std::fs;
use std::net::SocketAddr;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{Place, eventually};

use super::node::{NODE_PORT, Node, SERVICE, Web};

/// What is kept of what there is: CAP_DAC_OVERRIDE, CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_RESOURCE, by their numbers.
const NEEDED: u64 = 1 << 1 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 24;

pub(super) fn every_thread_may_do_no_more_than_serving_takes(mut node: Node) {
    let config = node.manifests().with_file_name("config.yaml");
    let write = |timeout: &str| {
        let head = "apiVersion: viaduct.dev/v1alpha1\nkind: ViaductConfiguration\n";
        fs::write(&config, format!("{head}connectTimeout: {timeout}\n")).unwrap();
    };
    write("250ms");
    node.flags
        .extend(["--config".to_owned(), config.display().to_string()]);
    node.apply(&Web::default());
    node.start();
    await_both_families(&node);
    assert_restricted(node.pid());
    // A change of the rules takes programs, and a cluster address of its own port a socket below 1024.
    node.apply(&Web {
        endpoints: &["remote"],
        ..Web::default()
    });
    await_both_families(&node);

    let was_running = node.log().matches("viaduct is running").count();
    write("300ms");
    kill(node.pid(), Signal::SIGHUP).unwrap();
    eventually(|| match node.log().matches("viaduct is running").count() {
        now if now > was_running => Ok(()),
        _ => Err(node.log()),
    });
    await_both_families(&node);
    assert_restricted(node.pid());
    assert!(node.end().success());
}

fn await_both_families(node: &Node) {
    for ip in SERVICE {
        node.await_served(SocketAddr::new(ip.parse().unwrap(), 80));
        node.await_served(SocketAddr::new(Place::Node.ip(ip.contains(':')), NODE_PORT));
    }
}

fn assert_restricted(pid: Pid) {
    let ours = mask(&fs::read_to_string("/proc/self/status").unwrap(), "CapPrm:");
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        for set in ["CapEff:", "CapPrm:", "CapInh:", "CapBnd:", "CapAmb:"] {
            let held = mask(&status, set);
            assert_eq!(
                held,
                NEEDED & ours,
                "{set} {held:x} of {}",
                field(&status, "Name:")
            );
        }
        assert_eq!(field(&status, "NoNewPrivs:"), "1");
        threads += 1;
    }
    assert!(threads > 2, "{threads} threads");
}

fn mask(status: &str, set: &str) -> u64 {
    u64::from_str_radix(field(status, set), 16).unwrap()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim()
}
