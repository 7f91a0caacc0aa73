//! Whether resolvers really reach the running viaduct: those of this node, and those of Pods on it.
//!
//! A Pod is whoever is in another network namespace with the cluster's search list in his `resolv.conf`; he is asked
//! about from within that namespace. Each resolver is asked which server it is, and its word compared with the number
//! of the running process, so that another server's right answer does not pass for ours.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::dns::{Whereabouts, ask_who, host_resolvers, read_resolvers};
use crate::model::Family;

use super::ask::ask;
use super::doctor::{Finding, Severity};

/// How long each resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pods that are looked at; the others are configured by the same kubelet.
const MAX_PODS: usize = 4;

const DNS_PORT: u16 = 53;

/// One row per resolver; none where no viaduct with DNS answers behind `socket`.
pub(super) async fn look(socket: &Path) -> Vec<Finding> {
    let Ok(answer) = ask(socket, "/v1/resolver").await else {
        return Vec::new();
    };
    let Ok(whereabouts) = serde_json::from_slice::<Whereabouts>(&answer) else {
        return Vec::new();
    };
    let looking = tokio::task::spawn_blocking(move || {
        let mut findings = of_node(&whereabouts);
        findings.extend(of_pods(&whereabouts));
        findings
    });
    // It ends early only with the whole command.
    looking.await.unwrap_or_default()
}

fn of_node(whereabouts: &Whereabouts) -> Vec<Finding> {
    let finding = |server: SocketAddr| {
        let found = Found::at(server, whereabouts);
        // A node may resolve names of the cluster or not; programs of its own seldom need to.
        let (severity, words) = match found {
            Found::Us => (Severity::Works, "reaches this viaduct".to_owned()),
            Found::Another => (
                Severity::Lacking,
                format!(
                    "another server answers there; for names of the cluster on the node itself, put `nameserver {}` first",
                    own_address(whereabouts)
                ),
            ),
            Found::Nobody(why) => (Severity::Lacking, why),
        };
        Finding::new(
            format!("node's resolver {}", server.ip()),
            family(server),
            severity,
            words,
        )
    };
    host_resolvers().into_iter().map(finding).collect()
}

fn of_pods(whereabouts: &Whereabouts) -> Vec<Finding> {
    let pods = pods_here(&whereabouts.domain);
    if pods.is_empty() {
        let to = whereabouts.service_ips.iter();
        return to
            .map(|ip| {
                let server = SocketAddr::new(*ip, DNS_PORT);
                let about = format!("Pods' resolver {ip}");
                let nobody =
                    "no Pod with this cluster's search list is here, so asked from the node; ";
                judged(
                    about,
                    server,
                    Found::at(server, whereabouts),
                    nobody,
                    whereabouts,
                )
            })
            .collect();
    }
    let mut findings = Vec::new();
    for pod in pods {
        for server in &pod.resolvers {
            let about = format!(
                "resolver {} of Pod with process {}",
                server.ip(),
                pod.process
            );
            let found = pod.ask(*server, whereabouts);
            findings.push(judged(about, *server, found, "", whereabouts));
        }
    }
    findings
}

fn judged(
    about: String,
    server: SocketAddr,
    found: Found,
    before: &str,
    whereabouts: &Whereabouts,
) -> Finding {
    let (severity, words) = match found {
        Found::Us => (Severity::Works, "reaches this viaduct".to_owned()),
        Found::Another => (
            Severity::Conflict,
            format!(
                "another server answers there; listen at that address with --dns-listen {server}, or have the Service {} lead to {}",
                whereabouts.service,
                own_address(whereabouts)
            ),
        ),
        Found::Nobody(why) => (
            Severity::Conflict,
            format!("{why}; listen at that address with --dns-listen {server}"),
        ),
    };
    Finding::new(about, family(server), severity, format!("{before}{words}"))
}

// What became of the question who is there.
#[derive(Debug)]
enum Found {
    Us,
    Another,
    Nobody(String),
}

impl Found {
    fn at(server: SocketAddr, whereabouts: &Whereabouts) -> Self {
        match ask_who(server, &whereabouts.domain, PATIENCE) {
            Ok(Some(identity)) if identity == whereabouts.identity => Self::Us,
            Ok(Some(_) | None) => Self::Another,
            Err(error) => Self::Nobody(error.to_string()),
        }
    }
}

// Somebody with the cluster's search list in a network namespace of his own.
struct Pod {
    process: u32,
    space: PathBuf,
    resolvers: Vec<SocketAddr>,
}

impl Pod {
    // From inside the Pod's network, on a thread of its own, which ends there.
    fn ask(&self, server: SocketAddr, whereabouts: &Whereabouts) -> Found {
        let asking = || {
            let entered = File::open(&self.space)
                .and_then(|space| Ok(setns(space, CloneFlags::CLONE_NEWNET)?));
            match entered {
                Ok(()) => Found::at(server, whereabouts),
                Err(error) => Found::Nobody(format!("its network cannot be entered: {error}")),
            }
        };
        let asked = thread::scope(|scope| scope.spawn(asking).join());
        asked.unwrap_or_else(|_| Found::Nobody("asking failed".to_owned()))
    }
}

fn pods_here(domain: &str) -> Vec<Pod> {
    let suffix = format!("svc.{}", domain.trim_end_matches('.'));
    let is_cluster = |domain: &String| {
        let domain = domain.trim_end_matches('.');
        domain.eq_ignore_ascii_case(&suffix)
    };
    // What ends or is hidden while it is looked at is passed over.
    let mut seen = BTreeSet::from_iter(fs::read_link("/proc/self/ns/net"));
    let mut pods = Vec::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in processes {
        let Some(process) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let space = entry.path().join("ns/net");
        let Ok(identity) = fs::read_link(&space) else {
            continue;
        };
        let Ok(text) = fs::read_to_string(entry.path().join("root/etc/resolv.conf")) else {
            continue;
        };
        let (resolvers, search) = read_resolvers(&text);
        if search.iter().any(is_cluster) && seen.insert(identity) {
            pods.push(Pod {
                process,
                space,
                resolvers,
            });
            if pods.len() == MAX_PODS {
                break;
            }
        }
    }
    pods
}

fn own_address(whereabouts: &Whereabouts) -> String {
    let addresses = &whereabouts.addresses;
    addresses.first().map_or_else(String::new, |first| {
        if first.port() == DNS_PORT {
            first.ip().to_string()
        } else {
            first.to_string()
        }
    })
}

fn family(server: SocketAddr) -> Family {
    Family::of(server.ip())
}
