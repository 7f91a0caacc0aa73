//! The HTTP side of a simulated Pod: recognises a request by its first line and answers every one with the Pod's name.

use std::convert::Infallible;
use std::io::{self, Cursor};
use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

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

/// Answers the requests of one connection, the first of which begins with `opening`, until either side ends it.
pub(super) async fn serve<S>(
    stream: S,
    opening: Vec<u8>,
    client: SocketAddr,
    pod: &str,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let stream = tokio::io::join(Cursor::new(opening).chain(reader), writer);
    let answers = service_fn(|request| answer(request, client, pod));
    hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answers)
        .await
        .map_err(io::Error::other)
}

async fn answer(
    request: Request<Incoming>,
    client: SocketAddr,
    pod: &str,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut body = request.into_body();
    // The answer comes after the body. One that breaks off breaks the connection off too, which hyper notices itself.
    while let Some(Ok(_)) = body.frame().await {}
    let mut response = Response::new(Full::new(Bytes::from(format!("{pod}\n"))));
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
