//! Seeded simulation of whole connections, from accept to the last word to either side, over a kernel that reports edges
//! as epoll does: once, whatever becomes of them. Peers send, read, pause, end and reset as they like, backends answer,
//! refuse or say nothing, descriptors, pipes and splicing are refused. A failure prints its seed.
//!
//! What must hold is stated from the peers' side in [`check`]; that a connection never waits for what has happened
//! already is [`Run::live`]'s panic.

mod kernel;
mod peers;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::capture::plan::{Callers, Entry, ListenerId};
use crate::faults::ActiveFaults;
use crate::model::{Algorithm, Event};
use crate::net::poller::Readiness;
use crate::net::streams::Liveness;
use crate::routing::{Backend, FrontendKind, Published, TableBuilder};
use crate::testkit::{FirstUntried, addr, ep, port_key, service, slice, start, tcp};

use super::super::admission::{Admission, Admitted, FlowKind};
use super::super::engine::{Key, Token};
use super::super::{Listener, Metrics, Shared};
use super::connection::{Connection, Fate};
use super::exchange::Side;
use super::{BUFFER, Effort};
use kernel::{Flaw, Sim, SimSocket, World};
use peers::{Ending, Fortune, Last, Line, MOST, PIPE, Script};

const BACKENDS: [&str; 3] = ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"];

const KEY: Key = Key { place: 7, turn: 3 };

/// One simulated connection.
struct Run {
    sim: Sim,
    listener: Arc<Listener>,
    backends: Vec<Arc<Backend>>,
    connection: Option<Connection<SimSocket>>,
    wants_turn: bool,
    buffer: Vec<u8>,
}

fn listener() -> (Arc<Listener>, Vec<Arc<Backend>>) {
    let mut builder = TableBuilder::new(Arc::new(FirstUntried), Algorithm::RoundRobin);
    builder.apply(Event::ServiceApplied(Arc::new(service("web", "10.96.0.1"))));
    let endpoints = BACKENDS.map(|backend| ep(backend.trim_end_matches(":8080")));
    builder.apply(Event::SliceApplied(Arc::new(slice(
        "web-1", "web", endpoints,
    ))));
    let table = Published::default();
    table.publish(builder.build().table);
    let backends = table
        .load()
        .route(&port_key("web"))
        .unwrap()
        .cluster
        .clone();
    let metrics = Metrics::new(&Registry::new()).unwrap();
    metrics.accounts.follow(table.clone());
    let shared = Shared {
        table,
        metrics: Arc::new(metrics),
        admission: Admission::new(1000, 1, 0, 0),
        udp_idle_timeout: Duration::from_secs(60),
        effort: Effort::default(),
        liveness: Liveness::default(),
        faults: ActiveFaults::default(),
        audible: Arc::default(),
    };
    let id = ListenerId {
        route: port_key("web"),
        entry: Entry::At(tcp("10.96.0.1:80"), FrontendKind::ClusterIp),
    };
    (
        Arc::new(Listener::new(id, Callers::All, Arc::new(shared))),
        backends,
    )
}

fn script(rng: &mut StdRng) -> Script {
    let bytes = match rng.random_range(0..4) {
        0 => 0,
        1 | 2 => rng.random_range(1..3000),
        _bulk => rng.random_range(60_000..MOST),
    };
    Script {
        bytes,
        waits_for: 0,
        ends: match rng.random_range(0..10) {
            0 => Ending::Reset,
            1 => Ending::OrderlyThenReset,
            _most => Ending::Orderly,
        },
        deaf_after: rng.random_bool(0.1).then(|| rng.random_range(0..300_000)),
    }
}

impl Run {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut client, mut backend) = (script(&mut rng), script(&mut rng));
        // One of them may wait for what the other one says first.
        match rng.random_range(0..3) {
            0 => client.waits_for = backend.bytes.min(rng.random_range(1..100)),
            1 => backend.waits_for = client.bytes.min(rng.random_range(1..100)),
            _both_speak => {}
        }
        let fortunes = (0..rng.random_range(0..6)).map(|_| match rng.random_range(0..20) {
            0 => Fortune::NoDescriptor,
            1 => Fortune::NotWatched,
            2..6 => Fortune::Refused,
            6..9 => Fortune::Silent,
            9 => Fortune::Unroutable,
            _most => Fortune::Connects,
        });
        let world = World {
            fortunes: fortunes.collect(),
            now: start(),
            lines: vec![Line::new(Side::Client, client, Fortune::Connects)],
            backend,
            dialled: Vec::new(),
            timers: Vec::new(),
            no_pipe: [0.0, 0.0, 0.5, 1.0][rng.random_range(0..4)],
            no_fill: rng.random_bool(0.1),
            no_drain: rng.random_bool(0.1),
            flaw,
            rng,
        };
        let mut sim = Sim(Rc::new(RefCell::new(world)));
        let (listener, backends) = listener();
        let flow = Admitted::new(&listener, FlowKind::Tcp).unwrap();
        let client = SimSocket {
            world: sim.clone(),
            line: 0,
        };
        let connection = Connection::begin(client, addr("10.0.0.9:999"), flow, KEY, &mut sim);
        Self {
            sim,
            listener,
            backends,
            connection,
            wants_turn: false,
            buffer: vec![0; BUFFER],
        }
    }

    // Until the connection is over, and both peers have nothing more to do.
    fn live(&mut self) {
        for _ in 0..100_000 {
            let did = match self.chance(5) {
                0 => self.peers_act(),
                _more => self.round() || self.peers_act(),
            };
            self.watch_memory();
            if !did && !self.let_time_pass() {
                assert!(
                    self.connection.is_none(),
                    "it waits for what has happened already"
                );
                return;
            }
        }
        panic!("never came to an end");
    }

    fn chance(&self, of: u32) -> u32 {
        self.sim.0.borrow_mut().rng.random_range(0..of)
    }

    fn peers_act(&self) -> bool {
        let world = &mut *self.sim.0.borrow_mut();
        let first = world.rng.random_range(0..world.lines.len());
        let all = world.lines.len();
        let mut order = (0..all).map(|n| (n + first) % all);
        order.any(|line| world.lines[line].step(&mut world.rng))
    }

    // A round of the engine: what is reported is as it was when it was collected, and some comes in a later round.
    fn round(&mut self) -> bool {
        let events: Vec<(Token, Readiness)> = {
            let world = &mut *self.sim.0.borrow_mut();
            let rng = &mut world.rng;
            let lost = match world.flaw {
                Some(Flaw::LosesEdges) => 0.05,
                Some(Flaw::NeverAcknowledges | Flaw::EndsInsteadOfResets) | None => 0.0,
            };
            let ready = world
                .lines
                .iter_mut()
                .filter(|line| line.edge && !line.closed);
            ready
                .filter_map(|line| {
                    if !rng.random_bool(0.7) {
                        return None;
                    }
                    line.edge = false;
                    if rng.random_bool(lost) {
                        return None;
                    }
                    Some((line.token?, line.readiness()))
                })
                .collect()
        };
        let did = !events.is_empty() || self.wants_turn;
        for (token, ready) in events {
            self.with(|connection, buffer, sim| {
                if token == Token::Client(KEY) {
                    connection.client_ready(ready, buffer)
                } else {
                    connection.backend_ready(ready, KEY, buffer, sim)
                }
            });
        }
        if std::mem::take(&mut self.wants_turn) {
            self.with(|connection, buffer, _| connection.go_on(buffer));
        }
        did
    }

    // To the next timer, and at random to none.
    fn let_time_pass(&mut self) -> bool {
        let due = {
            let world = &mut *self.sim.0.borrow_mut();
            // Events that this round left are no reason to.
            if world
                .lines
                .iter()
                .any(|line| line.edge && !line.closed && line.token.is_some())
            {
                return true;
            }
            world.timers.sort_by_key(|(at, _)| *at);
            if world.timers.is_empty() {
                return false;
            }
            world.now = world.now.max(world.timers[0].0);
            world.timers.remove(0).1
        };
        assert_eq!(due, Token::Client(KEY));
        self.with(|connection, buffer, sim| connection.dial_due(KEY, buffer, sim));
        if self.chance(3) == 0
            && let Some(connection) = &mut self.connection
        {
            connection.settle();
        }
        true
    }

    fn with(&mut self, step: impl FnOnce(&mut Connection<SimSocket>, &mut [u8], &mut Sim) -> Fate) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        match step(connection, &mut self.buffer, &mut self.sim) {
            Fate::GoesOn => {}
            Fate::Yields => self.wants_turn = true,
            Fate::Over => self.connection = None,
        }
    }

    // What has been read and not been written is never more than one pipe holds: the back-pressure.
    fn watch_memory(&self) {
        let world = self.sim.0.borrow();
        if let Some(backend) = world.lines[1..].iter().find(|line| line.connected) {
            let client = &world.lines[0];
            assert!(client.read - backend.written <= PIPE);
            assert!(backend.read - client.written <= PIPE);
        }
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    Complete,
    Cut,
    Unreached,
    Abandoned,
}

// What the peers may say of it, whatever happened in between.
fn check(run: &Run) -> Story {
    let world = run.sim.0.borrow();
    assert!(
        run.backends
            .iter()
            .all(|backend| backend.live.active() == 0)
    );
    assert_eq!(run.listener.shared.admission.active(), (0, 0));
    check_dials(&world);
    let client = &world.lines[0];
    let reached = world.lines[1..].iter().find(|line| line.connected);
    let Some(backend) = reached.filter(|_| client.told.is_some() || client.was_reset) else {
        assert!(
            client.told == Some(Last::Reset) || client.was_reset,
            "{client:?}"
        );
        assert_eq!(client.taken, 0);
        let all_failed = world
            .dialled
            .iter()
            .all(|(_, fortune)| *fortune != Fortune::Connects);
        assert!(all_failed || client.was_reset);
        return if client.was_reset {
            Story::Abandoned
        } else {
            Story::Unreached
        };
    };
    let calm =
        |line: &Line| line.script.ends == Ending::Orderly && line.script.deaf_after.is_none();
    for (one, other) in [(client, backend), (backend, client)] {
        match one.told {
            // The other one did end, and everything it had sent is there.
            Some(Last::End) => {
                assert!(other.fin, "an end is never made up: {one:?} {other:?}");
                assert_eq!(one.taken, other.script.bytes);
            }
            Some(Last::Reset) => assert!(!calm(client) || !calm(backend), "{one:?} {other:?}"),
            // Whoever broke off is not told anything; nor is a backend that never learnt of the connection.
            None => assert!(one.was_reset || !one.established, "{one:?} {other:?}"),
        }
        if other.was_reset && !other.fin && !one.was_reset && one.established {
            assert_eq!(one.told, Some(Last::Reset), "a reset passes as a reset");
        }
    }
    if calm(client) && calm(backend) {
        assert_eq!(
            (client.told, backend.told),
            (Some(Last::End), Some(Last::End))
        );
        return Story::Complete;
    }
    Story::Cut
}

// Each attempt with somebody else while there is somebody, and no more than it is worth.
fn check_dials(world: &World) {
    let dialled = &world.dialled;
    assert!((1..=4).contains(&dialled.len()), "{dialled:?}");
    for (n, (addr, fortune)) in dialled.iter().enumerate() {
        let again = dialled[n + 1..].iter().any(|(later, _)| later == addr);
        assert!(!again || *fortune == Fortune::Silent, "{dialled:?}");
        if n + 1 < dialled.len() {
            let is_last = [
                Fortune::Connects,
                Fortune::NoDescriptor,
                Fortune::NotWatched,
            ];
            assert!(!is_last.contains(fortune), "{dialled:?}");
        }
    }
    let first: Vec<_> = dialled.iter().take(3).map(|(addr, _)| addr).collect();
    assert!(
        (1..first.len()).all(|n| !first[..n].contains(&first[n])),
        "{dialled:?}"
    );
}

struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed was {}", self.0);
        }
    }
}

fn live(seed: u64, flaw: Option<Flaw>) -> Story {
    let seed = Seed(seed);
    let mut run = Run::new(seed.0, flaw);
    run.live();
    check(&run)
}

#[test]
fn connections_end_as_their_peers_ended_them_whatever_the_kernel_does() {
    let stories: Vec<Story> = (0..1500).map(|seed| live(seed, None)).collect();
    for story in [
        Story::Complete,
        Story::Cut,
        Story::Unreached,
        Story::Abandoned,
    ] {
        let n = stories.iter().filter(|other| **other == story).count();
        assert!(n >= 20, "{story:?}: {n}");
    }
}

#[test]
#[should_panic(expected = "it waits for what has happened already")]
fn an_edge_that_is_lost_would_be_noticed() {
    for seed in 0..200 {
        live(seed, Some(Flaw::LosesEdges));
    }
}

#[test]
#[should_panic(expected = "it waits for what has happened already")]
fn a_backend_that_never_learns_of_its_connection_would_be_noticed() {
    for seed in 0..200 {
        live(seed, Some(Flaw::NeverAcknowledges));
    }
}

#[test]
#[should_panic(expected = "is never made up")]
fn an_end_in_place_of_a_reset_would_be_noticed() {
    for seed in 0..200 {
        live(seed, Some(Flaw::EndsInsteadOfResets));
    }
}
