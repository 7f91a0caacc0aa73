//! Which health-check node ports answer, and the change from one set of them to the next.
//!
//! Each port at each address is one task that owns its listener and its connections, so a change of one disturbs no
//! other, and the end of the task is the end of all that it had open.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info};

use crate::model::ServiceName;
use crate::net::connections::Connections;
use crate::net::sockets::{Bound, Sharing, Transport};
use crate::routing::HealthCheck;
use crate::telemetry::Health;

use super::answer::{self, ProxyHealth, Told};

/// Connections of one port at one address. The next one ends the oldest, so that nobody who only holds connections open
/// keeps a balancer waiting.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// How long a port rests when no connection can be taken: without descriptors, trying at once would spin.
const REST: Duration = Duration::from_millis(100);

/// The health-check node ports that answer at this moment. Dropping it ends them; [`Self::shutdown`] waits for it.
#[derive(Debug)]
pub struct HealthCheckPorts {
    proxy: ProxyHealth,
    ports: BTreeMap<Place, Port>,
}

/// A health-check node port that could not be bound. The next [`HealthCheckPorts::set`] tries again.
#[derive(Debug, thiserror::Error)]
#[error("health-check node port of {service} cannot be bound at {bind}: {source}")]
pub struct Unbound {
    /// Whose it is.
    pub service: ServiceName,
    /// The address that was asked for.
    pub bind: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

// An address that passes to another Service is another place: whoever kept a connection notices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    service: ServiceName,
    bind: SocketAddr,
}

#[derive(Debug)]
struct Port {
    addr: SocketAddr,
    told: Arc<Told>,
    task: JoinHandle<()>,
    stop: DropGuard,
}

impl HealthCheckPorts {
    /// No port answers yet. `health` is that of the proxy itself, in which a change may wait for `timeout`.
    pub fn new(health: Health, timeout: Duration) -> Self {
        Self {
            proxy: ProxyHealth { health, timeout },
            ports: BTreeMap::new(),
        }
    }

    /// Makes exactly these answer: ports that are no longer wanted end, with their connections, before new ones begin;
    /// others only learn what to tell. Returns what could not be bound. IPv6 wildcards leave IPv4 alone.
    pub async fn set(&mut self, wanted: &[HealthCheck]) -> Vec<Unbound> {
        let wanted: BTreeMap<Place, usize> = wanted
            .iter()
            .map(|check| (Place::of(check), check.local_endpoints))
            .collect();
        let (kept, ended) = std::mem::take(&mut self.ports)
            .into_iter()
            .partition(|(place, _)| wanted.contains_key(place));
        self.ports = kept;
        stop(ended).await;

        let mut unbound = Vec::new();
        for (place, local_endpoints) in wanted {
            if let Some(port) = self.ports.get(&place) {
                let told = &port.told.local_endpoints;
                told.store(local_endpoints, Ordering::Relaxed);
                continue;
            }
            match Port::start(&place, local_endpoints, &self.proxy) {
                Ok(port) => {
                    info!(service = %place.service, frontend = %port.addr, "health-check node port answers");
                    self.ports.insert(place, port);
                }
                Err(source) => unbound.push(Unbound {
                    service: place.service,
                    bind: place.bind,
                    source,
                }),
            }
        }
        unbound
    }

    /// Where each Service's ports were really bound.
    pub fn addresses(&self) -> impl Iterator<Item = (&ServiceName, SocketAddr)> {
        self.ports
            .iter()
            .map(|(place, port)| (&place.service, port.addr))
    }

    /// Ends all of them, and returns when their sockets are closed.
    pub async fn shutdown(self) {
        stop(self.ports).await;
    }
}

impl Place {
    fn of(check: &HealthCheck) -> Self {
        Self {
            service: check.service.clone(),
            bind: check.bind,
        }
    }
}

impl Port {
    fn start(place: &Place, local_endpoints: usize, proxy: &ProxyHealth) -> io::Result<Self> {
        let bound = Bound::new(Transport::Tcp, place.bind, Sharing::First)?;
        let addr = bound.addr;
        let listener = TcpListener::from_std(bound.listen()?)?;
        let told = Arc::new(Told {
            service: place.service.clone(),
            local_endpoints: AtomicUsize::new(local_endpoints),
            proxy: proxy.clone(),
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, told.clone(), stop.clone()));
        Ok(Self {
            addr,
            told,
            task,
            stop: stop.drop_guard(),
        })
    }
}

// All are told first, then waited for.
async fn stop(ports: BTreeMap<Place, Port>) {
    let mut ending = Vec::new();
    for (place, port) in ports {
        info!(service = %place.service, frontend = %port.addr, "health-check node port ends");
        drop(port.stop);
        ending.push(port.task);
    }
    for task in ending {
        if let Err(error) = task.await {
            tracing::error!(%error, "health-check node port ended by itself");
        }
    }
}

async fn serve(listener: TcpListener, told: Arc<Told>, stop: CancellationToken) {
    let mut connections = Connections::new(MAX_CONNECTIONS);
    let accepting = accept(&listener, &told, &mut connections);
    stop.run_until_cancelled(accepting).await;
    drop(listener);
    connections.end().await;
}

async fn accept(listener: &TcpListener, told: &Arc<Told>, connections: &mut Connections) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let told = told.clone();
                connections.add(async move {
                    if let Err(error) = answer::serve(stream, &told).await {
                        debug!(service = %told.service, %client, %error, "health-check connection ended");
                    }
                });
            }
            Err(error) => {
                debug!(service = %told.service, %error, "no health-check connection taken");
                tokio::time::sleep(REST).await;
            }
        }
    }
}
