//! Asks a running viaduct over its admin socket, for the subcommands that print what it says.

use std::path::Path;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::admin::OUT_OF_TOUCH;

/// The body of `GET url` from the viaduct behind `socket`.
///
/// # Errors
///
/// Nobody answers there, or what was asked for is not there: then the answer's own words.
pub(super) async fn ask(socket: &Path, url: &str) -> anyhow::Result<Bytes> {
    let request = Request::get(url)
        .header("Host", "viaduct")
        .body(Full::default())?;
    exchange(socket, request).await
}

/// What `POST url` answers to a body of JSON.
///
/// # Errors
///
/// As [`ask`], and when it is refused: then the answer's own words.
pub(super) async fn post(socket: &Path, url: &str, body: Vec<u8>) -> anyhow::Result<Bytes> {
    let request = Request::post(url)
        .header("Host", "viaduct")
        .header("Content-Type", "application/json")
        .body(Full::from(body))?;
    exchange(socket, request).await
}

async fn exchange(socket: &Path, request: Request<Full<Bytes>>) -> anyhow::Result<Bytes> {
    let place = socket.display();
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "no viaduct answers at {place}; is it running, as this user? --admin-socket says where"
        )
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .with_context(|| format!("asking {place}"))?;
    let status = response.status();
    let mark = response.headers().get(OUT_OF_TOUCH);
    if let Some(told) = mark.and_then(|mark| mark.to_str().ok()) {
        eprintln!("warning: API server out of touch for {told}");
    }
    let body = response
        .into_body()
        .collect()
        .await
        .with_context(|| format!("reading from {place}"))?
        .to_bytes();
    driver.abort();
    if status.is_success() {
        return Ok(body);
    }
    let message = String::from_utf8_lossy(&body);
    if [
        StatusCode::NOT_FOUND,
        StatusCode::BAD_REQUEST,
        StatusCode::CONFLICT,
    ]
    .contains(&status)
    {
        bail!("{message}");
    }
    bail!("{place} answers {status}: {message}");
}

/// An answer as JSON for people.
pub(super) fn pretty(json: &[u8]) -> anyhow::Result<String> {
    let list: serde_json::Value = serde_json::from_slice(json).context("reading the answer")?;
    Ok(serde_json::to_string_pretty(&list)? + "\n")
}

/// A value as it stands in the query of a URL.
pub(super) fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_for_the_query() {
        assert_eq!(escape("a-b.c"), "a-b.c");
        assert_eq!(escape("a&b=ü"), "a%26b%3D%C3%BC");
    }
}
