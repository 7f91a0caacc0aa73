//! What stands in for the data path where only the capture is tested: a TCP and a UDP listener on the node.
//!
//! TCP answers with the original destination of the connection; UDP answers with a word, from the address that the
//! datagram came to, as the data path does.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, getsockopt, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::world::{Place, World, patience};

/// One TCP and one UDP listener; they end when it is dropped.
pub(crate) struct StandIn {
    /// The TCP port.
    pub(crate) tcp: u16,
    /// The UDP port.
    pub(crate) udp: u16,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl StandIn {
    /// Listens on the node, at every address. UDP answers `word`.
    pub(crate) fn new(world: &World, v6: bool, word: &'static str) -> Self {
        let any: SocketAddr = if v6 {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        };
        let (tcp, udp) = world.in_ns(Place::Node, || {
            let (tcp, udp) = (
                TcpListener::bind(any).unwrap(),
                UdpSocket::bind(any).unwrap(),
            );
            // So that the threads see now and then that they should end.
            setsockopt(&tcp, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
            setsockopt(&udp, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
            if v6 {
                setsockopt(&udp, sockopt::Ipv6RecvPacketInfo, &true).unwrap();
            } else {
                setsockopt(&udp, sockopt::Ipv4PacketInfo, &true).unwrap();
            }
            (tcp, udp)
        });
        let ended = Arc::new(AtomicBool::new(false));
        let (tcp_port, udp_port) = (
            tcp.local_addr().unwrap().port(),
            udp.local_addr().unwrap().port(),
        );
        let (tcp_ended, udp_ended) = (ended.clone(), ended.clone());
        let serve_tcp = move || {
            thread::scope(|scope| {
                while !tcp_ended.load(Ordering::Relaxed) {
                    if let Ok((stream, _)) = tcp.accept() {
                        // A client that is gone already is its own affair.
                        scope.spawn(move || answer_tcp(stream, v6));
                    }
                }
            });
        };
        let serve_udp = move || {
            while !udp_ended.load(Ordering::Relaxed) {
                let _ = answer_udp(&udp, word);
            }
        };
        Self {
            tcp: tcp_port,
            udp: udp_port,
            ended,
            threads: vec![thread::spawn(serve_tcp), thread::spawn(serve_udp)],
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(
                thread.join().is_ok() || thread::panicking(),
                "a stand-in panicked"
            );
        }
    }
}

fn answer_tcp(mut stream: TcpStream, v6: bool) -> io::Result<()> {
    let original: SocketAddr = if v6 {
        let raw = getsockopt(&stream, sockopt::Ip6tOriginalDst)?;
        (
            Ipv6Addr::from(raw.sin6_addr.s6_addr),
            u16::from_be(raw.sin6_port),
        )
            .into()
    } else {
        let raw = getsockopt(&stream, sockopt::OriginalDst)?;
        (
            Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr)),
            u16::from_be(raw.sin_port),
        )
            .into()
    };
    stream.set_read_timeout(Some(patience()))?;
    let mut greeting = [0; 6];
    stream.read_exact(&mut greeting)?;
    write!(stream, "{original}")
}

fn answer_udp(socket: &UdpSocket, word: &str) -> io::Result<()> {
    let mut buffer = [0; 2048];
    let mut space = nix::cmsg_space!([u8; 64]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let client = received.address.ok_or(io::ErrorKind::InvalidData)?;
    let reply = [IoSlice::new(word.as_bytes())];
    let send = |control: &[ControlMessage<'_>]| {
        sendmsg(
            socket.as_raw_fd(),
            &reply,
            control,
            MsgFlags::empty(),
            Some(&client),
        )
    };
    for message in received.cmsgs()? {
        match message {
            ControlMessageOwned::Ipv4PacketInfo(mut info) => {
                info.ipi_spec_dst = info.ipi_addr;
                info.ipi_ifindex = 0;
                send(&[ControlMessage::Ipv4PacketInfo(&info)])?;
            }
            ControlMessageOwned::Ipv6PacketInfo(mut info) => {
                info.ipi6_ifindex = 0;
                send(&[ControlMessage::Ipv6PacketInfo(&info)])?;
            }
            other => panic!("no other control message was asked for: {other:?}"),
        }
    }
    Ok(())
}
