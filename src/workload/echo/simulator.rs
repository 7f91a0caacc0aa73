//! Which simulated Pods answer, and the change from one set of them to the next.
//!
//! Each port is a server with its own tasks, so a change of one disturbs no other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::model::Protocol;

use super::{Limits, tcp, udp};

/// A Pod to stand in for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimulatedPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name, which the answers give.
    pub name: String,
    /// Where it answers; an address of this machine.
    pub ip: IpAddr,
    /// The TCP and UDP ports of its containers. Port 0 takes any free one, see [`Simulator::addresses`].
    pub ports: Vec<(u16, Protocol)>,
}

/// A port of a simulated Pod that could not be bound. The next [`Simulator::set`] tries again.
#[derive(Debug, thiserror::Error)]
#[error("simulated pod {namespace}/{name} cannot answer at {addr}/{protocol}: {error}")]
pub struct BindFailure {
    /// The namespace of the Pod.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The address that was asked for.
    pub addr: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// What the kernel said.
    pub error: io::Error,
}

/// The simulated Pods that answer at this moment. Owns their tasks: dropping it ends them.
#[derive(Debug, Default)]
pub struct Simulator {
    servers: BTreeMap<Place, Server>,
    limits: Limits,
}

/// What a server is for: who answers, and the address that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    namespace: String,
    name: String,
    addr: SocketAddr,
    protocol: Protocol,
}

#[derive(Debug)]
struct Server {
    addr: SocketAddr,
    tasks: TaskTracker,
    stop: DropGuard,
}

impl Simulator {
    /// Nobody answers yet.
    pub fn new() -> Self {
        Self::default()
    }

    #[cfg(test)]
    pub(super) fn with_limits(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Makes exactly these Pods answer: ports that are no longer wanted end, with their connections, before new ones
    /// begin, and unchanged ones are not disturbed. Returns what could not be bound.
    pub async fn set(&mut self, pods: Vec<SimulatedPod>) -> Vec<BindFailure> {
        // In the order given, so that of two Pods that claim one address the first has it.
        let mut wanted: Vec<Place> = Vec::new();
        for pod in pods {
            wanted.extend(pod.ports.iter().map(|(port, protocol)| Place {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                addr: SocketAddr::new(pod.ip, *port),
                protocol: *protocol,
            }));
        }
        let places: BTreeSet<&Place> = wanted.iter().collect();
        let (kept, ended) = std::mem::take(&mut self.servers)
            .into_iter()
            .partition(|(place, _)| places.contains(place));
        self.servers = kept;
        stop(ended).await;

        let mut failures = Vec::new();
        for place in wanted {
            if self.servers.contains_key(&place) {
                continue;
            }
            match Server::start(&place, self.limits).await {
                Ok(server) => {
                    tracing::info!(pod = %place.name, addr = %server.addr, protocol = %place.protocol, "simulated pod answers");
                    self.servers.insert(place, server);
                }
                Err(error) => failures.push(BindFailure {
                    namespace: place.namespace,
                    name: place.name,
                    addr: place.addr,
                    protocol: place.protocol,
                    error,
                }),
            }
        }
        failures
    }

    /// Who answers where: the Pod's name and the address that was really bound.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, SocketAddr, Protocol)> {
        self.servers
            .iter()
            .map(|(place, server)| (place.name.as_str(), server.addr, place.protocol))
    }

    /// Ends all of them, and returns when their last task has.
    pub async fn shutdown(self) {
        stop(self.servers).await;
    }
}

impl Server {
    async fn start(place: &Place, limits: Limits) -> io::Result<Self> {
        let tasks = TaskTracker::new();
        let token = CancellationToken::new();
        let pod: Arc<str> = place.name.as_str().into();
        let addr = match place.protocol {
            Protocol::Tcp => {
                let listener = tokio::net::TcpListener::bind(place.addr).await?;
                let addr = listener.local_addr()?;
                let serve = tcp::serve(listener, pod, limits, tasks.clone(), token.clone());
                tasks.spawn(token.clone().run_until_cancelled_owned(serve));
                addr
            }
            Protocol::Udp => {
                let socket = tokio::net::UdpSocket::bind(place.addr).await?;
                let addr = socket.local_addr()?;
                let serve = udp::serve(socket, pod);
                tasks.spawn(token.clone().run_until_cancelled_owned(serve));
                addr
            }
        };
        Ok(Self {
            addr,
            tasks,
            stop: token.drop_guard(),
        })
    }
}

// All are told first, then waited for.
async fn stop(servers: BTreeMap<Place, Server>) {
    let mut ending = Vec::new();
    for (place, server) in servers {
        tracing::info!(pod = %place.name, addr = %server.addr, protocol = %place.protocol, "simulated pod ends");
        drop(server.stop);
        server.tasks.close();
        ending.push(server.tasks);
    }
    for tasks in ending {
        tasks.wait().await;
    }
}
