//! A classic BPF program that lets a socket hear only from some networks. Everybody else meets silence: a SYN or a
//! datagram that a socket's filter refuses is dropped without an answer.
//!
//! Pure: `sockets` attaches it. Source: Linux `SO_ATTACH_FILTER` (socket(7)), `Documentation/networking/filter.rst`.

use std::net::IpAddr;

use ipnet::IpNet;
use socket2::SockFilter;

/// A filter by the source address of what arrives. Needs no privilege.
#[derive(Debug)]
pub struct SourceFilter(pub(super) Vec<SockFilter>);

impl SourceFilter {
    /// Lets `networks` through, which are of one family; none = nobody. The kernel takes 4,096 instructions: 1,000
    /// IPv4 networks or 300 of IPv6, and refuses a longer program when it is attached.
    pub fn only(networks: &[IpNet]) -> Self {
        let mut program = Vec::new();
        for network in networks {
            push_network(&mut program, *network);
        }
        program.push(answer(DROP));
        Self(program)
    }
}

/// Where the network header begins, whatever the socket's own view (`SKF_NET_OFF`, -0x100000).
const NETWORK_HEADER: u32 = 0xfff0_0000;
const SOURCE_IN_IPV4: u32 = 12;
const SOURCE_IN_IPV6: u32 = 8;

const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

const DROP: u32 = 0;
const ALL_OF_IT: u32 = u32::MAX;

fn answer(bytes: u32) -> SockFilter {
    SockFilter::new(RETURN, 0, 0, bytes)
}

// Every word of the address that the prefix reaches into is compared; the first that differs skips to what follows.
fn push_network(program: &mut Vec<SockFilter>, network: IpNet) {
    let (offset, octets, mask) = match (network.network(), network.netmask()) {
        (IpAddr::V4(ip), IpAddr::V4(mask)) => {
            (SOURCE_IN_IPV4, ip.octets().to_vec(), mask.octets().to_vec())
        }
        (IpAddr::V6(ip), IpAddr::V6(mask)) => {
            (SOURCE_IN_IPV6, ip.octets().to_vec(), mask.octets().to_vec())
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            unreachable!("a network's mask is of its own family")
        }
    };
    let word = |bytes: &[u8]| {
        bytes
            .first_chunk()
            .map_or(0, |word| u32::from_be_bytes(*word))
    };
    let words = octets.chunks(4).map(word).zip(mask.chunks(4).map(word));
    let compared: Vec<_> = (offset..)
        .step_by(4)
        .zip(words)
        .filter(|(_, (_, mask))| *mask != 0)
        .collect();
    // Three instructions a word, and the answer.
    for (left, (at, (value, mask))) in (1u8..)
        .zip(compared.iter().rev())
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
    {
        let to_the_next_network = 3 * (left - 1) + 1;
        program.push(SockFilter::new(LOAD_WORD, 0, 0, NETWORK_HEADER + at));
        program.push(SockFilter::new(AND, 0, 0, *mask));
        program.push(SockFilter::new(
            JUMP_IF_EQUAL,
            0,
            to_the_next_network,
            *value,
        ));
    }
    program.push(answer(ALL_OF_IT));
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;

    use socket2::SockRef;

    use super::*;

    // Whether somebody at `from` is heard by a socket at `at` that lets `networks` through.
    fn is_heard(networks: &[&str], from: &str, at: &str) -> bool {
        let networks: Vec<IpNet> = networks.iter().map(|text| text.parse().unwrap()).collect();
        let socket = UdpSocket::bind((at, 0)).unwrap();
        let filter = SourceFilter::only(&networks);
        SockRef::from(&socket).attach_filter(&filter.0).unwrap();
        let client = UdpSocket::bind((from, 0)).unwrap();
        client.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        // Over loopback it has arrived by now, or never will.
        socket.set_nonblocking(true).unwrap();
        socket.recv(&mut [0; 8]).is_ok()
    }

    #[test]
    fn only_the_named_networks_are_heard() {
        let networks = ["127.0.1.0/24", "127.7.0.1/32"];
        for (from, heard) in [
            ("127.0.1.0", true),
            ("127.0.1.255", true),
            ("127.0.2.0", false),
            ("127.0.0.255", false),
            ("127.7.0.1", true),
            ("127.7.0.2", false),
        ] {
            assert_eq!(is_heard(&networks, from, "127.0.0.1"), heard, "{from}");
        }
        assert!(is_heard(&["0.0.0.0/0"], "127.0.0.1", "127.0.0.1"));
        assert!(!is_heard(&[], "127.0.0.1", "127.0.0.1"));
    }

    #[test]
    fn every_length_of_a_prefix_counts_in_both_families() {
        for length in 0..=128u8 {
            let inside = format!("::1/{length}");
            assert!(is_heard(&[&inside], "::1", "::1"), "{inside}");
            if length > 0 {
                let bit = u128::from(std::net::Ipv6Addr::LOCALHOST) ^ (1 << (128 - length));
                let outside = format!("{}/{length}", std::net::Ipv6Addr::from(bit));
                assert!(!is_heard(&[&outside], "::1", "::1"), "{outside}");
                assert!(is_heard(&[&outside, "::1/128"], "::1", "::1"), "{outside}");
            }
        }
    }

    #[test]
    fn a_connection_that_is_not_let_through_meets_silence() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let filter = SourceFilter::only(&[]);
        SockRef::from(&listener).attach_filter(&filter.0).unwrap();
        let to = listener.local_addr().unwrap();
        let answer = TcpStream::connect_timeout(&to, Duration::from_millis(200));
        assert_eq!(answer.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }
}
