//! The HTTP of a health-check node port: one answer, whatever the path and the method.
//!
//! Source: kube-proxy's service health server, status, headers and body alike.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpStream;

use crate::model::ServiceName;
use crate::telemetry::Health;

/// Bytes of a request's head; a longer one is answered with status 431.
const MAX_HEAD: usize = 16 * 1024;

/// How long a connection may wait for the head of its next request. Balancers ask every few seconds.
const IDLE: Duration = Duration::from_secs(120);

/// Lets a balancer weigh nodes by how many endpoints they have.
static WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What a port tells, at every moment anew.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) service: ServiceName,
    pub(super) local_endpoints: AtomicUsize,
    pub(super) proxy: ProxyHealth,
}

/// Whether the proxy itself keeps up.
#[derive(Clone, Debug)]
pub(super) struct ProxyHealth {
    pub(super) health: Health,
    pub(super) timeout: Duration,
}

/// Answers the requests of one connection until either side ends it.
pub(super) async fn serve(stream: TcpStream, told: &Told) -> io::Result<()> {
    let answers = service_fn(|_request: Request<Incoming>| {
        let response = told.response();
        async { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answers)
        .await
        .map_err(io::Error::other)
}

impl Told {
    fn response(&self) -> Response<Full<Bytes>> {
        let local_endpoints = self.local_endpoints.load(Ordering::Relaxed);
        let report = self.proxy.health.report(Instant::now(), self.proxy.timeout);
        let body = json!({
            "service": { "namespace": *self.service.namespace, "name": *self.service.name },
            "localEndpoints": local_endpoints,
            "serviceProxyHealthy": report.healthy,
        });
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        if local_endpoints == 0 || !report.healthy {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(WEIGHT.clone(), HeaderValue::from(local_endpoints));
        response
    }
}
