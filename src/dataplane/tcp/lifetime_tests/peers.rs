//! The two ends of a simulated connection: what each means to do, what it has done, and what epoll would say of it.

use nix::libc;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::net::poller::Readiness;

use super::super::super::engine::Token;
use super::super::exchange::Side;

/// What a socket holds for us at most, and what it takes from us before its peer reads.
pub(super) const SOCKET_BUFFER: usize = 200 * 1024;

pub(super) const PIPE: usize = 256 * 1024;

/// What a peer sends at most: more than a connection may move in one turn.
pub(super) const MOST: usize = 1_500_000;

/// What a peer means to do.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) bytes: usize,
    /// It says nothing before it has got as much, or the end.
    pub(super) waits_for: usize,
    pub(super) ends: Ending,
    /// After how many received bytes it refuses more, with a reset.
    pub(super) deaf_after: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Orderly,
    Reset,
    /// It closes with something unread: what comes then is answered by a reset.
    OrderlyThenReset,
}

/// What becomes of an attempt to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fortune {
    Connects,
    Refused,
    Silent,
    Unroutable,
    NoDescriptor,
    NotWatched,
}

/// What a peer was told at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    End,
    Reset,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) side: Side,
    pub(super) script: Script,
    pub(super) fortune: Fortune,
    pub(super) connected: bool,
    // The peer has been told that it is: before, it neither reads nor sends.
    pub(super) established: bool,
    // By the peer: sent, and of that read by us; how it ended.
    pub(super) sent: usize,
    pub(super) read: usize,
    pub(super) fin: bool,
    pub(super) was_reset: bool,
    pub(super) error: Option<i32>,
    // By us: written, and of that taken by the peer; how we ended.
    pub(super) written: usize,
    pub(super) taken: usize,
    pub(super) ended: bool,
    pub(super) lingers: bool,
    pub(super) closed: bool,
    pub(super) told: Option<Last>,
    // As epoll sees it.
    pub(super) token: Option<Token>,
    pub(super) edge: bool,
    pub(super) wants_room: bool,
}

impl Line {
    pub(super) fn new(side: Side, script: Script, fortune: Fortune) -> Self {
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

    pub(super) fn room(&self) -> usize {
        SOCKET_BUFFER - (self.written - self.taken)
    }

    // What epoll would report now.
    pub(super) fn readiness(&self) -> Readiness {
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

    pub(super) fn reset_by_peer(&mut self) {
        self.was_reset = true;
        self.error = Some(libc::ECONNRESET);
        self.edge = true;
    }

    // Whether the peer can do something, and then does one thing.
    pub(super) fn step(&mut self, rng: &mut StdRng) -> bool {
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

    pub(super) fn answer(&mut self) -> bool {
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

    pub(super) fn close(&mut self) {
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
