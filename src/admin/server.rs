//! The admin API: HTTP over a Unix socket that only its owner can reach.
//!
//! `GET /v1/RESOURCE?namespace=&name=&output=table|wide|json`, `GET /v1/explain?target=` and `GET /v1/names?target=` read the
//! published snapshots, `GET /v1/resolver` says how to tell that a resolver is this one. `GET /v1/faults` lists the faults that are on, and `POST /v1/faults` turns them on and off: the only
//! thing that anybody changes here. Never waits for the reconciler.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::map_response_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::control::PublishedObjects;
use crate::dataplane::{Observer, OpenFlows, WhoseFlows};
use crate::dns::Names;
use crate::faults::ActiveFaults;
use crate::routing::{Published, Target};
use crate::sources::kube::Contact;

use super::views::{Resource, Selection, Snapshot};
use super::{faults, http, reach};

/// Where answers come from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The stored objects.
    pub objects: PublishedObjects,
    /// The routing table.
    pub table: Published,
    /// What flows do.
    pub observer: Observer,
    /// The faults that are on. The one thing that can be changed here.
    pub faults: ActiveFaults,
    /// Whether the API server is heard, where there is one.
    pub contact: Contact,
    /// What explains names, if there is a DNS server.
    pub names: Option<Names>,
}

impl Sources {
    /// All of it at this moment but what flows do.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            objects: self.objects.load_full(),
            table: self.table.load_full(),
            faults: self.faults.clone(),
            carried: HashMap::new(),
            flows: OpenFlows::default(),
            now: Timestamp::now(),
            instant: Instant::now(),
        }
    }
}

impl Sources {
    async fn look(&self, resource: Resource, question: &Question) -> Snapshot {
        let mut snapshot = self.snapshot();
        match resource {
            Resource::Backends => snapshot.carried = self.observer.carried(),
            Resource::Flows => {
                let whose = WhoseFlows {
                    namespace: question.namespace.clone(),
                    service: question.name.clone(),
                };
                snapshot.flows = self.observer.open_flows(whose).await;
            }
            Resource::Services | Resource::EndpointSlices | Resource::Pods | Resource::Nodes => {}
        }
        snapshot
    }
}

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there already.
    #[error("--admin-socket {}: another viaduct is running there; stop it or choose another path", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket has the path.
    #[error("--admin-socket {}: a file is there that is no socket; remove it or choose another path", .0.display())]
    NoSocket(PathBuf),
    /// The kernel says no.
    #[error("--admin-socket {}: {source}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The bound server.
#[derive(Debug)]
pub struct AdminServer {
    listener: UnixListener,
    path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Question {
    namespace: Option<String>,
    name: Option<String>,
    output: Option<String>,
}

#[derive(Debug, Deserialize)]
struct About {
    target: String,
}

impl AdminServer {
    /// Binds the socket, readable and writable by its owner alone. A socket that nobody answers on is replaced.
    ///
    /// # Errors
    ///
    /// Another process answers there, or the path cannot be used.
    pub async fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |source| BindError::Bind {
            path: path.to_owned(),
            source,
        };
        if UnixStream::connect(path).await.is_ok() {
            return Err(BindError::InUse(path.to_owned()));
        }
        if let Some(directory) = path.parent() {
            let mut private = std::fs::DirBuilder::new();
            private
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(failed)?;
        }
        let is_socket = |file: std::fs::Metadata| file.file_type().is_socket();
        if std::fs::symlink_metadata(path).is_ok_and(|file| !is_socket(file)) {
            return Err(BindError::NoSocket(path.to_owned()));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Answers until `stop`, then removes the socket.
    pub async fn serve(self, sources: Sources, stop: CancellationToken) {
        let sources = Arc::new(sources);
        let router = Router::new()
            .route("/v1/explain", get(explain))
            .route("/v1/faults", get(faults::list).post(faults::change))
            .route("/v1/names", get(explain_name))
            .route("/v1/resolver", get(resolver))
            .route("/v1/{resource}", get(answer))
            .layer(map_response_with_state(Arc::clone(&sources), marked))
            .with_state(sources);
        http::serve(self.listener, router, stop).await;
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "admin socket could not be removed");
        }
    }
}

/// What those are told who ask about DNS where there is none.
const NO_DNS: &str = "there is no DNS server here; --dns-listen starts one";

/// The header of answers that may be out of date: for how long, and why.
pub const OUT_OF_TOUCH: &str = "viaduct-out-of-touch";

// What is told is no less true for being old, but who asks should know.
async fn marked(State(sources): State<Arc<Sources>>, mut response: Response) -> Response {
    let told = sources.contact.out_of_touch(Instant::now());
    let mark = told.and_then(|told| HeaderValue::from_str(&plain(&told.to_string())).ok());
    if let Some(mark) = mark {
        response.headers_mut().insert(OUT_OF_TOUCH, mark);
    }
    response
}

// A header holds printable ASCII; a server's words may be anything.
fn plain(words: &str) -> String {
    let kept = |c: char| if c.is_ascii_graphic() { c } else { ' ' };
    words.chars().take(300).map(kept).collect()
}

async fn answer(
    State(sources): State<Arc<Sources>>,
    UrlPath(resource): UrlPath<String>,
    Query(question): Query<Question>,
) -> Response {
    let Some(resource) = Resource::parse(&resource) else {
        return (
            StatusCode::NOT_FOUND,
            format!("{resource} is not known here"),
        )
            .into_response();
    };
    let snapshot = sources.look(resource, &question).await;
    let wide = question.output.as_deref() == Some("wide");
    let selection = Selection {
        namespace: question.namespace,
        name: question.name,
        wide,
    };
    match question.output.as_deref() {
        Some("json") => Json(snapshot.list(resource, &selection)).into_response(),
        Some("table" | "wide") | None => Json(snapshot.table(resource, &selection)).into_response(),
        Some(other) => (
            StatusCode::BAD_REQUEST,
            format!("{other} is not an output; table, wide and json are"),
        )
            .into_response(),
    }
}

async fn explain(State(sources): State<Arc<Sources>>, Query(about): Query<About>) -> Response {
    let target = match about.target.parse::<Target>() {
        Ok(target) => target,
        Err(invalid) => return (StatusCode::BAD_REQUEST, invalid.to_string()).into_response(),
    };
    match sources.table.load_full().explain(&target, Instant::now()) {
        Ok(mut explanation) => {
            for port in &mut explanation.service_ports {
                faults::remark(&sources.faults, port);
                reach::remark(&sources.observer, port);
            }
            Json(explanation).into_response()
        }
        Err(unknown) => (StatusCode::NOT_FOUND, unknown.to_string()).into_response(),
    }
}

async fn resolver(State(sources): State<Arc<Sources>>) -> Response {
    match &sources.names {
        Some(names) => Json(names.whereabouts()).into_response(),
        None => (StatusCode::NOT_FOUND, NO_DNS).into_response(),
    }
}

async fn explain_name(State(sources): State<Arc<Sources>>, Query(about): Query<About>) -> Response {
    let Some(names) = &sources.names else {
        return (StatusCode::NOT_FOUND, NO_DNS).into_response();
    };
    match names.explain(&about.target) {
        Ok(explained) => Json(explained).into_response(),
        Err(invalid) => (StatusCode::BAD_REQUEST, invalid.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/admin.sock");
        let first = AdminServer::bind(&path).await.unwrap();
        assert!(matches!(
            AdminServer::bind(&path).await,
            Err(BindError::InUse(_))
        ));
        drop(first);
        let second = AdminServer::bind(&path).await.unwrap();
        assert_eq!(
            std::fs::metadata(&second.path)
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.txt");
        std::fs::write(&path, "dear").unwrap();
        assert!(matches!(
            AdminServer::bind(&path).await,
            Err(BindError::NoSocket(_))
        ));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "dear");
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_used_is_named() {
        let error = AdminServer::bind(Path::new("/proc/none/admin.sock"))
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("--admin-socket /proc/none/admin.sock: "),
            "{error}"
        );
    }
}
