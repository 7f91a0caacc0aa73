//! Which simulated Pods answer, and the change from one set of them to the next.
//!
//! Each port is a server with its own tasks, so a change of one disturbs no other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::faults::{ActiveFaults, Faults, Injection};
use crate::model::Protocol;

use super::behaviour::Behaviour;
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
    /// What goes wrong in its answers, unless something else is turned on for it.
    pub faults: Faults,
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
    active: ActiveFaults,
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
    own: watch::Sender<Arc<Injection>>,
    tasks: TaskTracker,
    stop: DropGuard,
}

impl Simulator {
    /// Nobody answers yet. The faults that are on for a Pod take the place of its own.
    pub fn new(active: ActiveFaults) -> Self {
        Self {
            active,
            ..Self::default()
        }
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
        let mut wanted: Vec<(Place, Faults)> = Vec::new();
        for pod in pods {
            wanted.extend(pod.ports.iter().map(|(port, protocol)| {
                let place = Place {
                    namespace: pod.namespace.clone(),
                    name: pod.name.clone(),
                    addr: SocketAddr::new(pod.ip, *port),
                    protocol: *protocol,
                };
                (place, pod.faults.clone())
            }));
        }
        let places: BTreeSet<&Place> = wanted.iter().map(|(place, _)| place).collect();
        let (kept, ended) = std::mem::take(&mut self.servers)
            .into_iter()
            .partition(|(place, _)| places.contains(place));
        self.servers = kept;
        stop(ended).await;

        let mut failures = Vec::new();
        for (place, faults) in wanted {
            if let Some(server) = self.servers.get(&place) {
                server.follow(faults, &self.active);
                continue;
            }
            match Server::start(&place, faults, self.limits, &self.active).await {
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
    async fn start(
        place: &Place,
        faults: Faults,
        limits: Limits,
        active: &ActiveFaults,
    ) -> io::Result<Self> {
        let tasks = TaskTracker::new();
        let token = CancellationToken::new();
        let own = watch::Sender::new(Arc::new(active.injection(faults, Instant::now())));
        let behaviour = Behaviour::new(&place.namespace, &place.name, own.subscribe(), active);
        let addr = match place.protocol {
            Protocol::Tcp => {
                let listener = tokio::net::TcpListener::bind(place.addr).await?;
                let addr = listener.local_addr()?;
                let port = tcp::Port {
                    addr,
                    behaviour,
                    limits,
                    tasks: tasks.clone(),
                    stop: token.clone(),
                };
                tasks.spawn(
                    token
                        .clone()
                        .run_until_cancelled_owned(port.serve(listener)),
                );
                addr
            }
            Protocol::Udp => {
                let socket = tokio::net::UdpSocket::bind(place.addr).await?;
                let addr = socket.local_addr()?;
                let port = udp::Port {
                    addr,
                    behaviour,
                    tasks: tasks.clone(),
                    stop: token.clone(),
                };
                tasks.spawn(token.clone().run_until_cancelled_owned(port.serve(socket)));
                addr
            }
        };
        Ok(Self {
            addr,
            own,
            tasks,
            stop: token.drop_guard(),
        })
    }

    // Other faults begin anew, the same ones go on.
    fn follow(&self, faults: Faults, active: &ActiveFaults) {
        self.own.send_if_modified(|own| {
            let differs = *own.faults() != faults;
            if differs {
                *own = Arc::new(active.injection(faults, Instant::now()));
            }
            differs
        });
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
