//! Batches between real sockets on loopback.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use crate::net::sockets::{Bound, Sharing, Transport, gather_datagrams};

use super::*;

fn receiver(addr: &str) -> UdpSocket {
    let bound = Bound::new(Transport::Udp, addr.parse().unwrap(), Sharing::First).unwrap();
    bound.receive().unwrap()
}

fn client(addr: &str) -> UdpSocket {
    let client = UdpSocket::bind(addr).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    client
}

// Message by message, as long as the kernel gathers none.
fn received(batch: &mut Batch, socket: &UdpSocket, slots: Range<usize>) -> usize {
    let received = batch.receive(socket, slots).unwrap();
    assert_eq!(received.messages, received.datagrams);
    received.datagrams
}

// Loopback delivers within the sending call, so what was sent is there.
#[test]
fn sizes_order_and_sources_are_kept() {
    let server = receiver("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    let sizes = [0, 1, 1400, 65_507, 0, 3];
    for (mark, size) in sizes.iter().enumerate() {
        let payload = vec![u8::try_from(mark).unwrap(); *size];
        client
            .send_to(&payload, server.local_addr().unwrap())
            .unwrap();
    }
    let mut batch = Batch::new();
    assert_eq!(received(&mut batch, &server, 0..SLOTS), sizes.len());
    for (slot, size) in sizes.iter().enumerate() {
        assert_eq!(batch.len(slot), *size);
        assert_eq!(batch.source(slot), Some(client.local_addr().unwrap()));
        assert_eq!(batch.local(slot), None, "bound to one address");
        batch.address_to(slot, client.local_addr().unwrap(), None);
    }
    let empty = batch.receive(&server, 10..SLOTS).unwrap_err();
    assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);

    assert_eq!(batch.send(&server, 0..sizes.len()).unwrap(), sizes.len());
    let mut buffer = vec![0; 70_000];
    for (mark, size) in sizes.iter().enumerate() {
        assert_eq!(client.recv(&mut buffer).unwrap(), *size);
        assert!(
            buffer[..*size]
                .iter()
                .all(|byte| usize::from(*byte) == mark)
        );
    }
}

#[test]
fn a_reply_is_written_where_the_question_lies() {
    let server = receiver("127.0.0.1:0");
    server.set_nonblocking(false).unwrap();
    let client = client("127.0.0.1:0");
    let mut batch = Batch::with_slot_bytes(128);
    for payload in [&b"ping"[..], &[7; 300]] {
        client
            .send_to(payload, server.local_addr().unwrap())
            .unwrap();
    }
    assert_eq!(batch.wait(&server, 0..SLOTS).unwrap().datagrams, 2);
    assert_eq!(batch.bytes(0), b"ping");
    assert_eq!(batch.bytes(1), [7; 128], "cut to the slot");
    batch.room(1)[..5].copy_from_slice(b"reply");
    batch.set_len(1, 5);
    batch.address_to(1, client.local_addr().unwrap(), None);
    assert_eq!(batch.send(&server, 1..2).unwrap(), 1);
    let mut buffer = [0; 8];
    assert_eq!(client.recv(&mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"reply");
}

#[test]
fn replies_of_a_wildcard_socket_leave_from_the_address_that_was_asked() {
    let server = receiver("0.0.0.0:0");
    let port = server.local_addr().unwrap().port();
    let client = client("127.0.0.1:0");
    client.connect(("127.9.8.7", port)).unwrap();
    client.send(b"ping").unwrap();
    let mut batch = Batch::new();
    assert_eq!(received(&mut batch, &server, 0..SLOTS), 1);
    let local = batch.local(0).unwrap();
    assert_eq!(local.ip, "127.9.8.7".parse::<IpAddr>().unwrap());
    let source = batch.source(0).unwrap();
    batch.address_to(0, source, Some(local));
    assert_eq!(batch.send(&server, 0..1).unwrap(), 1);
    let mut buffer = [0; 8];
    assert_eq!(
        client.recv(&mut buffer).unwrap(),
        4,
        "a connected client takes it"
    );
}

#[test]
fn ipv6_packet_info_works_the_same() {
    let Ok(bound) = Bound::new(Transport::Udp, "[::]:0".parse().unwrap(), Sharing::First) else {
        return; // no IPv6 here
    };
    let server = bound.receive().unwrap();
    let client = client("[::1]:0");
    client
        .connect(("::1", server.local_addr().unwrap().port()))
        .unwrap();
    client.send(b"ping").unwrap();
    let mut batch = Batch::new();
    assert_eq!(received(&mut batch, &server, 0..SLOTS), 1);
    let local = batch.local(0).unwrap();
    assert_eq!(local.ip, "::1".parse::<IpAddr>().unwrap());
    let source = batch.source(0).unwrap();
    batch.address_to(0, source, Some(local));
    batch.send(&server, 0..1).unwrap();
    assert_eq!(client.recv(&mut [0; 8]).unwrap(), 4);
}

#[test]
fn runs_of_one_size_arrive_as_they_were_in_one_message() {
    let server = receiver("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    // A run with a short end, a lone one, an empty one, one that is too long to be cut, a run again.
    let sizes = [64, 64, 64, 10, 1472, 0, 1473, 1473, 500, 500, 0, 7];
    for (mark, size) in sizes.iter().enumerate() {
        let payload = vec![u8::try_from(mark).unwrap(); *size];
        client
            .send_to(&payload, server.local_addr().unwrap())
            .unwrap();
    }
    let mut batch = Batch::new();
    assert_eq!(received(&mut batch, &server, 0..SLOTS), sizes.len());
    for slot in 0..sizes.len() {
        batch.address_to(slot, client.local_addr().unwrap(), None);
    }
    let runs = Runs::of(&batch.slots[..], 0..sizes.len());
    assert_eq!(runs.lengths().collect::<Vec<_>>(), [4, 1, 1, 1, 1, 2, 1, 1]);
    assert_eq!(batch.send(&server, 0..sizes.len()).unwrap(), sizes.len());
    let mut buffer = vec![0; 70_000];
    for (mark, size) in sizes.iter().enumerate() {
        assert_eq!(client.recv(&mut buffer).unwrap(), *size);
        assert!(
            buffer[..*size]
                .iter()
                .all(|byte| usize::from(*byte) == mark)
        );
    }
}

#[test]
fn datagrams_to_two_places_are_no_run() {
    let mut batch = Batch::new();
    for (slot, to) in ["127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:2"]
        .iter()
        .enumerate()
    {
        batch.slots[slot].len = 9;
        batch.address_to(slot, to.parse().unwrap(), None);
    }
    let from = LocalAddress {
        ip: "127.0.0.9".parse().unwrap(),
        interface: 0,
    };
    batch.slots[3].len = 9;
    batch.address_to(3, "127.0.0.1:2".parse().unwrap(), Some(from));
    let runs = Runs::of(&batch.slots[..], 0..4);
    assert_eq!(runs.lengths().collect::<Vec<_>>(), [2, 1, 1]);
}

#[test]
fn what_the_kernel_had_no_room_for_is_counted() {
    let server = receiver("127.0.0.1:0");
    socket2::SockRef::from(&server)
        .set_recv_buffer_size(4096)
        .unwrap();
    let client = client("127.0.0.1:0");
    let send = |n| {
        for _ in 0..n {
            client
                .send_to(&[0; 512], server.local_addr().unwrap())
                .unwrap();
        }
    };
    send(60);
    let mut batch = Batch::new();
    let kept = received(&mut batch, &server, 0..SLOTS);
    assert!((1..60).contains(&kept), "{kept}");
    assert_eq!(batch.lost(0), None, "nothing was lost before the first");
    send(1);
    assert_eq!(received(&mut batch, &server, 0..SLOTS), 1);
    assert_eq!(batch.lost(0), u32::try_from(60 - kept).ok());
}

#[test]
fn an_error_after_some_were_sent_leaves_those_counted() {
    let server = receiver("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    for _ in 0..2 {
        client.send_to(b"x", server.local_addr().unwrap()).unwrap();
    }
    let mut batch = Batch::new();
    assert_eq!(received(&mut batch, &server, 0..SLOTS), 2);
    batch.address_to(0, client.local_addr().unwrap(), None);
    batch.address_to(1, "[::1]:9".parse().unwrap(), None);
    assert_eq!(batch.send(&server, 0..2).unwrap(), 1);
    batch.send(&server, 1..2).unwrap_err();
}

// Sends `payload` in pieces of `size` bytes as one message.
fn send_cut(client: &UdpSocket, payload: &[u8], size: usize, to: SocketAddr) {
    let size = i32::try_from(size).unwrap();
    nix::sys::socket::setsockopt(client, nix::sys::socket::sockopt::UdpGsoSegment, &size).unwrap();
    assert_eq!(client.send_to(payload, to).unwrap(), payload.len());
}

#[test]
fn what_the_kernel_gathered_is_told_apart_again() {
    let server = receiver("127.0.0.1:0");
    gather_datagrams(&server).unwrap();
    let to = server.local_addr().unwrap();
    let (one, other) = (client("127.0.0.1:0"), client("127.0.0.1:0"));
    let bytes: Vec<u8> = (0..=255).cycle().take(60_000).collect();
    send_cut(&one, &bytes[..5_100], 1_000, to);
    other.send_to(&bytes[..7], to).unwrap();
    send_cut(&other, &bytes, 1_472, to);
    one.send_to(&[], to).unwrap();
    // No longer than a piece: nothing to cut.
    send_cut(&one, &bytes[..900], 900, to);
    let expected: Vec<(&UdpSocket, &[u8])> =
        (bytes[..5_100].chunks(1_000).map(|piece| (&one, piece)))
            .chain([(&other, &bytes[..7])])
            .chain(bytes.chunks(1_472).map(|piece| (&other, piece)))
            .chain([(&one, &[][..]), (&one, &bytes[..900])])
            .collect();

    let mut batch = Batch::new();
    let received = batch.receive(&server, 3..SLOTS).unwrap();
    assert_eq!((received.messages, received.datagrams), (5, expected.len()));
    for (slot, (from, piece)) in (3..).zip(&expected) {
        assert_eq!(batch.bytes(slot), *piece);
        assert_eq!(batch.source(slot), Some(from.local_addr().unwrap()));
        batch.address_to(slot, from.local_addr().unwrap(), None);
    }
    // What lies together is one piece of one message again.
    let all = 3..3 + expected.len();
    let runs = Runs::of(&batch.slots, all.clone());
    assert_eq!(runs.lengths().collect::<Vec<_>>(), [6, 1, 41, 1, 1]);
    assert_eq!(batch.send(&server, all.clone()).unwrap(), all.len());
    let mut buffer = vec![0; 70_000];
    for (to, piece) in expected {
        let n = to.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], piece);
    }
    // The slots are rooms again.
    one.send_to(b"next", to).unwrap();
    let received = batch.receive(&server, 10..SLOTS).unwrap();
    assert_eq!((received.messages, received.datagrams), (1, 1));
    assert_eq!(batch.bytes(10), b"next");
    assert_eq!(batch.room(10).len(), SLOT_BYTES);
}

#[test]
fn more_datagrams_than_slots_go_out_in_several_calls() {
    let server = receiver("127.0.0.1:0");
    gather_datagrams(&server).unwrap();
    let client = client("127.0.0.1:0");
    let to = server.local_addr().unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(60).collect();
    for _ in 0..4 {
        send_cut(&client, &bytes, 1, to);
    }
    let mut batch = Batch::new();
    let received = batch.receive(&server, 0..SLOTS).unwrap();
    assert_eq!((received.messages, received.datagrams), (4, 240));
    for slot in 0..240 {
        batch.address_to(slot, client.local_addr().unwrap(), None);
    }
    // Where the device cannot cut, each goes by itself.
    batch.cuts = false;
    assert_eq!(batch.send(&server, 0..240).unwrap(), SLOTS);
    batch.cuts = true;
    let mut next = SLOTS;
    while next < 240 {
        next += batch.send(&server, next..240).unwrap();
    }
    for mark in (0..60).cycle().take(240) {
        let mut buffer = [0; 8];
        assert_eq!(client.recv(&mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], mark);
    }
}

#[test]
fn a_connected_socket_gathers_too() {
    let socket = client("127.0.0.1:0");
    let peer = client("127.0.0.1:0");
    socket.connect(peer.local_addr().unwrap()).unwrap();
    gather_datagrams(&socket).unwrap();
    send_cut(&peer, &[5; 2_500], 1_200, socket.local_addr().unwrap());
    let mut batch = Batch::new();
    let received = batch.receive_gathered_from_peer(&socket, 0..1).unwrap();
    assert_eq!((received.messages, received.datagrams), (1, 3));
    let lengths: Vec<_> = (0..3).map(|slot| batch.len(slot)).collect();
    assert_eq!(lengths, [1_200, 1_200, 100]);
}
