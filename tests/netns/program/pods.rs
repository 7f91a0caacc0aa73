//! Pods that come and go while there is load: each with an address of its own at another node of the world.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::world::{Place, World};

/// The port that they serve.
pub(super) const PORT: u16 = 9090;

/// How long nobody must have come before a Pod that was told to end stops listening, as `preStop` hooks have it.
const QUIET: Duration = Duration::from_millis(300);

/// A message of a client; the Pod answers with its address and stays for the next one.
pub(super) const HELLO: &[u8; 6] = b"hello\n";

/// A running Pod.
pub(super) struct Pod {
    pub(super) ip: IpAddr,
    end: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Pod {
    /// Number `number` starts: 10.244.1.`number`, from 100 on.
    pub(super) fn start(world: &World, runtime: &Runtime, number: u8) -> Self {
        let ip: IpAddr = Ipv4Addr::new(10, 244, 1, number).into();
        world.shell(Place::Remote, &format!("ip addr add {ip}/24 dev eth0"));
        let listener = world.in_ns(Place::Remote, || {
            std::net::TcpListener::bind((ip, PORT)).unwrap()
        });
        listener.set_nonblocking(true).unwrap();
        let (end, ended) = oneshot::channel();
        let serving = runtime.spawn(async move {
            serve(TcpListener::from_std(listener).unwrap(), ended, ip).await;
        });
        Self { ip, end, serving }
    }

    /// It finishes what it has, and is gone with its address.
    pub(super) fn retire(self, world: &World, runtime: &Runtime) {
        self.end.send(()).unwrap();
        runtime.block_on(self.serving).unwrap();
        world.shell(
            Place::Remote,
            &format!("ip addr del {}/24 dev eth0", self.ip),
        );
    }

    /// From now on it hears nothing of whoever wants to connect.
    pub(super) fn deafen(&self, world: &World) {
        let rule = format!(
            "nft add table ip deaf; nft 'add chain ip deaf in {{ type filter hook input priority 0; }}'; \
             nft add rule ip deaf in ip daddr {} tcp flags syn drop",
            self.ip
        );
        world.shell(Place::Remote, &rule);
    }
}

async fn serve(listener: TcpListener, mut ended: oneshot::Receiver<()>, ip: IpAddr) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                clients.spawn(answer(accepted.unwrap().0, ip));
            }
            _told = &mut ended => break,
        }
    }
    while let Ok(accepted) = timeout(QUIET, listener.accept()).await {
        clients.spawn(answer(accepted.unwrap().0, ip));
    }
    drop(listener);
    // A client that went away is its own affair.
    while clients.join_next().await.is_some() {}
}

async fn answer(mut client: TcpStream, ip: IpAddr) -> io::Result<()> {
    let mut hello = [0; HELLO.len()];
    loop {
        client.read_exact(&mut hello).await?;
        client.write_all(format!("{ip}\n").as_bytes()).await?;
    }
}

/// How an endpoint is, as its conditions say.
#[derive(Clone, Copy)]
pub(super) enum State {
    Ready,
    Unready,
    Terminating,
}

/// A slice of the Service `default/web` with these endpoints, as a manifest.
pub(super) fn slice(endpoints: &[(IpAddr, State)]) -> String {
    slice_of("web", endpoints)
}

/// The same for a Service of another name.
pub(super) fn slice_of(name: &str, endpoints: &[(IpAddr, State)]) -> String {
    let endpoints: String = endpoints
        .iter()
        .map(|(ip, state)| {
            let conditions = match state {
                State::Ready => "ready: true",
                State::Unready => "ready: false, serving: false",
                State::Terminating => "ready: false, serving: true, terminating: true",
            };
            format!("{{addresses: ['{ip}'], nodeName: n1, conditions: {{{conditions}}}}}, ")
        })
        .collect();
    format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-pods, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: t, port: {PORT}, protocol: TCP}}]
endpoints: [{endpoints}]
"
    )
}

/// A connection that says hello, and who answered.
pub(super) async fn greet(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(HELLO).await?;
    let mut answer = String::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).await?;
        answer.push(char::from(byte[0]));
    }
    Ok(answer.trim_end().to_owned())
}
