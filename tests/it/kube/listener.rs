//! Somebody who listens to the source, and keeps in mind what it says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use viaduct::control::{Kind, ObjectKey};
use viaduct::model::NodeName;
use viaduct::routing::Published;
use viaduct::sources::kube::{
    Access, Config, Contact, DnsNeeds, Metrics, OutOfTouch, Patience, Rate, Update, watch,
};

use crate::api_server::ApiServer;
use crate::cluster::eventually;

/// What the source has said so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    /// Objects that are there, with their version.
    pub(super) objects: BTreeMap<ObjectKey, String>,
    /// Complete lists by kind.
    pub(super) lists: BTreeMap<Kind, usize>,
    /// How often it was said that everything is there.
    pub(super) synced: usize,
    /// Sizes of batches.
    pub(super) batches: Vec<usize>,
}

/// The source at work.
pub(super) struct Listener {
    heard: Arc<Mutex<Heard>>,
    pub(super) contact: Contact,
    pub(super) table: Published,
    registry: prometheus::Registry,
    stop: CancellationToken,
    runtime: Option<Runtime>,
}

/// Bounds that a test has the time for.
pub(super) fn patience() -> Patience {
    Patience {
        page_size: 3,
        page_bytes: 1 << 20,
        event_bytes: 1 << 16,
        connect: Duration::from_secs(5),
        answer: Duration::from_secs(5),
        page: Duration::from_secs(5),
        watch: Duration::from_secs(60),
        first_list: Duration::from_secs(1),
        first_retry: Duration::from_millis(10),
        last_retry: Duration::from_millis(100),
    }
}

impl Listener {
    /// Listens to one server.
    pub(super) fn to(server: &ApiServer) -> Self {
        Self::with(access(&[server]), DnsNeeds::Nothing, patience())
    }

    /// Listens with settings.
    pub(super) fn with(access: Access, dns: DnsNeeds, patience: Patience) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (heard, contact) = (Arc::new(Mutex::new(Heard::default())), Contact::default());
        let (table, stop) = (Published::default(), CancellationToken::new());
        let registry = prometheus::Registry::new();
        let metrics = Metrics::new(&registry, contact.clone()).unwrap();
        let config = Config {
            access,
            node: NodeName::parse("here").unwrap(),
            dns,
            rate: Some(Rate::default()),
            patience,
            keep: None,
            tell: None,
        };
        let (sender, mut updates) = mpsc::channel(4);
        runtime.spawn(watch(
            config,
            table.clone(),
            contact.clone(),
            Arc::new(metrics),
            sender,
            stop.clone(),
        ));
        let note = Arc::clone(&heard);
        runtime.spawn(async move {
            while let Some(batch) = updates.recv().await {
                note.lock().unwrap().take(batch);
            }
        });
        Self {
            heard,
            contact,
            table,
            registry,
            stop,
            runtime: Some(runtime),
        }
    }

    pub(super) fn heard(&self) -> Heard {
        self.heard.lock().unwrap().clone()
    }

    /// Waits until it was said that everything is there.
    pub(super) fn synced(&self) {
        eventually("the first state", || match self.heard() {
            heard if heard.synced > 0 => Ok(()),
            heard => Err((heard, self.out_of_touch())),
        });
    }

    /// Waits until it knows every object of the resource in its newest version, and no other.
    pub(super) fn agrees(&self, server: &ApiServer, kind: Kind, resource: &str) {
        eventually("the same state as the server's", || {
            let wanted = server.versions(resource);
            let known: BTreeMap<_, _> = self
                .heard()
                .objects
                .into_iter()
                .filter(|(key, _)| key.kind == kind)
                .map(|(key, version)| ((key.namespace.to_string(), key.name.to_string()), version))
                .collect();
            if known == wanted {
                Ok(())
            } else {
                Err((known, wanted, self.out_of_touch()))
            }
        });
    }

    /// How many lists and watches have failed so far.
    pub(super) fn failures(&self) -> f64 {
        let families = self.registry.gather();
        let counted = families.iter();
        let counted = counted.filter(|family| family.name() == "viaduct_api_failures_total");
        let counters = counted.flat_map(|family| family.get_metric());
        counters
            .map(|metric| metric.get_counter().get_value())
            .sum()
    }

    pub(super) fn out_of_touch(&self) -> Option<OutOfTouch> {
        self.contact.out_of_touch(Instant::now())
    }

    /// Waits until the source says that the server is out of touch, for a reason with these words.
    pub(super) fn loses_touch(&self, words: &str) {
        eventually("the loss of the server", || match self.out_of_touch() {
            Some(told) if told.reason.contains(words) => Ok(()),
            told => Err(told),
        });
    }

    /// Waits until the server is heard again.
    pub(super) fn is_in_touch(&self) {
        eventually("the server heard again", || match self.out_of_touch() {
            None => Ok(()),
            Some(told) => Err(told),
        });
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Heard {
    fn take(&mut self, batch: Vec<Update>) {
        self.batches.push(batch.len());
        for update in batch {
            match update {
                Update::Applied(object) => {
                    let version = object.metadata().resource_version.clone();
                    self.objects
                        .insert(object.key(), version.unwrap_or_default());
                }
                Update::Deleted(key) => {
                    self.objects.remove(&key);
                }
                Update::Listed(kind, keys) => {
                    *self.lists.entry(kind).or_default() += 1;
                    self.objects
                        .retain(|key, _| key.kind != kind || keys.contains(key));
                }
                Update::Kept(objects) => panic!("nothing is kept here, but {objects:?}"),
                Update::Synced => self.synced += 1,
            }
        }
    }
}

/// The way to these servers, without credentials.
pub(super) fn access(servers: &[&ApiServer]) -> Access {
    Access {
        kubeconfig: None,
        masters: servers
            .iter()
            .map(|server| server.url().parse().unwrap())
            .collect(),
    }
}

/// A Service of one port.
pub(super) fn service(name: &str, cluster_ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ports": [{"port": 80}]},
    })
}

/// The slice of a Service.
pub(super) fn slice(service: &str, addresses: &[&str], port: u16) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-1"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "endpoints": endpoints, "ports": [{"name": "", "port": port, "protocol": "TCP"}],
    })
}

/// The Node that the source is on.
pub(super) fn node(zone: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "here", "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    })
}
