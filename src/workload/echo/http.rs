//! The HTTP side of a simulated Pod: recognises a request by its first line and answers every one with the Pod's name.

use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::faults::{Carrier, FaultKind};

use super::behaviour::Behaviour;
use super::idle::ResetOnClose;
use super::tcp::pause;

/// Bytes of a request's head; a longer one is answered with status 431.
const MAX_HEAD: usize = 16 * 1024;

/// Methods whose first line may open a connection; CONNECT is none of ours.
const METHODS: [&[u8]; 7] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
];

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// The line of an HTTP/1.x request.
    Request,
    /// Nothing of that kind.
    Other,
    /// More bytes will tell.
    Unclear,
}

/// Judges the bytes that a connection began with.
pub(super) fn opening(bytes: &[u8]) -> Opening {
    let fits = |method: &&[u8]| bytes.starts_with(method) || method.starts_with(bytes);
    if !METHODS.iter().any(fits) {
        return Opening::Other;
    }
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => {
            let line = bytes[..end].trim_ascii_end();
            if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") {
                Opening::Request
            } else {
                Opening::Other
            }
        }
        None if bytes.len() > MAX_HEAD => Opening::Other,
        None => Opening::Unclear,
    }
}

/// Answers the requests of one connection, the first of which begins with `opening`, until either side ends it. `reset`
/// makes the stream end by a reset.
pub(super) async fn serve<S>(
    stream: S,
    opening: Vec<u8>,
    client: SocketAddr,
    behaviour: &Behaviour,
    reset: ResetOnClose,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let stream = tokio::io::join(Cursor::new(opening).chain(reader), writer);
    let answers = service_fn(|request| answer(request, client, behaviour, &reset));
    hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answers)
        .await
        .map_err(io::Error::other)
}

/// No answer: a fault takes its place.
#[derive(Debug, thiserror::Error)]
#[error("reset on purpose")]
struct Reset;

async fn answer(
    request: Request<Incoming>,
    client: SocketAddr,
    behaviour: &Behaviour,
    reset: &ResetOnClose,
) -> Result<Response<Answer>, Reset> {
    let is_probe = is_probe(&request);
    let mut body = request.into_body();
    // The answer comes after the body. One that breaks off breaks the connection off too, which hyper notices itself.
    while let Some(Ok(_)) = body.frame().await {}
    let pod = behaviour.pod();
    let injection = behaviour.injection();
    if injection.faults().blackhole {
        injection.count(FaultKind::Blackhole);
        std::future::pending::<()>().await;
    }
    let now = Instant::now();
    let fate = injection.draw(now, Carrier::Http);
    pause(fate.delay).await;
    if fate.reset {
        reset.set();
        return Err(Reset);
    }
    let text = Bytes::from(format!("{pod}\n"));
    let pacing = injection.time_for(text.len() as u64);
    if !pacing.is_zero() {
        injection.count(FaultKind::Rate);
        pause(pacing).await;
    }
    let mut response = Response::new(Answer::new(text, fate.cut));
    if fate.error {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    } else if is_probe && injection.is_unready(now) {
        injection.count(FaultKind::Flap);
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    let own = [("x-pod", pod.to_owned()), ("x-client", client.to_string())];
    for (name, value) in own {
        // A name that no header can carry is in the body all the same.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Ok(response)
}

// The kubelet and our own prober say so.
fn is_probe(request: &Request<Incoming>) -> bool {
    let agent = request.headers().get(USER_AGENT);
    agent.is_some_and(|agent| agent.as_bytes().starts_with(b"kube-probe/"))
}

/// The body of an answer. One that is cut short promises all of it, gives half and breaks off.
struct Answer {
    text: Bytes,
    progress: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Whole,
    ToBeCut,
    // The half is with the library, which writes it out while it waits.
    Cut,
    Broken,
    Done,
}

impl Answer {
    fn new(text: Bytes, cut: bool) -> Self {
        let progress = if cut {
            Progress::ToBeCut
        } else {
            Progress::Whole
        };
        Self { text, progress }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        match self.progress {
            Progress::Whole => {
                self.progress = Progress::Done;
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.text)))))
            }
            Progress::ToBeCut => {
                self.progress = Progress::Cut;
                let half = self.text.len() / 2;
                Poll::Ready(Some(Ok(Frame::data(self.text.split_to(half)))))
            }
            Progress::Cut => {
                self.progress = Progress::Broken;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Progress::Broken => Poll::Ready(Some(Err(Reset))),
            Progress::Done => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.progress == Progress::Done
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.text.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_by_its_first_line() {
        for (bytes, expected) in [
            ("", Opening::Unclear),
            ("G", Opening::Unclear),
            ("GET", Opening::Unclear),
            ("GET /healthz HTTP/1.1\r", Opening::Unclear),
            ("GET / HTTP/1.1\r\nHost: a\r\n", Opening::Request),
            ("PATCH / HTTP/1.0\n", Opening::Request),
            ("GETS / HTTP/1.1\r\n", Opening::Other),
            ("get / HTTP/1.1\r\n", Opening::Other),
            ("GET /\r\n", Opening::Other),
            ("PUT the kettle on\n", Opening::Other),
            ("PRI * HTTP/2.0\r\n", Opening::Other),
            ("\r\nGET / HTTP/1.1\r\n", Opening::Other),
            ("hello", Opening::Other),
        ] {
            assert_eq!(opening(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_first_line_may_be_as_long_as_a_head() {
        let mut line = b"GET /".to_vec();
        line.resize(MAX_HEAD, b'a');
        assert_eq!(opening(&line), Opening::Unclear);
        line.push(b'a');
        assert_eq!(opening(&line), Opening::Other);
    }
}
