//! Binding the listen addresses: UDP and TCP at the same number, one pair of sockets for each address.
//!
//! A socket bound to a wildcard sends its replies from whatever address the route prefers, and a client drops what
//! does not come from where it asked. So a wildcard is spelled out into the addresses that the host has at that moment.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use tokio::net::TcpListener;

use super::InvalidDomain;
use super::udp::sockets_per_address;
use crate::net::local_addresses::LocalAddress;
use crate::net::sockets::{Bound, Sharing, Transport};

/// Tries to find a number that is free for both protocols when any will do.
const PORT_ATTEMPTS: usize = 16;

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened at.
    #[error("--dns-listen {address} ({protocol}): {source}{}", hint(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cluster domain is no name.
    #[error("--cluster-domain: {0}")]
    Domain(#[source] InvalidDomain),
    /// The threads that answer could not be started.
    #[error("starting a DNS thread: {0}")]
    Thread(#[source] io::Error),
    /// The domain of an upstream is no name.
    #[error("--dns-upstream: {0}")]
    UpstreamDomain(#[source] InvalidDomain),
}

impl StartError {
    /// Whether somebody else has the port, so that another one may be tried.
    pub fn is_address_in_use(&self) -> bool {
        match self {
            Self::Listen { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            Self::Domain(_) | Self::Thread(_) | Self::UpstreamDomain(_) => false,
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        "; stop the resolver that has it (`ss -lnp` shows which) or choose another address or port"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "; ports below 1024 need CAP_NET_BIND_SERVICE, choose a higher one without it"
    } else if error.kind() == io::ErrorKind::AddrNotAvailable {
        "; no interface of this host has the address"
    } else {
        ""
    }
}

/// The sockets of one address.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) address: SocketAddr,
    /// The address, if it had to be added to this host first.
    pub(super) adopted: Option<LocalAddress>,
    /// Blocking, and any number of them at the same address: the kernel spreads clients among them.
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: TcpListener,
}

/// Binds an address of the configuration. Port 0 becomes one that is free for both protocols, at all addresses.
///
/// An address that the host does not have is added to its loopback interface if it cannot be anybody else's: a
/// link-local one, as node caches have, or one of a Service, in `owned_ranges`. Questions then reach the socket without
/// being translated, and so without the race of two of them for one entry of connection tracking.
///
/// [`Sharing::Join`] shares the port with a server that does so, too.
pub(super) fn bind(
    address: SocketAddr,
    owned_ranges: &[IpNet],
    sharing: Sharing,
) -> Result<Vec<Sockets>, StartError> {
    let adopted = adopt(address.ip(), owned_ranges).map_err(failed(address, "udp"))?;
    let mut sockets = match bind_spelled_out(address, sharing) {
        Ok(sockets) => sockets,
        Err(error) => {
            // Somebody else may be there, who needs the address.
            if let Some(adopted) = adopted.filter(|_| error.is_address_in_use()) {
                adopted.leave();
            }
            return Err(error);
        }
    };
    if let Some(first) = sockets.first_mut() {
        first.adopted = adopted;
    }
    Ok(sockets)
}

fn adopt(ip: IpAddr, owned_ranges: &[IpNet]) -> io::Result<Option<LocalAddress>> {
    let is_link_local = matches!(ip, IpAddr::V4(v4) if v4.is_link_local());
    let may_be_added = is_link_local || owned_ranges.iter().any(|range| range.contains(&ip));
    if may_be_added && !ip.is_loopback() {
        // One that an earlier process left is local already, and ours to remove.
        return match LocalAddress::add(ip) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_local(ip)? => {
                Ok(None)
            }
            added => added,
        };
    }
    if is_local(ip)? {
        Ok(None)
    } else {
        Err(io::ErrorKind::AddrNotAvailable.into())
    }
}

// The sockets that serve may be bound to any address, so a mistaken one is found out here.
fn is_local(ip: IpAddr) -> io::Result<bool> {
    match UdpSocket::bind((ip, 0)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
        Err(error) => Err(error),
    }
}

fn bind_spelled_out(address: SocketAddr, sharing: Sharing) -> Result<Vec<Sockets>, StartError> {
    let addresses = every(address)?;
    let n_sockets = sockets_per_address(addresses.len());
    let mut attempts = if address.port() == 0 {
        PORT_ATTEMPTS
    } else {
        1
    };
    loop {
        attempts -= 1;
        match bind_all(&addresses, n_sockets, sharing) {
            Err(error) if error.is_address_in_use() && attempts > 0 => {}
            result => return result,
        }
    }
}

/// The addresses that one of the configuration stands for.
pub(super) fn every(address: SocketAddr) -> Result<Vec<SocketAddr>, StartError> {
    spell_out(address).map_err(failed(address, "udp"))
}

fn bind_all(
    addresses: &[SocketAddr],
    n_sockets: usize,
    sharing: Sharing,
) -> Result<Vec<Sockets>, StartError> {
    let mut bound: Vec<Sockets> = Vec::with_capacity(addresses.len());
    for address in addresses {
        let mut address = *address;
        if let Some(first) = bound.first() {
            address.set_port(first.address.port());
        }
        let tcp = Bound::new(Transport::Tcp, address, sharing);
        let tcp = tcp.map_err(failed(address, "tcp"))?;
        let address = tcp.addr;
        let udp = bind_udp(address, n_sockets, sharing).map_err(failed(address, "udp"))?;
        let listen = || TcpListener::from_std(tcp.listen()?);
        let tcp = listen().map_err(failed(address, "tcp"))?;
        bound.push(Sockets {
            address,
            adopted: None,
            udp,
            tcp,
        });
    }
    Ok(bound)
}

fn bind_udp(address: SocketAddr, n_sockets: usize, first: Sharing) -> io::Result<Vec<UdpSocket>> {
    let sharing = [first].into_iter().chain(std::iter::repeat(Sharing::Join));
    let one = |sharing| {
        let socket = Bound::new(Transport::Udp, address, sharing)?.receive()?;
        socket.set_nonblocking(false)?;
        Ok(socket)
    };
    sharing.take(n_sockets).map(one).collect()
}

fn failed(address: SocketAddr, protocol: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Listen {
        address,
        protocol,
        source,
    }
}

// A wildcard as the host's addresses of its family; anything else as it is. Link-local addresses of IPv6 are left out:
// they mean something only together with an interface.
fn spell_out(address: SocketAddr) -> io::Result<Vec<SocketAddr>> {
    if !address.ip().is_unspecified() {
        return Ok(vec![address]);
    }
    let mut found: Vec<SocketAddr> = getifaddrs()?
        .filter_map(|interface| {
            let storage = interface.address?;
            let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|ip| ip.is_ipv4() == address.is_ipv4())
        .filter(|ip| !matches!(ip, IpAddr::V6(v6) if Ipv6Addr::is_unicast_link_local(v6)))
        .map(|ip| SocketAddr::new(ip, address.port()))
        .collect();
    found.sort_unstable();
    found.dedup();
    if found.is_empty() {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_protocols_have_the_same_number() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), &[], Sharing::First).unwrap();
        let [pair] = &sockets[..] else {
            panic!("one address, one pair");
        };
        assert_ne!(pair.address.port(), 0);
        assert!(!pair.udp.is_empty());
        for socket in &pair.udp {
            assert_eq!(socket.local_addr().unwrap(), pair.address);
        }
        assert_eq!(pair.tcp.local_addr().unwrap(), pair.address);
    }

    #[tokio::test]
    async fn a_wildcard_is_every_address_at_one_number() {
        let sockets = bind("0.0.0.0:0".parse().unwrap(), &[], Sharing::First).unwrap();
        let port = sockets[0].address.port();
        assert!(sockets.iter().all(|pair| pair.address.port() == port));
        assert!(
            sockets
                .iter()
                .all(|pair| !pair.address.ip().is_unspecified())
        );
        assert!(sockets.iter().any(|pair| pair.address.ip().is_loopback()));
    }

    #[tokio::test]
    async fn an_address_of_others_is_refused() {
        // From a range for documentation, which no host has.
        let error = bind("192.0.2.1:0".parse().unwrap(), &[], Sharing::First).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no interface of this host"), "{text}");
    }

    #[tokio::test]
    async fn a_taken_port_is_told_with_the_flag_and_a_way_out() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(address, &[], Sharing::First).unwrap_err();
        assert!(error.is_address_in_use());
        let text = error.to_string();
        // Somebody else may have the same port of TCP by chance, which is asked for first.
        let told = ["udp", "tcp"].map(|proto| format!("--dns-listen {address} ({proto}): "));
        assert!(told.iter().any(|told| text.starts_with(told)), "{text}");
        assert!(text.contains("choose another"), "{text}");
    }
}
