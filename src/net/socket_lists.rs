//! Sockets of all processes, as the kernel lists them: `/proc/thread-self/net/tcp`, `tcp6`, `udp` and `udp6` (proc(5)), those
//! of this thread's network namespace.
//!
//! A capture mode may not take an address away that connections still need, and a port may turn out to be somebody
//! else's as well. Never changes anything.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::netlink::IpVersion;
use super::sockets::Transport;

/// The local addresses of TCP connections that are neither listening nor closed. Reads one line per connection.
///
/// # Errors
/// There is no `/proc`, or it may not be read.
pub fn tcp_addresses(version: IpVersion) -> io::Result<BTreeSet<IpAddr>> {
    let text = std::fs::read_to_string(path(Transport::Tcp, version))?;
    let sockets = text.lines().filter_map(parse_line);
    let needed = sockets.filter(|(_, state)| !WITHOUT_NEEDS.contains(state));
    Ok(needed.map(|(local, _)| local.ip().to_canonical()).collect())
}

/// How many sockets receive from anybody at each address: listening ones of TCP, those of UDP that are not connected. Reads
/// one line per socket.
///
/// # Errors
/// There is no `/proc`, or it may not be read.
pub fn bound_sockets(transport: Transport) -> io::Result<HashMap<SocketAddr, usize>> {
    let receiving = match transport {
        Transport::Tcp => LISTEN,
        Transport::Udp => UNCONNECTED,
    };
    let mut found = HashMap::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let text = match std::fs::read_to_string(path(transport, version)) {
            // A kernel without IPv6 has no list of it.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && matches!(version, IpVersion::V6) =>
            {
                continue;
            }
            text => text?,
        };
        for (local, state) in text.lines().filter_map(parse_line) {
            if state == receiving {
                *found.entry(local).or_default() += 1;
            }
        }
    }
    Ok(found)
}

fn path(transport: Transport, version: IpVersion) -> &'static str {
    match (transport, version) {
        (Transport::Tcp, IpVersion::V4) => "/proc/thread-self/net/tcp",
        (Transport::Tcp, IpVersion::V6) => "/proc/thread-self/net/tcp6",
        (Transport::Udp, IpVersion::V4) => "/proc/thread-self/net/udp",
        (Transport::Udp, IpVersion::V6) => "/proc/thread-self/net/udp6",
    }
}

/// The state of a TCP socket that listens (`tcp_states.h`).
const LISTEN: &str = "0A";

/// That of a UDP socket without a peer (`CLOSE`).
const UNCONNECTED: &str = "07";

/// The states whose connections need nothing any more (`TIME_WAIT`, `CLOSE`), or are none yet.
const WITHOUT_NEEDS: [&str; 3] = ["06", "07", LISTEN];

// `  sl  local_address rem_address   st …`, addresses as words in the machine's order, the port in the usual one.
fn parse_line(line: &str) -> Option<(SocketAddr, &str)> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let state = fields.nth(1)?;
    let words = address.as_bytes().chunks(8).map(|word| {
        let word = std::str::from_utf8(word).ok()?;
        u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes)
    });
    let octets = words.collect::<Option<Vec<_>>>()?.concat();
    let v4 = |octets| IpAddr::from(Ipv4Addr::from(octets));
    let v6 = |octets| IpAddr::from(Ipv6Addr::from(octets));
    let ip = <[u8; 4]>::try_from(octets.as_slice()).map(v4);
    let ip = ip.or_else(|_| <[u8; 16]>::try_from(octets.as_slice()).map(v6));
    Some((SocketAddr::new(ip.ok()?, port), state))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn an_established_connection_is_seen_and_a_listener_is_not() {
        let ip = Ipv4Addr::new(127, 86, 3, 7);
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let seen = || tcp_addresses(IpVersion::V4).unwrap().contains(&ip.into());
        assert!(!seen());
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _server = listener.accept().unwrap();
        assert!(seen());
    }

    #[test]
    fn sockets_are_counted_where_they_receive() {
        let listener = TcpListener::bind("127.86.3.8:0").unwrap();
        let at = listener.local_addr().unwrap();
        let _client = TcpStream::connect(at).unwrap();
        let _server = listener.accept().unwrap();
        let tcp = || bound_sockets(Transport::Tcp).unwrap().get(&at).copied();
        assert_eq!(tcp(), Some(1), "connections are not counted");
        drop(listener);
        assert_eq!(tcp(), None);
        for ip in ["127.86.3.8", "::1"] {
            let socket = UdpSocket::bind((ip, 0)).unwrap();
            let at = socket.local_addr().unwrap();
            let udp = || bound_sockets(Transport::Udp).unwrap().get(&at).copied();
            assert_eq!(udp(), Some(1));
            socket.connect(at).unwrap();
            assert_eq!(udp(), None, "it hears nobody else");
        }
    }

    #[test]
    fn the_heading_and_nonsense_are_no_address() {
        for line in [
            "  sl  local_address rem_address   st tx_queue",
            "",
            "0: 0100007G:1F90 00000000:0000 01",
            "0: 0100007F:1F90F 00000000:0000 01",
            "0: 0100007F01:1F90 00000000:0000 01",
        ] {
            assert_eq!(parse_line(line), None, "{line}");
        }
    }
}
