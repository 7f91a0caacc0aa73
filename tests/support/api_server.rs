//! An API server as the real Kubernetes client sees it: lists in pages, watches with bookmarks, 410 after compaction;
//! and everything that can go wrong with one, on request.
//!
//! Objects are JSON; nothing is defaulted or validated. Selectors are those that the proxy sends. It runs on a runtime of
//! its own, and may be stopped and started again on its port.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// The server.
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    faults: Faults,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

/// What goes wrong with requests from now on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Answered with this status, and a `Status` body.
    Refuse(u16),
    /// Watches are answered with this status.
    RefuseWatches(u16),
    /// Answered with 200 and words that are no JSON.
    Garbage,
    /// Never answered.
    Silence,
    /// A list that never ends.
    Endless,
    /// Every answer comes a byte at a time.
    Trickle,
    /// The first half of a list, or of an event, and then nothing more for ever.
    Stall,
    /// The first half of a list, and then the end of the connection.
    Break,
    /// Watches are accepted and ended at once.
    ShortWatches,
}

/// What goes wrong with a server, by resource; the other servers of its cluster are well.
type Faults = Arc<Mutex<BTreeMap<&'static str, Fault>>>;

/// A request that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The resource, such as `services`.
    pub(crate) resource: String,
    /// Query parameters.
    pub(crate) query: BTreeMap<String, String>,
}

impl Asked {
    /// Whether it is a watch.
    pub(crate) fn is_watch(&self) -> bool {
        self.query.contains_key("watch")
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    version: u64,
    compacted: u64,
    // By resource, then namespace and name.
    objects: BTreeMap<&'static str, BTreeMap<(String, String), Value>>,
    log: Vec<(u64, &'static str, Told)>,
    asked: Vec<Asked>,
    posted: Vec<Value>,
    refused_events: Option<u16>,
    token: Option<String>,
    // Watches of an older epoch end.
    epoch: u64,
}

#[derive(Clone)]
enum Told {
    Event(&'static str, Value),
    /// The first half of an event, then the end of the connection.
    HalfEvent(Value),
    /// A line that is no event.
    Garbage,
}

/// What a cluster without a wish for anything else has.
const RESOURCES: [(&str, &str, &str); 5] = [
    ("services", "v1", "Service"),
    ("endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("nodes", "v1", "Node"),
    ("namespaces", "v1", "Namespace"),
    ("pods", "v1", "Pod"),
];

impl ApiServer {
    /// Starts it on a free port of loopback.
    pub(crate) fn start() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::at(any, Arc::default(), Faults::default())
    }

    fn at(address: SocketAddr, shared: Arc<Shared>, faults: Faults) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/api/v1/{resource}", get(answer))
            .route("/apis/discovery.k8s.io/v1/{resource}", get(answer))
            .route(
                "/apis/events.k8s.io/v1/namespaces/{namespace}/events",
                post(take_event),
            )
            .with_state((shared.clone(), faults.clone()));
        // Bytes that come one by one are sent one by one.
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            shared,
            faults,
            address,
            runtime: Some(runtime),
        }
    }

    /// Another server of the same cluster.
    pub(crate) fn sibling(&self) -> Self {
        Self::at(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            Arc::clone(&self.shared),
            Faults::default(),
        )
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends the process, so to speak: connections break, the port is closed.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }

    /// Starts it again on its port, with what it knew.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let (shared, faults) = (Arc::clone(&self.shared), Arc::clone(&self.faults));
        *self = Self::at(self.address, shared, faults);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.state.lock().unwrap()
    }

    /// Creates or replaces an object; its kind says which resource it is.
    pub(crate) fn apply(&self, object: Value) {
        let mut inner = self.inner();
        let (resource, key) = inner.place(&object);
        let known = inner
            .objects
            .entry(resource)
            .or_default()
            .contains_key(&key);
        let object = inner.store(resource, key, object);
        let word = if known { "MODIFIED" } else { "ADDED" };
        inner.tell(resource, Told::Event(word, object));
        drop(inner);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Replaces an object, but the connection breaks in the middle of telling so.
    pub(crate) fn apply_and_break(&self, object: Value) {
        let mut inner = self.inner();
        let (resource, key) = inner.place(&object);
        let object = inner.store(resource, key, object);
        inner.tell(resource, Told::HalfEvent(object));
        drop(inner);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Replaces an object, but what watches are told of it is not to be read.
    pub(crate) fn apply_in_garbage(&self, object: Value) {
        let mut inner = self.inner();
        let (resource, key) = inner.place(&object);
        inner.store(resource, key, object);
        inner.tell(resource, Told::Garbage);
        drop(inner);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let mut inner = self.inner();
        let resource = known(resource);
        let key = (namespace.to_owned(), name.to_owned());
        let mut object = inner
            .objects
            .get_mut(resource)
            .and_then(|objects| objects.remove(&key))
            .unwrap();
        inner.version += 1;
        object["metadata"]["resourceVersion"] = inner.version.to_string().into();
        inner.tell(resource, Told::Event("DELETED", object));
        drop(inner);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Sends a bookmark of the newest version to the watches of a resource.
    pub(crate) fn bookmark(&self, resource: &str) {
        let mut inner = self.inner();
        let resource = known(resource);
        inner.version += 1;
        let (_, version, kind) = RESOURCES
            .into_iter()
            .find(|(r, ..)| *r == resource)
            .unwrap();
        let bookmark = json!({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": inner.version.to_string()}});
        inner.tell(resource, Told::Event("BOOKMARK", bookmark));
        drop(inner);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Forgets history: who watches from before now is told 410.
    pub(crate) fn compact(&self) {
        let mut inner = self.inner();
        inner.version += 1;
        inner.compacted = inner.version;
        inner.log.clear();
    }

    /// Ends every watch that there is, after what it still has to tell.
    pub(crate) fn end_watches(&self) {
        self.inner().epoch += 1;
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// What goes wrong with this server from now on.
    pub(crate) fn set_fault(&self, fault: Fault) {
        for (resource, ..) in RESOURCES {
            self.set_fault_of(resource, fault.clone());
        }
    }

    /// What goes wrong with requests for one resource from now on.
    pub(crate) fn set_fault_of(&self, resource: &str, fault: Fault) {
        self.faults.lock().unwrap().insert(known(resource), fault);
    }

    /// Whom to answer from now on.
    pub(crate) fn expect_token(&self, token: &str) {
        self.inner().token = Some(token.to_owned());
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.inner().asked.clone()
    }

    /// Answers Events with this status from now on.
    pub(crate) fn refuse_events(&self, code: u16) {
        self.inner().refused_events = Some(code);
    }

    /// Every Event that was posted.
    pub(crate) fn posted(&self) -> Vec<Value> {
        self.inner().posted.clone()
    }

    /// Namespace, name and version of every object of a resource.
    pub(crate) fn versions(&self, resource: &str) -> BTreeMap<(String, String), String> {
        let inner = self.inner();
        let objects = inner.objects.get(resource).into_iter().flatten();
        objects
            .map(|(key, object)| (key.clone(), text(object, "/metadata/resourceVersion")))
            .collect()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    fn place(&self, object: &Value) -> (&'static str, (String, String)) {
        let kind = text(object, "/kind");
        let (resource, ..) = RESOURCES.into_iter().find(|(.., k)| *k == kind).unwrap();
        (
            resource,
            (
                text(object, "/metadata/namespace"),
                text(object, "/metadata/name"),
            ),
        )
    }

    fn store(&mut self, resource: &'static str, key: (String, String), mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects
            .entry(resource)
            .or_default()
            .insert(key, object.clone());
        object
    }

    fn tell(&mut self, resource: &'static str, told: Told) {
        self.log.push((self.version, resource, told));
    }
}

fn text(object: &Value, pointer: &str) -> String {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}

fn known(resource: &str) -> &'static str {
    RESOURCES
        .into_iter()
        .find(|(name, ..)| *name == resource)
        .unwrap()
        .0
}

async fn answer(
    State((shared, faults)): State<(Arc<Shared>, Faults)>,
    Path(resource): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let resource = known(&resource);
    {
        let mut inner = shared.state.lock().unwrap();
        let asked = Asked {
            resource: resource.to_owned(),
            query: query.clone(),
        };
        inner.asked.push(asked);
        let given = headers
            .get("authorization")
            .map(|value| value.to_str().unwrap().to_owned());
        let wanted = inner.token.as_ref().map(|token| format!("Bearer {token}"));
        if wanted.is_some() && wanted != given {
            return status(401, "Unauthorized");
        }
    }
    let fault = faults.lock().unwrap().get(resource).cloned();
    let fault = fault.unwrap_or_default();
    let watching = query.contains_key("watch");
    match fault {
        Fault::Refuse(code) => return status(code, "as the test wants it"),
        Fault::Garbage => return "<html>a captive portal</html>".into_response(),
        Fault::Silence => std::future::pending().await,
        Fault::Endless if !watching => {
            let blanks =
                stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![b' '; 65_536])));
            return Body::from_stream(blanks).into_response();
        }
        Fault::RefuseWatches(code) if watching => return status(code, "as the test wants it"),
        Fault::ShortWatches if watching => return Body::empty().into_response(),
        Fault::None
        | Fault::Endless
        | Fault::RefuseWatches(_)
        | Fault::ShortWatches
        | Fault::Trickle
        | Fault::Stall
        | Fault::Break => {}
    }
    let answer = if watching {
        watch_events(shared, resource, &query)
    } else {
        list(&shared, resource, &query)
    };
    if fault == Fault::Trickle {
        answer.map(trickling)
    } else if fault == Fault::Stall {
        answer.map(|body| first_half(body, None))
    } else if fault == Fault::Break && !watching {
        let broken = io::Error::other("broken by the test");
        answer.map(|body| first_half(body, Some(broken)))
    } else {
        answer
    }
}

// Each byte a piece of its own; others may run in between.
fn trickling(body: Body) -> Body {
    let bytes = body.into_data_stream().flat_map(|piece| {
        let bytes: Vec<u8> = piece.unwrap_or_default().into();
        stream::iter(bytes).then(|byte| async move {
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(Bytes::from(vec![byte]))
        })
    });
    Body::from_stream(bytes)
}

// Half of the first piece, then the error, or nothing at all.
fn first_half(body: Body, then: Option<io::Error>) -> Body {
    let half = body.into_data_stream().take(1).map(|piece| {
        let piece = piece.unwrap_or_default();
        Ok(piece.slice(..piece.len() / 2))
    });
    let end = stream::once(async {
        match then {
            Some(error) => Err(error),
            None => std::future::pending().await,
        }
    });
    Body::from_stream(half.chain(end))
}

// It says where it belongs, as it would have to.
async fn take_event(
    State((shared, _)): State<(Arc<Shared>, Faults)>,
    Path(namespace): Path<String>,
    Json(event): Json<Value>,
) -> Response {
    let mut inner = shared.state.lock().unwrap();
    if let Some(code) = inner.refused_events {
        return status(code, "as the test wants it");
    }
    assert_eq!(event["metadata"]["namespace"], namespace);
    inner.posted.push(event.clone());
    (StatusCode::CREATED, Json(event)).into_response()
}

fn status(code: u16, message: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "Test", "code": code});
    (
        StatusCode::from_u16(code).unwrap(),
        [("content-type", "application/json")],
        body.to_string(),
    )
        .into_response()
}

// The continue token is the place in the list; a list that changes in between is not this server's business.
fn list(shared: &Shared, resource: &'static str, query: &BTreeMap<String, String>) -> Response {
    let inner = shared.state.lock().unwrap();
    let all: Vec<&Value> = inner
        .objects
        .get(resource)
        .into_iter()
        .flat_map(BTreeMap::values)
        .filter(|object| selected(object, query))
        .collect();
    let start: usize = query
        .get("continue")
        .map_or(0, |token| token.parse().unwrap());
    let limit: usize = query
        .get("limit")
        .map_or(all.len(), |limit| limit.parse().unwrap());
    let page: Vec<&Value> = all.iter().skip(start).take(limit).copied().collect();
    let mut metadata = json!({"resourceVersion": inner.version.to_string()});
    if start + page.len() < all.len() {
        metadata["continue"] = (start + page.len()).to_string().into();
    }
    let (_, version, kind) = RESOURCES
        .into_iter()
        .find(|(r, ..)| *r == resource)
        .unwrap();
    let body = json!({"kind": format!("{kind}List"), "apiVersion": version, "metadata": metadata, "items": page});
    ([("content-type", "application/json")], body.to_string()).into_response()
}

fn selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let absent = query.get("labelSelector").and_then(|s| s.strip_prefix('!'));
    let label = absent.is_none_or(|name| object["metadata"]["labels"].get(name).is_none());
    let field = match query.get("fieldSelector").map(String::as_str) {
        None => true,
        Some("spec.clusterIP!=None") => object["spec"]["clusterIP"] != "None",
        Some(selector) => {
            let name = selector.strip_prefix("metadata.name=").unwrap();
            object["metadata"]["name"] == name
        }
    };
    label && field
}

struct Watch {
    shared: Arc<Shared>,
    resource: &'static str,
    query: BTreeMap<String, String>,
    from: u64,
    epoch: u64,
    changed: watch::Receiver<u64>,
    broken: bool,
}

fn watch_events(
    shared: Arc<Shared>,
    resource: &'static str,
    query: &BTreeMap<String, String>,
) -> Response {
    let from: u64 = query["resourceVersion"].parse().unwrap();
    let (epoch, gone) = {
        let inner = shared.state.lock().unwrap();
        (inner.epoch, from < inner.compacted)
    };
    if gone {
        let expired = json!({"type": "ERROR", "object": {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired",
            "message": "too old resource version", "code": 410,
        }});
        return format!("{expired}\n").into_response();
    }
    let state = Watch {
        changed: shared.changed.subscribe(),
        shared,
        resource,
        query: query.clone(),
        from,
        epoch,
        broken: false,
    };
    Body::from_stream(stream::unfold(state, next_event)).into_response()
}

async fn next_event(mut watch: Watch) -> Option<(io::Result<Bytes>, Watch)> {
    loop {
        if watch.broken {
            return Some((Err(io::Error::other("broken by the test")), watch));
        }
        let (over, told) = {
            let mut inner = watch.shared.state.lock().unwrap();
            let over = inner.epoch != watch.epoch;
            let news = inner.log.iter_mut().find(|(version, resource, _)| {
                *version > watch.from && *resource == watch.resource
            });
            let told = news.map(|(version, _, told)| {
                let now = told.clone();
                // Whoever comes back hears all of it.
                if let Told::HalfEvent(object) = &now {
                    *told = Told::Event("MODIFIED", object.clone());
                }
                (*version, now)
            });
            (over, told)
        };
        let Some((version, told)) = told else {
            if over {
                return None;
            }
            watch.changed.changed().await.ok()?;
            continue;
        };
        watch.from = version;
        let line = match told {
            // An object that a filter leaves out is not told, except that it is gone.
            Told::Event(word, object) if word == "BOOKMARK" || selected(&object, &watch.query) => {
                format!("{}\n", json!({"type": word, "object": object}))
            }
            Told::Event("MODIFIED", object) => {
                format!("{}\n", json!({"type": "DELETED", "object": object}))
            }
            Told::Event(..) => continue,
            Told::HalfEvent(object) => {
                watch.broken = true;
                let whole = json!({"type": "MODIFIED", "object": object}).to_string();
                whole[..whole.len() / 2].to_owned()
            }
            Told::Garbage => "{\"type\": \"MODIFIED\", \"object\": {\"spec\": 5}}\n".to_owned(),
        };
        return Some((Ok(Bytes::from(line)), watch));
    }
}
