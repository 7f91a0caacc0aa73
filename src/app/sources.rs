//! The composition's way in: starts the source that the configuration names, and follows the node's addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use prometheus::Registry;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use crate::config::{self, Config, DetectLocal};
use crate::control::{self, ControlPlane, OwnNode, PublishedObjects};
use crate::dns::PodMode;
use crate::readiness::Readiness;
use crate::reconciler::{Inputs, LocalPods, Manifests, Source, Tuning};
use crate::routing::Published;
use crate::sources::interfaces;
use crate::sources::kube::{self, Contact, DnsNeeds, Noticed};
use crate::sources::manifests::{self, WatchError};
use crate::sources::pod_networks::watch_pod_networks;
use crate::sources::prober::ProbeReport;

use super::Part;

/// Batches of manifest updates that may wait for the reconciler; past it the directory is simply read later.
const MANIFEST_BATCHES: usize = 16;

/// How often the state of a cluster is written to disk, if it has changed: seldom enough that steady change costs little,
/// and what is missed is what has changed within the last half minute before a crash.
const KEEP_PERIOD: Duration = Duration::from_secs(30);

/// What starts sources.
pub(super) struct SourceParts<'a> {
    pub(super) config: &'a Config,
    pub(super) part: &'a Part,
    pub(super) readiness: &'a Readiness,
    pub(super) table: &'a Published,
    pub(super) objects: &'a PublishedObjects,
    pub(super) contact: &'a Contact,
    pub(super) registry: &'a Registry,
    pub(super) tuning: watch::Receiver<Tuning>,
}

/// Starts the sources. The second value ends when there is nothing to serve at all.
pub(super) fn start_sources(
    parts: &SourceParts<'_>,
    probes: mpsc::Receiver<ProbeReport>,
    noticed: Noticed,
) -> anyhow::Result<(Inputs, oneshot::Receiver<WatchError>)> {
    let addresses = follow_addresses(parts).context("reading the node's addresses")?;
    let (failure, failed) = oneshot::channel();
    let source = match &parts.config.source {
        config::Source::Manifests(directory) => {
            let directory = manifests::Directory::new(directory.clone());
            let local = addresses.borrow().clone();
            let local = local.into_iter().filter(|ip| !ip.is_loopback());
            let control = control_plane(parts.config, local.collect())?;
            Source::Manifests(Box::new(follow_manifests(
                parts, control, directory, probes, failure,
            )))
        }
        config::Source::Cluster(access) => {
            Source::Cluster(follow_cluster(parts, access.clone(), noticed)?)
        }
    };
    let inputs = Inputs {
        source,
        addresses,
        tuning: parts.tuning.clone(),
        pod_networks: follow_pods(parts),
    };
    Ok((inputs, failed))
}

/// Who counts as a Pod of this node.
pub(super) fn local_pods(config: &Config) -> LocalPods {
    match config.detect_local {
        DetectLocal::ClusterCidr(_) | DetectLocal::Interfaces(_) => LocalPods::InNetworks,
        DetectLocal::NodeCidr => LocalPods::OfNode,
    }
}

fn follow_pods(parts: &SourceParts<'_>) -> watch::Receiver<BTreeSet<IpNet>> {
    let (sender, networks) = watch::channel(BTreeSet::new());
    match &parts.config.detect_local {
        DetectLocal::ClusterCidr(cidrs) => {
            sender.send_replace(cidrs.iter().copied().collect());
        }
        DetectLocal::NodeCidr => {}
        DetectLocal::Interfaces(interfaces) => {
            let stop = parts.part.stop.clone();
            let following = watch_pod_networks(interfaces.clone(), sender, stop);
            parts.part.tasks.spawn(following);
        }
    }
    networks
}

fn follow_manifests(
    parts: &SourceParts<'_>,
    control: ControlPlane,
    directory: manifests::Directory,
    probes: mpsc::Receiver<ProbeReport>,
    failure: oneshot::Sender<WatchError>,
) -> Manifests {
    let (sender, updates) = mpsc::channel(MANIFEST_BATCHES);
    let (config, readiness) = (parts.config, parts.readiness.clone());
    let stop = parts.part.stop.clone();
    parts.part.tasks.spawn(async move {
        if let Err(error) = manifests::watch(directory, sender, stop).await {
            error!(%error, "manifests are not followed any more; restart to try again");
            // Without a first state there is nothing to serve; with one, it goes on.
            if !readiness.is_ready() {
                // An error means that the end has begun already.
                let _ = failure.send(error);
            }
        }
    });
    Manifests {
        control,
        state_file: config.data_dir.join("allocations.json"),
        replace_outside: if config.dev {
            config.service_cidrs.first().copied()
        } else {
            None
        },
        updates,
        probes,
    }
}

fn follow_cluster(
    parts: &SourceParts<'_>,
    access: kube::Access,
    noticed: Noticed,
) -> anyhow::Result<mpsc::Receiver<Vec<kube::Update>>> {
    let metrics = kube::Metrics::new(parts.registry, parts.contact.clone());
    let metrics = Arc::new(metrics.context("registering metrics")?);
    let dns = &parts.config.dns;
    let dns = match dns.pods {
        _ if dns.listen.is_empty() => DnsNeeds::Nothing,
        PodMode::Verified => DnsNeeds::NamesAndPods,
        PodMode::Disabled | PodMode::Insecure if dns.search_completion => DnsNeeds::NamesAndPods,
        PodMode::Disabled | PodMode::Insecure => DnsNeeds::Names,
    };
    let wanted = kube::Config {
        access,
        node: parts.config.node_name.clone(),
        dns,
        rate: parts.config.api_rate,
        patience: kube::Patience::default(),
        keep: Some(kube::Keep {
            file: parts.config.data_dir.join("cluster.json"),
            objects: parts.objects.clone(),
            period: KEEP_PERIOD,
        }),
        tell: Some(kube::Tell {
            noticed,
            objects: parts.objects.clone(),
        }),
    };
    let (sender, updates) = mpsc::channel(kube::BATCHES);
    parts.part.tasks.spawn(kube::watch(
        wanted,
        parts.table.clone(),
        parts.contact.clone(),
        metrics,
        sender,
        parts.part.stop.clone(),
    ));
    Ok(updates)
}

fn follow_addresses(parts: &SourceParts<'_>) -> std::io::Result<watch::Receiver<BTreeSet<IpAddr>>> {
    let (config, part) = (parts.config, parts.part);
    // `dev` answers on loopback alone, whatever else this machine is called.
    let mut now = interfaces::local_addresses()?;
    if config.dev {
        now.retain(IpAddr::is_loopback);
    }
    let (sender, addresses) = watch::channel(now);
    if config.dev {
        // Loopback does not change; keeping the sender keeps the channel open.
        let stop = part.stop.clone();
        part.tasks.spawn(async move {
            stop.cancelled().await;
            drop(sender);
        });
    } else {
        part.tasks
            .spawn(interfaces::watch_addresses(sender, part.stop.clone()));
    }
    Ok(addresses)
}

/// The control plane of a node with these addresses, still empty.
///
/// # Errors
///
/// Ranges that no cluster can have, by their flag.
pub fn control_plane(
    config: &Config,
    addresses: Vec<IpAddr>,
) -> Result<ControlPlane, config::ConfigError> {
    let own_node = OwnNode {
        name: config.node_name.to_string(),
        addresses,
    };
    let wanted = control::Config {
        service_cidrs: config.service_cidrs.clone(),
        node_port_range: config.node_port_range.clone(),
        load_balancer_range: config.load_balancer_range,
        pod_cidr: Some(config.simulated_pod_cidr),
        allow_loopback_endpoints: true,
        own_node: Some(own_node),
        max_endpoints_per_slice: 100,
        seed: rand::random(),
    };
    ControlPlane::new(wanted).map_err(|error| config::ConfigError::Value {
        flag: match error {
            control::ConfigError::NodePortRange(_) => "service-node-port-range",
            control::ConfigError::ServiceRangeCount(_)
            | control::ConfigError::SameFamily(..)
            | control::ConfigError::RangeTooLarge(_)
            | control::ConfigError::EndpointsPerSlice(_) => "service-cluster-ip-range",
        },
        message: error.to_string(),
    })
}
