//! Seeded simulation of whole connections, from accept to the last word to either side, over a kernel that reports edges
//! as epoll does: once, whatever becomes of them. Peers send, read, pause, end and reset as they like, backends answer,
//! refuse or say nothing, descriptors, pipes and splicing are refused. A failure prints its seed.
//!
//! What must hold is stated from the peers' side in [`check`]; that a connection never waits for what has happened
//! already is [`Run::live`]'s panic.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use nix::libc;
use prometheus::Registry;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::capture::plan::{Entry, ListenerId};
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
use super::kernel::{Kernel, Socket};
use super::{BUFFER, Effort};

/// What a socket holds for us at most, and what it takes from us before its peer reads.
const SOCKET_BUFFER: usize = 200 * 1024;

const PIPE: usize = 256 * 1024;

/// What a peer sends at most: more than a connection may move in one turn.
const MOST: usize = 1_500_000;

const BACKENDS: [&str; 3] = ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"];

const KEY: Key = Key { place: 7, turn: 3 };

/// What a peer means to do.
#[derive(Clone, Debug)]
struct Script {
    bytes: usize,
    /// It says nothing before it has got as much, or the end.
    waits_for: usize,
    ends: Ending,
    /// After how many received bytes it refuses more, with a reset.
    deaf_after: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Orderly,
    Reset,
    /// It closes with something unread: what comes then is answered by a reset.
    OrderlyThenReset,
}

/// What becomes of an attempt to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fortune {
    Connects,
    Refused,
    Silent,
    Unroutable,
    NoDescriptor,
    NotWatched,
}

/// What a peer was told at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    End,
    Reset,
}

#[derive(Debug)]
struct Line {
    side: Side,
    script: Script,
    fortune: Fortune,
    connected: bool,
    // The peer has been told that it is: before, it neither reads nor sends.
    established: bool,
    // By the peer: sent, and of that read by us; how it ended.
    sent: usize,
    read: usize,
    fin: bool,
    was_reset: bool,
    error: Option<i32>,
    // By us: written, and of that taken by the peer; how we ended.
    written: usize,
    taken: usize,
    ended: bool,
    lingers: bool,
    closed: bool,
    told: Option<Last>,
    // As epoll sees it.
    token: Option<Token>,
    edge: bool,
    wants_room: bool,
}

impl Line {
    fn new(side: Side, script: Script, fortune: Fortune) -> Self {
        Self {
            side,
            script,
            fortune,
            connected: side == Side::Client,
            established: side == Side::Client,
            sent: 0,
            read: 0,
            fin: false,
            was_reset: false,
            error: None,
            written: 0,
            taken: 0,
            ended: false,
            lingers: false,
            closed: false,
            told: None,
            token: None,
            edge: false,
            wants_room: false,
        }
    }

    fn room(&self) -> usize {
        SOCKET_BUFFER - (self.written - self.taken)
    }

    // What epoll would report now.
    fn readiness(&self) -> Readiness {
        let over = self.was_reset || self.fortune == Fortune::Refused && self.error.is_some();
        let gone = over || self.fin && self.ended;
        let mut bits = 0;
        let set = |bits: &mut i32, bit, on: bool| *bits |= if on { bit } else { 0 };
        set(
            &mut bits,
            libc::EPOLLIN,
            self.sent > self.read || self.fin || over,
        );
        set(
            &mut bits,
            libc::EPOLLOUT,
            over || self.connected && self.room() >= SOCKET_BUFFER / 3,
        );
        set(&mut bits, libc::EPOLLRDHUP, self.fin || over);
        set(&mut bits, libc::EPOLLHUP, gone);
        set(&mut bits, libc::EPOLLERR, self.error.is_some());
        Readiness::from_bits(bits)
    }

    fn reset_by_peer(&mut self) {
        self.was_reset = true;
        self.error = Some(libc::ECONNRESET);
        self.edge = true;
    }

    // Whether the peer can do something, and then does one thing.
    fn step(&mut self, rng: &mut StdRng) -> bool {
        if !self.connected {
            return !self.closed && self.answer();
        }
        if !self.established || self.was_reset {
            return false;
        }
        let mut able = Vec::new();
        let open = self.told != Some(Last::Reset);
        if open && self.taken < self.written {
            able.push(0);
        }
        if open && self.ended && self.taken == self.written && self.told.is_none() {
            able.push(1);
        }
        let may_speak = self.taken >= self.script.waits_for || self.told.is_some();
        if open && may_speak && !self.fin {
            if self.sent == self.script.bytes {
                able.push(3);
            } else if self.sent - self.read < SOCKET_BUFFER || self.closed {
                able.push(2);
            }
        }
        if open && self.fin && self.script.ends == Ending::OrderlyThenReset && !self.closed {
            able.push(4);
        }
        if able.is_empty() {
            return false;
        }
        match able[rng.random_range(0..able.len())] {
            0 => {
                self.taken += rng.random_range(1..=self.written - self.taken);
                if self.script.deaf_after.is_some_and(|most| self.taken > most) {
                    self.reset_by_peer();
                } else if self.wants_room && self.room() >= SOCKET_BUFFER / 3 {
                    (self.wants_room, self.edge) = (false, true);
                }
            }
            1 => self.told = Some(Last::End),
            // Nobody is there any more.
            2 if self.closed => self.told = Some(Last::Reset),
            2 => {
                let room = SOCKET_BUFFER - (self.sent - self.read);
                let most = room.min(self.script.bytes - self.sent);
                let most = if rng.random_bool(0.3) {
                    most.min(9)
                } else {
                    most
                };
                self.sent += rng.random_range(1..=most);
                self.edge = true;
            }
            3 if self.script.ends == Ending::Reset => self.reset_by_peer(),
            3 => (self.fin, self.edge) = (true, true),
            _reset_after_the_end => self.reset_by_peer(),
        }
        true
    }

    fn answer(&mut self) -> bool {
        match self.fortune {
            Fortune::Connects => (self.connected, self.edge) = (true, true),
            Fortune::Refused if self.error.is_none() && !self.edge => {
                (self.error, self.edge) = (Some(libc::ECONNREFUSED), true);
            }
            Fortune::Refused
            | Fortune::Silent
            | Fortune::Unroutable
            | Fortune::NoDescriptor
            | Fortune::NotWatched => return false,
        }
        true
    }

    fn close(&mut self) {
        self.closed = true;
        if !self.connected || self.was_reset || !self.established && self.lingers {
            return;
        }
        self.established = true;
        if self.lingers || self.sent > self.read {
            self.told.get_or_insert(Last::Reset);
        } else {
            self.ended = true;
        }
    }
}

#[derive(Debug)]
struct World {
    rng: StdRng,
    now: Instant,
    lines: Vec<Line>,
    fortunes: VecDeque<Fortune>,
    backend: Script,
    dialled: Vec<(SocketAddr, Fortune)>,
    timers: Vec<(Instant, Token)>,
    no_pipe: f64,
    no_fill: bool,
    no_drain: bool,
    flaw: Option<Flaw>,
}

/// What is wrong with the kernel on purpose, to show that the simulation would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    LosesEdges,
    NeverAcknowledges,
    EndsInsteadOfResets,
}

/// A socket of the simulated kernel, and the kernel itself.
#[derive(Clone, Debug)]
struct Sim(Rc<RefCell<World>>);

#[derive(Debug)]
struct SimSocket {
    world: Sim,
    line: usize,
}

// What a side sends: repeats at no multiple of a buffer's size, and the two sides differ.
fn speech(side: Side) -> &'static [u8] {
    static SPEECHES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
        [3, 7].map(|salt| {
            let bytes = (0..MOST).map(|at| (at * 31 + at / 251 * salt + salt) % 256);
            bytes.map(|byte| u8::try_from(byte).unwrap()).collect()
        })
    });
    &SPEECHES[usize::from(side == Side::Backend)]
}

impl SimSocket {
    fn line<T>(&self, act: impl FnOnce(&mut Line) -> T) -> T {
        act(&mut self.world.0.borrow_mut().lines[self.line])
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.world.0.borrow().flaw == Some(flaw)
    }

    fn take(&self, most: usize) -> io::Result<Vec<u8>> {
        self.line(|line| {
            let n = most.min(line.sent - line.read);
            if n == 0 {
                return match line.error.take() {
                    Some(error) => Err(io::Error::from_raw_os_error(error)),
                    None if line.fin || line.was_reset => Ok(Vec::new()),
                    None => Err(io::ErrorKind::WouldBlock.into()),
                };
            }
            line.read += n;
            Ok(speech(line.side)[line.read - n..line.read].to_vec())
        })
    }

    fn put(&self, bytes: &[u8]) -> io::Result<usize> {
        self.line(|line| {
            assert!(!line.ended, "nothing follows the end");
            if line.was_reset {
                let error = line.error.take().unwrap_or(libc::EPIPE);
                return Err(io::Error::from_raw_os_error(error));
            }
            let n = bytes.len().min(line.room());
            line.wants_room |= n < bytes.len();
            if n == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let said = &speech(line.side.other())[line.written..];
            assert!(
                bytes[..n] == said[..n],
                "in order, nothing lost, nothing twice"
            );
            line.written += n;
            line.established = true;
            Ok(n)
        })
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        self.line(Line::close);
    }
}

impl Socket for SimSocket {
    type Pipe = RefCell<VecDeque<u8>>;

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(addr("10.96.0.1:80"))
    }

    fn original_destination(&self, _peer: &SocketAddr) -> io::Result<SocketAddr> {
        self.local_addr()
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.take(into.len())?;
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!bytes.is_empty());
        self.put(bytes)
    }

    fn end(&self) -> io::Result<()> {
        self.line(|line| {
            if line.was_reset {
                return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
            }
            assert!(!line.ended, "told once");
            (line.ended, line.established) = (true, true);
            Ok(())
        })
    }

    fn acknowledge(&self) {
        if !self.has(Flaw::NeverAcknowledges) {
            self.line(|line| line.established = true);
        }
    }

    fn reset_on_close(&self) {
        if !self.has(Flaw::EndsInsteadOfResets) {
            self.line(|line| line.lingers = true);
        }
    }

    fn error(&self) -> Option<io::Error> {
        self.line(|line| line.error.take().map(io::Error::from_raw_os_error))
    }

    fn settle(&self, _liveness: Liveness) {}

    fn limit_rate(&self, _bytes_per_second: u64) {}

    fn take_pipe(&self) -> Option<Self::Pipe> {
        let world = &mut *self.world.0.borrow_mut();
        let refused = world.rng.random_bool(world.no_pipe);
        (!refused).then(RefCell::default)
    }

    fn return_pipe(&self, pipe: Self::Pipe) {
        assert!(pipe.borrow().is_empty(), "only empty pipes go back");
    }

    fn fill(&self, pipe: &Self::Pipe) -> io::Result<usize> {
        assert!(pipe.borrow().is_empty(), "only empty pipes are filled");
        let most = {
            let world = &mut *self.world.0.borrow_mut();
            if world.no_fill {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            // Small segments fill a pipe early.
            world.rng.random_range(1..=PIPE)
        };
        let bytes = self.take(most)?;
        pipe.borrow_mut().extend(&bytes);
        Ok(bytes.len())
    }

    fn drain(&self, pipe: &Self::Pipe, len: usize) -> io::Result<usize> {
        let mut inside = pipe.borrow_mut();
        assert_eq!(inside.len(), len);
        if self.world.0.borrow().no_drain {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let n = self.put(inside.make_contiguous())?;
        inside.drain(..n);
        Ok(n)
    }

    fn read_back(&self, pipe: &Self::Pipe, len: usize) -> io::Result<Vec<u8>> {
        let bytes: Vec<u8> = pipe.borrow_mut().drain(..).collect();
        assert_eq!(bytes.len(), len);
        Ok(bytes)
    }
}

impl Kernel for Sim {
    type Socket = SimSocket;

    fn now(&self) -> Instant {
        self.0.borrow().now
    }

    fn call_at(&mut self, at: Instant, token: Token) {
        self.0.borrow_mut().timers.push((at, token));
    }

    fn watch(&mut self, socket: &SimSocket, token: Token) -> io::Result<()> {
        socket.line(|line| {
            if line.fortune == Fortune::NotWatched {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            // What it is ready for already is reported too.
            (line.token, line.edge) = (Some(token), true);
            Ok(())
        })
    }

    fn dial(&mut self, addr: SocketAddr) -> io::Result<SimSocket> {
        let world = &mut *self.0.borrow_mut();
        let fortune = world.fortunes.pop_front().unwrap_or(Fortune::Connects);
        world.dialled.push((addr, fortune));
        let refusal = match fortune {
            Fortune::Unroutable => libc::ENETUNREACH,
            Fortune::NoDescriptor => libc::EMFILE,
            Fortune::Connects | Fortune::Refused | Fortune::Silent | Fortune::NotWatched => {
                world
                    .lines
                    .push(Line::new(Side::Backend, world.backend.clone(), fortune));
                return Ok(SimSocket {
                    world: self.clone(),
                    line: world.lines.len() - 1,
                });
            }
        };
        Err(io::Error::from_raw_os_error(refusal))
    }
}

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
    };
    let id = ListenerId {
        route: port_key("web"),
        entry: Entry::At(tcp("10.96.0.1:80"), FrontendKind::ClusterIp),
    };
    (Arc::new(Listener::new(id, Arc::new(shared))), backends)
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
