//! The simulated kernel: sockets, pipes and dials that are refused, and edges that are reported once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Instant;

use nix::libc;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::net::streams::Liveness;
use crate::testkit::addr;

use super::super::super::engine::Token;
use super::super::exchange::Side;
use super::super::kernel::{Kernel, Socket};
use super::peers::{Fortune, Line, MOST, PIPE, Script};

#[derive(Debug)]
pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) now: Instant,
    pub(super) lines: Vec<Line>,
    pub(super) fortunes: VecDeque<Fortune>,
    pub(super) backend: Script,
    pub(super) dialled: Vec<(SocketAddr, Fortune)>,
    pub(super) timers: Vec<(Instant, Token)>,
    pub(super) no_pipe: f64,
    pub(super) no_fill: bool,
    pub(super) no_drain: bool,
    pub(super) flaw: Option<Flaw>,
}

/// What is wrong with the kernel on purpose, to show that the simulation would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    LosesEdges,
    NeverAcknowledges,
    EndsInsteadOfResets,
}

/// A socket of the simulated kernel, and the kernel itself.
#[derive(Clone, Debug)]
pub(super) struct Sim(pub(super) Rc<RefCell<World>>);

#[derive(Debug)]
pub(super) struct SimSocket {
    pub(super) world: Sim,
    pub(super) line: usize,
}

// What a side sends: repeats at no multiple of a buffer's size, and the two sides differ.
pub(super) fn speech(side: Side) -> &'static [u8] {
    static SPEECHES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
        [3, 7].map(|salt| {
            let bytes = (0..MOST).map(|at| (at * 31 + at / 251 * salt + salt) % 256);
            bytes.map(|byte| u8::try_from(byte).unwrap()).collect()
        })
    });
    &SPEECHES[usize::from(side == Side::Backend)]
}

impl SimSocket {
    pub(super) fn line<T>(&self, act: impl FnOnce(&mut Line) -> T) -> T {
        act(&mut self.world.0.borrow_mut().lines[self.line])
    }

    pub(super) fn has(&self, flaw: Flaw) -> bool {
        self.world.0.borrow().flaw == Some(flaw)
    }

    pub(super) fn take(&self, most: usize) -> io::Result<Vec<u8>> {
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

    pub(super) fn put(&self, bytes: &[u8]) -> io::Result<usize> {
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

    fn dial(&mut self, addr: SocketAddr, _source: Option<IpAddr>) -> io::Result<SimSocket> {
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
