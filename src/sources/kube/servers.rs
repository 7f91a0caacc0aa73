//! One client over all API servers: the service under it goes to another server when one fails, and reads credentials
//! anew when they are refused.
//!
//! Watches do not notice a change of server: they go on from the version they have, which all servers of a cluster share.
//! Owns the connection in use and the turn; every answer gets bounds on size and time (`body`).
//!
//! A server address that belongs to a Service is never dialled: our own rules would send the connection through us, and
//! before the first table nobody serves it at all. Once the table knows the Service, one of its endpoints is dialled in
//! its place, and TLS still checks the name that was asked for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hyper::http::uri::Scheme;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use kube::client::{AuthError, Body, ConfigExt};
use kube::config::Config;
use tokio::sync::Mutex;
use tokio::task::{JoinError, JoinHandle};
use tower::{BoxError, ServiceBuilder};
use tracing::{debug, info};

use crate::control::Kind;
use crate::model::{Frontend, Protocol};
use crate::net::http_connector::http_connector;
use crate::routing::{Published, RoutingTable};

use super::Patience;
use super::access::{Access, AccessError, credentials_error, why_refused};
use super::body::{Bound, BoundedBody};
use super::bucket::{Bucket, Rate};
use super::contact::Contact;

/// All API servers.
pub(super) struct ApiServers {
    access: Access,
    patience: Patience,
    table: Published,
    contact: Contact,
    state: Mutex<State>,
    stalled: Stalled,
    bucket: Option<std::sync::Mutex<Bucket>>,
}

// Which server is in use.
#[derive(Default)]
struct State {
    /// Counts failures; the server in use is the one that this falls on.
    turn: usize,
    client: Option<kube::Client>,
    /// Changes with every client, so that a late failure of an old one does not end a new one.
    generation: u64,
    /// A client in the making. It outlives who waits for it, so that an exec plugin that hangs is run once, not once for
    /// every retry.
    making: Option<JoinHandle<Made>>,
}

/// A client, and the server that it is for.
type Made = Result<(Uri, kube::Client), AccessError>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("no answer within {0:?}")]
    TimedOut(std::time::Duration),
    #[error("{0}")]
    Failed(String),
    #[error("a task that reads credentials has died: {0}")]
    Died(#[from] JoinError),
}

impl ApiServers {
    pub(super) fn new(
        access: Access,
        patience: Patience,
        rate: Option<Rate>,
        table: Published,
        contact: Contact,
    ) -> Self {
        Self {
            access,
            patience,
            table,
            contact,
            state: Mutex::default(),
            stalled: Stalled::default(),
            bucket: rate.map(|rate| std::sync::Mutex::new(Bucket::new(rate, Instant::now()))),
        }
    }

    /// The client that lists and watches are made with.
    pub(super) fn client(self: Arc<Self>) -> kube::Client {
        let service = tower::service_fn(move |request| {
            let servers = self.clone();
            async move { servers.send(request).await.map_err(BoxError::from) }
        });
        kube::Client::new(service, "default")
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<BoundedBody>, SendError> {
        let query = request.uri().query().unwrap_or_default();
        let watching = query.contains("watch=true");
        let kind = asked_for(request.uri().path());
        // The pages of a list are one request: half a list is of no use to anybody.
        if let Some(bucket) = self
            .bucket
            .as_ref()
            .filter(|_| !query.contains("continue="))
        {
            let wait = bucket
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .take(Instant::now());
            tokio::time::sleep(wait).await;
        }
        let (generation, client) = self.connected().await?;
        let answer = tokio::time::timeout(self.patience.answer, client.send(request)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.failed(generation).await;
                return Err(SendError::Failed(cause(&error)));
            }
            Err(_) => {
                self.failed(generation).await;
                return Err(SendError::TimedOut(self.patience.answer));
            }
        };
        let status = answer.status();
        if status == StatusCode::UNAUTHORIZED || status.is_server_error() {
            self.failed(generation).await;
        }
        let (now, patience) = (tokio::time::Instant::now(), &self.patience);
        let bound = if watching && status.is_success() {
            // A watch that goes on where it was says nothing until something changes.
            if let Some(kind) = kind {
                self.contact.heard(kind, Instant::now());
            }
            Bound {
                bytes: patience.event_bytes,
                per_line: true,
                // The server ends it before that, unless it hangs.
                until: now + patience.watch + patience.answer,
            }
        } else {
            Bound {
                bytes: patience.page_bytes,
                per_line: false,
                until: now + patience.page,
            }
        };
        let stalled = self.stalled.clone();
        Ok(answer
            .map(|body| BoundedBody::new(body, bound, Box::new(move || stalled.note(generation)))))
    }

    // The client in use, or a new one to the server whose turn it is.
    async fn connected(&self) -> Result<(u64, kube::Client), SendError> {
        let mut state = self.state.lock().await;
        if self.stalled.is(state.generation) {
            state.give_up();
        }
        if let Some(client) = &state.client
            && client
                .valid_until()
                .is_none_or(|until| until > jiff::Timestamp::now())
        {
            return Ok((state.generation, client.clone()));
        }
        let turn = state.turn;
        let making = state.making.get_or_insert_with(|| self.make(turn));
        let made = tokio::time::timeout(self.patience.answer, making).await;
        let made = made.map_err(|_| SendError::TimedOut(self.patience.answer))?;
        state.making = None;
        let (server, client) = match made? {
            Ok(made) => made,
            Err(error) => {
                state.turn = state.turn.wrapping_add(1);
                return Err(error.into());
            }
        };
        if state.generation == 0 {
            info!(%server, "API server");
        } else {
            debug!(%server, "API server is tried");
        }
        state.generation += 1;
        state.client = Some(client.clone());
        Ok((state.generation, client))
    }

    // Files are read, and an exec plugin may run for a while.
    fn make(&self, turn: usize) -> JoinHandle<Made> {
        let (access, table) = (self.access.clone(), self.table.load_full());
        let connect = self.patience.connect;
        tokio::task::spawn_blocking(move || {
            let candidates = candidates(access.load()?, &table);
            let config = &candidates[turn % candidates.len()];
            let client = make_client(config, connect).map_err(|error| credentials_error(&error))?;
            Ok((config.cluster_url.clone(), client))
        })
    }

    async fn failed(&self, generation: u64) {
        let mut state = self.state.lock().await;
        if state.generation == generation {
            state.give_up();
        }
    }
}

impl State {
    // Whoever asks next goes to the next server, with credentials read anew.
    fn give_up(&mut self) {
        if self.client.take().is_some() {
            self.turn = self.turn.wrapping_add(1);
        }
    }
}

/// The newest client whose server began an answer and did not end it: it is no better than one that says nothing. Noted
/// by bodies, which outlive their request and cannot wait for the state.
#[derive(Clone, Debug, Default)]
struct Stalled(Arc<AtomicU64>);

impl Stalled {
    fn note(&self, generation: u64) {
        self.0.fetch_max(generation, Ordering::Relaxed);
    }

    // Generations of clients begin with 1.
    fn is(&self, generation: u64) -> bool {
        generation > 0 && self.0.load(Ordering::Relaxed) == generation
    }
}

/// The kind that a list or watch of all namespaces is about.
fn asked_for(path: &str) -> Option<Kind> {
    match path.rsplit('/').next()? {
        "services" => Some(Kind::Service),
        "endpointslices" => Some(Kind::EndpointSlice),
        "nodes" => Some(Kind::Node),
        "namespaces" => Some(Kind::Namespace),
        "pods" => Some(Kind::Pod),
        _ => None,
    }
}

fn make_client(config: &Config, connect: std::time::Duration) -> Result<kube::Client, kube::Error> {
    let connector = config.rustls_https_connector_with_connector(http_connector(connect))?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build(connector));
    Ok(kube::Client::new(service, "default"))
}

/// Where a connection may be tried, in turn: the servers, or the endpoints of those that are Services. Never empty if
/// `servers` is not.
fn candidates(servers: Vec<Config>, table: &RoutingTable) -> Vec<Config> {
    let endpoints = |server: &Config| -> Vec<Config> {
        let Some(endpoints) = behind(&server.cluster_url, table) else {
            return vec![server.clone()];
        };
        let direct = endpoints
            .into_iter()
            .filter_map(|endpoint| directly(server, endpoint));
        direct.collect()
    };
    let found: Vec<Config> = servers.iter().flat_map(endpoints).collect();
    // A Service without endpoints: only its own address is left to try.
    if found.is_empty() { servers } else { found }
}

/// The endpoints of the Service whose address this is, if it is one.
fn behind(url: &Uri, table: &RoutingTable) -> Option<Vec<SocketAddr>> {
    let host = url.host()?.trim_matches(['[', ']']);
    let ip: IpAddr = host.parse().ok()?;
    let default = if url.scheme() == Some(&Scheme::HTTP) {
        80
    } else {
        443
    };
    let port = url.port_u16().unwrap_or(default);
    let frontend = Frontend::new(SocketAddr::new(ip, port), Protocol::Tcp);
    let destination = table.destination(&frontend)?;
    Some(destination.route.serving().collect())
}

fn directly(server: &Config, endpoint: SocketAddr) -> Option<Config> {
    let mut direct = server.clone();
    let host = server.cluster_url.host()?.trim_matches(['[', ']']);
    if direct.tls_server_name.is_none() {
        direct.tls_server_name = Some(host.to_owned());
    }
    let scheme = server.cluster_url.scheme_str()?;
    let path = server.cluster_url.path();
    direct.cluster_url = format!("{scheme}://{endpoint}{path}").parse().ok()?;
    Some(direct)
}

/// The innermost reason of an error: `connection refused` rather than three layers of who was told so.
pub(super) fn cause(error: &kube::Error) -> String {
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(error) = innermost.downcast_ref::<AuthError>() {
            return why_refused(error);
        }
        match innermost.source() {
            Some(source) => innermost = source,
            None => return innermost.to_string(),
        }
    }
}
