//! The data path: listeners, and the flows that reach them.
//!
//! ```text
//!  control side                data threads, one per core, nothing shared but counters
//!  Dataplane ─► Listeners ─►   thread ─► accept ─► tcp connection ─► dial ─► relay
//!                (sockets)            └► udp forwarder ─► flow table ─► backend sockets
//! ```
//!
//! Every flow is looked up in the newest published table when it begins; endpoint changes touch no socket. Nothing
//! here writes upstream or waits for the control side.

mod accounts;
mod admission;
mod audible;
mod backend;
mod binding;
mod engine;
mod flow_log;
mod listeners;
mod mailbox;
mod metrics;
mod observer;
mod tcp;
mod thread;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::capture::plan::{Callers, Entry, ListenerId, ListenerSpec};
use crate::faults::ActiveFaults;
use crate::model::ServicePortKey;
use crate::net::descriptors::raise_limit;
use crate::net::streams::Liveness;
use crate::routing::{Origin, Published, RoutingTable};

use accounts::ServiceAccount;
use admission::Admission;
use audible::Audible;
use binding::Company;
use listeners::Listeners;
use thread::DataThread;

pub use listeners::{OpenError, Opened};
pub use metrics::Metrics;
pub use observer::{Carried, Observer, OpenFlow, OpenFlows, WhoseFlows};
pub use tcp::Effort;

/// What can be set.
#[derive(Clone, Debug)]
pub struct Config {
    /// Data threads; 0 = one per core.
    pub threads: usize,
    /// After how long without a datagram a UDP flow ends, where its Service does not say.
    pub udp_idle_timeout: Duration,
    /// TCP connections at a time; 0 = as many as there are descriptors for.
    pub max_flows: usize,
    /// UDP flows at a time; 0 = as many as half of the descriptors allow.
    pub max_udp_flows: usize,
    /// How much effort a new TCP connection is worth, where its Service does not say.
    pub effort: Effort,
    /// How TCP connections notice a peer that is gone without a word.
    pub liveness: Liveness,
    /// What goes wrong on purpose between clients and backends.
    pub faults: ActiveFaults,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            threads: 0,
            // Twice what kernel connection tracking grants a flow without replies.
            udp_idle_timeout: Duration::from_secs(60),
            max_flows: 0,
            max_udp_flows: 0,
            effort: Effort::default(),
            liveness: Liveness::default(),
            faults: ActiveFaults::default(),
        }
    }
}

/// The running data path. Dropped without [`Dataplane::drain`], it resets what it has.
#[derive(Debug)]
pub struct Dataplane {
    threads: Vec<DataThread>,
    listeners: Mutex<Listeners>,
    shared: Arc<Shared>,
}

/// What became of the connections that were there when draining began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Ended by themselves in time.
    pub finished: usize,
    /// Were reset.
    pub aborted: usize,
}

impl Dataplane {
    /// Raises the limit of open descriptors and starts the data threads.
    ///
    /// # Errors
    /// If a thread or its reactor cannot be made.
    pub fn start(config: Config, table: Published, metrics: Arc<Metrics>) -> io::Result<Self> {
        let threads = match config.threads {
            0 => available_parallelism()?.get(),
            n => n,
        };
        let limit = raise_limit()?;
        let admission = Admission::new(limit, threads, config.max_flows, config.max_udp_flows);
        metrics.accounts.follow(table.clone());
        let shared = Arc::new(Shared {
            table,
            metrics,
            admission,
            udp_idle_timeout: config.udp_idle_timeout,
            effort: config.effort,
            liveness: config.liveness,
            faults: config.faults,
            audible: Arc::default(),
        });
        let threads = (0..threads)
            .map(DataThread::start)
            .collect::<io::Result<Vec<_>>>()?;
        tracing::info!(
            threads = threads.len(),
            descriptors = limit,
            "data path started"
        );
        Ok(Self {
            threads,
            listeners: Mutex::new(Listeners::new(shared.clone())),
            shared,
        })
    }

    /// Opens a listener, serving or held closed, and returns where it is bound. For an open listener the state, or who is heard, changes
    /// in place, on the same port, which is never free in between.
    ///
    /// A direct listener on a loopback address whose port may not be bound (below 1024 without privilege, or taken) is
    /// bound 8000 higher or at the next free port after that. Flows are served once their table has been published.
    ///
    /// # Errors
    /// If no port can be bound or the descriptor budget is used up; a listener that was open stays as it was.
    pub async fn open(&self, spec: &ListenerSpec) -> Result<SocketAddr, OpenError> {
        let opened = self.open_in(spec, Company::Nobody).await?;
        Ok(opened.addr)
    }

    /// The same while a process of our kind may be at the address, which will end. The port is shared with it then
    /// (`SO_REUSEPORT`), and held closed for now, whatever was asked for: to serve, it is opened again. Strangers who
    /// share theirs are not told from it here, but by [`Self::accompanied`] once it has ended.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_beside(&self, spec: &ListenerSpec) -> Result<Opened, OpenError> {
        self.open_in(spec, Company::Predecessor).await
    }

    async fn open_in(&self, spec: &ListenerSpec, company: Company) -> Result<Opened, OpenError> {
        let mut listeners = self.listeners.lock().await;
        listeners.open(spec, company, &self.threads).await
    }

    /// Of the listeners that share their port with another process since they were opened, those where still somebody
    /// else is bound. Reads the kernel's lists of all sockets.
    ///
    /// # Errors
    /// There is no `/proc`, or it may not be read.
    pub async fn accompanied(&self) -> io::Result<Vec<ListenerId>> {
        self.listeners.lock().await.accompanied().await
    }

    /// Closes a listener: its port is free when this returns. Connections that were queued are accepted first, and
    /// established ones go on; UDP flows end.
    pub async fn close(&self, id: &ListenerId) {
        self.listeners.lock().await.close(id, &self.threads).await;
    }

    /// To be called after a table was published that changed these routes: ends UDP flows whose backend does not serve
    /// any more or whose service port is gone. Takes effect soon, not at once.
    pub fn routes_changed(&self, routes: &[ServicePortKey]) {
        for thread in &self.threads {
            thread.routes_changed(routes);
        }
    }

    /// Stops all listeners, waits up to `timeout` for connections to end by themselves, resets the rest and ends the
    /// data threads.
    pub async fn drain(self, timeout: Duration) -> Drained {
        let mut total = Drained::default();
        let draining: Vec<_> = self.threads.iter().map(|t| t.drain(timeout)).collect();
        for thread in draining {
            // An error means that the thread is gone, with all it had.
            let drained = thread.await.unwrap_or_default();
            total.finished += drained.finished;
            total.aborted += drained.aborted;
        }
        for thread in self.threads {
            thread.join();
        }
        total
    }

    /// Who can be asked what there is.
    pub fn observer(&self) -> Observer {
        let threads = self.threads.iter().map(DataThread::mailbox);
        let accounts = self.shared.metrics.accounts.clone();
        Observer::new(threads.collect(), accounts, self.shared.audible.clone())
    }

    /// Flows at this moment: TCP connections, UDP flows.
    pub fn active_flows(&self) -> (usize, usize) {
        self.shared.admission.active()
    }
}

/// What all data threads read.
#[derive(Debug)]
struct Shared {
    table: Published,
    metrics: Arc<Metrics>,
    admission: Admission,
    udp_idle_timeout: Duration,
    effort: Effort,
    liveness: Liveness,
    faults: ActiveFaults,
    audible: Arc<Audible>,
}

/// A listener, as its flows see it. Each data thread has its own.
#[derive(Debug)]
struct Listener {
    id: ListenerId,
    // Who is heard, where the kernel does not see to it.
    callers: Callers,
    shared: Arc<Shared>,
    account: OnceLock<Arc<ServiceAccount>>,
}

impl Listener {
    fn new(id: ListenerId, callers: Callers, shared: Arc<Shared>) -> Self {
        Self {
            id,
            callers,
            shared,
            account: OnceLock::new(),
        }
    }

    /// Whether somebody at `ip` may call.
    fn hears(&self, ip: IpAddr) -> bool {
        match &self.callers {
            Callers::All => true,
            Callers::Only(networks) => {
                let ip = ip.to_canonical();
                networks.iter().any(|network| network.contains(&ip))
            }
        }
    }

    /// Where a client at `ip` is that used the address `used`. The node calls an address that is its own from that very
    /// address.
    fn origin(&self, ip: IpAddr, used: Option<IpAddr>, table: &RoutingTable) -> Origin {
        let own = match self.id.entry {
            Entry::At(frontend, _) => Some(frontend.ip),
            Entry::Diverted => used,
            Entry::All | Entry::ClusterIp | Entry::External => None,
        };
        if own.is_some_and(|own| own.to_canonical() == ip.to_canonical()) {
            return Origin::Node;
        }
        table.node.origin(ip)
    }

    /// Its figures on this thread; opened by the first flow, because most listeners never see one.
    fn account(&self) -> &Arc<ServiceAccount> {
        let accounts = &self.shared.metrics.accounts;
        self.account
            .get_or_init(|| accounts.open(self.id.route.clone()))
    }
}
