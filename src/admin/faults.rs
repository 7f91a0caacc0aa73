//! Faults over the admin API: which are on, and turning them on and off. Who may reach the socket may.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::core::v1::ContainerPort;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::info;

use crate::control::{Kind, Object, ObjectKey};
use crate::faults::{ActiveFaults, FaultTarget, Faults, Place, Subject};
use crate::model::{Protocol, ServiceName, ServicePortKey};
use crate::routing::ExplainedPort;

use super::server::Sources;
use super::views::TableView;

/// The annotation that makes a Pod a simulated one; others cannot be told to fail.
const SIMULATE: &str = "viaduct.dev/simulate";

/// What `viaduct fault` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultOrder {
    /// `NAMESPACE/NAME[:PORT][@BACKEND]`, see [`FaultTarget`].
    pub target: String,
    /// Faults, or `off`.
    pub faults: String,
}

/// What is on, as a table.
pub(super) async fn list(State(sources): State<Arc<Sources>>) -> Json<TableView> {
    let listed = sources.faults.list();
    let rows = listed
        .into_iter()
        .map(|fault| vec![fault.target.to_string(), fault.faults.to_string()]);
    Json(TableView {
        columns: vec!["TARGET".to_owned(), "FAULTS".to_owned()],
        rows: rows.collect(),
    })
}

/// Turns faults on or off.
pub(super) async fn change(
    State(sources): State<Arc<Sources>>,
    Json(order): Json<FaultOrder>,
) -> Response {
    match carry_out(&sources, &order) {
        Ok(said) => Json(json!({ "message": said })).into_response(),
        Err((status, why)) => (status, why).into_response(),
    }
}

fn carry_out(sources: &Sources, order: &FaultOrder) -> Result<String, (StatusCode, String)> {
    let bad = |why: String| (StatusCode::BAD_REQUEST, why);
    let target: FaultTarget = order
        .target
        .parse()
        .map_err(|invalid: crate::faults::InvalidFaultTarget| bad(invalid.to_string()))?;
    if order.faults.trim() == "off" {
        // Also what is gone meanwhile, so that nothing stays on for want of a name.
        let off = candidates(&target).filter(|target| sources.faults.turn_off(target));
        let off: Vec<String> = off.map(|target| target.to_string()).collect();
        if off.is_empty() {
            let none = format!("{target} has no faults; `viaduct fault` lists what is on");
            return Err((StatusCode::NOT_FOUND, none));
        }
        info!(target = %off.join(", "), "faults turned off");
        return Ok(format!("{}: faults are off", off.join(", ")));
    }
    let target = resolve(sources, target).map_err(|why| (StatusCode::NOT_FOUND, why))?;
    let place = match target.subject {
        Subject::Pod => Place::Pod,
        Subject::Service | Subject::Either => Place::Between,
    };
    let faults = Faults::parse(&order.faults)
        .and_then(|faults| faults.fit(place))
        .and_then(|faults| faults.fit_protocols(&protocols(sources, &target)))
        .map_err(|error| bad(error.to_string()))?;
    let text = faults.to_string();
    sources
        .faults
        .turn_on(target.clone(), faults, Instant::now())
        .map_err(|full| (StatusCode::CONFLICT, full.to_string()))?;
    info!(%target, faults = text, "faults turned on");
    Ok(format!("{target}: {text}"))
}

// What a target may have been resolved to.
fn candidates(target: &FaultTarget) -> impl Iterator<Item = FaultTarget> {
    let subjects = match target.subject {
        Subject::Either => [Subject::Pod, Subject::Service].as_slice(),
        Subject::Pod => &[Subject::Pod],
        Subject::Service => &[Subject::Service],
    };
    subjects.iter().map(|subject| FaultTarget {
        subject: *subject,
        ..target.clone()
    })
}

// Finds what has that name.
fn resolve(sources: &Sources, target: FaultTarget) -> Result<FaultTarget, String> {
    let mut found: Vec<FaultTarget> = candidates(&target)
        .filter(|candidate| exists(sources, candidate))
        .collect();
    match (found.pop(), found.pop()) {
        (Some(one), None) => Ok(one),
        (Some(one), Some(other)) => Err(format!("say which: {one} or {other}")),
        (None, _) => Err(match target.subject {
            Subject::Pod => format!(
                "{target} is no simulated Pod; for others, put the fault on their Service: NAMESPACE/SERVICE@POD"
            ),
            Subject::Service => format!("{target} names no Service, or no port or backend of it"),
            Subject::Either => format!("{target} is neither a Service nor a simulated Pod"),
        }),
    }
}

fn exists(sources: &Sources, target: &FaultTarget) -> bool {
    let (namespace, name) = (&target.namespace, &target.name);
    match target.subject {
        Subject::Pod => {
            let objects = sources.objects.load_full();
            objects.list(Kind::Pod).into_iter().any(|object| {
                let key = object.key();
                let annotations = object.metadata().annotations.as_ref();
                key.namespace == *namespace
                    && key.name == *name
                    && annotations.is_some_and(|map| map.contains_key(SIMULATE))
            })
        }
        Subject::Service | Subject::Either => {
            let table = sources.table.load_full();
            let service = ServiceName {
                namespace: namespace.clone(),
                name: name.clone(),
            };
            if target.port.is_none() && target.backend.is_none() {
                return table.service(&service).is_some();
            }
            table.routes().any(|route| {
                let names = |addr, pod| target.names(&route.key, route.port, addr, pod);
                let backends = route.cluster.iter().chain(&route.local);
                match target.backend {
                    None => names(([0, 0, 0, 0], 0).into(), None),
                    Some(_) => backends
                        .into_iter()
                        .any(|backend| names(backend.addr, backend.pod.as_deref())),
                }
            })
        }
    }
}

// What goes to a target; none where that is not known.
fn protocols(sources: &Sources, target: &FaultTarget) -> Vec<Protocol> {
    if target.subject == Subject::Pod {
        let key = ObjectKey {
            kind: Kind::Pod,
            namespace: target.namespace.clone(),
            name: target.name.clone(),
        };
        let object = sources.objects.load_full().get(&key);
        let Some(Object::Pod(pod)) = object.as_deref() else {
            return Vec::new();
        };
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        let protocol = |port: &ContainerPort| match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some(_) | None => Protocol::Tcp,
        };
        return ports.map(protocol).collect();
    }
    let table = sources.table.load_full();
    let of_target = |key: &ServicePortKey, port| {
        let one_port = FaultTarget {
            backend: None,
            ..target.clone()
        };
        let nobody = ([0, 0, 0, 0], 0).into();
        one_port.names(key, port, nobody, None)
    };
    let routes = table
        .routes()
        .filter(|route| of_target(&route.key, route.port));
    routes.map(|route| route.key.protocol).collect()
}

/// Tells of the faults that meet the flows of an explained port.
pub(super) fn remark(active: &ActiveFaults, port: &mut ExplainedPort) {
    for fault in active.list() {
        let (namespace, name) = (&fault.target.namespace, &fault.target.name);
        let meets = match fault.target.subject {
            Subject::Service | Subject::Either => {
                let service = format!("{namespace}/{name}");
                let rest = port.service_port.strip_prefix(&service);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
            }
            Subject::Pod => {
                let own = port.service_port.starts_with(&format!("{namespace}/"));
                let pods = port.endpoints.iter().filter_map(|e| e.pod.as_deref());
                own && pods.into_iter().any(|pod| *pod == **name)
            }
        };
        if meets {
            port.remarks.push(format!(
                "faults on purpose at {}: {}",
                fault.target, fault.faults
            ));
        }
    }
}
