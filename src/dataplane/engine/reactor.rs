//! What the flows of a data thread ask of it: to watch a socket, to be called at a time, to have another turn.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::net::poller::{Events, Interest, Poller, WakeUp};

use super::timers::Timers;
use super::token::Token;

/// A data thread's sources of events.
#[derive(Debug)]
pub(in super::super) struct Reactor {
    poller: Poller,
    timers: Timers,
    again: Vec<Token>,
    now: Instant,
    round: u64,
}

impl Reactor {
    /// With nothing to watch.
    ///
    /// # Errors
    /// Those of `epoll_create1(2)`.
    pub(in super::super) fn new() -> io::Result<Self> {
        Ok(Self {
            poller: Poller::new()?,
            timers: Timers::default(),
            again: Vec::new(),
            now: Instant::now(),
            round: 0,
        })
    }

    /// The time of the present round: read once, because flows ask often.
    pub(in super::super) fn now(&self) -> Instant {
        self.now
    }

    /// The number of the present round.
    pub(in super::super) fn round(&self) -> u64 {
        self.round
    }

    /// Tells `token` what becomes possible on `socket`, until that is closed.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(in super::super) fn watch(
        &self,
        socket: impl AsFd,
        interest: Interest,
        token: Token,
    ) -> io::Result<()> {
        self.poller.add(socket, interest, token.to_bits())
    }

    /// Watches a socket for something else.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(in super::super) fn watch_for(
        &self,
        socket: impl AsFd,
        interest: Interest,
        token: Token,
    ) -> io::Result<()> {
        self.poller.change(socket, interest, token.to_bits())
    }

    /// Tells `token` when it is woken by another thread.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub(in super::super) fn watch_wake_up(&self, wake_up: &WakeUp, token: Token) -> io::Result<()> {
        wake_up.watch(&self.poller, token.to_bits())
    }

    /// Calls `token` at that time.
    pub(in super::super) fn call_at(&mut self, at: Instant, token: Token) {
        self.timers.call_at(at, token);
    }

    /// Gives `token` another turn when all others had theirs.
    pub(in super::super) fn turn_again(&mut self, token: Token) {
        self.again.push(token);
    }

    /// Waits for the next round.
    pub(super) fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = if self.again.is_empty() {
            let until = self.timers.next();
            until.map(|at| at.saturating_duration_since(Instant::now()))
        } else {
            Some(Duration::ZERO)
        };
        let outcome = self.poller.wait(events, timeout);
        self.now = Instant::now();
        self.round += 1;
        outcome
    }

    /// Moves who wants another turn into `turns`, which is empty.
    pub(super) fn take_turns(&mut self, turns: &mut Vec<Token>) {
        std::mem::swap(&mut self.again, turns);
    }

    /// Who is to be called by now.
    pub(super) fn due(&mut self) -> Option<Token> {
        self.timers.due(self.now)
    }
}
