//! The settings of connection tracking that kube-proxy writes: in the node's namespace, and named where they belong to
//! the host.

use std::fs;

use nix::sys::signal::{Signal, kill};

use super::node::{Node, Web};
use crate::world::{Place, eventually};

pub(super) fn connection_tracking_is_set_where_this_namespace_may(mut node: Node) {
    let config = node.manifests().with_file_name("config.yaml");
    let write = |close_wait: &str| {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nconntrack:";
        let limits = "tcpBeLiberal: true, udpTimeout: 31s, udpStreamTimeout: 2m1s";
        let text = format!("{head} {{tcpCloseWaitTimeout: {close_wait}, {limits}}}\n");
        fs::write(&config, text).unwrap();
    };
    write("1h");
    node.flags = vec![
        "--config".to_owned(),
        config.display().to_string(),
        "--conntrack-tcp-timeout-established=24h".to_owned(),
        // The number of connections belongs to the host: no namespace but the first may write it.
        "--conntrack-max-per-core=1".to_owned(),
        "--conntrack-min=1000".to_owned(),
    ];
    let held = |node: &Node, name: &str| {
        let show = format!("cat /proc/sys/net/netfilter/nf_conntrack_{name}");
        node.world.shell(Place::Node, &show).trim().to_owned()
    };
    let max = held(&node, "max");
    node.apply(&Web::default());
    node.start();
    let said = |node: &Node, words: &str| {
        eventually(|| {
            let log = node.log();
            log.contains(words).then_some(()).ok_or(log)
        });
    };
    said(&node, "viaduct is running");
    for (name, value) in [
        ("tcp_timeout_established", "86400"),
        ("tcp_timeout_close_wait", "3600"),
        ("tcp_be_liberal", "1"),
        ("udp_timeout", "31"),
        ("udp_timeout_stream", "121"),
    ] {
        assert_eq!(held(&node, name), value, "{name}");
    }
    let log = node.log();
    let refused: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("connection tracking is left as it is"))
        .collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(
        refused[0].contains("nf_conntrack_max = 1000"),
        "{refused:?}"
    );
    assert_eq!(held(&node, "max"), max);

    write("90s");
    kill(node.pid(), Signal::SIGHUP).unwrap();
    said(&node, "configuration taken over");
    assert_eq!(held(&node, "tcp_timeout_close_wait"), "90");
    assert!(node.end().success());
    assert_eq!(held(&node, "udp_timeout"), "31", "others may rely on it");
}
