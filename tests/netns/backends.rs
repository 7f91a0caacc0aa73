//! Backends: in a pod's namespace, TCP and UDP on one port of both families; each answers with its name, or with the address
//! that it sees its client under.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::world::{Place, World, patience};

/// The port of every backend: its namespace is its own.
pub(crate) const PORT: u16 = 8080;

/// The port of those that tell who asks.
pub(crate) const TELLING_PORT: u16 = 8081;

/// One backend; it ends when it is dropped.
pub(crate) struct Backend {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Backend {
    /// Serves in `place`.
    pub(crate) fn new(world: &World, place: Place, name: &'static str) -> Self {
        Self::answering(world, place, PORT, move |_client| name.to_owned())
    }

    /// Tells its clients in `place` under which address it sees them, at [`TELLING_PORT`].
    pub(crate) fn telling_clients(world: &World, place: Place) -> Self {
        Self::answering(world, place, TELLING_PORT, |client| {
            client.ip().to_canonical().to_string()
        })
    }

    fn answering(
        world: &World,
        place: Place,
        port: u16,
        words: impl Fn(SocketAddr) -> String + Copy + Send + Sync + 'static,
    ) -> Self {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        let (tcp, udp) = world.in_ns(place, || {
            (
                TcpListener::bind(any).unwrap(),
                UdpSocket::bind(any).unwrap(),
            )
        });
        // So that the threads see now and then that they should end.
        setsockopt(&tcp, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
        setsockopt(&udp, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let (tcp_ended, udp_ended) = (ended.clone(), ended.clone());
        let serve_tcp = move || {
            thread::scope(|scope| {
                while !tcp_ended.load(Ordering::Relaxed) {
                    if let Ok((stream, client)) = tcp.accept() {
                        // A client that is gone already is its own affair.
                        scope.spawn(move || greet(stream, &words(client)));
                    }
                }
            });
        };
        let serve_udp = move || {
            let mut buffer = vec![0; 1 << 16];
            while !udp_ended.load(Ordering::Relaxed) {
                match udp.recv_from(&mut buffer) {
                    // What is longer than a greeting comes back as it is.
                    Ok((n, client)) if n > 5 => _ = udp.send_to(&buffer[..n], client),
                    Ok((_, client)) => _ = udp.send_to(words(client).as_bytes(), client),
                    Err(_nobody_asked) => {}
                }
            }
        };
        Self {
            ended,
            threads: vec![thread::spawn(serve_tcp), thread::spawn(serve_udp)],
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(
                thread.join().is_ok() || thread::panicking(),
                "a backend panicked"
            );
        }
    }
}

fn greet(mut stream: TcpStream, words: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(patience()))?;
    let mut greeting = [0; 6];
    stream.read_exact(&mut greeting)?;
    stream.write_all(words.as_bytes())
}
