//! gRPC probes: the health service of a Pod must answer SERVING.
//!
//! It is one unary call with a message of one string, answered by a message of one number; h2 carries it, and the two
//! messages are written and read here by hand. Source: grpc.health.v1, `Health.Check`; gRPC over HTTP/2.

use std::future::poll_fn;
use std::net::IpAddr;

use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Request};

use super::attempt::Attempt;
use super::connect::connect;
use super::http::{AGENT, alongside};

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;

/// Bytes of an answer that are read; the message has two.
const MAX_ANSWER: usize = 10 * 1024;

/// Bytes before each message: a flag and the length.
const PREFIX: usize = 5;

/// Asks the health service at that port about `service`.
pub(super) async fn probe(ip: IpAddr, port: u16, service: &str) -> Attempt {
    match check(ip, port, service).await {
        Ok(SERVING) => Attempt::Success,
        Ok(status) => Attempt::Failure(format!("health service says {}", word(status))),
        Err(error) => Attempt::Failure(error),
    }
}

fn word(status: u64) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => format!("status {other}"),
    }
}

async fn check(ip: IpAddr, port: u16, service: &str) -> Result<u64, String> {
    let stream = connect(&ip.to_string(), port)
        .await
        .map_err(|error| error.to_string())?;
    let (sender, connection) = h2::client::handshake(stream).await.map_err(told)?;
    alongside(
        call(sender, std::net::SocketAddr::new(ip, port), service),
        connection,
    )
    .await
}

async fn call(
    sender: h2::client::SendRequest<Bytes>,
    address: std::net::SocketAddr,
    service: &str,
) -> Result<u64, String> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", AGENT)
        .body(())
        .map_err(|error| error.to_string())?;
    let mut sender = sender.ready().await.map_err(told)?;
    let (response, mut body) = sender.send_request(request, false).map_err(told)?;
    send(&mut body, encoded(service)).await?;
    let response = response.await.map_err(told)?;
    if !response.status().is_success() {
        return Err(format!("HTTP status {}", response.status().as_u16()));
    }
    // An error without a message comes with the headers alone.
    if let Some(status) = response.headers().get("grpc-status") {
        well(Some(status), response.headers())?;
    }
    let mut body = response.into_body();
    let mut answer = Vec::new();
    while answer.len() < MAX_ANSWER
        && let Some(chunk) = body.data().await
    {
        let chunk = chunk.map_err(told)?;
        answer.extend_from_slice(&chunk);
        body.flow_control()
            .release_capacity(chunk.len())
            .map_err(told)?;
    }
    if answer.len() >= MAX_ANSWER {
        return Err("the answer is too long".to_owned());
    }
    let trailers = body.trailers().await.map_err(told)?.unwrap_or_default();
    well(trailers.get("grpc-status"), &trailers)?;
    decoded(&answer).ok_or_else(|| "the answer is no HealthCheckResponse".to_owned())
}

// The peer's window may be smaller than the message.
async fn send(body: &mut h2::SendStream<Bytes>, mut message: Bytes) -> Result<(), String> {
    while !message.is_empty() {
        body.reserve_capacity(message.len());
        let granted = poll_fn(|context| body.poll_capacity(context)).await;
        let granted = granted.ok_or("the stream ended")?.map_err(told)?;
        let part = message.split_to(granted.min(message.len()));
        body.send_data(part, message.is_empty()).map_err(told)?;
    }
    Ok(())
}

fn well(status: Option<&hyper::header::HeaderValue>, headers: &HeaderMap) -> Result<(), String> {
    let text = |value: Option<&hyper::header::HeaderValue>| {
        let bytes = value.map(hyper::header::HeaderValue::as_bytes);
        String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
    };
    match text(status).as_str() {
        "0" => Ok(()),
        "" => Err("the answer has no gRPC status".to_owned()),
        code => {
            let message = text(headers.get("grpc-message"));
            Err(format!("gRPC status {code} {message}")
                .trim_end()
                .to_owned())
        }
    }
}

fn told(error: h2::Error) -> String {
    error.to_string()
}

/// A `HealthCheckRequest`, not compressed: field 1 is the service, left out where it is empty.
fn encoded(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).expect("less than 0x80"));
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut framed = vec![0];
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// The status in a framed `HealthCheckResponse`: field 1, zero where it is left out; other fields are passed over.
fn decoded(framed: &[u8]) -> Option<u64> {
    let (prefix, message) = framed.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    if prefix[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    let (mut rest, mut status) = (message, 0);
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        match key & 7 {
            0 => {
                let value = varint(&mut rest)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => rest = rest.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_framed_and_their_field_is_field_one() {
        assert_eq!(&encoded("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&encoded("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = encoded(&"x".repeat(200));
        assert_eq!(&long[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
        assert_eq!(decoded(&[0, 0, 0, 0, 2, 0x08, 1]), Some(SERVING));
        assert_eq!(decoded(&[0, 0, 0, 0, 0]), Some(0), "left out is UNKNOWN");
        assert_eq!(decoded(&[0, 0, 0, 0, 5, 0x12, 1, 9, 0x08, 2]), Some(2));
        for bad in [
            &[][..],
            &[0, 0, 0, 0],
            &[1, 0, 0, 0, 2, 0x08, 1],
            &[0, 0, 0, 0, 3, 0x08, 1],
            &[0, 0, 0, 0, 1, 0x08],
            &[0, 0, 0, 0, 2, 0x12, 9],
            &[0, 0, 0, 0, 2, 0x0b, 1],
        ] {
            assert_eq!(decoded(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut framed = vec![0];
            framed.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
            framed.extend_from_slice(&bytes);
            decoded(&framed);
            decoded(&bytes);
        }
    }
}
