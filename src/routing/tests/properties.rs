//! Chance: whatever happened on the way, the table is the one that the facts alone make.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

use crate::model::{
    Endpoint, Family, LoadBalancerAddress, Pod, Protocol, ServiceKind, ServicePort, TrafficPolicy,
};
use crate::routing::{Backend, ExplainedEndpoint, NodeView, Route, ServiceEntry, Standing, Target};
use crate::testkit::{
    EndpointWith, ep, ip, node_name, port, service_port, slice, slice_key, slice_port, start,
};

use super::*;

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    Event(Event),
    Node(NodeView),
    Build,
}

fn some_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    // Names are unique, and so are number and protocol: the API server sees to that.
    let all = [
        ("", Protocol::Tcp, 80),
        ("a", Protocol::Tcp, 81),
        ("b", Protocol::Udp, 80),
        ("c", Protocol::Udp, 53),
    ];
    let node_ports = prop::collection::vec(prop::option::of(select(vec![30001, 30002])), all.len());
    (subsequence(all.to_vec(), 1..=3), node_ports).prop_map(|(ports, node_ports)| {
        let mut taken = BTreeSet::new();
        let made = ports.into_iter().zip(node_ports);
        made.map(|((name, protocol, number), node_port)| ServicePort {
            node_port: node_port.filter(|n| taken.insert((protocol, *n))).map(port),
            ..service_port(name, protocol, number)
        })
        .collect()
    })
}

fn some_service() -> impl Strategy<Value = Service> {
    let addresses = ["192.0.2.1", "192.0.2.2", "10.96.0.1", "2001:db8::1"].map(ip);
    let kinds = vec![
        ServiceKind::ClusterIp,
        ServiceKind::LoadBalancer,
        ServiceKind::Headless,
        ServiceKind::ExternalName("example.org".into()),
    ];
    let policy = || select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    let knobs = (
        prop::option::of(select(vec![Duration::from_secs(1), Duration::from_secs(2)])),
        prop::option::of(select(vec![
            Algorithm::RoundRobin,
            Algorithm::LeastConnection,
        ])),
        prop::bool::weighted(0.1),
    );
    (
        select(vec!["a", "b", "c", "d"]),
        select(kinds),
        select(vec!["10.96.0.1", "10.96.0.2 fd00::2", "fd00::3", ""]),
        some_ports(),
        subsequence(addresses.to_vec(), 0..=2),
        subsequence(addresses.to_vec(), 0..=2),
        (policy(), policy()),
        knobs,
    )
        .prop_map(
            |(name, kind, cluster_ips, ports, external, balancer, policies, knobs)| {
                let mut made = service(name, cluster_ips);
                made.kind = kind;
                made.ports = ports;
                made.external_ips = external;
                made.load_balancer_ips = balancer
                    .into_iter()
                    .map(|ip| LoadBalancerAddress { ip })
                    .collect();
                (made.internal_policy, made.external_policy) = policies;
                (made.affinity, made.knobs.algorithm, made.foreign_proxy) = knobs;
                made
            },
        )
}

fn some_endpoint(net: &'static str) -> impl Strategy<Value = Endpoint> {
    (
        1..5u8,
        any::<(bool, bool, bool)>(),
        prop::option::of(select(vec!["n1", "n2"])),
        prop::option::of(select(vec!["z1", "z2"])),
    )
        .prop_map(move |(last, (ready, serving, terminating), node, zone)| {
            let plain = Endpoint {
                ready,
                serving,
                terminating,
                ..ep(&format!("{net}{last}"))
            };
            let placed = node.map_or(plain.clone(), |node| plain.on(node));
            zone.map_or(placed.clone(), |zone| placed.for_zones(&[zone]))
        })
}

fn some_slice() -> impl Strategy<Value = EndpointSlice> {
    let endpoints = prop_oneof![
        prop::collection::vec(some_endpoint("10.1.0."), 0..4),
        prop::collection::vec(some_endpoint("fd01::"), 1..4),
    ];
    let ports = vec![
        slice_port("", Protocol::Tcp, 8080),
        slice_port("a", Protocol::Tcp, 8081),
        slice_port("b", Protocol::Udp, 8080),
        slice_port("", Protocol::Tcp, 9090),
    ];
    (
        select(vec!["s1", "s2", "s3", "s4"]),
        select(vec!["a", "b", "c", "d", "never"]),
        endpoints,
        subsequence(ports, 1..=3),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(name, service, endpoints, ports, headless)| EndpointSlice {
                ports,
                headless,
                ..slice(name, service, endpoints)
            },
        )
}

fn some_pod() -> impl Strategy<Value = Pod> {
    let ips = ["10.1.0.1", "10.1.0.2", "fd01::1"].map(ip);
    (
        select(vec!["p1", "p2", "p3"]),
        subsequence(ips.to_vec(), 0..=3),
    )
        .prop_map(|(name, ips)| Pod {
            namespace: "default".into(),
            name: name.into(),
            ips,
            finished: false,
            host_network: false,
        })
}

fn some_node() -> impl Strategy<Value = NodeView> {
    let name = prop::option::of(select(vec!["n1", "n2"]));
    let zone = prop::option::of(select(vec!["z1", "z2"]));
    (name, zone).prop_map(|(name, zone)| NodeView {
        name: name.map(node_name),
        zone: zone.map(Into::into),
        ..NodeView::default()
    })
}

fn some_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => some_service().prop_map(|service| Step::Event(put(service))),
        2 => select(vec!["a", "b", "c", "d"]).prop_map(|name| Step::Event(drop_service(name))),
        4 => some_slice().prop_map(|slice| Step::Event(put_slice(slice))),
        2 => select(vec!["s1", "s2", "s3", "s4"])
            .prop_map(|name| Step::Event(Event::SliceDeleted(slice_key(name)))),
        1 => some_pod().prop_map(|pod| Step::Event(Event::PodApplied(Arc::new(pod)))),
        1 => select(vec!["p1", "p2", "p3"])
            .prop_map(|name| Step::Event(Event::PodDeleted("default".into(), name.into()))),
        1 => select(vec!["x", "y"]).prop_map(|name| Step::Event(Event::NamespaceApplied(name.into()))),
        1 => select(vec!["x", "y"]).prop_map(|name| Step::Event(Event::NamespaceDeleted(name.into()))),
        1 => some_node().prop_map(Step::Node),
        4 => Just(Step::Build),
    ]
}

/// The facts that a history leaves: the last word on each thing, Services in the order of their age.
#[derive(Default)]
struct Facts {
    services: Vec<Arc<Service>>,
    slices: BTreeMap<Arc<str>, Event>,
    pods: BTreeMap<Arc<str>, Event>,
    namespaces: BTreeSet<Arc<str>>,
    node: NodeView,
}

impl Facts {
    fn learn(&mut self, event: &Event) {
        match event.clone() {
            Event::ServiceApplied(service) => {
                match self.services.iter_mut().find(|s| s.name == service.name) {
                    Some(known) => *known = service,
                    None => self.services.push(service),
                }
            }
            Event::ServiceDeleted(name) => self.services.retain(|s| s.name != name),
            Event::SliceApplied(slice) => {
                self.slices.insert(slice.key.name.clone(), event.clone());
            }
            Event::SliceDeleted(key) => {
                self.slices.remove(&key.name);
            }
            Event::PodApplied(pod) => {
                self.pods.insert(pod.name.clone(), event.clone());
            }
            Event::PodDeleted(_, name) => {
                self.pods.remove(&name);
            }
            Event::NamespaceApplied(name) => {
                self.namespaces.insert(name);
            }
            Event::NamespaceDeleted(name) => {
                self.namespaces.remove(&name);
            }
            Event::NodeApplied(_) | Event::NodeDeleted => {}
        }
    }

    /// The table of a builder that is told the facts and nothing else.
    fn table(&self) -> Arc<RoutingTable> {
        let mut builder = builder();
        builder.set_node(self.node.clone());
        let services = self.services.iter().cloned().map(Event::ServiceApplied);
        let namespaces = self.namespaces.iter().cloned();
        let rest = self.slices.values().chain(self.pods.values()).cloned();
        let events = services.chain(rest);
        apply(
            &mut builder,
            events.chain(namespaces.map(Event::NamespaceApplied)),
        )
    }
}

/// Everything that a reader of the table can see, in a comparable order; generations, balancers and live figures aside.
fn visible(table: &RoutingTable) -> Vec<String> {
    fn sorted<T: Debug>(what: &str, all: impl IntoIterator<Item = T>) -> Vec<String> {
        let mut all: Vec<String> = all.into_iter().map(|v| format!("{what} {v:?}")).collect();
        all.sort();
        all
    }
    fn backends(all: &[Arc<Backend>]) -> impl Debug + use<> {
        let shown = all.iter().map(|b| (b.addr, b.node.clone()));
        shown.collect::<Vec<_>>()
    }
    let route = |r: &Arc<Route>| {
        (
            (
                r.key.clone(),
                r.port,
                backends(&r.cluster),
                backends(&r.local),
            ),
            (
                r.serving().collect::<Vec<_>>(),
                r.any_endpoints,
                r.algorithm,
                r.affinity,
            ),
            (r.internal_policy, r.external_policy),
            (r.frontends.clone(), r.node_port),
        )
    };
    let keys = |routes: &[Arc<Route>]| -> Vec<_> { routes.iter().map(|r| r.key.clone()).collect() };
    let addresses = (0..8u8).flat_map(|n| {
        ["10.96.0.", "10.1.0.", "fd00::", "fd01::"].map(|net| ip(&format!("{net}{n}")))
    });
    let sets = addresses.clone().map(|ip| {
        let owners: BTreeSet<_> = table.owners_of(ip).iter().cloned().collect();
        let pods: BTreeSet<_> = table.pods_at(ip).iter().map(|p| p.name.clone()).collect();
        (ip, table.owners_of(ip).len(), owners, pods)
    });
    [
        sorted("route", table.routes().map(route)),
        sorted(
            "entry",
            table
                .services()
                .map(|e| (e.service.clone(), e.slices.clone(), keys(&e.routes))),
        ),
        sorted(
            "frontend",
            table
                .frontends
                .iter()
                .map(|(f, (kind, r))| (f, kind, r.key.clone())),
        ),
        sorted(
            "node port",
            table
                .node_ports
                .iter()
                .map(|(slot, r)| (slot, r.key.clone())),
        ),
        sorted("at", sets),
        sorted("sizes", [(table.owners.len(), table.pods.len())]),
        sorted("namespace", table.namespaces.keys()),
        sorted("node", [&table.node]),
    ]
    .concat()
}

/// What holds in every table.
fn assert_sound(table: &RoutingTable) {
    for (frontend, (kind, route)) in &table.frontends {
        assert!(route.frontends.contains(&(*frontend, *kind)));
        assert!(Arc::ptr_eq(table.route(&route.key).unwrap(), route));
        assert_eq!(Family::of(frontend.ip), route.key.family);
    }
    for route in table.routes() {
        for (frontend, _) in &route.frontends {
            let (_, owner) = table.frontends.get(frontend).unwrap();
            assert!(Arc::ptr_eq(owner, route), "{frontend} has one owner");
        }
        let serving = |set: &[Arc<Backend>]| set.iter().all(|b| route.still_serves(b.addr));
        assert!(serving(&route.cluster) && serving(&route.local));
        assert_eq!(route.any_endpoints, !route.cluster.is_empty());
    }
    for entry in table.services() {
        assert_explained(table, entry);
    }
}

/// The endpoints that an explanation calls candidates are those that flows are given.
fn assert_explained(table: &RoutingTable, entry: &ServiceEntry) {
    let target = Target::Service(entry.service.name.clone(), None);
    let explained = table.explain(&target, start()).unwrap().service_ports;
    assert_eq!(explained.len(), entry.routes.len());
    for (port, route) in explained.iter().zip(&entry.routes) {
        let told = |standing: fn(&ExplainedEndpoint) -> Standing| {
            let candidates = port.endpoints.iter();
            let candidates = candidates.filter(|e| standing(e).is_candidate());
            candidates.map(|e| e.address).collect::<Vec<_>>()
        };
        let given = |set: &[Arc<Backend>]| {
            let mut given: Vec<_> = set.iter().map(|backend| backend.addr).collect();
            given.sort_unstable();
            given
        };
        assert_eq!(told(|e| e.cluster), given(&route.cluster));
        assert_eq!(told(|e| e.local), given(&route.local));
        for flow in port.frontends.iter().flat_map(|frontend| &frontend.flows) {
            let set = match flow.policy.as_str() {
                "Local" => &route.local,
                _ => &route.cluster,
            };
            assert_eq!(flow.backends, given(set));
        }
    }
}

proptest! {
    #[test]
    fn a_table_built_step_by_step_is_the_one_built_from_nothing(
        steps in prop::collection::vec(some_step(), 1..60),
    ) {
        let mut builder = builder();
        let mut facts = Facts::default();
        for step in steps {
            match step {
                Step::Event(event) => {
                    facts.learn(&event);
                    builder.apply(event);
                }
                Step::Node(node) => {
                    facts.node = node.clone();
                    builder.set_node(node);
                }
                Step::Build => {
                    let table = builder.build().table;
                    assert_sound(&table);
                    prop_assert_eq!(visible(&table), visible(&facts.table()));
                }
            }
        }
        prop_assert_eq!(visible(&builder.build().table), visible(&facts.table()));
    }

    /// Nothing that has gone leaves anything behind.
    #[test]
    fn when_everything_is_deleted_the_table_is_empty(
        steps in prop::collection::vec(some_step(), 1..40),
        order in prop::collection::vec(any::<Index>(), 13),
    ) {
        let mut builder = builder();
        for step in steps {
            match step {
                Step::Event(event) => builder.apply(event),
                Step::Node(node) => builder.set_node(node),
                Step::Build => drop(builder.build()),
            }
        }
        let mut deletions: Vec<Event> = ["a", "b", "c", "d"].map(drop_service).into();
        deletions.extend(["s1", "s2", "s3", "s4"].map(|name| Event::SliceDeleted(slice_key(name))));
        deletions.extend(["p1", "p2", "p3"].map(|name| Event::PodDeleted("default".into(), name.into())));
        deletions.extend(["x", "y"].map(|name| Event::NamespaceDeleted(name.into())));
        for index in order {
            builder.apply(deletions.swap_remove(index.index(deletions.len())));
            builder.build();
        }
        prop_assert!(deletions.is_empty());
        builder.set_node(NodeView::default());
        prop_assert_eq!(visible(&builder.build().table), visible(&Facts::default().table()));
    }
}
