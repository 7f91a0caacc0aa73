//! The order of effects: what is done to listeners, the published table and the kernel when routes change.
//!
//! ```text
//!  open new listeners ─► publish the table ─► write rules ─► close listeners that nothing leads to any more
//! ```
//!
//! So captured traffic never meets a closed port: a rule points to a port only after it is open, and a port closes only
//! after no rule points to it. A listener that is bound to its frontend needs no rule once the address is captured: it
//! ends first of all, and where an earlier change still waits for its rules it does not serve before them. Everything
//! here works through [`Effects`], so that a test can watch the order.

mod company;
mod direct;
mod gathered;
mod shown_clients;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{debug, warn};

use crate::capture::CaptureError;
use crate::capture::plan::{
    Arrival, Callers, Entry, ListenerId, ListenerSpec, ListenerState, Rules, plan_listeners,
};
use crate::dataplane::{OpenError, Opened};
use crate::health_checks::Unbound;
use crate::model::{Family, ServiceName, ServicePortKey};
use crate::routing::{HealthCheck, NodeView, Route, RoutingTable, ServiceEntry, TableBuilder};
use crate::sources::kube::Notice;
use crate::telemetry::Health;

use super::health_checks::HealthChecks;
use super::metrics::{Metrics, NoLocal};
use super::rules::{Due, KernelRules};
use company::Company;
use gathered::{Gathered, Shares, of_family};

/// What programming does to the world.
pub(super) trait Effects {
    /// How traffic of that family arrives; `None` captures nothing and opens nothing.
    fn arrival(&self, family: Family) -> Option<Arrival>;
    /// Opens a listener, or changes its state. Beside the process before this one it is held closed at first, whatever was
    /// asked for.
    async fn open(&mut self, spec: &ListenerSpec) -> Result<Opened, OpenError>;
    async fn close(&mut self, id: &ListenerId);
    /// Whether the process before this one still runs.
    fn predecessor_lives(&mut self) -> bool;
    /// Takes the rules over again that a successor had claimed, if it has ended; true if it had.
    fn regain(&mut self) -> bool;
    /// Captures nothing new any more where a successor does so by another mode.
    async fn yield_to_successor(&mut self);
    /// Listeners that were opened beside the process before this one, where a stranger is.
    async fn accompanied(&mut self) -> io::Result<Vec<ListenerId>>;
    fn publish(&mut self, table: Arc<RoutingTable>, changed: &[ServicePortKey]);
    /// Families that can be captured here.
    fn families(&self) -> Vec<Family>;
    async fn write_rules(&mut self, rules: &Rules) -> Result<(), CaptureError>;
    /// Removes what other capture modes may have left, once there is something in their place.
    async fn clear_other_modes(&mut self, family: Family);
    /// Restores rules that somebody else removed; true if it had to.
    async fn check_rules(&mut self, family: Family) -> Result<bool, CaptureError>;
    /// Has exactly these health-check node ports answer. Returns those that could not be bound.
    async fn answer_health_checks(&mut self, wanted: &[HealthCheck]) -> Vec<Unbound>;
    /// Has users told.
    fn tell(&mut self, notice: Notice);
}

/// How long a listener that could not be opened waits before it is tried again.
const REOPEN: Duration = Duration::from_secs(1);

/// Ports below it may need privilege (ip(7), `ip_unprivileged_port_start`).
const FIRST_UNPRIVILEGED: u16 = 1024;

/// How often balancers forget what has expired, besides on changes.
const SWEEP: Duration = Duration::from_secs(60);

/// What has been done so far. Owned by the reconciler.
pub(super) struct Programmer<E> {
    effects: E,
    rules: KernelRules,
    health_checks: HealthChecks,
    services: HashMap<ServiceName, Programmed>,
    // What their shares add up to.
    gathered: Gathered,
    bound: HashMap<ListenerId, Bound>,
    // Addresses with direct listeners that the kernel does not bring here before the next write.
    uncaptured: BTreeSet<IpAddr>,
    // Direct listeners that are held closed until then, lest they be ahead of those.
    waiting: BTreeSet<ListenerId>,
    closing: Vec<ListenerId>,
    reopen: BTreeSet<ServiceName>,
    reopen_at: Option<Instant>,
    company: Company,
    sweep_at: Instant,
    node: Option<Arc<NodeView>>,
}

// An open listener: where, in which state, and who is heard there.
struct Bound {
    addr: SocketAddr,
    state: ListenerState,
    callers: Callers,
}

#[derive(Default)]
struct Programmed {
    specs: BTreeMap<ListenerId, ListenerSpec>,
    routes: Vec<Arc<Route>>,
    shares: Shares,
}

impl<E: Effects> Programmer<E> {
    pub(super) fn new(
        effects: E,
        health: Health,
        metrics: Metrics,
        sync_period: Duration,
        now: Instant,
    ) -> Self {
        Self {
            rules: KernelRules::new(&effects.families(), health, metrics, sync_period, now),
            effects,
            health_checks: HealthChecks::default(),
            services: HashMap::new(),
            gathered: Gathered::default(),
            bound: HashMap::new(),
            uncaptured: BTreeSet::new(),
            waiting: BTreeSet::new(),
            closing: Vec::new(),
            reopen: BTreeSet::new(),
            reopen_at: None,
            company: Company::beginning(now),
            sweep_at: now + SWEEP,
            node: None,
        }
    }

    /// What the loop counts.
    pub(super) fn metrics(&mut self) -> &mut Metrics {
        self.rules.metrics()
    }

    /// At least so much time lies between two writes to the kernel from now on.
    pub(super) fn set_min_sync_period(&mut self, min_period: Duration) {
        self.rules.set_min_period(min_period);
    }

    /// Brings listeners and the published table in line with what `builder` knows by now; rules follow in
    /// [`Self::write`].
    pub(super) async fn program(&mut self, builder: &mut TableBuilder, now: Instant) {
        let begun = Instant::now();
        let built = builder.build();
        self.metrics().rebuilt(begun.elapsed());
        for conflict in &built.conflicts {
            warn!(service = %conflict.loser, address = conflict.address, owner = %conflict.owner, "address is taken; {conflict}");
        }
        let mut affected: BTreeSet<ServiceName> = built.changed.into_iter().collect();
        affected.append(&mut self.reopen);
        self.reopen_at = None;
        // The first time there is no view before: that write replaces what an earlier run may have left, even if there
        // is nothing to capture.
        let node_is_new = self.node.as_ref() != Some(&built.table.node);
        if node_is_new {
            let has_node_port = |(_, p): &(&ServiceName, &Programmed)| {
                p.routes.iter().any(|route| route.node_port.is_some())
            };
            affected.extend(
                self.services
                    .iter()
                    .filter(has_node_port)
                    .map(|(name, _)| name.clone()),
            );
            let checked =
                |entry: &&Arc<ServiceEntry>| entry.service.health_check_node_port.is_some();
            let checked = built.table.services().filter(checked);
            affected.extend(checked.map(|entry| entry.service.name.clone()));
            self.node = Some(built.table.node.clone());
            self.rules.changed(&Family::BOTH, now);
        }

        let wanted: Vec<(ServiceName, Programmed)> = affected
            .into_iter()
            .map(|name| (name.clone(), self.plan(&name, &built.table)))
            .collect();
        self.note_clients_not_shown(&wanted);
        self.close_direct(&wanted).await;
        self.note_uncaptured(&wanted);
        let mut moved = false;
        for (name, service) in &wanted {
            moved |= self.open_listeners(name, service, builder, now).await;
        }
        self.hold_unserved(&wanted, now).await;
        let table = if moved {
            builder.build().table
        } else {
            built.table
        };
        for (name, _) in &wanted {
            self.health_checks
                .want(name, self.health_checks_of(name, &table));
        }
        self.publish(&wanted, table);
        // One may have from now on what another had before.
        for before in wanted
            .iter()
            .filter_map(|(name, _)| self.services.get(name))
        {
            self.gathered.remove(&before.shares);
        }
        for (name, service) in wanted {
            sweep(&service.routes, now);
            self.settle(name, service, now);
        }
        if node_is_new {
            self.gather_anew();
        }
        self.health_checks.apply(&mut self.effects, now).await;
    }

    /// Writes and checks the rules that are due. Returns when to call again.
    pub(super) async fn write(&mut self, now: Instant) -> Instant {
        for (family, due) in self.rules.due(now) {
            match due {
                Due::Write => {
                    let rules = self.gathered.rules(family, self.node.as_deref());
                    self.rules.write(rules, &mut self.effects, now).await;
                    self.serve_waiting(family).await;
                    self.effects.clear_other_modes(family).await;
                }
                Due::Check => self.rules.check(family, &mut self.effects, now).await,
            }
        }
        // Before the first table nothing is in effect.
        if self.node.is_some() {
            self.rules.note_effects();
        }
        self.close_unused().await;
        self.look_for_company(now).await;
        if self.sweep_at <= now {
            self.sweep_at = now + SWEEP;
            self.services
                .values()
                .for_each(|service| sweep(&service.routes, now));
        }
        self.health_checks.apply(&mut self.effects, now).await;
        let next = self.rules.next().into_iter().chain(self.reopen_at);
        let next = next.chain(self.health_checks.next());
        let next = next.chain(self.node.is_some().then_some(self.company.look_at));
        next.fold(self.sweep_at, Instant::min)
    }

    /// Whether a listener that could not be opened is due to be tried again.
    pub(super) fn reopen_due(&self, now: Instant) -> bool {
        self.reopen_at.is_some_and(|at| at <= now)
    }

    /// Whether everything decided so far has reached the kernel.
    pub(super) fn has_written(&self) -> bool {
        self.rules.all_written()
    }

    #[cfg(test)]
    pub(super) fn effects_mut(&mut self) -> &mut E {
        &mut self.effects
    }

    /// Gives back what does the effects, for the end.
    pub(super) fn into_effects(self) -> E {
        self.effects
    }

    fn plan(&self, name: &ServiceName, table: &RoutingTable) -> Programmed {
        let routes = table.service(name).map_or(&[][..], |entry| &entry.routes);
        // A node port does not answer at another Service's own address.
        let owned = |spec: &ListenerSpec| match &spec.id.entry {
            Entry::At(frontend, _) => table
                .destination(frontend)
                .is_some_and(|destination| destination.route.key == spec.id.route),
            Entry::All | Entry::Diverted | Entry::ClusterIp | Entry::External => true,
        };
        let specs = |route: &Arc<Route>| {
            let arrival = self.effects.arrival(route.key.family);
            arrival.map_or_else(Vec::new, |arrival| {
                plan_listeners(route, arrival, &table.node)
            })
        };
        let specs = routes
            .iter()
            .filter(|route| self.rules.has(route.key.family))
            .flat_map(specs)
            .filter(owned)
            .map(|spec| (spec.id.clone(), spec))
            .collect();
        Programmed {
            specs,
            routes: routes.to_vec(),
            shares: Shares::new(),
        }
    }

    // A node that captures nothing of a family asks no balancer for its traffic.
    fn health_checks_of(&self, name: &ServiceName, table: &RoutingTable) -> Vec<HealthCheck> {
        let entry = table.service(name);
        let mut checks = entry.map_or_else(Vec::new, |entry| entry.health_checks(&table.node));
        checks.retain(|check| self.rules.has(Family::of(check.bind.ip())));
        checks
    }

    // Opens what is new and what must serve from now on. True if a frontend is served at another port than its own.
    async fn open_listeners(
        &mut self,
        name: &ServiceName,
        wanted: &Programmed,
        builder: &mut TableBuilder,
        now: Instant,
    ) -> bool {
        let mut moved = false;
        // Ports that may have to move come last, so that they do not take the place of one that need not.
        let mut specs: Vec<_> = wanted.specs.iter().collect();
        specs.sort_by_key(|(_, spec)| spec.bind.port() < FIRST_UNPRIVILEGED);
        for (id, spec) in specs {
            let good = |bound: &Bound| {
                spec.state == ListenerState::HeldClosed
                    || (bound.state == ListenerState::Serving && bound.callers == spec.callers)
            };
            if self.bound.get(id).is_some_and(good) || self.waiting.contains(id) {
                continue;
            }
            self.closing.retain(|closing| closing != id);
            let wanted = spec.state;
            let mut spec = Cow::Borrowed(spec);
            if self.must_wait(&spec) {
                spec.to_mut().state = ListenerState::HeldClosed;
            }
            match self.effects.open(&spec).await {
                Ok(Opened { addr, state }) => {
                    if state != wanted {
                        self.waiting.insert(id.clone());
                        self.rules.changed(&[id.route.family], now);
                    }
                    let bound = Bound {
                        addr,
                        state,
                        callers: spec.callers.clone(),
                    };
                    self.bound.insert(id.clone(), bound);
                    if let Entry::At(frontend, _) = id.entry {
                        builder.set_served_port(frontend, addr.port());
                        moved |= addr.port() != frontend.port;
                    }
                }
                Err(error) => {
                    warn!(service = %id.route, frontend = %spec.bind, %error, "listener could not be opened; it is tried again");
                    self.reopen.insert(name.clone());
                    self.reopen_at = Some(now + REOPEN);
                }
            }
        }
        moved
    }

    // Before the table is out, so that whoever meets anything of it is refused where it serves nobody any more.
    async fn hold_unserved(&mut self, wanted: &[(ServiceName, Programmed)], now: Instant) {
        let specs = wanted.iter().flat_map(|(_, service)| &service.specs);
        for (id, spec) in specs.filter(|(_, spec)| spec.state == ListenerState::HeldClosed) {
            let Some(bound) = self.bound.get_mut(id) else {
                continue;
            };
            if bound.state == ListenerState::Serving {
                match self.effects.open(spec).await {
                    Ok(_) => bound.state = ListenerState::HeldClosed,
                    Err(error) => {
                        warn!(service = %id.route, %error, "port could not be held closed; it is tried again");
                        self.reopen.insert(id.route.service.clone());
                        self.reopen_at = Some(now + REOPEN);
                    }
                }
            }
        }
    }

    fn publish(&mut self, wanted: &[(ServiceName, Programmed)], table: Arc<RoutingTable>) {
        let mut changed = BTreeSet::new();
        for (name, service) in wanted {
            let before = self
                .services
                .get(name)
                .map_or(&[][..], |programmed| &programmed.routes);
            changed.extend(
                before
                    .iter()
                    .chain(&service.routes)
                    .map(|route| route.key.clone()),
            );
        }
        let (generation, services) = (table.generation, wanted.len());
        self.effects
            .publish(table.clone(), &changed.into_iter().collect::<Vec<_>>());
        self.metrics().published(&table, Timestamp::now());
        debug!(generation, services, "table published");
    }

    // After the table is out: note what nothing leads to, and see whether the kernel must learn something.
    fn settle(&mut self, name: ServiceName, mut service: Programmed, now: Instant) {
        let before = self.services.remove(&name).unwrap_or_default();
        for family in Family::BOTH {
            let lacking = |programmed: &Programmed| {
                NoLocal::of(family, programmed.routes.iter().map(Arc::as_ref))
            };
            let (before, after) = (lacking(&before), lacking(&service));
            self.rules.metrics().recount(family, before, after);
        }
        for id in before.specs.keys() {
            if !service.specs.contains_key(id) && self.bound.contains_key(id) {
                self.closing.push(id.clone());
            }
        }
        service.shares = self.shares_of(&service);
        for family in Family::BOTH {
            if before.shares.get(&family) != service.shares.get(&family) {
                self.rules.changed(&[family], now);
            }
        }
        self.gathered.add(&service.shares);
        if !service.routes.is_empty() {
            self.services.insert(name, service);
        }
    }

    // Of families that something waits to be written for, rules may still lead there.
    async fn close_unused(&mut self) {
        let (unused, waiting) = std::mem::take(&mut self.closing)
            .into_iter()
            .partition(|id: &ListenerId| self.rules.is_written(id.route.family));
        self.closing = waiting;
        let unused: Vec<ListenerId> = unused;
        for id in unused {
            if self
                .services
                .get(&id.route.service)
                .is_some_and(|service| service.specs.contains_key(&id))
            {
                continue;
            }
            self.effects.close(&id).await;
            self.bound.remove(&id);
        }
    }

    fn shares_of(&self, service: &Programmed) -> Shares {
        let mut shares = Shares::new();
        let captured = |route: &&Arc<Route>| self.rules.has(route.key.family);
        for route in service.routes.iter().filter(captured) {
            let family = route.key.family;
            let node = self.node.as_ref();
            let local = node.map(|node| of_family(&node.local_addresses, family));
            let share = shares.entry(family).or_default();
            share.add(route, &local.unwrap_or_default(), |entry| {
                let id = ListenerId {
                    route: route.key.clone(),
                    entry,
                };
                self.bound.get(&id).map(|bound| bound.addr.port())
            });
        }
        shares
    }

    // Who may call an address depends on those of the node.
    fn gather_anew(&mut self) {
        let mut gathered = Gathered::default();
        let names: Vec<ServiceName> = self.services.keys().cloned().collect();
        for name in names {
            let Some(service) = self.services.get(&name) else {
                continue;
            };
            let shares = self.shares_of(service);
            gathered.add(&shares);
            if let Some(service) = self.services.get_mut(&name) {
                service.shares = shares;
            }
        }
        self.gathered = gathered;
    }
}

// Lets balancers forget backends that serve nobody any more, and clients that have been away for too long.
fn sweep(routes: &[Arc<Route>], now: Instant) {
    for route in routes {
        route.balancer.sweep(now, &|addr| route.still_serves(addr));
    }
}
