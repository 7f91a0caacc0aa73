//! Each rung made impossible in turn: the next is taken and said so, and where none is left the end is an explanation.

use std::net::SocketAddr;
use std::process::Command;

use super::node::{Node, SERVICE, Web};
use crate::rig::all_rules;
use crate::world::{Place, eventually};

pub(super) fn the_next_rung_is_taken_where_one_is_impossible(mut node: Node) {
    let before = all_rules(&node.world);
    node.capture = Some("auto");
    node.apply(&Web::default());
    let rungs: [(&[&str], &str); 4] = [
        (&[], "nftables"),
        (&["nft"], "iptables"),
        (&["nat", "iptables-restore", "ip6tables-restore"], "tproxy"),
        (&["nft", "iptables-restore", "ip6tables-restore"], "local"),
    ];
    for (hidden, rung) in rungs {
        node.hidden = hidden.to_vec();
        node.start();
        let chosen = format!("IPv4: {rung}, IPv6: {rung}");
        eventually(|| {
            let log = node.log();
            let last = log
                .lines()
                .rfind(|line| line.contains("capture modes chosen"));
            match last {
                Some(line) if line.contains(&chosen) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        for ip in SERVICE {
            node.await_served(SocketAddr::new(ip.parse().unwrap(), 80));
        }
        assert!(node.end().success(), "{rung}");
        assert_eq!(all_rules(&node.world), before, "{rung}");
    }
}

pub(super) fn doctor_tells_what_works_and_who_else_is_here(node: Node) {
    let ask = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
        let output = node
            .world
            .in_ns(Place::Node, || command.arg("doctor").output())
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    };
    let before = all_rules(&node.world);
    let (status, text) = ask();
    assert_eq!(status, Some(0), "{text}");
    for mode in ["nftables", "iptables", "tproxy", "local"] {
        let works =
            |line: &&str| line.starts_with(&format!("capture {mode} ")) && line.contains(" ok ");
        assert_eq!(text.lines().filter(works).count(), 2, "{mode}: {text}");
    }
    let routes = |text: &str, found: &str| {
        let about = |line: &&str| line.starts_with("default route ") && line.contains(found);
        text.lines().filter(about).count()
    };
    assert_eq!(routes(&text, " ok "), 2, "{text}");
    assert_eq!(all_rules(&node.world), before, "nothing stays");
    let line = "ip -4 route del default; ip -6 route del default";
    node.world.shell(Place::Node, line);
    let (status, text) = ask();
    assert_eq!(status, Some(0), "{text}");
    assert_eq!(routes(&text, " no "), 2, "{text}");
    node.world.shell(Place::Node, "nft add table ip kube-proxy");
    let (status, text) = ask();
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("kube-proxy --cleanup"), "{text}");
}

pub(super) fn without_a_rung_the_end_is_an_explanation(node: Node) {
    let program = env!("CARGO_BIN_EXE_viaduct");
    for (capture, rungs) in [
        ("auto", &["nftables", "iptables", "tproxy", "local"][..]),
        ("local", &["local"]),
    ] {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--inh-caps=-net_admin",
                "--bounding-set=-net_admin",
                program,
            ])
            .args(["run", "--capture", capture, "--manifests"])
            .arg(node.manifests())
            .arg("--admin-socket")
            .arg(node.manifests().with_file_name("other.sock"))
            .arg("--data-dir")
            .arg(node.manifests().with_file_name("other"));
        let output = node.world.in_ns(Place::Node, || command.output()).unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}");
        let last = words.lines().last().unwrap_or_default();
        assert!(
            last.starts_with(&format!("error: --capture {capture}: ")),
            "{last}"
        );
        for rung in rungs {
            assert!(last.contains(&format!("{rung}: ")), "{rung}: {last}");
        }
        assert!(last.contains("CAP_NET_ADMIN"), "{last}");
    }
}
