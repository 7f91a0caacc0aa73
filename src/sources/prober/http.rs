//! HTTP probes: a GET whose answer has a status of 200–399.
//!
//! Each request has a connection of its own; nothing is compressed, no proxy is asked. Redirects within a host are
//! followed; one that leads elsewhere is an answer. Source: the kubelet's `probe/http`.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use url::{Position, Url};

use crate::control::HttpGet;

use super::attempt::Attempt;
use super::connect::connect;

/// What probes call themselves.
pub(super) const AGENT: &str = "kube-probe/1.36";

/// Redirects that are followed; one more is a failure.
const MAX_REDIRECTS: usize = 10;

/// Bytes of a body that are read before it counts as read.
const MAX_BODY: usize = 10 * 1024;

/// Asks, and follows redirects.
pub(super) async fn probe(get: &HttpGet, tls: Arc<ClientConfig>) -> Attempt {
    let (mut url, headers) = match (url_of(get), headers_of(get)) {
        (Ok(url), Ok(headers)) => (url, headers),
        (Err(error), _) | (_, Err(error)) => return Attempt::Malfunction(error),
    };
    let mut authority = authority_of(get);
    let first_host = url.host_str().unwrap_or_default().to_owned();
    for _ in 0..=MAX_REDIRECTS {
        let answer = match ask(&url, &authority, &headers, &tls).await {
            Ok(answer) => answer,
            Err(error) => return Attempt::Failure(error),
        };
        let Some(location) = answer.location else {
            return judge(answer.status);
        };
        match url.join(&location) {
            Ok(next) if next.host_str() != Some(first_host.as_str()) => {
                return Attempt::Warning(format!(
                    "HTTP status {} leads to another host, {next}",
                    answer.status.as_u16()
                ));
            }
            Ok(next) => {
                // Whoever asked under a name of his own goes on under it, unless he is sent to another.
                if Url::parse(&location).is_ok() {
                    authority = next[Position::BeforeHost..Position::AfterPort].to_owned();
                }
                url = next;
            }
            Err(error) => {
                return Attempt::Failure(format!("redirect to {location:?}: {error}"));
            }
        }
    }
    Attempt::Failure(format!("more than {MAX_REDIRECTS} redirects"))
}

/// What is left of an answer once its body is read.
struct Answer {
    status: StatusCode,
    /// Where a redirect leads.
    location: Option<String>,
}

fn judge(status: StatusCode) -> Attempt {
    let code = status.as_u16();
    match code {
        200..=299 => Attempt::Success,
        300..=399 => Attempt::Warning(format!("HTTP status {code} leads nowhere")),
        _ => Attempt::Failure(format!("HTTP status {code}")),
    }
}

async fn ask(
    url: &Url,
    authority: &str,
    headers: &HeaderMap,
    tls: &Arc<ClientConfig>,
) -> Result<Answer, String> {
    let target = &url[Position::BeforePath..Position::AfterQuery];
    let mut request = Request::get(target)
        .body(Empty::new())
        .map_err(|error| format!("path {target:?}: {error}"))?;
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(HOST) {
        let host = HeaderValue::try_from(authority)
            .map_err(|error| format!("host {authority:?}: {error}"))?;
        request.headers_mut().insert(HOST, host);
    }
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tls = match url.scheme() {
        "http" => None,
        "https" => Some(tls),
        other => return Err(format!("redirect to unsupported scheme {other:?}")),
    };
    let port = url.port_or_known_default().unwrap_or(80);
    let stream = connect(host, port)
        .await
        .map_err(|error| error.to_string())?;
    match tls {
        None => exchange(stream, request).await,
        Some(config) => {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|error| format!("host {host:?}: {error}"))?;
            let connector = TlsConnector::from(config.clone());
            let stream = connector.connect(name, stream).await;
            let stream = stream.map_err(|error| format!("TLS with {host}: {error}"))?;
            exchange(stream, request).await
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Names are spelled as Go spells them, for servers that care.
    let handshake = hyper::client::conn::http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = handshake.map_err(told)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(told)?;
        read(response).await
    };
    alongside(exchange, connection).await
}

async fn read(response: Response<Incoming>) -> Result<Answer, String> {
    let status = response.status();
    let location = match (status.as_u16(), response.headers().get(LOCATION)) {
        (301 | 302 | 303 | 307 | 308, Some(location)) => {
            let text = location.to_str();
            Some(
                text.map_err(|_| "redirect to no text".to_owned())?
                    .to_owned(),
            )
        }
        (_, _) => None,
    };
    if location.is_none() {
        let mut body = response.into_body();
        let mut n_read = 0;
        while n_read < MAX_BODY
            && let Some(frame) = body.frame().await
        {
            let frame =
                frame.map_err(|error| format!("HTTP status {status}, then {}", told(error)))?;
            n_read += frame.data_ref().map_or(0, Bytes::len);
        }
    }
    Ok(Answer { status, location })
}

/// Awaits `work` while the connection that it needs is driven.
pub(super) async fn alongside<T>(work: impl Future<Output = T>, connection: impl Future) -> T {
    match select(pin!(work), pin!(connection)).await {
        Either::Left((done, _)) => done,
        // What had come before the connection ended is still there to be read.
        Either::Right((_, work)) => work.await,
    }
}

// hyper keeps the interesting part in the source.
fn told(error: hyper::Error) -> String {
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn url_of(get: &HttpGet) -> Result<Url, String> {
    let scheme = if get.tls { "https" } else { "http" };
    let text = format!("{scheme}://{}", authority_of(get));
    let mut url = Url::parse(&text).map_err(|error| format!("{text}: {error}"))?;
    let without_fragment = get.path.split('#').next().unwrap_or_default();
    match without_fragment.split_once('?') {
        Some((path, query)) => {
            url.set_path(path);
            url.set_query(Some(query));
        }
        None => url.set_path(without_fragment),
    }
    Ok(url)
}

// With its port even where that is the scheme's own, as the kubelet writes it.
fn authority_of(get: &HttpGet) -> String {
    let HttpGet { host, port, .. } = get;
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

// What is given, and what is sent unless something else is given; given empty, it is left out.
fn headers_of(get: &HttpGet) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &get.headers {
        let bad = |error: &dyn std::fmt::Display| format!("header {name:?}: {error}");
        let parsed = HeaderName::try_from(name.as_str()).map_err(|error| bad(&error))?;
        let value = HeaderValue::try_from(value.as_str()).map_err(|error| bad(&error))?;
        // There is one host, however often it is given.
        if parsed != HOST || !headers.contains_key(HOST) {
            headers.append(parsed, value);
        }
    }
    for (name, default) in [
        (USER_AGENT, Some(AGENT)),
        (ACCEPT, Some("*/*")),
        (HOST, None),
    ] {
        match (headers.get(&name), default) {
            (Some(value), _) if value.is_empty() => {
                headers.remove(&name);
            }
            (None, Some(default)) => {
                headers.insert(name, HeaderValue::from_static(default));
            }
            (Some(_) | None, _) => {}
        }
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}
