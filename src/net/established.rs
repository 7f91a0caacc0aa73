//! Which local addresses established TCP connections use, as the kernel lists them.
//!
//! Reads `/proc/thread-self/net/tcp` and `tcp6` (proc(5)), because a capture mode may not take an address away that
//! connections still need. Never changes anything.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::IpVersion;

/// The local addresses of TCP connections that are neither listening nor closed, in the network namespace of this
/// thread. Reads one line per connection.
///
/// # Errors
/// There is no `/proc`, or it may not be read.
pub fn tcp_addresses(version: IpVersion) -> io::Result<BTreeSet<IpAddr>> {
    let path = match version {
        IpVersion::V4 => "/proc/thread-self/net/tcp",
        IpVersion::V6 => "/proc/thread-self/net/tcp6",
    };
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().filter_map(parse_line).collect())
}

/// The states whose connections need nothing any more (`TIME_WAIT`, `CLOSE`), or are none yet (`LISTEN`).
const WITHOUT_NEEDS: [&str; 3] = ["06", "07", "0A"];

// `  sl  local_address rem_address   st …`, addresses as words in the machine's order.
fn parse_line(line: &str) -> Option<IpAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, _port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    if WITHOUT_NEEDS.contains(&state) {
        return None;
    }
    let words = address.as_bytes().chunks(8).map(|word| {
        let word = std::str::from_utf8(word).ok()?;
        u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes)
    });
    let octets = words.collect::<Option<Vec<_>>>()?.concat();
    if let Ok(v4) = <[u8; 4]>::try_from(octets.as_slice()) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(octets.as_slice()).ok()?;
    Some(Ipv6Addr::from(v6).to_canonical())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

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
    fn the_heading_and_nonsense_are_no_address() {
        for line in [
            "  sl  local_address rem_address   st tx_queue",
            "",
            "0: 0100007G:1F90 00000000:0000 01",
        ] {
            assert_eq!(parse_line(line), None, "{line}");
        }
    }
}
