//! Probes and scrapes: `/healthz`, `/livez`, `/readyz` on one address; `/metrics`, `/healthz`, `/proxyMode` on another.
//!
//! Source: kube-proxy's health server (port 10256) and metrics server (port 10249), paths and bodies alike.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use prometheus::Registry;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::readiness::Readiness;
use crate::telemetry::{Health, Report};

use super::http;

/// How long a bind that failed waits before it is tried again.
const REBIND: Duration = Duration::from_secs(5);

/// What the health server reports.
#[derive(Clone, Debug)]
pub struct HealthServer {
    /// Whether the control loop keeps up.
    pub health: Health,
    /// What start-up still waits for.
    pub readiness: Readiness,
    /// A change may wait for this long: twice the sync period.
    pub timeout: Duration,
}

/// What the metrics server reports.
#[derive(Clone, Debug)]
pub struct MetricsServer {
    /// Everything that is counted.
    pub registry: Registry,
    /// The capture mode's name.
    pub mode: &'static str,
}

/// Serves health on `listener`, or on `address` as soon as it can be bound, until `stop`.
pub async fn serve_health(
    server: HealthServer,
    address: SocketAddr,
    listener: Option<TcpListener>,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
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
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok"))
        .route(
            "/proxyMode",
            get(async |State(server): State<Arc<MetricsServer>>| server.mode),
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
    if let Err(error) = http::serve(listener, router, stop).await {
        warn!(flag, %error, "server ended");
    }
}

async fn rebind(flag: &'static str, address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
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
    respond(report.healthy && report.node_eligible, body)
}

async fn livez(State(server): State<Arc<HealthServer>>) -> Response {
    let report = server.health.report(Instant::now(), server.timeout);
    respond(report.healthy, body(&report))
}

// Names what start-up still waits for.
async fn readyz(State(server): State<Arc<HealthServer>>) -> Response {
    let pending = server.readiness.pending();
    let status = if pending.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        Json(json!({ "ready": pending.is_empty(), "pending": pending })),
    )
        .into_response()
}

fn respond(good: bool, body: Map<String, Value>) -> Response {
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
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
        .filter_map(|(updated, _)| *updated)
        .max();
    let updated = if report.healthy {
        now.to_string()
    } else {
        newest.map_or_else(String::new, rfc3339)
    };
    let family = |(name, (updated, healthy)): (&&str, &(Option<SystemTime>, bool))| {
        let status = json!({ "lastUpdated": updated.map(rfc3339), "healthy": healthy });
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
    Timestamp::try_from(time).map_or_else(|_| String::new(), |time| time.to_string())
}

async fn metrics(State(server): State<Arc<MetricsServer>>) -> Response {
    let text = crate::telemetry::render(&server.registry);
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}
