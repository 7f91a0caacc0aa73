//! An epoll instance, and the wake-up by which other threads interrupt its wait.
//!
//! Registers, changes and reports; what a token stands for is the caller's. A socket leaves the set when it is closed,
//! which costs no call.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// How many events one [`Poller::wait`] reports at most: few enough that the first does not wait long for the last.
const EVENTS: usize = 256;

/// What one socket is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, reported as long as there is.
    Level,
    /// Something to read, reported when it arrives.
    Read,
    /// Both directions and their ends, each reported when it changes.
    Stream,
    /// Nothing for the time being.
    Nothing,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Level => EpollFlags::EPOLLIN,
            Self::Read => EpollFlags::EPOLLIN | EpollFlags::EPOLLET,
            Self::Stream => {
                EpollFlags::EPOLLIN
                    | EpollFlags::EPOLLOUT
                    | EpollFlags::EPOLLRDHUP
                    | EpollFlags::EPOLLET
            }
            Self::Nothing => EpollFlags::empty(),
        }
    }
}

/// What has become possible on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness(EpollFlags);

impl Readiness {
    /// What `epoll_wait(2)` would have reported with these bits; unknown ones mean nothing.
    #[cfg(test)]
    pub(crate) fn from_bits(bits: i32) -> Self {
        Self(EpollFlags::from_bits_truncate(bits))
    }

    /// A read finds bytes, an end or an error.
    pub fn readable(self) -> bool {
        self.0
            .intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
    }

    /// A write is taken, or finds an error.
    pub fn writable(self) -> bool {
        self.0
            .intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
    }

    /// The peer sends no more: after what is there, a read finds the end.
    pub fn peer_ended(self) -> bool {
        self.0
            .intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP)
    }

    /// The socket has an error to report: a reset, a refusal.
    pub fn broken(self) -> bool {
        self.0.contains(EpollFlags::EPOLLERR)
    }
}

/// A set of watched sockets.
#[derive(Debug)]
pub struct Poller(Epoll);

/// Room for what [`Poller::wait`] reports.
#[derive(Debug)]
pub struct Events {
    reported: Box<[EpollEvent; EVENTS]>,
    n: usize,
}

impl Events {
    /// Nothing reported yet.
    pub fn new() -> Self {
        Self {
            reported: Box::new([EpollEvent::empty(); EVENTS]),
            n: 0,
        }
    }

    /// What was reported last: tokens, and what each is ready for.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Readiness)> {
        self.reported[..self.n]
            .iter()
            .map(|event| (event.data(), Readiness(event.events())))
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Poller {
    /// An empty set. Costs one descriptor.
    ///
    /// # Errors
    /// Those of `epoll_create1(2)`.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Adds a socket; `token` comes back with what it is ready for. What it is ready for already is reported too.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn add(&self, socket: impl AsFd, interest: Interest, token: u64) -> io::Result<()> {
        Ok(self
            .0
            .add(socket, EpollEvent::new(interest.flags(), token))?)
    }

    /// Changes what a socket is watched for.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn change(&self, socket: impl AsFd, interest: Interest, token: u64) -> io::Result<()> {
        let mut event = EpollEvent::new(interest.flags(), token);
        Ok(self.0.modify(socket, &mut event)?)
    }

    /// Waits until something is ready, at most for `timeout` (to the next millisecond; `None` = for ever), and reports
    /// it. Returning with nothing is no error.
    ///
    /// # Errors
    /// Those of `epoll_wait(2)` but `EINTR`.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            Some(timeout) => {
                let ms = timeout.as_micros().div_ceil(1000);
                EpollTimeout::try_from(i32::try_from(ms).unwrap_or(i32::MAX))
                    .unwrap_or(EpollTimeout::ZERO)
            }
        };
        events.n = match self.0.wait(&mut events.reported[..], timeout) {
            Ok(n) => n,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(())
    }
}

/// Interrupts the wait of the poller it is added to, from any thread. Costs one descriptor.
#[derive(Debug)]
pub struct WakeUp(EventFd);

impl WakeUp {
    /// Not called yet.
    ///
    /// # Errors
    /// Those of `eventfd(2)`.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(EventFd::from_flags(flags)?))
    }

    /// Makes it readable. Calls that nobody has noticed yet count as one.
    pub fn call(&self) {
        // Fails only when 2^64 - 2 calls wait already: it is readable then.
        let _readable_already = self.0.write(1);
    }

    /// Watches it. Edge-triggered, so that there is nothing to read back.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn watch(&self, poller: &Poller, token: u64) -> io::Result<()> {
        poller.add(&self.0, Interest::Read, token)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn tokens(poller: &Poller) -> Vec<u64> {
        let mut events = Events::new();
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        events.iter().map(|(token, _)| token).collect()
    }

    #[test]
    fn an_edge_is_reported_once_and_a_level_as_long_as_it_lasts() {
        let poller = Poller::new().unwrap();
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        poller.add(&sockets[0], Interest::Read, 7).unwrap();
        poller.add(&sockets[1], Interest::Level, 8).unwrap();
        assert!(tokens(&poller).is_empty());
        for socket in &sockets {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            sender.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        }
        let mut first = tokens(&poller);
        first.sort_unstable();
        assert_eq!(first, [7, 8]);
        assert_eq!(tokens(&poller), [8]);
        poller.change(&sockets[1], Interest::Nothing, 8).unwrap();
        assert!(tokens(&poller).is_empty());
        poller.change(&sockets[1], Interest::Level, 8).unwrap();
        assert_eq!(tokens(&poller), [8]);
        drop(sockets);
        assert!(tokens(&poller).is_empty(), "closed ones have left");
    }

    #[test]
    fn a_wake_up_reaches_a_waiting_thread_and_counts_once() {
        let poller = Poller::new().unwrap();
        let wake_up = std::sync::Arc::new(WakeUp::new().unwrap());
        wake_up.watch(&poller, 1).unwrap();
        let caller = std::thread::spawn({
            let wake_up = wake_up.clone();
            move || (0..3).for_each(|_| wake_up.call())
        });
        let mut events = Events::new();
        poller.wait(&mut events, None).unwrap();
        assert_eq!(events.iter().next().map(|(token, _)| token), Some(1));
        caller.join().unwrap();
        tokens(&poller);
        assert!(tokens(&poller).is_empty());
        wake_up.call();
        assert_eq!(tokens(&poller), [1]);
    }
}
