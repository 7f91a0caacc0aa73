//! The addresses of this node's interfaces, and word when they change.
//!
//! The kernel announces changes over rtnetlink; what they are is then read afresh, so a lost announcement costs
//! nothing but time. Where netlink is refused, addresses are read every few seconds instead.
//! Source: rtnetlink(7), groups `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Bits of the multicast groups that announce IPv4 and IPv6 addresses (linux/rtnetlink.h).
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// How often addresses are read if the kernel does not announce them.
pub(super) const POLL: Duration = Duration::from_secs(5);

/// Every address of every interface at this moment.
///
/// # Errors
///
/// What `getifaddrs(3)` says.
pub fn local_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(address).collect())
}

/// Sends the addresses whenever they differ from what `addresses` holds, until `stop`.
pub async fn watch_addresses(addresses: watch::Sender<BTreeSet<IpAddr>>, stop: CancellationToken) {
    let announcements = match announcements(ADDRESS_GROUPS) {
        Ok(socket) => Some(socket),
        Err(error) => {
            warn!(%error, "address changes are not announced here; reading them every {POLL:?}");
            None
        }
    };
    loop {
        let changed = async {
            match &announcements {
                Some(socket) => drain(socket).await,
                None => tokio::time::sleep(POLL).await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = stop.cancelled() => return,
        }
        match local_addresses() {
            Ok(now) => {
                addresses.send_if_modified(|before| {
                    let differs = *before != now;
                    if differs {
                        debug!(n_addresses = now.len(), "node addresses changed");
                        *before = now;
                    }
                    differs
                });
            }
            Err(error) => warn!(%error, "node addresses cannot be read; keeping the last ones"),
        }
    }
}

/// A socket that hears what the kernel announces to these groups.
///
/// # Errors
///
/// Netlink is refused, as in some containers.
// Tokio has no netlink socket; `recv(2)`, all that is called here, is the same on any datagram socket.
pub(super) fn announcements(groups: u32) -> io::Result<UnixDatagram> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkRoute,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    UnixDatagram::from_std(socket.into())
}

/// Waits for an announcement and takes all that have come. What they say does not matter: an overrun (ENOBUFS) means
/// "something changed" as well.
pub(super) async fn drain(socket: &UnixDatagram) {
    let mut buffer = [0_u8; 8192];
    let first = socket.recv(&mut buffer).await;
    if first.is_err() {
        return;
    }
    while socket.try_recv(&mut buffer).is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_the_local_addresses() {
        assert!(local_addresses().unwrap().iter().any(IpAddr::is_loopback));
    }

    #[tokio::test]
    async fn the_watch_ends_when_it_is_told_to() {
        let stop = CancellationToken::new();
        stop.cancel();
        let (sender, receiver) = watch::channel(BTreeSet::new());
        watch_addresses(sender, stop).await;
        assert!(receiver.borrow().is_empty());
    }
}
