//! A data path with one Service, and what tests need to change it and look at it.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::Registry;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use viaduct::capture::plan::{Callers, Entry, ListenerId, ListenerSpec, ListenerState, Tenure};
use viaduct::dataplane::{Config, Dataplane, Metrics};
use viaduct::model::{
    Algorithm, Endpoint, EndpointSlice, Event, Family, Frontend, Knobs, Port, Protocol, Service,
    ServiceKind, ServiceName, ServicePort, ServicePortKey, SliceKey, SlicePort, TrafficPolicy,
};
use viaduct::routing::{
    Balancer, BalancerFactory, Choice, FrontendKind, NodeView, Published, TableBuilder,
};

/// How long anything may take before a test fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A client that the balancer panics for.
pub(super) const POISONOUS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 6, 6, 6));

/// Always the lowest address that has not been tried.
#[derive(Debug)]
struct Lowest;

impl Balancer for Lowest {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        assert_ne!(choice.client, POISONOUS, "as intended");
        (0..choice.backends.len())
            .filter(|index| choice.is_open(*index))
            .min_by_key(|index| choice.backends[*index].addr)
    }
}

impl BalancerFactory for Lowest {
    fn make(&self, _algorithm: Algorithm, _affinity: Option<Duration>) -> Arc<dyn Balancer> {
        Arc::new(Self)
    }
}

/// How an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// Neither ready nor serving.
    Unready,
    /// Terminating, and still serving.
    Draining,
}

/// The Service `default/web` at port 80 of 10.96.0.1 or fd00:96::1, its table and a data path.
pub(super) struct Rig {
    pub(super) plane: Dataplane,
    pub(super) published: Published,
    protocol: Protocol,
    family: Family,
    builder: TableBuilder,
    slices: usize,
    registry: Registry,
}

impl Rig {
    pub(super) fn start(protocol: Protocol, backends: &[SocketAddr]) -> Self {
        Self::with(protocol, backends, one_thread())
    }

    pub(super) fn with(protocol: Protocol, backends: &[SocketAddr], config: Config) -> Self {
        Self::balanced_by(Arc::new(Lowest), protocol, backends, config)
    }

    pub(super) fn balanced_by(
        balancers: Arc<dyn BalancerFactory>,
        protocol: Protocol,
        backends: &[SocketAddr],
        config: Config,
    ) -> Self {
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry).unwrap());
        let published = Published::default();
        let plane = Dataplane::start(config, published.clone(), metrics).unwrap();
        let mut builder = TableBuilder::new(balancers, Algorithm::RoundRobin);
        builder.set_node(NodeView::default());
        let mut rig = Self {
            plane,
            published,
            protocol,
            family: backends
                .first()
                .map_or(Family::V4, |addr| Family::of(addr.ip())),
            builder,
            slices: 0,
            registry,
        };
        rig.apply_service(Knobs::default());
        rig.set_backends(backends);
        rig
    }

    pub(super) fn apply_service(&mut self, knobs: Knobs) {
        self.apply_service_with(|service| service.knobs = knobs);
    }

    /// Publishes the Service with what `change` makes of it.
    pub(super) fn apply_service_with(&mut self, change: impl FnOnce(&mut Service)) {
        let mut service = Service {
            name: name(),
            kind: ServiceKind::ClusterIp,
            cluster_ips: vec![self.frontend().ip],
            ports: vec![ServicePort {
                name: "".into(),
                protocol: self.protocol,
                port: Port::try_from(80).unwrap(),
                node_port: None,
            }],
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: vec![],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_node_port: None,
            foreign_proxy: false,
            sctp_ports: vec![],
            knobs: Knobs::default(),
        };
        change(&mut service);
        self.builder.apply(Event::ServiceApplied(Arc::new(service)));
        self.publish();
    }

    pub(super) fn delete_service(&mut self) {
        self.builder.apply(Event::ServiceDeleted(name()));
        self.publish();
    }

    /// Publishes exactly these backends, all of them ready.
    pub(super) fn set_backends(&mut self, backends: &[SocketAddr]) {
        let ready: Vec<_> = backends.iter().map(|addr| (*addr, State::Ready)).collect();
        self.set_endpoints(&ready);
    }

    /// Publishes exactly these endpoints.
    pub(super) fn set_endpoints(&mut self, endpoints: &[(SocketAddr, State)]) {
        let key = |index: usize| SliceKey {
            namespace: "default".into(),
            name: format!("web-{index}").into(),
        };
        for index in 0..self.slices {
            self.builder.apply(Event::SliceDeleted(key(index)));
        }
        self.slices = endpoints.len();
        for (index, (backend, state)) in endpoints.iter().enumerate() {
            let endpoint = Endpoint {
                addresses: [backend.ip()].into(),
                ready: *state == State::Ready,
                serving: *state != State::Unready,
                terminating: *state == State::Draining,
                node: None,
                zone: None,
                hostname: None,
                pod: None,
                hints: None,
            };
            let slice = EndpointSlice {
                key: key(index),
                service: name(),
                family: Family::of(backend.ip()),
                ports: vec![SlicePort {
                    name: "".into(),
                    protocol: self.protocol,
                    port: backend.port(),
                }],
                endpoints: vec![endpoint],
                sctp_ports: Vec::new(),
                headless: false,
                triggered: None,
            };
            self.builder.apply(Event::SliceApplied(Arc::new(slice)));
        }
        self.publish();
    }

    fn publish(&mut self) {
        self.published.publish(self.builder.build().table);
        self.plane.routes_changed(&[self.route()]);
    }

    pub(super) fn route(&self) -> ServicePortKey {
        ServicePortKey {
            service: name(),
            port: "".into(),
            protocol: self.protocol,
            family: self.family,
        }
    }

    /// Of the backend at `addr`: flows at this moment, failed dials.
    pub(super) fn figures(&self, addr: SocketAddr) -> (u64, u64) {
        let table = self.published.load();
        let route = table.route(&self.route()).unwrap();
        let backend = route.cluster.iter().find(|b| b.addr == addr).unwrap();
        (backend.live.active(), backend.live.failures_total())
    }

    fn frontend(&self) -> Frontend {
        let ip = match self.family {
            Family::V4 => "10.96.0.1",
            Family::V6 => "fd00:96::1",
        };
        Frontend {
            ip: ip.parse().unwrap(),
            port: 80,
            protocol: self.protocol,
        }
    }

    /// A direct listener for the Service, at any port of the loopback address.
    pub(super) fn spec(&self, state: ListenerState) -> ListenerSpec {
        let entry = Entry::At(self.frontend(), FrontendKind::ClusterIp);
        let loopback = match self.family {
            Family::V4 => "127.0.0.1:0",
            Family::V6 => "[::1]:0",
        };
        ListenerSpec {
            id: ListenerId {
                route: self.route(),
                entry,
            },
            bind: loopback.parse().unwrap(),
            state,
            callers: Callers::All,
            tenure: Tenure::Owned,
        }
    }

    pub(super) async fn open(&self) -> SocketAddr {
        let spec = self.spec(ListenerState::Serving);
        self.plane.open(&spec).await.unwrap()
    }

    /// The sum of a metric over all its labels that contain `label`.
    pub(super) fn metric(&self, name: &str, label: &str) -> f64 {
        self.registry
            .gather()
            .iter()
            .filter(|family| family.name() == name)
            .flat_map(|family| family.get_metric())
            .filter(|metric| {
                label.is_empty() || metric.get_label().iter().any(|l| l.value() == label)
            })
            .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
            .sum()
    }
}

pub(super) fn one_thread() -> Config {
    Config {
        threads: 1,
        ..Config::default()
    }
}

fn name() -> ServiceName {
    ServiceName::new("default", "web")
}

/// Waits until `claim` holds.
pub(super) async fn eventually(what: &str, claim: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !claim() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Fails instead of hanging.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("took too long: {what}"),
    }
}

/// A client that connects there is reset; it may learn of it while it still connects.
pub(super) async fn is_reset(at: SocketAddr) {
    let end = async { TcpStream::connect(at).await?.read(&mut [0; 1]).await };
    let error = soon("reset", end).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Runs one ignored test in a process of its own, under `wrapper` if that is not empty. False if the wrapper cannot
/// run here.
pub(super) fn in_own_process(test: &str, wrapper: &[&str]) -> bool {
    let itself = std::env::current_exe().unwrap();
    let mut words: Vec<&OsStr> = wrapper.iter().map(OsStr::new).collect();
    if let [program, arguments @ ..] = wrapper {
        let probe = Command::new(program).args(arguments).arg("true").status();
        if !probe.is_ok_and(|status| status.success()) {
            return false;
        }
    }
    words.push(itself.as_os_str());
    words.extend(["--exact", test, "--ignored", "--nocapture"].map(OsStr::new));
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    true
}
