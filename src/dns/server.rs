//! The running DNS server: its sockets, its tasks, its end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hickory_proto::rr::Name;
use ipnet::IpNet;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::net::local_addresses::LocalAddress;
use crate::net::sockets::Sharing;
use crate::routing::Published;

use super::exchange::Exchange;
use super::forward::{Forwarder, Upstreams};
use super::health::Probes;
use super::listen::Sockets;
use super::names::{Zone, parse_absolute};
use super::records::Authority;
use super::resolv_conf::Watched;
use super::succession::Succession;
use super::tcp::Connections;
use super::udp::{Listener, sockets_per_address};
use super::{
    Config, ExplainedName, Identity, InvalidDomain, Metrics, StartError, Whereabouts, listen, tcp,
};

/// How often `/etc/resolv.conf` is looked at.
const RESOLV_CONF_INTERVAL: Duration = Duration::from_secs(5);

/// How often the figures about the table are renewed.
const TABLE_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is looked whether a predecessor's addresses may be shared.
const SUCCESSION_INTERVAL: Duration = Duration::from_millis(100);

/// Octets of replies that all UDP threads together keep at hand, and the least for each.
const MEMO_OCTETS: usize = 16 << 20;
const MIN_MEMO_OCTETS: usize = 256 << 10;

/// A DNS server that answers. Dropping it stops it without waiting for anything.
pub struct Server {
    addresses: Vec<SocketAddr>,
    names: Names,
    opening: Arc<Opening>,
}

// What opens sockets, and all that it has opened.
struct Opening {
    exchange: Arc<Exchange>,
    connections: Arc<Connections>,
    succession: Succession,
    // For each thread.
    memo_octets: usize,
    open: Mutex<Open>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Open {
    // Addresses that this host has because of us.
    adopted: Vec<LocalAddress>,
    listeners: Vec<Listener>,
}

impl Server {
    /// Binds all listen addresses and answers from `table` from then on. Tasks run on the caller's runtime.
    ///
    /// Where the server that was started before it still answers, it comes in beside it as soon as `table` is complete.
    ///
    /// # Errors
    ///
    /// See [`StartError`]. Nothing stays bound then.
    pub async fn start(
        mut config: Config,
        table: Published,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let zones: Result<Vec<Zone>, _> = config.domains.iter().map(|it| Zone::parse(it)).collect();
        let zones = zones.map_err(StartError::Domain)?;
        let main_domain = config.domains.first();
        let main_domain = main_domain.ok_or(StartError::Domain(InvalidDomain(String::new())))?;
        let domain_upstreams = domain_upstreams(&config).map_err(StartError::UpstreamDomain)?;
        let succession = Succession::new(config.succession.take(), main_domain);
        let predecessor = succession.last();
        let mut sockets = Vec::with_capacity(config.listen.len());
        let mut addresses = Vec::with_capacity(config.listen.len());
        let mut taken = Vec::new();
        for address in &config.listen {
            match listen::bind(*address, &config.owned_ranges, Sharing::First) {
                Ok(bound) => {
                    addresses.extend(bound.iter().map(|pair| pair.address));
                    sockets.extend(bound);
                }
                Err(error) => {
                    let Some(predecessor) = predecessor.filter(|_| error.is_address_in_use())
                    else {
                        return Err(error);
                    };
                    let every = listen::every(*address)?;
                    if !succession.is_at(predecessor, every.clone()).await {
                        return Err(error);
                    }
                    addresses.extend(every);
                    taken.push(*address);
                }
            }
        }

        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let of_the_host = config.upstreams.is_empty();
        let of_the_host = of_the_host.then(|| Watched::new(&addresses));
        let others = of_the_host.as_ref().map(Watched::servers);
        let others = others.unwrap_or(&config.upstreams);
        let upstreams = Upstreams::new(&domain_upstreams, others, &addresses);
        let limits = Arc::new(config.limits.clone());
        let probes = Probes {
            tasks: tasks.clone(),
            stop: stop.clone(),
            metrics: metrics.clone(),
        };
        let order = config.upstream_order;
        let forwarder = Arc::new(Forwarder::new(upstreams, order, &limits, probes));
        let node_domains = config.search_completion.take();
        let node_domains = node_domains.map(|domains| {
            // What is no name is in no search list either.
            let names = domains.iter().filter_map(|domain| parse_absolute(domain));
            names.filter(|name| !name.is_root()).collect()
        });
        let owned_ranges = config.owned_ranges.clone();
        let authority = authority(config, zones, &addresses);
        let exchange = Exchange::new(
            authority,
            table.clone(),
            forwarder.clone(),
            limits.clone(),
            metrics.clone(),
        );
        let exchange = Arc::new(exchange.completing(node_domains));
        tasks.spawn(watch_table(table, metrics.clone(), stop.clone()));
        let n_threads = addresses.len() * sockets_per_address(addresses.len());
        let opening = Arc::new(Opening {
            exchange: exchange.clone(),
            connections: Arc::new(Connections::new(limits, metrics)),
            succession,
            memo_octets: (MEMO_OCTETS / n_threads.max(1)).max(MIN_MEMO_OCTETS),
            open: Mutex::default(),
            stop: stop.clone(),
            tasks: tasks.clone(),
        });
        opening.open(sockets)?;
        match predecessor.filter(|_| !taken.is_empty()) {
            Some(predecessor) => {
                let succeeding = opening.clone().succeed(predecessor, taken, owned_ranges);
                tasks.spawn(succeeding);
            }
            None => opening.claim(),
        }
        // What comes back is noticed because the sockets are open by now.
        forwarder.probe_for_loops();
        if let Some(watched) = of_the_host {
            let (own, stop) = (addresses.clone(), stop.clone());
            let following = follow_resolv_conf(watched, forwarder, domain_upstreams, own, stop);
            tasks.spawn(following);
        }
        Ok(Self {
            names: Names(exchange, addresses.clone()),
            addresses,
            opening,
        })
    }

    /// Where it listens, in the order of the configuration: every address of a wildcard, ports as they were given.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What explains its answers.
    pub fn names(&self) -> Names {
        self.names.clone()
    }

    /// Takes no more questions, and finishes those under way; gives up on them after `timeout`. Where another server has
    /// come in beside this one, it gets whatever is asked from now on.
    pub async fn shutdown(self, timeout: Duration) {
        let Opening {
            exchange,
            succession,
            stop,
            tasks,
            ..
        } = &*self.opening;
        stop.cancel();
        let Open { adopted, listeners } = self.opening.take();
        for listener in &listeners {
            listener.stop();
        }
        let ended = async {
            let joining = tokio::task::spawn_blocking(|| {
                listeners.into_iter().for_each(Listener::join);
            });
            if let Err(error) = joining.await {
                tracing::error!(%error, "DNS listeners not ended");
            }
            // Threads are gone, so nobody starts another one.
            tasks.close();
            tasks.wait().await;
        };
        if tokio::time::timeout(timeout, ended).await.is_err() {
            tracing::warn!(unanswered = tasks.len(), "DNS questions left unanswered");
        }
        if succession.is_superseded(exchange.identity()) {
            adopted.into_iter().for_each(LocalAddress::leave);
        }
    }
}

impl Opening {
    // Answers what comes to these sockets.
    fn open(&self, sockets: Vec<Sockets>) -> Result<(), StartError> {
        for pair in sockets {
            let address = pair.address;
            for socket in pair.udp {
                let listener = Listener::start(
                    socket,
                    self.exchange.clone(),
                    self.memo_octets,
                    Handle::current(),
                    self.tasks.clone(),
                );
                self.lock()
                    .listeners
                    .push(listener.map_err(StartError::Thread)?);
            }
            self.lock().adopted.extend(pair.adopted);
            self.tasks.spawn(tcp::serve(
                pair.tcp,
                self.exchange.clone(),
                self.connections.clone(),
                self.tasks.clone(),
                self.stop.clone(),
            ));
            tracing::info!(%address, "DNS listening");
        }
        Ok(())
    }

    // Comes in beside the server that has the addresses: once there is as much to say, or when it has gone.
    async fn succeed(
        self: Arc<Self>,
        predecessor: Identity,
        taken: Vec<SocketAddr>,
        owned_ranges: Vec<IpNet>,
    ) {
        tracing::info!(addresses = ?taken, "DNS comes in beside the server before it once the state is complete");
        let mut ticks = tokio::time::interval(SUCCESSION_INTERVAL);
        for address in taken {
            loop {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                let every = listen::every(address).unwrap_or_default();
                let knows = self.exchange.table().load().synced;
                if !knows && self.succession.is_at(predecessor, every).await {
                    continue;
                }
                let bound = listen::bind(address, &owned_ranges, Sharing::Join);
                match bound.and_then(|sockets| self.open(sockets)) {
                    Ok(()) => break,
                    Err(error) => tracing::error!(%error, "DNS not taken over; it is tried again"),
                }
            }
        }
        self.claim();
    }

    fn claim(&self) {
        if let Err(error) = self.succession.claim(self.exchange.identity()) {
            tracing::warn!(%error, "a later process cannot take DNS over without a gap");
        }
    }

    // Everything that was opened.
    fn take(&self) -> Open {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Explains names as the server answers them. Cheap to clone; outlives the server.
#[derive(Clone, Debug)]
pub struct Names(Arc<Exchange>, Vec<SocketAddr>);

impl Names {
    /// How to find out who reaches this server.
    pub fn whereabouts(&self) -> Whereabouts {
        let authority = self.0.authority();
        let table = self.0.table().load_full();
        let service = table.service(&authority.dns_service);
        Whereabouts {
            identity: self.0.identity(),
            addresses: self.1.clone(),
            domain: authority.main_zone().apex.to_ascii(),
            service: authority.dns_service.to_string(),
            service_ips: service.map_or_else(Vec::new, |entry| entry.service.cluster_ips.clone()),
        }
    }

    /// How `name` is answered at this moment, and from which object.
    ///
    /// # Errors
    ///
    /// The text is no DNS name.
    pub fn explain(&self, name: &str) -> Result<ExplainedName, InvalidDomain> {
        let parsed = parse_absolute(name).ok_or_else(|| InvalidDomain(name.to_owned()))?;
        Ok(self.0.explain(&parsed))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.opening.stop.cancel();
        drop(self.opening.take());
    }
}

fn domain_upstreams(config: &Config) -> Result<Vec<(Name, SocketAddr)>, InvalidDomain> {
    let parse = |(domain, addr): &(String, SocketAddr)| {
        let name = parse_absolute(domain).ok_or_else(|| InvalidDomain(domain.clone()))?;
        Ok((name, *addr))
    };
    config.domain_upstreams.iter().map(parse).collect()
}

fn authority(config: Config, zones: Vec<Zone>, addresses: &[SocketAddr]) -> Authority {
    Authority {
        zones,
        pods: config.pods,
        dns_service: config.dns_service,
        own_addresses: addresses.iter().map(SocketAddr::ip).collect(),
        hide_empty: config.hide_empty,
        ttl: config.ttl,
        negative_ttl: config.negative_ttl,
        max_aliases: config.limits.aliases,
        owned_ranges: config.owned_ranges,
    }
}

// Tells how large and how old the table is that is answered from.
async fn watch_table(table: Published, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TABLE_INTERVAL);
    let mut seen = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let table = table.load_full();
        if seen == Some(table.generation) {
            continue;
        }
        seen = Some(table.generation);
        let services = i64::try_from(table.services().count());
        metrics.table_services.set(services.unwrap_or(i64::MAX));
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = now.map_or(0, |since| since.as_secs());
        metrics
            .table_time
            .set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}

async fn follow_resolv_conf(
    mut watched: Watched,
    forwarder: Arc<Forwarder>,
    domain_upstreams: Vec<(Name, SocketAddr)>,
    own: Vec<SocketAddr>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(RESOLV_CONF_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if watched.look(&own) {
            let others = watched.servers();
            tracing::info!(upstreams = others.len(), "resolv.conf changed");
            forwarder.replace_upstreams(Upstreams::new(&domain_upstreams, others, &own));
        }
    }
}

#[cfg(test)]
#[path = "server_tests/mod.rs"]
mod tests;
