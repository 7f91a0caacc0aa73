//! What is to be probed: the probes of Pods narrowed to what can be run, and how they change with their Pods.
//!
//! The kubelet's part of `ControlPlane` keeps one [`PodProbes`] per Pod. A container keeps its counters as long as its
//! plan stays the same; a restart, another address or an edited probe begins anew, not ready. Nothing is probed here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, HTTPGetAction, Pod, PodStatus, Probe,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::object::ObjectKey;
use super::probe_state::{Readiness, Timing};
use super::validation::ips;

/// One life of one container, as far as probes are concerned. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProbeId(u64);

/// A container to probe.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeTarget {
    /// Which life of it.
    pub id: ProbeId,
    /// Its Pod.
    pub pod: ObjectKey,
    /// Its name.
    pub container: Arc<str>,
    /// How.
    pub plan: ProbePlan,
    /// Deletion of its Pod has begun.
    pub terminating: bool,
}

/// How a container is probed, and which container it is: two plans that differ have nothing in common.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbePlan {
    /// Its startup probe.
    pub startup: Option<ProbeSpec>,
    /// Its readiness probe.
    pub readiness: Option<ProbeSpec>,
    /// Since when it runs, where its Pod's file says so.
    pub running_since: Option<Timestamp>,
    instance: Instance,
}

/// One probe.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeSpec {
    /// What is done.
    pub handler: Handler,
    /// When.
    pub timing: Timing,
    /// How long it may take; at least a second.
    pub timeout: Duration,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq)]
pub enum Handler {
    /// A GET that must answer with a status of 200–399.
    HttpGet(HttpGet),
    /// A connection that must open.
    TcpSocket {
        /// An address or a name.
        host: String,
        /// The port.
        port: u16,
    },
    /// A command that must exit with status 0.
    Exec(Vec<String>),
    /// A health service (grpc.health.v1) that must answer SERVING.
    Grpc {
        /// The Pod's address.
        ip: IpAddr,
        /// The port.
        port: u16,
        /// What it is asked about; may be empty.
        service: String,
    },
    /// It cannot be run, for this reason: a malfunction whenever it is due.
    Unusable(String),
}

/// An HTTP probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpGet {
    /// HTTPS, without a check of the certificate.
    pub tls: bool,
    /// An address or a name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path, and perhaps query.
    pub path: String,
    /// Headers as they are given; a name may occur more than once.
    pub headers: Vec<(String, String)>,
}

/// A change of what is to be probed.
#[derive(Clone, Debug, PartialEq)]
pub enum ProbeChange {
    /// Probe this from now on.
    Start(Box<ProbeTarget>),
    /// Deletion of its Pod has begun.
    Terminate(ProbeId),
    /// Probe this no longer.
    Stop(ProbeId),
}

// What tells one life of a container from the next.
#[derive(Clone, Debug, Default, PartialEq)]
struct Instance {
    uid: Option<String>,
    container_id: Option<String>,
    restart_count: i32,
}

/// The probed containers of one Pod.
#[derive(Clone, Debug, Default)]
pub(super) struct PodProbes {
    containers: BTreeMap<Arc<str>, Probed>,
    terminating: bool,
}

#[derive(Clone, Debug)]
struct Probed {
    id: ProbeId,
    plan: ProbePlan,
    readiness: Readiness,
}

impl PodProbes {
    /// What `pod` asks for, which `file` describes: containers that are as before keep what they have, others begin anew
    /// with a number from `ids`.
    pub(super) fn of(
        pod: &Pod,
        file: &Pod,
        before: Option<&Self>,
        ids: &mut impl FnMut() -> u64,
    ) -> Self {
        let mut containers = BTreeMap::new();
        for (name, plan) in plans(pod, file) {
            let known = before.and_then(|before| before.containers.get(&name));
            let probed = match known.filter(|known| known.plan == plan) {
                Some(known) => known.clone(),
                None => Probed {
                    id: ProbeId(ids()),
                    plan,
                    readiness: Readiness::Undecided,
                },
            };
            containers.insert(name, probed);
        }
        Self {
            containers,
            terminating: pod.metadata.deletion_timestamp.is_some(),
        }
    }

    /// What has to happen to the probes of `pod` that were `before`.
    pub(super) fn changes_since(&self, before: &Self, pod: &ObjectKey) -> Vec<ProbeChange> {
        let id_in = |probes: &Self, name: &str| probes.containers.get(name).map(|c| c.id);
        let ended = before.containers.iter();
        let ended = ended.filter(|(name, probed)| id_in(self, name) != Some(probed.id));
        let mut changes: Vec<_> = ended.map(|(_, c)| ProbeChange::Stop(c.id)).collect();
        for (name, probed) in &self.containers {
            if id_in(before, name) != Some(probed.id) {
                changes.push(ProbeChange::Start(Box::new(ProbeTarget {
                    id: probed.id,
                    pod: pod.clone(),
                    container: name.clone(),
                    plan: probed.plan.clone(),
                    terminating: self.terminating,
                })));
            } else if self.terminating && !before.terminating {
                changes.push(ProbeChange::Terminate(probed.id));
            }
        }
        changes
    }

    /// Takes what is known of a container now; `false` if it is not that life of it any more, or nothing new.
    pub(super) fn report(&mut self, container: &str, id: ProbeId, readiness: Readiness) -> bool {
        match self.containers.get_mut(container) {
            Some(probed) if probed.id == id && probed.readiness != readiness => {
                probed.readiness = readiness;
                true
            }
            Some(_) | None => false,
        }
    }

    /// There is nothing to probe.
    pub(super) fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// Whether the container's probes say that it is ready.
    pub(super) fn is_ready(&self, container: &str) -> bool {
        let probed = self.containers.get(container);
        probed.is_some_and(|probed| probed.readiness == Readiness::Ready)
    }
}

/// The containers that decide on a Pod's readiness: all, and the sidecars among the init containers.
pub(super) fn lasting_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        let sidecars = init.filter(|init| init.restart_policy.as_deref() == Some("Always"));
        sidecars.chain(&spec.containers)
    })
}

/// Whether the container has a probe that decides on its readiness.
pub(super) fn is_probed(container: &Container) -> bool {
    container.readiness_probe.is_some() || container.startup_probe.is_some()
}

/// What the Pod's status says of a container, if anything.
pub(super) fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status: &PodStatus = pod.status.as_ref()?;
    let lists = [&status.init_container_statuses, &status.container_statuses];
    let mut all = lists.into_iter().flatten().flatten();
    all.find(|status| status.name == container)
}

/// A container runs unless its status says something else.
pub(super) fn is_running(pod: &Pod, container: &str) -> bool {
    let state = status_of(pod, container).and_then(|status| status.state.as_ref());
    state.is_none_or(|state| state.waiting.is_none() && state.terminated.is_none())
}

// Only what runs and has an address is probed.
fn plans(pod: &Pod, file: &Pod) -> Vec<(Arc<str>, ProbePlan)> {
    let Some(ip) = pod_ip(pod) else {
        return Vec::new();
    };
    let probed = lasting_containers(pod)
        .filter(|container| is_probed(container) && is_running(pod, &container.name));
    let plan = |container: &Container| {
        let status = status_of(pod, &container.name);
        let spec = |probe: &Probe| probe_spec(probe, container, ip);
        let plan = ProbePlan {
            startup: container.startup_probe.as_ref().map(spec),
            readiness: container.readiness_probe.as_ref().map(spec),
            running_since: status
                .and_then(|status| status.state.as_ref()?.running.as_ref()?.started_at.as_ref())
                .map(|time| time.0),
            instance: Instance {
                // The store gives every Pod a uid; only one that a file gives can tell that the Pod was replaced.
                uid: file.metadata.uid.clone(),
                container_id: status.and_then(|status| status.container_id.clone()),
                restart_count: status.map_or(0, |status| status.restart_count),
            },
        };
        (container.name.as_str().into(), plan)
    };
    probed.map(plan).collect()
}

fn pod_ip(pod: &Pod) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    let running = status.phase.as_deref() == Some("Running");
    let first = status.pod_ips.as_ref()?.first()?;
    ips::parse_sloppily(&first.ip).filter(|_| running)
}

// `defaults` has been here, so what is missing has no default; numbers of any sign come out in range.
fn probe_spec(probe: &Probe, container: &Container, ip: IpAddr) -> ProbeSpec {
    let number = |value: Option<i32>, least: u32| {
        let value = value.and_then(|value| u32::try_from(value).ok());
        value.unwrap_or(least).max(least)
    };
    let seconds = |value, least| Duration::from_secs(number(value, least).into());
    ProbeSpec {
        handler: handler(probe, container, ip).unwrap_or_else(Handler::Unusable),
        timing: Timing {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 1),
            success_threshold: number(probe.success_threshold, 1),
            failure_threshold: number(probe.failure_threshold, 1),
        },
        timeout: seconds(probe.timeout_seconds, 1),
    }
}

fn handler(probe: &Probe, container: &Container, ip: IpAddr) -> Result<Handler, String> {
    let host_or_pod = |host: &Option<String>| match host.as_deref() {
        None | Some("") => ip.to_string(),
        Some(host) => host.to_owned(),
    };
    if let Some(http) = &probe.http_get {
        return Ok(Handler::HttpGet(HttpGet {
            tls: http.scheme.as_deref() == Some("HTTPS"),
            host: host_or_pod(&http.host),
            port: port_of(&http.port, container)?,
            path: http.path.clone().unwrap_or_default(),
            headers: headers_of(http),
        }));
    }
    if let Some(tcp) = &probe.tcp_socket {
        return Ok(Handler::TcpSocket {
            host: host_or_pod(&tcp.host),
            port: port_of(&tcp.port, container)?,
        });
    }
    if let Some(exec) = &probe.exec {
        return match exec.command.as_deref() {
            None | Some([]) => Err("there is no command to run".to_owned()),
            Some(command) => Ok(Handler::Exec(command.to_vec())),
        };
    }
    let Some(grpc) = &probe.grpc else {
        return Err("there is no handler".to_owned());
    };
    Ok(Handler::Grpc {
        ip,
        port: port_number(grpc.port)?,
        service: grpc.service.clone().unwrap_or_default(),
    })
}

fn headers_of(http: &HTTPGetAction) -> Vec<(String, String)> {
    let headers = http.http_headers.iter().flatten();
    headers
        .map(|header| (header.name.clone(), header.value.clone()))
        .collect()
}

// A name that no port of the container has may still be a number, as in the kubelet's `ResolveContainerPort`.
fn port_of(port: &IntOrString, container: &Container) -> Result<u16, String> {
    match port {
        IntOrString::Int(number) => port_number(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name));
            let number = named.map(|port| port.container_port);
            let number = number.or_else(|| name.parse().ok());
            number
                .ok_or_else(|| format!("the container has no port named {name:?}"))
                .and_then(port_number)
        }
    }
}

fn port_number(number: i32) -> Result<u16, String> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("{number} is no port"))
}
