//! Requests over HTTP/1.1, by hyper.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;

use super::HttpWork;
use super::client::{Answer, connect, failure_of};
use super::tally::Failure;

/// Bytes of an answer's body; a longer one is broken off.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// One connection at a time.
#[derive(Debug)]
pub(super) struct HttpClient {
    work: HttpWork,
    origin: Option<SocketAddr>,
    connection: Option<Connection>,
    body: Bytes,
    backend: String,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl HttpClient {
    pub(super) fn new(work: HttpWork, origin: Option<SocketAddr>) -> Self {
        let body = Bytes::from(vec![b'x'; work.body_size]);
        Self {
            work,
            origin,
            connection: None,
            body,
            backend: String::new(),
        }
    }

    /// Dropped half way, it leaves no connection behind.
    pub(super) async fn exchange(&mut self) -> Result<Answer<'_>, Failure> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let sender = &mut connection.sender;
        sender.ready().await.map_err(|error| failed(&error))?;
        let answer = sender
            .send_request(self.request()?)
            .await
            .map_err(|error| failed(&error))?;
        let (head, mut body) = answer.into_parts();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| failed(&error))?;
            received += frame.data_ref().map_or(0, Bytes::len);
            if received > MAX_BODY {
                return Err(Failure::Mismatch);
            }
        }
        if self.work.keep {
            self.connection = Some(connection);
        }
        if head.status.is_client_error() || head.status.is_server_error() {
            return Err(Failure::Status);
        }
        self.backend.clear();
        if let Some(name) = head
            .headers
            .get("x-pod")
            .and_then(|name| name.to_str().ok())
        {
            self.backend.push_str(name);
        }
        Ok(Answer {
            sent: self.body.len(),
            received,
            backend: Some(self.backend.as_str()).filter(|name| !name.is_empty()),
        })
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let stream = connect(self.work.target, self.origin).await?;
        let (sender, driver) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        let driver = tokio::task::spawn_local(async {
            if let Err(error) = driver.await {
                tracing::trace!(%error, "connection ended");
            }
        });
        Ok(Connection {
            sender,
            driver: driver.abort_handle(),
        })
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, Failure> {
        let method = if self.body.is_empty() {
            Method::GET
        } else {
            Method::POST
        };
        Request::builder()
            .method(method)
            .uri(&*self.work.path)
            .header(HOST, &*self.work.host)
            .body(Full::new(self.body.clone()))
            .map_err(|_| Failure::Mismatch)
    }
}

fn failed(error: &hyper::Error) -> Failure {
    let io = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
    match io {
        Some(error) => failure_of(error),
        None if error.is_parse() => Failure::Mismatch,
        None => Failure::Closed,
    }
}
