//! The header that tells a backend who its client is, ahead of everything the client says. Pure bytes.
//!
//! Source: "The PROXY protocol, versions 1 & 2", HAProxy.

use std::net::SocketAddr;

use ppp::{v1, v2};

use crate::model::ProxyProtocol;

/// The header for a TCP connection from `client` to `destination`, the address that the client used. Both are of one
/// family, or else the header says that they are unknown.
pub(super) fn proxy_header(
    version: ProxyProtocol,
    client: SocketAddr,
    destination: SocketAddr,
) -> Vec<u8> {
    let ends = (canonical(client), canonical(destination));
    match version {
        ProxyProtocol::V1 => v1::Addresses::from(ends).to_string().into_bytes(),
        ProxyProtocol::V2 => v2::Builder::with_addresses(
            v2::Version::Two | v2::Command::Proxy,
            v2::Protocol::Stream,
            ends,
        )
        .build()
        .expect("two addresses are 36 bytes at most, and the length field counts to 65,535"),
    }
}

// A socket of both families shows IPv4 clients with mapped addresses.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: ProxyProtocol, client: &str, destination: &str) -> Vec<u8> {
        proxy_header(
            version,
            client.parse().unwrap(),
            destination.parse().unwrap(),
        )
    }

    #[test]
    fn version_1_is_a_line_of_text() {
        let line = |client, destination| {
            String::from_utf8(header(ProxyProtocol::V1, client, destination)).unwrap()
        };
        assert_eq!(
            line("192.0.2.10:40000", "10.96.0.1:80"),
            "PROXY TCP4 192.0.2.10 10.96.0.1 40000 80\r\n"
        );
        assert_eq!(
            line("[2001:db8::10]:40000", "[fd00:96::1]:443"),
            "PROXY TCP6 2001:db8::10 fd00:96::1 40000 443\r\n"
        );
        assert_eq!(
            line("[::ffff:192.0.2.10]:1", "10.96.0.1:2"),
            "PROXY TCP4 192.0.2.10 10.96.0.1 1 2\r\n"
        );
        assert_eq!(line("[::1]:1", "10.96.0.1:2"), "PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_is_the_signature_the_family_the_length_and_the_addresses() {
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        let v4 = header(ProxyProtocol::V2, "192.0.2.10:258", "10.96.0.1:80");
        assert_eq!(&v4[..12], signature);
        assert_eq!(
            v4[12..],
            [0x21, 0x11, 0, 12, 192, 0, 2, 10, 10, 96, 0, 1, 1, 2, 0, 80]
        );
        let v6 = header(ProxyProtocol::V2, "[2001:db8::10]:258", "[fd00:96::1]:80");
        assert_eq!(v6[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(v6.len(), 16 + 36);
        assert_eq!(v6[48..], [1, 2, 0, 80]);
    }

    #[test]
    fn what_is_written_can_be_read() {
        for (client, destination) in [
            ("192.0.2.10:40000", "10.96.0.1:80"),
            ("[2001:db8::10]:40000", "[fd00:96::1]:443"),
        ] {
            let line = header(ProxyProtocol::V1, client, destination);
            let read = v1::Header::try_from(&line[..]).unwrap();
            let ends: (SocketAddr, SocketAddr) =
                (client.parse().unwrap(), destination.parse().unwrap());
            assert_eq!(read.addresses, ends.into());
            let bytes = header(ProxyProtocol::V2, client, destination);
            let read = v2::Header::try_from(&bytes[..]).unwrap();
            assert_eq!(read.addresses, ends.into());
            assert_eq!(read.protocol, v2::Protocol::Stream);
        }
    }
}
