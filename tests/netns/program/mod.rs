//! The whole program on the node of a world: `viaduct run --manifests DIR --capture MODE`, both families at once.

mod changes;
mod datagrams;
mod detect_local;
mod figures;
mod hammer;
mod handover;
mod ladder;
mod legacy;
mod load;
mod names;
mod node;
mod order;
mod pods;
mod privileges;
mod source_ip;
mod stickiness;
mod streams;
mod tracking;
mod two_nodes;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use viaduct::capture::Mode;
use viaduct::model::Protocol;

use crate::rig::all_rules;
use crate::trials::Trials;
use crate::world::{Answer, Place, QUIET, ask_again, eventually, patience};

use node::{BOTH, NODE_PORT, Node, SERVICE, Web};

type Case = (&'static str, fn(Node));

const CASES: &[Case] = &[
    (
        "everybody_reaches_every_backend",
        everybody_reaches_every_backend,
    ),
    (
        "no_endpoints_is_refused_and_a_first_one_serves",
        no_endpoints_is_refused_and_a_first_one_serves,
    ),
    (
        "datagrams_alone_are_refused_without_endpoints",
        datagrams_alone_are_refused_without_endpoints,
    ),
    (
        "local_policies_keep_outsiders_waiting",
        local_policies_keep_outsiders_waiting,
    ),
    (
        "source_ranges_guard_the_load_balancer_address",
        source_ranges_guard_the_load_balancer_address,
    ),
    (
        "the_health_check_node_port_tells_each_family_apart",
        the_health_check_node_port_tells_each_family_apart,
    ),
    (
        "health_checks_and_node_ports_answer_where_they_are_told_to",
        health_checks_and_node_ports_answer_where_they_are_told_to,
    ),
    (
        "a_deleted_service_leaves_nothing_behind",
        a_deleted_service_leaves_nothing_behind,
    ),
    (
        "an_unknown_port_of_a_cluster_address_is_refused_where_that_can_be",
        an_unknown_port_of_a_cluster_address_is_refused_where_that_can_be,
    ),
    (
        "a_udp_client_keeps_its_port_through_everything",
        a_udp_client_keeps_its_port_through_everything,
    ),
    (
        "udp_clients_of_every_address_move_with_the_endpoints",
        changes::udp_clients_of_every_address_move_with_the_endpoints,
    ),
    (
        "node_ports_follow_addresses_that_come_and_go",
        changes::node_ports_follow_addresses_that_come_and_go,
    ),
    (
        "established_connections_survive_every_change",
        changes::established_connections_survive_every_change,
    ),
    (
        "datagrams::datagrams_arrive_as_they_were_sent",
        datagrams::datagrams_arrive_as_they_were_sent,
    ),
    (
        "datagrams::one_socket_reaches_every_address",
        datagrams::one_socket_reaches_every_address,
    ),
    (
        "streams::streams_end_as_their_peers_end_them",
        streams::streams_end_as_their_peers_end_them,
    ),
    (
        "streams::a_backend_that_speaks_first_is_heard_at_once",
        streams::a_backend_that_speaks_first_is_heard_at_once,
    ),
    (
        "streams::a_stalled_reader_costs_a_fast_one_nothing",
        streams::a_stalled_reader_costs_a_fast_one_nothing,
    ),
    (
        "what_was_changed_before_is_in_effect_before",
        order::what_was_changed_before_is_in_effect_before,
    ),
    (
        "a_client_that_was_there_before_the_service_is_served",
        order::a_client_that_was_there_before_the_service_is_served,
    ),
    (
        "load::a_rolling_update_fails_no_connection",
        load::a_rolling_update_fails_no_connection,
    ),
    (
        "load::a_dead_backend_is_not_noticed",
        load::a_dead_backend_is_not_noticed,
    ),
    (
        "hammer::changes_and_handovers_disturb_nobody",
        hammer::changes_and_handovers_disturb_nobody,
    ),
    (
        "hammer::who_is_called_back_disturbs_nobody",
        hammer::who_is_called_back_disturbs_nobody,
    ),
    (
        "handover::another_mode_follows",
        handover::another_mode_follows,
    ),
    (
        "handover::a_successor_that_ends_leaves_everything_to_the_one_before",
        handover::a_successor_that_ends_leaves_everything_to_the_one_before,
    ),
    (
        "a_pod_reaches_itself_through_its_service",
        stickiness::a_pod_reaches_itself_through_its_service,
    ),
    (
        "a_client_returns_to_its_backend_over_both_protocols",
        stickiness::a_client_returns_to_its_backend_over_both_protocols,
    ),
    (
        "local_policies_differ_from_node_to_node",
        two_nodes::local_policies_differ_from_node_to_node,
    ),
    (
        "hints_keep_each_zone_to_itself",
        two_nodes::hints_keep_each_zone_to_itself,
    ),
    (
        "explain_says_what_the_node_itself_cannot_dial",
        explain_says_what_the_node_itself_cannot_dial,
    ),
    (
        "backends_see_their_clients_where_answers_pass_here",
        source_ip::backends_see_their_clients_where_answers_pass_here,
    ),
    (
        "pods_are_recognised_by_their_interfaces",
        detect_local::pods_are_recognised_by_their_interfaces,
    ),
    (
        "every_thread_may_do_no_more_than_serving_takes",
        privileges::every_thread_may_do_no_more_than_serving_takes,
    ),
    (
        "every_figure_of_kube_proxy_is_there_and_true",
        figures::every_figure_of_kube_proxy_is_there_and_true,
    ),
    (
        "the_metrics_server_answers_what_kube_proxys_does",
        figures::the_metrics_server_answers_what_kube_proxys_does,
    ),
    (
        "an_orderly_end_removes_every_rule",
        an_orderly_end_removes_every_rule,
    ),
    (
        "established_flows_run_on_while_they_drain",
        established_flows_run_on_while_they_drain,
    ),
    (
        "an_end_is_orderly_even_if_nobody_reads_the_log",
        an_end_is_orderly_even_if_nobody_reads_the_log,
    ),
    (
        "a_crash_is_cleaned_up_by_the_next_start",
        a_crash_is_cleaned_up_by_the_next_start,
    ),
    (
        "cleanup_removes_what_a_crash_left",
        cleanup_removes_what_a_crash_left,
    ),
    (
        "rules_come_back_within_the_sync_period",
        rules_come_back_within_the_sync_period,
    ),
    (
        "starting_in_the_other_mode_takes_over",
        starting_in_the_other_mode_takes_over,
    ),
];

const CALLERS: [Place; 3] = [Place::Pod, Place::Outside, Place::Node];
const BALANCER: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];
const HEALTH_PORT: u16 = 30081;

/// Those that choose the mode themselves.
const LADDER: &[Case] = &[
    (
        "the_next_rung_is_taken_where_one_is_impossible",
        ladder::the_next_rung_is_taken_where_one_is_impossible,
    ),
    (
        "a_family_that_fails_later_is_told_and_tried_again_and_stops_no_other",
        ladder::a_family_that_fails_later_is_told_and_tried_again_and_stops_no_other,
    ),
    (
        "doctor_tells_what_works_and_who_else_is_here",
        ladder::doctor_tells_what_works_and_who_else_is_here,
    ),
    (
        "without_a_rung_the_end_is_an_explanation",
        ladder::without_a_rung_the_end_is_an_explanation,
    ),
];

/// Those of the variants of iptables.
const VARIANTS: &[Case] = &[
    (
        "the_older_tables_serve_where_the_newer_do_not_work",
        legacy::the_older_tables_serve_where_the_newer_do_not_work,
    ),
    (
        "what_the_older_tables_hold_goes_when_the_newer_are_used",
        legacy::what_the_older_tables_hold_goes_when_the_newer_are_used,
    ),
];

/// Those of DNS, which every mode answers alike.
const NAMES: &[Case] = &[
    (
        "resolvers_of_a_pod_find_what_they_look_for",
        names::resolvers_of_a_pod_find_what_they_look_for,
    ),
    (
        "doctor_asks_from_inside_a_pod",
        names::doctor_asks_from_inside_a_pod,
    ),
];

/// Adds every case for every mode that changes the kernel.
pub(crate) fn add_to(trials: &mut Trials) {
    for mode in [Mode::Nftables, Mode::Iptables, Mode::Tproxy, Mode::Local] {
        for (name, case) in CASES {
            let name = format!("program::{name}");
            trials.add(mode, &name, &["nft", "iptables"], move || {
                case(Node::new(mode))
            });
        }
    }
    trials.add(
        Mode::Local,
        "program::handover::a_handshake_under_way_goes_on_with_the_successor",
        &["nft"],
        || handover::a_handshake_under_way_goes_on_with_the_successor(Node::new(Mode::Local)),
    );
    for mode in [Mode::Tproxy, Mode::Local] {
        let name = "program::handover::a_stranger_at_a_port_that_is_taken_over_is_noticed";
        trials.add(mode, name, &["nft"], move || {
            handover::a_stranger_at_a_port_that_is_taken_over_is_noticed(Node::new(mode));
        });
    }
    for (name, case) in VARIANTS {
        let name = format!("program::legacy::{name}");
        let tools = ["nft", "iptables", "iptables-legacy", "unshare"];
        trials.add_where(
            Mode::Iptables,
            &name,
            &tools,
            legacy::has_older_tables,
            move || case(Node::new(Mode::Iptables)),
        );
    }
    trials.add(
        Mode::Local,
        "program::names::a_pod_with_musl_finds_what_it_looks_for",
        &["unshare", "musl-gcc"],
        || names::a_pod_with_musl_finds_what_it_looks_for(Node::new(Mode::Local)),
    );
    trials.add(
        Mode::Local,
        "program::names::pods_with_go_and_node_find_what_they_look_for",
        &["unshare"],
        || names::pods_with_go_and_node_find_what_they_look_for(Node::new(Mode::Local)),
    );
    for (name, case) in NAMES {
        let name = format!("program::names::{name}");
        let tools = ["unshare", "getent", "dig", "python3", "nft", "iptables"];
        trials.add(Mode::Local, &name, &tools, move || {
            case(Node::new(Mode::Local))
        });
    }
    trials.add(
        Mode::Nftables,
        "program::connection_tracking_is_set_where_this_namespace_may",
        &["nft"],
        || tracking::connection_tracking_is_set_where_this_namespace_may(Node::new(Mode::Nftables)),
    );
    trials.add(
        Mode::Nftables,
        "program::streams::a_shortage_of_descriptors_passes",
        &["nft", "prlimit"],
        || streams::a_shortage_of_descriptors_passes(Node::new(Mode::Nftables)),
    );
    for (name, case) in LADDER {
        let name = format!("program::ladder::{name}");
        let tools = ["nft", "iptables", "unshare", "setpriv", "python3"];
        trials.add(Mode::Local, &name, &tools, move || {
            case(Node::new(Mode::Local))
        });
    }
}

fn everybody_reaches_every_backend(mut node: Node) {
    node.apply(&Web::default());
    node.start();
    for ip in SERVICE.map(|ip| ip.parse::<IpAddr>().unwrap()) {
        node.await_served(SocketAddr::new(ip, 80));
        for (from, protocol) in everybody() {
            node.assert_backends(
                from,
                protocol,
                SocketAddr::new(ip, 80),
                &["local", "remote"],
            );
            let node_port = SocketAddr::new(Place::Node.ip(ip.is_ipv6()), NODE_PORT);
            node.assert_backends(from, protocol, node_port, &["local", "remote"]);
        }
    }
    let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), NODE_PORT);
    for protocol in BOTH {
        node.assert_backends(Place::Node, protocol, loopback, &["local", "remote"]);
    }
}

// Nothing but its own listener makes such an address the node's, in the modes where that matters.
fn datagrams_alone_are_refused_without_endpoints(mut node: Node) {
    let services = SERVICE.map(|ip| {
        let name = if ip.contains(':') { "six" } else { "four" };
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec: {{clusterIP: '{ip}', ports: [{{port: 80, protocol: UDP}}]}}
"
        )
    });
    node.apply_text(&services.join("---\n"));
    node.start();
    for ip in SERVICE {
        let to = SocketAddr::new(ip.parse().unwrap(), 80);
        for from in [Place::Pod, Place::Outside] {
            eventually(|| match node.ask(from, Protocol::Udp, to, QUIET) {
                Answer::Refused => Ok(()),
                other => Err(format!("{from:?} to {to}: {other:?}")),
            });
        }
    }
}

fn no_endpoints_is_refused_and_a_first_one_serves(mut node: Node) {
    node.apply(&Web {
        endpoints: &[],
        ..Web::default()
    });
    node.start();
    let targets = targets();
    for to in targets {
        eventually(|| match node.ask(Place::Pod, Protocol::Tcp, to, QUIET) {
            Answer::Refused => Ok(()),
            other => Err(format!("{to}: {other:?}")),
        });
        for (from, protocol) in everybody() {
            assert_eq!(
                node.ask(from, protocol, to, patience()),
                Answer::Refused,
                "{from:?} to {to}/{protocol}"
            );
        }
    }
    let clients: Vec<_> = targets
        .map(|to| node.world.udp_client(Place::Outside, to))
        .into();
    for client in &clients {
        assert_eq!(ask_again(client, patience()), Answer::Refused);
    }
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    for to in targets {
        node.await_served(to);
    }
    for client in &clients {
        assert_eq!(ask_again(client, patience()).words(), "local");
    }
}

fn local_policies_keep_outsiders_waiting(mut node: Node) {
    let web = Web {
        spec: "externalTrafficPolicy: Local",
        endpoints: &["remote"],
        ..Web::default()
    };
    node.apply(&web);
    node.start();
    let to = SocketAddr::new(Place::Node.ip(false), NODE_PORT);
    eventually(|| match node.ask(Place::Pod, Protocol::Tcp, to, QUIET) {
        Answer::Words(_) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    for protocol in BOTH {
        assert_eq!(
            node.ask(Place::Outside, protocol, to, QUIET),
            Answer::Silence,
            "{protocol}"
        );
        node.assert_backends(Place::Pod, protocol, to, &["remote"]);
        node.assert_backends(Place::Node, protocol, to, &["remote"]);
    }
    let waiting = node.world.udp_client(Place::Outside, to);
    assert_eq!(ask_again(&waiting, QUIET), Answer::Silence);
    node.apply(&Web {
        endpoints: &["local", "remote"],
        ..web
    });
    node.await_served(to);
    node.assert_backends(Place::Outside, Protocol::Tcp, to, &["local"]);
    assert_eq!(ask_again(&waiting, patience()).words(), "local");
}

fn source_ranges_guard_the_load_balancer_address(mut node: Node) {
    let web = || Web {
        kind: "LoadBalancer",
        spec: "loadBalancerSourceRanges: [192.0.2.0/25, 2001:db8::/80]",
        status: "{loadBalancer: {ingress: [{ip: 203.0.113.7}, {ip: '2001:db8:7::7'}]}}",
        ..Web::default()
    };
    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 80);
    node.apply(&web());
    node.start();
    for (balancer, service) in BALANCER.into_iter().zip(SERVICE) {
        node.await_served(at(balancer));
        for protocol in BOTH {
            node.assert_backends(Place::Outside, protocol, at(balancer), &["local", "remote"]);
            node.assert_backends(Place::Pod, protocol, at(service), &["local", "remote"]);
            assert_eq!(
                node.ask(Place::Pod, protocol, at(balancer), QUIET),
                Answer::Silence,
                "{balancer}"
            );
        }
    }
    // Who is in the ranges is still outside.
    node.apply(&Web {
        spec: "loadBalancerSourceRanges: [192.0.2.0/25, 2001:db8::/80]\n  externalTrafficPolicy: Local",
        endpoints: &["remote"],
        ..web()
    });
    let silent = |protocol, to: &str| {
        eventually(|| match node.ask(Place::Outside, protocol, at(to), QUIET) {
            Answer::Silence => Ok(()),
            other => Err(format!("{to}/{protocol}: {other:?}")),
        });
    };
    for balancer in BALANCER {
        for protocol in BOTH {
            silent(protocol, balancer);
        }
    }
}

fn the_health_check_node_port_tells_each_family_apart(mut node: Node) {
    let web = || Web {
        kind: "LoadBalancer",
        spec: "externalTrafficPolicy: Local\n  healthCheckNodePort: 30081",
        ..Web::default()
    };
    node.apply(&web());
    let [v4, v6] = [false, true].map(|v6| SocketAddr::new(Place::Node.ip(v6), HEALTH_PORT));
    let hog = node
        .world
        .in_ns(Place::Node, || TcpListener::bind(v4).unwrap());
    node.start();
    node.await_health(Place::Outside, v6, "200 1");
    node.await_served(SocketAddr::new(SERVICE[0].parse().unwrap(), 80));
    drop(hog);
    for to in [v4, v6] {
        for from in CALLERS {
            node.await_health(from, to, "200 1");
        }
    }
    node.apply(&Web {
        endpoints: &["remote"],
        ..web()
    });
    for to in [v4, v6] {
        node.await_health(Place::Outside, to, "503 0");
    }
    node.apply(&Web {
        spec: "externalTrafficPolicy: Cluster",
        ..web()
    });
    for to in [v4, v6] {
        node.await_health(Place::Outside, to, "refused");
    }
}

fn health_checks_and_node_ports_answer_where_they_are_told_to(mut node: Node) {
    let second = Place::Pod.gateway(false);
    let range = format!("{second}/32,127.0.0.0/8,fd00:10:244::/64");
    node.flags = vec![
        format!("--nodeport-addresses={range}"),
        "--iptables-localhost-nodeports=false".to_owned(),
        "--masquerade-all".to_owned(),
    ];
    node.apply(&Web {
        kind: "LoadBalancer",
        spec: "externalTrafficPolicy: Local\n  healthCheckNodePort: 30081",
        ..Web::default()
    });
    node.start();
    let at = |ip: IpAddr, port| SocketAddr::new(ip, port);
    node.await_health(Place::Outside, at(second, HEALTH_PORT), "200 1");
    let second_v6 = at(Place::Pod.gateway(true), HEALTH_PORT);
    node.await_health(Place::Outside, second_v6, "200 1");
    node.await_served(at(second, NODE_PORT));
    let first = Place::Node.ip(false);
    assert_eq!(
        node.health(Place::Outside, at(first, HEALTH_PORT)),
        "refused"
    );
    let localhost = Ipv4Addr::LOCALHOST.into();
    node.await_health(Place::Node, at(localhost, HEALTH_PORT), "200 1");
    for (from, ip) in [(Place::Outside, first), (Place::Node, localhost)] {
        let answer = node.ask(from, Protocol::Tcp, at(ip, NODE_PORT), patience());
        assert_eq!(answer, Answer::Refused, "{ip}");
    }
}

fn a_deleted_service_leaves_nothing_behind(mut node: Node) {
    node.apply(&Web::default());
    node.start();
    for to in targets() {
        node.await_served(to);
    }
    fs::remove_file(node.manifests().join("web.yaml")).unwrap();
    for (to, gone) in targets().into_iter().zip([
        Answer::Silence,
        Answer::Refused,
        Answer::Silence,
        Answer::Refused,
    ]) {
        eventually(
            || match node.ask(Place::Outside, Protocol::Tcp, to, QUIET) {
                answer if answer == gone => Ok(()),
                other => Err(format!("{to}: {other:?}")),
            },
        );
    }
}

fn an_unknown_port_of_a_cluster_address_is_refused_where_that_can_be(mut node: Node) {
    node.apply(&Web::default());
    node.start();
    for service in SERVICE {
        let ip = service.parse().unwrap();
        node.await_served(SocketAddr::new(ip, 80));
        for (from, protocol) in everybody() {
            let expected = match (node.mode, from, protocol) {
                // That mode keeps to few targets, and has none for it.
                (Mode::Iptables, _, _) => Answer::Silence,
                // Who sends from where the rule is hears of it by the call itself.
                // Over IPv6 the node sends from an address of its own even where the other is local.
                (Mode::Tproxy, Place::Node, Protocol::Udp) if ip.is_ipv6() => {
                    Answer::Other("Operation not permitted (os error 1)".to_owned())
                }
                (Mode::Nftables, Place::Node, Protocol::Udp) => {
                    Answer::Other("Operation not permitted (os error 1)".to_owned())
                }
                (
                    Mode::Nftables | Mode::Tproxy | Mode::Local | Mode::Loopback | Mode::None,
                    _,
                    _,
                ) => Answer::Refused,
            };
            // The first time, addresses become the node's own after those that are captured are served.
            eventually(
                || match node.ask(from, protocol, SocketAddr::new(ip, 81), QUIET) {
                    answer if answer == expected => Ok(()),
                    answer => Err(format!("{from:?} to {ip}/{protocol}: {answer:?}")),
                },
            );
        }
    }
}

fn a_udp_client_keeps_its_port_through_everything(mut node: Node) {
    let targets = targets();
    let clients: Vec<_> = [Place::Pod, Place::Outside]
        .into_iter()
        .flat_map(|from| targets.map(|to| (from, to)))
        .map(|(from, to)| node.world.udp_client(from, to))
        .collect();
    let all = |name: &str| {
        for client in &clients {
            eventually(|| match ask_again(client, QUIET) {
                Answer::Words(words) if words == name => Ok(()),
                other => Err(format!("{client:?}: {other:?}, not {name}")),
            });
        }
    };
    for client in &clients {
        client.send(b"before anybody captures").unwrap();
    }
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    node.start();
    all("local");
    node.apply(&Web {
        endpoints: &["remote"],
        ..Web::default()
    });
    all("remote");
    node.kill();
    node.start();
    all("remote");
    fs::remove_file(node.manifests().join("web.yaml")).unwrap();
    eventually(|| match ask_again(&clients[0], QUIET) {
        Answer::Silence => Ok(()),
        other => Err(format!("{other:?}")),
    });
    node.apply(&Web {
        endpoints: &["local"],
        ..Web::default()
    });
    all("local");
    assert!(node.end().success());
    node.start();
    all("local");
}

fn an_orderly_end_removes_every_rule(mut node: Node) {
    let before = all_rules(&node.world);
    node.apply(&Web::default());
    node.start();
    node.await_served(targets()[0]);
    assert_ne!(all_rules(&node.world), before);
    assert!(node.end().success());
    assert_eq!(all_rules(&node.world), before);
}

fn established_flows_run_on_while_they_drain(mut node: Node) {
    let before = all_rules(&node.world);
    node.apply(&Web::default());
    node.start();
    let to = targets()[0];
    node.await_served(to);
    let mut flows = [false, true].map(|v6| {
        let to = SocketAddr::new(SERVICE[usize::from(v6)].parse().unwrap(), 80);
        node.await_served(to);
        node.world
            .in_ns(Place::Outside, || TcpStream::connect(to).unwrap())
    });
    node.ask_to_end();
    eventually(
        || match node.ask(Place::Outside, Protocol::Tcp, to, QUIET) {
            Answer::Words(words) => Err(format!("still captured, by {words}")),
            _ => Ok(()),
        },
    );
    for flow in &mut flows {
        flow.set_read_timeout(Some(patience())).unwrap();
        flow.write_all(b"hello\n").unwrap();
        let mut words = String::new();
        flow.read_to_string(&mut words).unwrap();
        assert!(["local", "remote"].contains(&words.trim()), "{words:?}");
    }
    assert!(node.await_end().success());
    assert_eq!(all_rules(&node.world), before);
}

fn an_end_is_orderly_even_if_nobody_reads_the_log(mut node: Node) {
    let before = all_rules(&node.world);
    node.apply(&Web::default());
    node.start_unread();
    node.await_served(targets()[0]);
    assert!(node.end().success());
    assert_eq!(all_rules(&node.world), before);
}

fn a_crash_is_cleaned_up_by_the_next_start(mut node: Node) {
    let before = all_rules(&node.world);
    node.apply(&Web::default());
    node.start();
    node.await_served(targets()[0]);
    node.kill();
    assert_ne!(all_rules(&node.world), before, "a crash leaves its rules");
    node.start();
    for to in targets() {
        node.await_served(to);
        node.assert_backends(Place::Outside, Protocol::Udp, to, &["local", "remote"]);
    }
    assert!(node.end().success());
    assert_eq!(all_rules(&node.world), before);
}

fn cleanup_removes_what_a_crash_left(mut node: Node) {
    let before = all_rules(&node.world);
    node.apply(&Web::default());
    node.start();
    node.await_served(targets()[0]);
    node.kill();
    for _ in 0..2 {
        let mut cleanup = Command::new(env!("CARGO_BIN_EXE_viaduct"));
        node.world.output_in(Place::Node, cleanup.arg("cleanup"));
        assert_eq!(all_rules(&node.world), before);
    }
}

fn rules_come_back_within_the_sync_period(mut node: Node) {
    node.apply(&Web::default());
    node.start();
    for to in targets() {
        node.await_served(to);
    }
    let whole = all_rules(&node.world);
    node.world.shell(
        Place::Node,
        "nft flush ruleset; for v in 4 6; do ip -$v route flush table local proto 86 || true; \
         ip -$v route flush table 8600 || true; ip -$v rule del fwmark 0x1000/0x1000 || true; done",
    );
    for to in targets() {
        node.await_served(to);
    }
    eventually(|| match all_rules(&node.world) {
        now if now == whole => Ok(()),
        other => Err(format!("{other}\nbefore it was\n{whole}")),
    });
}

fn starting_in_the_other_mode_takes_over(mut node: Node) {
    node.apply(&Web::default());
    node.start();
    node.await_served(targets()[0]);
    node.kill();
    node.mode = if node.mode == Mode::Nftables {
        Mode::Iptables
    } else {
        Mode::Nftables
    };
    node.start();
    for to in targets() {
        node.await_served(to);
        node.assert_backends(Place::Outside, Protocol::Udp, to, &["local", "remote"]);
    }
    assert!(node.end().success());
    let left = all_rules(&node.world).to_lowercase();
    assert!(!left.contains("viaduct"), "{left}");
}

fn explain_says_what_the_node_itself_cannot_dial(mut node: Node) {
    let line = "ip -4 route del default; ip -6 route del default";
    node.world.shell(Place::Node, line);
    node.apply(&Web::default());
    node.start();
    for service in SERVICE {
        let to = SocketAddr::new(service.parse().unwrap(), 80);
        node.await_served(to);
        // Where the address becomes the node's own, it does so a moment after it is captured.
        eventually(|| {
            let explained = node.explain(&to.to_string());
            let told = explained.contains(&format!("cannot dial {service}"));
            let answer = node.ask(Place::Node, Protocol::Tcp, to, QUIET);
            let needs_a_route = matches!(node.mode, Mode::Nftables | Mode::Iptables);
            if told == needs_a_route && answer.words().is_empty() == told {
                Ok(())
            } else {
                Err(format!("{answer:?}: {explained}"))
            }
        });
    }
}

fn everybody() -> impl Iterator<Item = (Place, Protocol)> {
    CALLERS
        .into_iter()
        .flat_map(|from| BOTH.map(|protocol| (from, protocol)))
}

// The cluster address and the node port, in both families.
fn targets() -> [SocketAddr; 4] {
    let cluster = SERVICE.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80));
    let node = [false, true].map(|v6| SocketAddr::new(Place::Node.ip(v6), NODE_PORT));
    [cluster[0], node[0], cluster[1], node[1]]
}
