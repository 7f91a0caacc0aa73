//! Whether a process here finds a route to an address at all. Nothing is sent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Looks up the route to `ip`, as a process does that begins to speak to it.
///
/// # Errors
/// Those of `connect(2)` on a datagram socket: `NetworkUnreachable` where no route leads there.
pub fn route_to(ip: IpAddr) -> io::Result<()> {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Any port does: a datagram socket only looks the route up.
    UdpSocket::bind((any, 0))?.connect((ip, 9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_route_to_ourselves() {
        route_to(Ipv4Addr::LOCALHOST.into()).unwrap();
    }
}
