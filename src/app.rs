//! The composition: builds every part from a [`Config`], ties them together and ends them in order.
//!
//! ```text
//!  start: data threads ─ admin ─ DNS ─ health, metrics ─ sources ─ reconciler
//!  stop:  sources, reconciler (captures nothing new) ─ DNS ─ drain ─ rules, simulated Pods ─ admin, health, metrics
//! ```

mod kernel_settings;
mod places;
mod sources;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use prometheus::Registry;
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use crate::admin::{self, AdminServer, HealthServer, MetricsServer, Sources};
use crate::balancers::Algorithms;
use crate::capture::{self, Capture, Climbed, Mode};
use crate::config::{self, Config};
use crate::control::PublishedObjects;
use crate::dataplane::{self, Dataplane};
use crate::dns;
use crate::faults::{self, ActiveFaults};
use crate::health_checks::HealthCheckPorts;
use crate::net::streams::Liveness;
use crate::readiness::Readiness;
use crate::reconciler::{self, Draining, Parts, Reconciler, Tuning};
use crate::routing::{Published, TableBuilder};
use crate::sources::kube::{self, Contact, Notice};
use crate::sources::manifests::WatchError;
use crate::sources::prober::{self, Prober};
use crate::telemetry::{self, Health};
use crate::workload::Simulator;

use kernel_settings::{set_migration, set_oom_score, set_tracking_limits};
use places::{NEXT_FREE, Place, shifted};
use sources::{SourceParts, local_pods, start_sources};

pub use sources::control_plane;

/// How long DNS may finish what it has begun.
const DNS_GRACE: Duration = Duration::from_secs(2);

/// Everything, running.
pub struct App {
    addresses: Addresses,
    sources: Sources,
    readiness: Readiness,
    drain_timeout: Duration,
    tuning: watch::Sender<Tuning>,
    configz: Arc<ArcSwap<Value>>,
    dataplane: Arc<Dataplane>,
    dns: Option<dns::Server>,
    servers: Part,
    control: Part,
    reconciler: JoinHandle<Draining>,
    failed: oneshot::Receiver<WatchError>,
}

/// Where things really listen.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// DNS, UDP and TCP alike.
    pub dns: Vec<SocketAddr>,
    /// Health.
    pub healthz: Option<SocketAddr>,
    /// Metrics.
    pub metrics: Option<SocketAddr>,
    /// The admin socket.
    pub admin: PathBuf,
}

// Tasks that end together.
#[derive(Default)]
struct Part {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Part {
    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl App {
    /// Builds and starts everything.
    ///
    /// # Errors
    ///
    /// What keeps the process from its job: no family can be captured, an address or the admin socket is taken, the
    /// service CIDR does not do. Each names its flag.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        if config.masquerade_all {
            info!(
                flag = "masquerade-all",
                "nothing to do: backends see this node as the client of every flow"
            );
        }
        set_oom_score(&config);
        let registry = telemetry::registry().context("registering metrics")?;
        let (table, objects) = (Published::default(), PublishedObjects::default());
        let faults =
            ActiveFaults::new(faults::Metrics::new(&registry).context("registering metrics")?);
        let (health, readiness) = (Health::default(), Readiness::default());
        let synced = readiness.block("initial state");
        // How long a change may wait before the proxy counts as unhealthy, as in kube-proxy.
        let health_timeout = 2 * config.sync_period;
        let (servers, control) = (Part::default(), Part::default());
        let contact = Contact::default();
        let (notices, noticed) = kube::notices();

        let admin = AdminServer::bind(&config.admin_socket).await?;
        // Before anything else is begun: it may be the end.
        let healthz_place = Place::bind("healthz-bind-address", config.healthz, &config).await?;
        let metrics_place = Place::bind("metrics-bind-address", config.metrics, &config).await?;
        let capture_metrics = capture::Metrics::new(&registry).context("registering metrics")?;
        let captures = open_captures(&config, &capture_metrics, &health).await?;
        // Only now: a kernel that loads connection tracking when it is needed has it after the first rule.
        set_tracking_limits(&config);
        if captures.iter().any(|capture| capture.mode() == Mode::Local) {
            set_migration();
        }
        let mode = captures.first().map_or(Mode::None, |first| first.mode());
        let is_handed_over = captures.iter().any(|capture| match capture.mode() {
            Mode::Nftables | Mode::Iptables | Mode::Tproxy | Mode::Local => true,
            // Nothing is left in the kernel, and two of them run side by side.
            Mode::Loopback | Mode::None => false,
        });
        let rules_owner = is_handed_over.then(|| config.data_dir.join("rules-owners"));
        let metrics = Arc::new(dataplane::Metrics::new(&registry).context("registering metrics")?);
        let dataplane = Dataplane::start(
            dataplane::Config {
                threads: config.data_threads,
                udp_idle_timeout: config.udp_idle_timeout,
                faults: faults.clone(),
                effort: dataplane::Effort {
                    connect_timeout: config.connect_timeout,
                    retries: config.retries,
                },
                liveness: Liveness {
                    keepalive: config.tcp_keepalive,
                    user_timeout: config.tcp_user_timeout,
                },
                ..dataplane::Config::default()
            },
            table.clone(),
            metrics,
        );
        let dataplane = Arc::new(dataplane.context("starting the data threads")?);
        let dns = start_dns(&config, &table, &registry).await?;
        let sources = Sources {
            objects: objects.clone(),
            table: table.clone(),
            observer: dataplane.observer(),
            faults: faults.clone(),
            contact: contact.clone(),
            names: dns.as_ref().map(dns::Server::names),
        };
        let probe_metrics = prober::Metrics::new(&registry).context("registering metrics")?;
        let (prober, reports) = Prober::new(config.exec_probes, probe_metrics);

        let mut addresses = Addresses {
            admin: config.admin_socket.clone(),
            ..Addresses::default()
        };
        addresses.dns = dns
            .as_ref()
            .map(|server| server.addresses().to_vec())
            .unwrap_or_default();
        servers
            .tasks
            .spawn(admin.serve(sources.clone(), servers.stop.clone()));
        let probes = HealthServer {
            health: health.clone(),
            readiness: readiness.clone(),
            contact: contact.clone(),
            timeout: health_timeout,
            answers: admin::Answers::new(&registry).context("registering metrics")?,
        };
        let (tuning, tuned) = watch::channel(tuning_of(&config));
        let source_parts = SourceParts {
            tuning: tuned,
            config: &config,
            part: &control,
            readiness: &readiness,
            table: &table,
            objects: &objects,
            contact: &contact,
            registry: &registry,
        };
        let (inputs, failed) = start_sources(&source_parts, reports, noticed)?;
        let loop_metrics = reconciler::Metrics::new(&registry).context("registering metrics")?;
        let configz = Arc::new(ArcSwap::from_pointee(config::configz(&config)));
        let metrics_server = MetricsServer {
            registry,
            mode: mode.as_str(),
            configz: configz.clone(),
        };
        addresses.healthz =
            healthz_place.map(|place| place.serve_health(probes, &servers, &notices));
        addresses.metrics =
            metrics_place.map(|place| place.serve_metrics(metrics_server, &servers, &notices));

        let parts = Parts {
            metrics: loop_metrics,
            notices: notices.clone(),
            node_name: config.node_name.clone(),
            local_pods: local_pods(&config),
            builder: TableBuilder::new(Arc::new(Algorithms::default()), config.algorithm)
                .ejecting(config.outlier_ejection)
                .reserving(addresses.dns.iter().copied()),
            table,
            objects,
            dataplane: dataplane.clone(),
            captures,
            rules_owner,
            health_checks: HealthCheckPorts::new(health.clone(), health_timeout),
            simulator: Simulator::new(faults.clone()),
            prober,
            health,
            sync_period: config.sync_period,
        };
        let reconciler =
            control
                .tasks
                .spawn(Reconciler::new(parts).run(inputs, synced, control.stop.clone()));
        notices.tell(Notice::starting());
        info!(node = %config.node_name, capture = %mode, source = %config.source, dns = ?addresses.dns,
            healthz = ?addresses.healthz, metrics = ?addresses.metrics, admin = %addresses.admin.display(), "viaduct is running");
        Ok(Self {
            addresses,
            sources,
            readiness,
            drain_timeout: config.drain_timeout,
            tuning,
            configz,
            dataplane,
            dns,
            servers,
            control,
            reconciler,
            failed,
        })
    }

    /// Takes over a configuration that differs in nothing but keys of [`config::LIVE_KEYS`].
    pub fn take_over(&mut self, config: &Config) {
        set_oom_score(config);
        set_tracking_limits(config);
        self.drain_timeout = config.drain_timeout;
        self.configz.store(Arc::new(config::configz(config)));
        self.tuning.send_replace(tuning_of(config));
    }

    /// Where things listen.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// What views are made from.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// What start-up still waits for.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Ends when the manifests could not be read at all, with the reason; otherwise never.
    pub async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.failed).await {
            Ok(error) => error.into(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends everything in order: nothing new is captured, flows drain, then the servers go.
    pub async fn stop(self) {
        info!(drain_timeout = ?self.drain_timeout, "stopping");
        self.control.end().await;
        if let Some(dns) = self.dns {
            dns.shutdown(DNS_GRACE).await;
        }
        let draining = self.reconciler.await;
        // The reconciler held the only other handle, and it has ended.
        if let Some(dataplane) = Arc::into_inner(self.dataplane) {
            let drained = dataplane.drain(self.drain_timeout).await;
            info!(
                finished = drained.finished,
                aborted = drained.aborted,
                "drained"
            );
        }
        match draining {
            // As large as what each mode needs to remove its rules.
            Ok(draining) => Box::pin(draining.finish()).await,
            Err(error) => {
                error!(%error, "the reconciler had died; `viaduct cleanup` removes what it left")
            }
        }
        self.servers.end().await;
    }
}

fn tuning_of(config: &Config) -> Tuning {
    Tuning {
        node_port_addresses: config.node_port_addresses.clone(),
        localhost_node_ports: config.localhost_node_ports,
        min_sync_period: config.min_sync_period,
    }
}

// One family that cannot be captured does not stop the other; none at all does.
async fn open_captures(
    config: &Config,
    metrics: &capture::Metrics,
    health: &Health,
) -> anyhow::Result<Vec<Box<dyn Capture>>> {
    let mut captures = Vec::new();
    if config.capture.is(Mode::None) {
        return Ok(captures);
    }
    let (mut chosen, mut refused) = (Vec::new(), Vec::new());
    for family in config.families() {
        let refusals = match config.capture.climb(family, metrics).await {
            Ok(Climbed { capture, refusals }) => {
                chosen.push(format!("{family}: {}", capture.mode()));
                captures.push(capture);
                refusals
            }
            Err(refusals) => {
                error!(%family, modes = %config.capture, %refusals, "family cannot be captured");
                health.failed(family.as_str(), refusals.to_string());
                refusals
            }
        };
        if !refusals.0.is_empty() {
            refused.push(format!("{family}: {refusals}"));
        }
    }
    let refused = refused.join("; ");
    if captures.is_empty() {
        anyhow::bail!("--capture {}: {refused}", config.capture);
    }
    info!(chosen = chosen.join(", "), refused, "capture modes chosen");
    Ok(captures)
}

async fn start_dns(
    config: &Config,
    table: &Published,
    registry: &Registry,
) -> anyhow::Result<Option<dns::Server>> {
    if config.dns.listen.is_empty() {
        return Ok(None);
    }
    let metrics = Arc::new(dns::Metrics::new(registry).context("registering metrics")?);
    let mut wanted = dns::Config {
        listen: config.dns.listen.clone(),
        domains: config.dns.domains.clone(),
        upstreams: config.dns.upstreams.clone(),
        upstream_order: config.dns.upstream_order,
        domain_upstreams: config.dns.domain_upstreams.clone(),
        pods: config.dns.pods,
        dns_service: config.dns.service.clone(),
        hide_empty: config.dns.hide_empty,
        search_completion: config.dns.search_completion.then(dns::search_domains),
        ttl: config.dns.ttl,
        negative_ttl: config.dns.negative_ttl,
        limits: config.dns.limits.clone(),
        // In `dev` each has ports of its own.
        succession: (!config.dev).then(|| config.data_dir.join("dns-server")),
        owned_ranges: config.service_cidrs.clone(),
    };
    let first = wanted.listen.clone();
    for offset in 0..=NEXT_FREE {
        wanted.listen = first
            .iter()
            .map(|address| shifted(*address, offset))
            .collect();
        match dns::Server::start(wanted.clone(), table.clone(), metrics.clone()).await {
            Ok(server) => return Ok(Some(server)),
            Err(error) if config.dev && error.is_address_in_use() && offset < NEXT_FREE => {}
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("the last try returns")
}
