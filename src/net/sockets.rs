//! Sockets as the data path needs them: listeners that can share their port, connected backend sockets, and the few
//! socket options std does not set.
//!
//! Sharing a port: the first socket is bound exclusively, so that a foreign process there is noticed even if it allows
//! sharing, and only then opened for sharing with our own further sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::net::TcpSocket;

use super::source_filter::SourceFilter;

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn` (4096).
pub const BACKLOG: i32 = 4096;

/// 4 MiB of receive buffer per UDP listener: bursts of some 5,000 small datagrams. The default holds about 280.
const UDP_LISTENER_BUFFER: usize = 4 << 20;

/// 1 MiB per UDP flow: at least ten of the largest datagrams.
const UDP_FLOW_BUFFER: usize = 1 << 20;

/// The transport of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Who else may be bound where we bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody yet; our own later sockets may join.
    First,
    /// Our own sockets are there already.
    Join,
}

/// Who is heard at a socket, and what for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms<'a> {
    /// Nothing that it refuses is ever heard (`SO_ATTACH_FILTER`); see [`Bound::unfiltered`].
    pub filter: Option<&'a SourceFilter>,
    /// It may answer from addresses that are not this machine's (`IP_TRANSPARENT`), which needs `CAP_NET_ADMIN`.
    pub transparent: bool,
}

/// A socket bound to its port, not yet receiving anything it would answer.
#[derive(Debug)]
pub struct Bound {
    socket: Socket,
    /// Where it is bound.
    pub addr: SocketAddr,
    /// Why the kernel did not take the filter: it is too long, or none is taken at all. Then everybody is heard.
    pub unfiltered: Option<io::Error>,
}

impl Bound {
    /// Binds `addr`. The address need not be local yet (`IP_FREEBIND`): capture may add it later. IPv6 sockets are
    /// IPv6 only.
    ///
    /// # Errors
    /// Those of `socket(2)` and `bind(2)`: `AddrInUse`, `PermissionDenied` for a port below 1024, shortages.
    pub fn new(transport: Transport, addr: SocketAddr, sharing: Sharing) -> io::Result<Self> {
        Self::under(Terms::default(), transport, addr, sharing)
    }

    /// The same, under terms.
    ///
    /// # Errors
    /// Those of [`Self::new`], and those of the options that the terms ask for.
    pub fn under(
        terms: Terms<'_>,
        transport: Transport,
        addr: SocketAddr,
        sharing: Sharing,
    ) -> io::Result<Self> {
        let bind = |leftovers| bind(transport, addr, sharing, leftovers, terms);
        let (socket, unfiltered) = match (transport, bind(Leftovers::Mind)) {
            (Transport::Tcp, Err(error)) if error.kind() == io::ErrorKind::AddrInUse => {
                bind(Leftovers::Ignore)?
            }
            (Transport::Tcp | Transport::Udp, bound) => bound?,
        };
        socket.set_reuse_port(true)?;
        let addr = inet(&socket.local_addr()?)?;
        Ok(Self {
            socket,
            addr,
            unfiltered,
        })
    }

    /// Starts to listen. Accepted connections inherit `TCP_NODELAY` and keepalive, with the kernel's timing
    /// (`net.ipv4.tcp_keepalive_*`).
    ///
    /// # Errors
    /// Those of `listen(2)`.
    pub fn listen(self) -> io::Result<std::net::TcpListener> {
        // Inherited by connections: they must not keep the port from the process after this one.
        self.socket.set_reuse_address(true)?;
        self.socket.set_tcp_nodelay(true)?;
        self.socket.set_keepalive(true)?;
        self.socket.listen(BACKLOG)?;
        Ok(self.socket.into())
    }

    /// Starts to receive datagrams. Bound to a wildcard address, it also reports which address each one came to; and in
    /// any case how many were lost for want of room.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`; a refused buffer size is none.
    pub fn receive(self) -> io::Result<std::net::UdpSocket> {
        if self.addr.ip().is_unspecified() {
            match self.addr {
                SocketAddr::V4(_) => setsockopt(&self.socket, sockopt::Ipv4PacketInfo, &true)?,
                SocketAddr::V6(_) => setsockopt(&self.socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            }
        }
        // A kernel that does not count loses no more than one that does.
        let _not_counted = setsockopt(&self.socket, sockopt::RxqOvfl, &1);
        enlarge_buffers(&self.socket, UDP_LISTENER_BUFFER);
        Ok(self.socket.into())
    }

    /// Holds the port closed for as long as the result lives. TCP: bound but not listening, to which the kernel
    /// answers RST. UDP: connected to a peer that never speaks, so that everybody else is answered with "port
    /// unreachable".
    ///
    /// # Errors
    /// Those of `connect(2)`.
    pub fn hold(self) -> io::Result<Held> {
        if self.socket.r#type()? == Type::STREAM {
            // While it does not listen, whoever has the option too could.
            self.socket.set_reuse_address(false)?;
        } else {
            let peer = silent_peer(self.addr).into();
            if let Err(error) = self.socket.connect(&peer) {
                // There is no way from an address that is not the machine's yet but for transparent sockets.
                set_transparent(&self.socket, self.addr).map_err(|_not_permitted| error)?;
                self.socket.connect(&peer)?;
            }
        }
        Ok(Held {
            _socket: self.socket,
        })
    }
}

/// Leaves what comes from now on to others who share the socket's port, and what has come in its queue: it is connected to
/// a peer that never speaks, and the kernel passes over connected sockets when it spreads datagrams. It still sends
/// to whom it likes.
///
/// # Errors
/// Those of `connect(2)`.
pub fn leave_port(socket: &std::net::UdpSocket) -> io::Result<()> {
    socket.connect(silent_peer(socket.local_addr()?))
}

// tcpmux's port of the loopback address: nothing has spoken UDP there in decades.
fn silent_peer(of: SocketAddr) -> SocketAddr {
    match of {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::LOCALHOST, 1)),
    }
}

/// Whether connections that an earlier process left behind keep the port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leftovers {
    Mind,
    Ignore,
}

// `SO_REUSEADDR` lets TCP bind beside leftover connections, but also lets strangers who set it listen on a port that we
// only hold; so it is used where it is needed only. For UDP it would let anybody share.
fn bind(
    transport: Transport,
    addr: SocketAddr,
    sharing: Sharing,
    leftovers: Leftovers,
    terms: Terms<'_>,
) -> io::Result<(Socket, Option<io::Error>)> {
    let (kind, protocol) = match transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    match addr {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    if terms.transparent {
        set_transparent(&socket, addr)?;
    }
    socket.set_reuse_address(leftovers == Leftovers::Ignore)?;
    socket.set_reuse_port(sharing == Sharing::Join)?;
    let attached = terms.filter.map_or(Ok(()), |SourceFilter(program)| {
        socket.attach_filter(program)
    });
    socket.bind(&addr.into())?;
    Ok((socket, attached.err()))
}

fn set_transparent(socket: &Socket, addr: SocketAddr) -> io::Result<()> {
    match addr {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// A port that refuses; released on drop.
#[derive(Debug)]
pub struct Held {
    _socket: Socket,
}

/// Listens at every address of both families; IPv4 clients appear with mapped addresses.
///
/// # Errors
/// Those of `socket(2)`, `bind(2)` and `listen(2)`; `EAFNOSUPPORT` on a kernel without IPv6.
pub fn listen_in_both_families(port: u16) -> io::Result<std::net::TcpListener> {
    let addr = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // The default is a sysctl (`net.ipv6.bindv6only`).
    socket.set_only_v6(false)?;
    // Connections that an earlier process left behind do not keep the port.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A TCP socket to dial `addr` with from a task: `TCP_NODELAY`, keepalive with the kernel's timing.
///
/// # Errors
/// Those of `socket(2)`, above all shortages.
pub fn dialling(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    socket.set_keepalive(true)?;
    Ok(socket)
}

/// The same from an own address. A port that is named may have been used by an earlier connection a moment ago.
///
/// # Errors
/// Those of `socket(2)` and `bind(2)`.
pub fn dialling_from(origin: SocketAddr, addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = dialling(addr)?;
    if origin.port() != 0 {
        socket.set_reuseaddr(true)?;
    }
    socket.bind(origin)?;
    Ok(socket)
}

/// Binds a socket to an address that need not be this machine's, at any port: whoever it speaks to sees that one.
///
/// # Errors
/// `PermissionDenied` without `CAP_NET_RAW` or `CAP_NET_ADMIN`; `AddrInUse` if there is no port left.
pub(super) fn appear_as(socket: &Socket, ip: IpAddr) -> io::Result<()> {
    let addr = SocketAddr::new(ip, 0);
    set_transparent(socket, addr)?;
    socket.bind(&addr.into())
}

/// A nonblocking UDP socket connected to `addr`, which sees `source` in place of an address of this machine's.
///
/// # Errors
/// Those of `socket(2)`, `bind(2)` and `connect(2)`.
pub fn connected_udp(addr: SocketAddr, source: Option<IpAddr>) -> io::Result<std::net::UdpSocket> {
    let kind = Type::DGRAM.nonblocking();
    let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::UDP))?;
    if let Some(source) = source {
        appear_as(&socket, source)?;
    }
    socket.connect(&addr.into())?;
    enlarge_buffers(&socket, UDP_FLOW_BUFFER);
    Ok(socket.into())
}

/// Lets the kernel hand over datagrams of one sender and size that came together as one message. Only a
/// [`Batch`](super::batches::Batch) that is told so takes them apart again; a plain `recv` would merge them.
///
/// Source: udp(7) `UDP_GRO`.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.0: they come one by one.
pub fn gather_datagrams(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::UdpGroSegment, &true)?)
}

/// Where a connection was going before NAT led it here.
///
/// Source: Linux `SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST` (netfilter's connection tracking).
///
/// # Errors
/// `ENOENT` if it has not been redirected, `ENOPROTOOPT` without connection tracking.
pub fn original_destination(stream: &impl AsFd, family: &SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let addr = match family {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    inet(&addr)
}

/// Makes the coming close a reset: unsent data is thrown away and the peer gets RST.
pub fn reset_on_close(stream: &impl AsFd) {
    // Fails only for a socket that is no socket, or closed by the peer: then there is nobody to tell.
    let _nobody_to_tell = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Tells the peer that nothing more comes (FIN); reading goes on.
///
/// # Errors
/// Those of `shutdown(2)`: `NotConnected` after a reset.
pub fn end_of_stream(stream: &impl AsFd) -> io::Result<()> {
    SockRef::from(stream).shutdown(Shutdown::Write)
}

/// Ends one direction of a socket, or both, also of one that is not connected: whoever waits there is woken up.
pub fn shut_down(socket: &impl AsFd, direction: Shutdown) {
    // Says "not connected" of most datagram sockets, after having done it.
    let _done_all_the_same = SockRef::from(socket).shutdown(direction);
}

/// Sends one datagram, if the kernel takes it at once; also on a socket that blocks.
///
/// # Errors
/// Those of `sendto(2)`: `WouldBlock` if its buffer is full.
pub fn send_datagram(socket: &impl AsFd, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
    let flags = nix::libc::MSG_DONTWAIT | nix::libc::MSG_NOSIGNAL;
    SockRef::from(socket).send_to_with_flags(bytes, &to.into(), flags)?;
    Ok(())
}

/// Writes what the kernel takes at once.
///
/// # Errors
/// Those of `send(2)`: `WouldBlock` if it takes nothing now.
pub fn send(stream: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    SockRef::from(stream).send_with_flags(bytes, nix::libc::MSG_NOSIGNAL)
}

// Asks past `net.core.rmem_max` where privileges allow, else up to it.
fn enlarge_buffers(socket: &Socket, bytes: usize) {
    if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err() {
        let _kernel_default_stays = socket.set_recv_buffer_size(bytes);
    }
    if setsockopt(socket, sockopt::SndBufForce, &bytes).is_err() {
        let _kernel_default_stays = socket.set_send_buffer_size(bytes);
    }
}

fn inet(addr: &SockAddr) -> io::Result<SocketAddr> {
    addr.as_socket()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    const ANY: &str = "127.0.0.1:0";

    fn first(transport: Transport, addr: &str) -> io::Result<Bound> {
        Bound::new(transport, addr.parse().unwrap(), Sharing::First)
    }

    #[test]
    fn our_own_sockets_share_a_port() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let one = first(transport, ANY).unwrap();
            let addr = one.addr;
            let two = Bound::new(transport, addr, Sharing::Join).unwrap();
            assert_eq!(two.addr, addr);
            match transport {
                Transport::Tcp => {
                    let _one = one.listen().unwrap();
                    let _two = two.listen().unwrap();
                    let three = Bound::new(transport, addr, Sharing::Join).unwrap();
                    three.listen().unwrap();
                }
                Transport::Udp => {
                    one.receive().unwrap();
                    two.receive().unwrap();
                }
            }
        }
    }

    #[test]
    fn a_stranger_is_noticed_even_if_it_shares() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let stranger = first(transport, ANY).unwrap();
            let addr = stranger.addr;
            let _listening = (transport == Transport::Tcp).then(|| stranger.listen().unwrap());
            let stays = (transport == Transport::Udp).then(|| first(transport, ANY).unwrap());
            let taken = stays.as_ref().map_or(addr, |bound| bound.addr);
            let error = Bound::new(transport, taken, Sharing::First).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn a_held_tcp_port_refuses_until_somebody_listens_there() {
        let bound = first(Transport::Tcp, ANY).unwrap();
        let addr = bound.addr;
        let held = bound.hold().unwrap();
        let refused = TcpStream::connect(addr).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(
            TcpListener::bind(addr).map(drop).unwrap_err().kind(),
            io::ErrorKind::AddrInUse,
            "nobody else gets the port, not even with SO_REUSEADDR, which std sets"
        );
        let open = Bound::new(Transport::Tcp, addr, Sharing::Join).unwrap();
        let _listener = open.listen().unwrap();
        drop(held);
        TcpStream::connect(addr).unwrap();
    }

    #[test]
    fn leftover_connections_do_not_keep_the_port() {
        let listener = first(Transport::Tcp, ANY).unwrap().listen().unwrap();
        listener.set_nonblocking(false).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(addr).unwrap();
        let (server, _) = listener.accept().unwrap();
        drop(listener);
        let again = Bound::new(Transport::Tcp, addr, Sharing::First).unwrap();
        drop(again.hold().unwrap());
        drop(server);
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        drop(client);
        let again = Bound::new(Transport::Tcp, addr, Sharing::First).unwrap();
        again.listen().unwrap();
    }

    #[test]
    fn a_held_udp_port_refuses() {
        for addr in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let Ok(bound) = first(Transport::Udp, addr) else {
                continue; // no IPv6 here
            };
            let port = bound.addr.port();
            let local = bound.addr.ip().is_ipv4();
            let _held = bound.hold().unwrap();
            let client = UdpSocket::bind(if local { ANY } else { "[::1]:0" }).unwrap();
            client
                .connect((client.local_addr().unwrap().ip(), port))
                .unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            client.send(b"x").unwrap();
            let refused = client.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{addr}");
        }
    }

    #[test]
    fn reset_on_close_reaches_the_peer_as_a_reset() {
        let listener = TcpListener::bind(ANY).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        reset_on_close(&server);
        drop(server);
        let error = client.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_connection_that_was_not_redirected_has_no_original_destination() {
        let listener = TcpListener::bind(ANY).unwrap();
        let addr = listener.local_addr().unwrap();
        let _client = TcpStream::connect(addr).unwrap();
        let (server, _) = listener.accept().unwrap();
        // With connection tracking the kernel names the listener itself.
        assert!(original_destination(&server, &addr).map_or(true, |found| found == addr));
    }
}
