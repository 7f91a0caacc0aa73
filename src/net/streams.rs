//! TCP connections at the price of one system call each: accepted nonblocking with the peer's address, dialled without
//! waiting. Neither std nor nix does this in one call.
//!
//! Reading, writing and ending a stream is in `sockets` and std; when to do what is the caller's.
#![allow(
    unsafe_code,
    reason = "accept4 with an address and flags; SO_MAX_PACING_RATE"
)]

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::message_addresses::Name;

/// Lets the kernel send no more than that in a second, from now on. Bytes that it has taken already go out as they may.
///
/// # Errors
/// Those of `setsockopt(2)`. Source: socket(7), `SO_MAX_PACING_RATE`; TCP keeps to it by itself since Linux 4.13.
pub fn limit_rate(stream: &TcpStream, bytes_per_second: u64) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the value is `len` readable bytes that outlive the call.
    let outcome = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const bytes_per_second).cast(),
            len,
        )
    };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes the next connection that waits, nonblocking, and says who it is.
///
/// # Errors
/// Those of `accept4(2)`: `WouldBlock` if none waits, a shortage, or the error of a connection that is gone by now.
pub fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let mut peer = Name::none();
    peer.make_room();
    let (addr, mut len) = peer.as_raw();
    // SAFETY: `addr` points to `len` writable bytes that outlive the call.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            addr.cast(),
            &raw mut len,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    peer.filled(len);
    let peer = peer.get().ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((stream, peer))
}

/// Begins to connect to `addr`. The stream becomes writable when it is connected, and broken when it cannot be.
///
/// The packet that completes the handshake waits up to 200 ms for something to carry: the first bytes, or the end. Who has
/// nothing to say yet calls [`acknowledge`], or a server that speaks first would wait as long.
///
/// Source: `tcp_rcv_synsent_state_process` ("Save one ACK"); tcp(7) `TCP_QUICKACK`.
///
/// # Errors
/// Those of `socket(2)` and `connect(2)`: shortages, no route, no local port.
pub fn dial(addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(addr),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    // Without it the acknowledgement goes at once, as it does anyway with `acknowledge`.
    let _one_packet_more = socket.set_tcp_quickack(false);
    match socket.connect(&addr.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

/// Completes the handshake of a dialled connection that nothing has been sent on.
pub fn acknowledge(stream: &TcpStream) {
    // Fails only for what is no TCP socket; the kernel's timer does the same a little later.
    let _soon_enough = SockRef::from(stream).set_tcp_quickack(true);
}

/// Reads what is there; 0 = the peer has ended.
///
/// # Errors
/// Those of `recv(2)`: `WouldBlock` if nothing is there, the connection's own error once if it broke.
pub fn receive(mut stream: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    stream.read(into)
}

/// The error that a broken connection has, if nobody has been told yet.
pub fn error_of(stream: &TcpStream) -> Option<io::Error> {
    stream.take_error().ok().flatten()
}

/// How connections notice a peer that is gone without a word. `None` = as the kernel does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Liveness {
    /// How long a connection is idle before the peer is probed, and between probes (`TCP_KEEPIDLE`, `TCP_KEEPINTVL`).
    pub keepalive: Option<Duration>,
    /// How long sent bytes may stay unacknowledged (`TCP_USER_TIMEOUT`).
    pub user_timeout: Option<Duration>,
}

impl Liveness {
    /// Sets it on a connection, or on a listener whose connections inherit it. Probing itself is always on.
    pub fn apply(self, socket: &impl std::os::fd::AsFd) {
        let socket = SockRef::from(socket);
        // A refused option leaves the kernel's own timing, which is no reason to lose the connection.
        let _probing = match self.keepalive {
            None => socket.set_keepalive(true),
            Some(idle) => {
                let timing = TcpKeepalive::new().with_time(idle).with_interval(idle);
                socket.set_tcp_keepalive(&timing)
            }
        };
        if self.user_timeout.is_some() {
            let _bounded = socket.set_tcp_user_timeout(self.user_timeout);
        }
    }
}

/// Sends small pieces at once (`TCP_NODELAY`). The first piece of a connection goes at once in any case.
pub fn send_at_once(stream: &TcpStream) {
    // Fails only for what is no TCP socket.
    let _only_slower = stream.set_nodelay(true);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn accepted_and_dialled_streams_do_not_block() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(any) else {
                continue; // no IPv6 here
            };
            let dialled = dial(listener.local_addr().unwrap()).unwrap();
            let (accepted, peer) = accept(&listener).unwrap();
            assert_eq!(peer, dialled.local_addr().unwrap());
            for stream in [&accepted, &dialled] {
                let dry = receive(stream, &mut [0; 1]).unwrap_err();
                assert_eq!(dry.kind(), io::ErrorKind::WouldBlock);
            }
            (&dialled).write_all(b"x").unwrap();
            assert_eq!(receive(&accepted, &mut [0; 8]).unwrap(), 1);
            drop(dialled);
            assert_eq!(receive(&accepted, &mut [0; 8]).unwrap(), 0);
            assert!(error_of(&accepted).is_none());
        }
    }

    #[test]
    fn nobody_waiting_is_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let error = accept(&listener).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn liveness_is_what_was_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = dial(listener.local_addr().unwrap()).unwrap();
        let socket = SockRef::from(&stream);
        Liveness::default().apply(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        let asked = Liveness {
            keepalive: Some(Duration::from_secs(30)),
            user_timeout: Some(Duration::from_secs(90)),
        };
        asked.apply(&stream);
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(30)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(30)
        );
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(90))
        );
    }
}
