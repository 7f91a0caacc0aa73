//! Seeded simulation of whole flows over a kernel that does its worst: short reads and writes, blocks at any moment,
//! refused pipes and splices, FIN and RST at any point. A failure prints its seed.

use std::collections::VecDeque;
use std::io;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::direction::Path;
use super::exchange::{EndOfStream, Ends, Exchange, Outcome, Side};

/// How one side behaves.
#[derive(Clone, Debug)]
struct Script {
    /// What it sends.
    bytes: usize,
    /// How its sending ends: FIN, or RST.
    ends_orderly: bool,
    /// After how many received bytes it refuses to take more.
    deaf_after: Option<usize>,
}

/// How the kernel behaves.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    /// Of 100 calls, how many block.
    blocks: u32,
    /// Of 100 calls, how many move less than they could.
    shorts: u32,
    /// The largest chunk that one call moves.
    chunk: usize,
    /// Of 100 asked for, how many pipes are refused.
    no_pipe: u32,
    /// Splicing from a socket is refused.
    no_fill: bool,
    /// Splicing to a socket is refused.
    no_drain: bool,
}

struct Sim {
    rng: StdRng,
    kernel: Kernel,
    client: End,
    backend: End,
    pipes_out: usize,
    // The last call that would have blocked, since the pump began.
    blocked: bool,
    splices: usize,
}

struct End {
    script: Script,
    sent: usize,
    got: Vec<u8>,
    told_end: bool,
    // An error is reported once; after it, reads see the end.
    broken: bool,
}

struct Pipe(std::cell::RefCell<VecDeque<u8>>);

const PIPE: usize = 256 * 1024;

fn byte(side: Side, at: usize) -> u8 {
    let salt = if side == Side::Client { 3 } else { 7 };
    u8::try_from((at * 31 + at / 251 * salt + salt) % 256).unwrap()
}

impl Sim {
    fn new(seed: u64, kernel: Kernel, client: Script, backend: Script) -> Self {
        let end = |script| End {
            script,
            sent: 0,
            got: Vec::new(),
            told_end: false,
            broken: false,
        };
        Self {
            rng: StdRng::seed_from_u64(seed),
            kernel,
            client: end(client),
            backend: end(backend),
            pipes_out: 0,
            blocked: false,
            splices: 0,
        }
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Client => &mut self.client,
            Side::Backend => &mut self.backend,
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    // How much one call moves: anything, or as much as there is.
    fn portion(&mut self, most: usize) -> io::Result<usize> {
        if self.chance(self.kernel.blocks) {
            self.blocked = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = most.min(self.kernel.chunk);
        Ok(if self.chance(self.kernel.shorts) {
            self.rng.random_range(1..=most)
        } else {
            most
        })
    }
}

impl Ends for Sim {
    type Pipe = Pipe;
    type Path<'a> = OneWay<'a>;

    fn path(&mut self, source: Side, end: EndOfStream) -> OneWay<'_> {
        OneWay {
            sim: self,
            source,
            end,
        }
    }
}

struct OneWay<'a> {
    sim: &'a mut Sim,
    source: Side,
    end: EndOfStream,
}

impl OneWay<'_> {
    fn take(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let source = self.source;
        let end = self.sim.end(source);
        let left = end.script.bytes - end.sent;
        let in_flight = end.sent;
        let delivered = self.sim.end(source.other()).got.len();
        assert_eq!(
            in_flight, delivered,
            "reads only when all has been delivered"
        );
        let end = self.sim.end(source);
        if left == 0 {
            return if end.script.ends_orderly || end.broken {
                Ok(Vec::new())
            } else {
                end.broken = true;
                Err(io::ErrorKind::ConnectionReset.into())
            };
        }
        let n = self.sim.portion(left.min(most))?;
        let end = self.sim.end(source);
        let from = end.sent;
        end.sent += n;
        Ok((from..from + n).map(|at| byte(source, at)).collect())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sink = self.source.other();
        let end = self.sim.end(sink);
        assert!(!end.told_end, "nothing follows the end");
        if end
            .script
            .deaf_after
            .is_some_and(|limit| end.got.len() >= limit)
        {
            end.broken = true;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let n = self.sim.portion(bytes.len())?;
        self.sim.end(sink).got.extend(&bytes[..n]);
        Ok(n)
    }
}

impl Path for OneWay<'_> {
    type Pipe = Pipe;

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.take(into.len())?;
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!bytes.is_empty());
        self.put(bytes)
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.end == EndOfStream::Announce {
            let end = self.sim.end(self.source.other());
            assert!(!end.told_end, "told once");
            end.told_end = true;
        }
        Ok(())
    }

    fn take_pipe(&mut self) -> Option<Pipe> {
        if self.sim.chance(self.sim.kernel.no_pipe) {
            return None;
        }
        self.sim.pipes_out += 1;
        Some(Pipe(VecDeque::new().into()))
    }

    fn return_pipe(&mut self, pipe: Pipe) {
        assert!(pipe.0.borrow().is_empty(), "only empty pipes go back");
        self.sim.pipes_out -= 1;
    }

    fn fill(&mut self, pipe: &Pipe) -> io::Result<usize> {
        assert!(pipe.0.borrow().is_empty(), "only empty pipes are filled");
        if self.sim.kernel.no_fill {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = self.take(PIPE)?;
        self.sim.splices += 1;
        pipe.0.borrow_mut().extend(&bytes);
        Ok(bytes.len())
    }

    fn drain(&mut self, pipe: &Pipe, len: usize) -> io::Result<usize> {
        let mut inside = pipe.0.borrow_mut();
        assert_eq!(inside.len(), len);
        if self.sim.kernel.no_drain {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let n = self.put(inside.make_contiguous())?;
        inside.drain(..n);
        Ok(n)
    }

    fn read_back(&mut self, pipe: &Pipe, len: usize) -> io::Result<Vec<u8>> {
        let bytes: Vec<u8> = pipe.0.borrow_mut().drain(..).collect();
        assert_eq!(bytes.len(), len);
        self.sim.pipes_out -= 1;
        Ok(bytes)
    }
}

// Runs a flow to its end and checks what must hold at every step.
fn run(sim: &mut Sim) -> Outcome {
    let mut exchange = Exchange::new();
    let mut buffer = vec![0; 64 * 1024];
    let total = sim.client.script.bytes + sim.backend.script.bytes;
    for _ in 0..200 + total {
        let before = exchange.moved();
        sim.blocked = false;
        let outcome = exchange.pump(sim, &mut buffer);
        let moved = exchange.moved();
        for (source, sink, moved, before) in [
            (Side::Client, &sim.backend, moved.0, before.0),
            (Side::Backend, &sim.client, moved.1, before.1),
        ] {
            assert_eq!(sink.got.len() as u64, moved);
            let got = sink.got.iter().enumerate();
            assert!(
                got.skip(usize::try_from(before).unwrap())
                    .all(|(at, got)| *got == byte(source, at))
            );
            assert!(
                moved - before <= (512 + 256) * 1024,
                "others get their turn"
            );
        }
        assert!(sim.pipes_out <= 2);
        match outcome {
            Outcome::Blocked => assert!(sim.blocked, "blocked, but nothing will wake it"),
            Outcome::Yield => {}
            Outcome::Finished | Outcome::Reset(_) => return outcome,
        }
    }
    panic!("never came to an end");
}

fn script() -> impl Strategy<Value = Script> {
    let bytes = prop_oneof![Just(0), 1..2000usize, 60_000..900_000usize];
    (
        bytes,
        prop::bool::weighted(0.8),
        prop::option::weighted(0.2, 0..300_000usize),
    )
        .prop_map(|(bytes, ends_orderly, deaf_after)| Script {
            bytes,
            ends_orderly,
            deaf_after,
        })
}

fn kernel() -> impl Strategy<Value = Kernel> {
    let chunk = prop_oneof![300..5000usize, Just(1 << 20)];
    let rarely = || prop::bool::weighted(0.1);
    (
        0..80u32,
        0..=100u32,
        chunk,
        prop_oneof![Just(0), 0..=100u32],
        rarely(),
        rarely(),
    )
        .prop_map(
            |(blocks, shorts, chunk, no_pipe, no_fill, no_drain)| Kernel {
                blocks,
                shorts,
                chunk,
                no_pipe,
                no_fill,
                no_drain,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn flows_deliver_all_and_end_as_they_were_ended(
        seed in any::<u64>(), kernel in kernel(), client in script(), backend in script()
    ) {
        let mut sim = Sim::new(seed, kernel, client, backend);
        let outcome = run(&mut sim);
        let broke = |end: &End| !end.script.ends_orderly
            || end.script.deaf_after.is_some_and(|limit| end.got.len() >= limit);
        match outcome {
            Outcome::Finished => {
                prop_assert_eq!(sim.client.got.len(), sim.backend.script.bytes);
                prop_assert_eq!(sim.backend.got.len(), sim.client.script.bytes);
                prop_assert!(sim.client.script.ends_orderly && sim.backend.script.ends_orderly);
                prop_assert_eq!(sim.pipes_out, 0);
            }
            Outcome::Reset(side) => prop_assert!(broke(sim.end(side)), "{side:?} did not break"),
            Outcome::Blocked | Outcome::Yield => prop_assert!(false, "{outcome:?} is no end"),
        }
        // A side is told of an end only if the other side really ended, and after all it sent.
        for (side, other) in [(&sim.client, &sim.backend), (&sim.backend, &sim.client)] {
            if side.told_end {
                prop_assert!(other.script.ends_orderly);
                prop_assert_eq!(side.got.len(), other.script.bytes);
            }
        }
    }
}

const WILLING: Kernel = Kernel {
    blocks: 0,
    shorts: 0,
    chunk: 1 << 20,
    no_pipe: 0,
    no_fill: false,
    no_drain: false,
};

fn orderly(bytes: usize) -> Script {
    Script {
        bytes,
        ends_orderly: true,
        deaf_after: None,
    }
}

#[test]
fn small_flows_are_copied_and_bulk_is_spliced() {
    let mut small = Sim::new(1, WILLING, orderly(60_000), orderly(0));
    assert_eq!(run(&mut small), Outcome::Finished);
    assert_eq!(small.splices, 0);
    let mut bulk = Sim::new(1, WILLING, orderly(16 << 20), orderly(0));
    assert_eq!(run(&mut bulk), Outcome::Finished);
    assert!(bulk.splices > 16, "{}", bulk.splices);
}

#[test]
fn what_a_broken_side_had_sent_still_arrives_before_the_reset() {
    let client = Script {
        deaf_after: Some(0),
        // More than one pump moves: the break is noticed before the end.
        ..orderly(2 << 20)
    };
    let mut sim = Sim::new(1, WILLING, client, orderly(10));
    assert_eq!(run(&mut sim), Outcome::Reset(Side::Client));
    assert_eq!(sim.backend.got.len(), 2 << 20);
    assert!(!sim.backend.told_end, "a break is not an end");
}
