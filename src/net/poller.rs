//! An epoll instance of our own, for sets of sockets that one task serves: a single registration with the runtime
//! stands for all of them, and one call returns every ready one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// How many ready sockets one [`Poller::ready`] reports at most.
pub const EVENTS: usize = 64;

/// Edge-triggered interest in readable sockets. A socket leaves the set when it is closed.
#[derive(Debug)]
pub struct Poller(Epoll);

impl Poller {
    /// An empty set. Costs one descriptor.
    ///
    /// # Errors
    /// Those of `epoll_create1(2)`.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Adds a socket; `token` comes back when it has become readable or broken.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.0.add(socket, EpollEvent::new(interest, token))?)
    }

    /// Writes the tokens of sockets that became readable since they were last reported to `tokens` and says how many.
    /// Never waits. Exactly [`EVENTS`] may mean that there are more.
    ///
    /// # Errors
    /// Those of `epoll_wait(2)`.
    pub fn ready(&self, tokens: &mut [u64; EVENTS]) -> io::Result<usize> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let n = self.0.wait(&mut events, EpollTimeout::ZERO)?;
        for (token, event) in tokens.iter_mut().zip(&events[..n]) {
            *token = event.data();
        }
        Ok(n)
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn each_arrival_is_reported_once() {
        let poller = Poller::new().unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        poller.add(&receiver, 7).unwrap();
        let mut tokens = [0; EVENTS];
        assert_eq!(poller.ready(&mut tokens).unwrap(), 0);
        sender
            .send_to(b"x", receiver.local_addr().unwrap())
            .unwrap();
        assert_eq!(poller.ready(&mut tokens).unwrap(), 1);
        assert_eq!(tokens[0], 7);
        assert_eq!(
            poller.ready(&mut tokens).unwrap(),
            0,
            "an edge, not a level"
        );
        drop(receiver);
        assert_eq!(poller.ready(&mut tokens).unwrap(), 0);
    }
}
