//! Probes and scrapes: `/healthz`, `/livez`, `/readyz` on one address; `/metrics`, `/healthz`, `/proxyMode` on another.
//!
//! Source: kube-proxy's health server (port 10256) and metrics server (port 10249), paths and bodies alike.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use jiff::Timestamp;
use prometheus::{IntCounterVec, Opts, Registry};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::net::sockets::listen_in_both_families;
use crate::readiness::Readiness;
use crate::sources::kube::Contact;
use crate::telemetry::{FamilyReport, Health, Report};

use super::http;

/// How long a bind that failed waits before it is tried again.
const REBIND: Duration = Duration::from_secs(5);

/// How a time that never was is written: Go's zero time, so that whoever parses kube-proxy's answers can parse ours.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// What the health server reports.
#[derive(Clone, Debug)]
pub struct HealthServer {
    /// Whether the control loop keeps up.
    pub health: Health,
    /// What start-up still waits for.
    pub readiness: Readiness,
    /// Whether the API server is heard, where there is one.
    pub contact: Contact,
    /// A change may wait for this long: twice the sync period.
    pub timeout: Duration,
    /// How it was answered.
    pub answers: Answers,
}

/// How often probes were answered with which status. Source: kube-proxy's metrics of that name.
#[derive(Clone, Debug)]
pub struct Answers {
    healthz: IntCounterVec,
    livez: IntCounterVec,
}

impl Answers {
    /// Registers the figures.
    ///
    /// # Errors
    ///
    /// A name that is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["code"])?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Self {
            healthz: counter(
                "kubeproxy_proxy_healthz_total",
                "Answers of /healthz by status.",
            )?,
            livez: counter(
                "kubeproxy_proxy_livez_total",
                "Answers of /livez by status.",
            )?,
        })
    }
}

/// What the metrics server reports.
#[derive(Clone, Debug)]
pub struct MetricsServer {
    /// Everything that is counted.
    pub registry: Registry,
    /// The capture mode's name.
    pub mode: &'static str,
    /// The running configuration, keyed by component config group.
    pub configz: Arc<ArcSwap<Value>>,
}

/// Serves health on `listener`, or on `address` as soon as it can be bound, until `stop`.
pub async fn serve_health(
    server: HealthServer,
    address: SocketAddr,
    listener: Option<TcpListener>,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/healthz", any(healthz))
        .route("/livez", any(livez))
        .route("/readyz", any(readyz))
        .with_state(Arc::new(server));
    serve("healthz-bind-address", router, address, listener, stop).await;
}

/// Serves metrics on `listener`, or on `address` as soon as it can be bound, until `stop`.
pub async fn serve_metrics(
    server: MetricsServer,
    address: SocketAddr,
    listener: Option<TcpListener>,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/metrics", any(metrics))
        .route("/healthz", any(async || "ok"))
        .route("/configz", any(configz))
        .route(
            "/proxyMode",
            any(async |State(server): State<Arc<MetricsServer>>| server.mode),
        )
        .with_state(Arc::new(server));
    serve("metrics-bind-address", router, address, listener, stop).await;
}

async fn serve(
    flag: &'static str,
    router: Router,
    address: SocketAddr,
    listener: Option<TcpListener>,
    stop: CancellationToken,
) {
    let bound = async {
        match listener {
            Some(listener) => listener,
            None => rebind(flag, address).await,
        }
    };
    let listener = tokio::select! {
        listener = bound => listener,
        () = stop.cancelled() => return,
    };
    http::serve(listener, router, stop).await;
}

/// Binds the address of a server. `0.0.0.0` stands for every address of both families, where the kernel has both.
///
/// Source: Go's `net.Listen`, which kube-proxy's servers use.
///
/// # Errors
///
/// Those of `bind(2)`.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        && let Ok(listener) = listen_in_both_families(address.port())
    {
        return TcpListener::from_std(listener);
    }
    TcpListener::bind(address).await
}

async fn rebind(flag: &'static str, address: SocketAddr) -> TcpListener {
    loop {
        match bind(address).await {
            Ok(listener) => {
                info!(flag, %address, "bound at last");
                return listener;
            }
            Err(error) => {
                warn!(flag, %address, %error, "address cannot be bound; tried again every {REBIND:?}")
            }
        }
        tokio::time::sleep(REBIND).await;
    }
}

async fn healthz(State(server): State<Arc<HealthServer>>) -> Response {
    let report = server.health.report(Instant::now(), server.timeout);
    let mut body = body(&report);
    body.insert("nodeEligible".to_owned(), report.node_eligible.into());
    respond(
        report.healthy && report.node_eligible,
        body,
        &server.answers.healthz,
    )
}

async fn livez(State(server): State<Arc<HealthServer>>) -> Response {
    let report = server.health.report(Instant::now(), server.timeout);
    respond(report.healthy, body(&report), &server.answers.livez)
}

// Names what start-up still waits for. A lost API server or a family that fails keeps nobody from serving the rest, so
// these are only told.
async fn readyz(State(server): State<Arc<HealthServer>>) -> Response {
    let pending = server.readiness.pending();
    let status = if pending.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut body = json!({ "ready": pending.is_empty(), "pending": pending });
    if let Some(told) = server.contact.out_of_touch(Instant::now()) {
        body["apiServerOutOfTouch"] =
            json!({ "seconds": told.age.as_secs(), "reason": &*told.reason });
    }
    let report = server.health.report(Instant::now(), server.timeout);
    let families = report.families.iter();
    let failures = families.filter_map(|(name, family)| Some((*name, family.failure.as_ref()?)));
    let failures: BTreeMap<_, _> = failures.collect();
    if !failures.is_empty() {
        body["failures"] = json!(failures);
    }
    (status, Json(body)).into_response()
}

fn respond(good: bool, body: Map<String, Value>, answers: &IntCounterVec) -> Response {
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answers.with_label_values(&[status.as_str()]).inc();
    (
        status,
        [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")],
        Json(body),
    )
        .into_response()
}

// When healthy the top-level `lastUpdated` is the current time, as kube-proxy has it for compatibility.
fn body(report: &Report) -> Map<String, Value> {
    let now = Timestamp::now();
    let newest = report
        .families
        .values()
        .filter_map(|family| family.updated)
        .max();
    let updated = if report.healthy {
        now.to_string()
    } else {
        newest.map_or_else(|| NEVER.to_owned(), rfc3339)
    };
    let family = |(name, family): (&&str, &FamilyReport)| {
        let updated = family.updated.map_or_else(|| NEVER.to_owned(), rfc3339);
        let mut status = json!({ "lastUpdated": updated, "healthy": family.healthy });
        if let Some(failure) = &family.failure {
            status["failure"] = json!(failure);
        }
        ((*name).to_owned(), status)
    };
    let mut body = Map::new();
    body.insert("lastUpdated".to_owned(), updated.into());
    body.insert("currentTime".to_owned(), now.to_string().into());
    body.insert("healthy".to_owned(), report.healthy.into());
    body.insert(
        "status".to_owned(),
        Value::Object(report.families.iter().map(family).collect()),
    );
    body
}

fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| NEVER.to_owned(), |time| time.to_string())
}

async fn metrics(State(server): State<Arc<MetricsServer>>) -> Response {
    let text = crate::telemetry::render(&server.registry);
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

async fn configz(State(server): State<Arc<MetricsServer>>) -> Response {
    Json(server.configz.load().as_ref()).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn server(health: &Health) -> State<Arc<HealthServer>> {
        State(Arc::new(HealthServer {
            health: health.clone(),
            readiness: Readiness::default(),
            contact: Contact::default(),
            timeout: TIMEOUT,
            answers: Answers::new(&Registry::new()).unwrap(),
        }))
    }

    async fn told(response: Response) -> (u16, BTreeMap<String, Value>) {
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn time(value: &Value) -> Timestamp {
        value.as_str().unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn healthz_needs_an_eligible_node_and_livez_does_not() {
        let health = Health::default();
        let response = healthz(server(&health)).await;
        assert_eq!(
            response.headers()[header::X_CONTENT_TYPE_OPTIONS],
            "nosniff"
        );
        let (status, body) = told(response).await;
        assert_eq!((status, &body["nodeEligible"]), (503, &json!(false)));
        let (status, body) = told(livez(server(&health)).await).await;
        assert_eq!((status, &body["healthy"]), (200, &json!(true)));
        assert!(!body.contains_key("nodeEligible"));
        health.set_node_eligible(true);
        let (status, body) = told(healthz(server(&health)).await).await;
        assert_eq!((status, &body["nodeEligible"]), (200, &json!(true)));
    }

    #[tokio::test]
    async fn the_time_of_the_last_update_is_now_while_all_is_well() {
        let health = Health::default();
        health.updated("IPv4", SystemTime::UNIX_EPOCH + TIMEOUT);
        let (_, body) = told(livez(server(&health)).await).await;
        assert_eq!(body["lastUpdated"], body["currentTime"]);
        let epoch = Timestamp::UNIX_EPOCH + TIMEOUT;
        assert_eq!(time(&body["status"]["IPv4"]["lastUpdated"]), epoch);

        health.queued("IPv6", Instant::now().checked_sub(2 * TIMEOUT).unwrap());
        for answer in [healthz(server(&health)).await, livez(server(&health)).await] {
            let (status, body) = told(answer).await;
            assert_eq!((status, &body["healthy"]), (503, &json!(false)));
            assert_eq!(time(&body["lastUpdated"]), epoch);
            assert!(time(&body["currentTime"]) > epoch);
            assert_eq!(body["status"]["IPv4"]["healthy"], json!(true));
            assert_eq!(
                body["status"]["IPv6"],
                json!({ "lastUpdated": NEVER, "healthy": false })
            );
            assert!(time(&body["status"]["IPv6"]["lastUpdated"]) < epoch);
        }
    }

    #[tokio::test]
    async fn what_fails_is_told_by_family_until_it_works() {
        let health = Health::default();
        health.updated("IPv4", SystemTime::now());
        health.failed("IPv6", "no permission".to_owned());
        let (status, body) = told(readyz(server(&health)).await).await;
        assert_eq!(
            (status, &body["failures"]),
            (200, &json!({ "IPv6": "no permission" }))
        );
        let (_, body) = told(livez(server(&health)).await).await;
        assert_eq!(body["status"]["IPv6"]["failure"], json!("no permission"));
        assert!(body["status"]["IPv4"].get("failure").is_none());
        health.updated("IPv6", SystemTime::now());
        let (_, body) = told(readyz(server(&health)).await).await;
        assert!(!body.contains_key("failures"));
    }

    #[tokio::test]
    async fn the_ipv4_wildcard_takes_both_families() {
        let listener = bind("0.0.0.0:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let reached = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        assert!(reached.is_ok());
        if listener.local_addr().unwrap().is_ipv6() {
            let reached = tokio::net::TcpStream::connect(("::1", port)).await;
            assert!(reached.is_ok());
        }
    }
}
