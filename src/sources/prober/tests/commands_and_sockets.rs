//! Sockets that open, commands that exit, and health services over gRPC.

use super::*;

#[tokio::test]
async fn a_socket_that_opens_is_a_success_and_is_closed_at_once() {
    let (listener, address) = listen().await;
    let socket = |address: SocketAddr| Handler::TcpSocket {
        host: address.ip().to_string(),
        port: address.port(),
    };
    assert_eq!(attempt(socket(address)).await, Attempt::Success);
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    let named = Handler::TcpSocket {
        host: "localhost".to_owned(),
        port: address.port(),
    };
    assert_eq!(attempt(named).await, Attempt::Success);
    drop(listener);
    assert_fails(attempt(socket(address)).await, "refused");
    let http = attempt_http(get(address)).await;
    assert_fails(http, "refused");
}

#[tokio::test]
async fn the_exit_status_of_a_command_decides() {
    let run = async |command: &[&str]| {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        attempt(Handler::Exec(command)).await
    };
    assert_eq!(run(&["true"]).await, Attempt::Success);
    assert_fails(
        run(&["sh", "-c", "echo noise; exit 3"]).await,
        "exit status: 3",
    );
    assert_fails(run(&["sh", "-c", "kill -9 $$"]).await, "signal: 9");
    assert_eq!(run(&["/no/such/program"]).await.outcome(), Outcome::Unknown);
    assert_eq!(run(&[]).await.outcome(), Outcome::Unknown);

    let metrics = Metrics::new(&Registry::new()).unwrap();
    let refusing = Attempts::new(ExecProbes::Refused, metrics);
    let command = Handler::Exec(vec!["true".to_owned()]);
    let attempt = refusing.run(ProbeKind::Readiness, &spec(command, 1)).await;
    assert_eq!(attempt.outcome(), Outcome::Unknown);
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed_with_its_children() {
    // The child holds the writing end of a pipe open for as long as it lives.
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("sleep 3600 > {} & wait", pipe.display());
    let command = Handler::Exec(["sh", "-c", &script].map(str::to_owned).to_vec());
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let attempts = Attempts::new(ExecProbes::Allowed, metrics);
    let end = tokio::task::spawn_blocking(move || std::fs::read(pipe));
    let attempt = attempts.run(ProbeKind::Readiness, &spec(command, 1)).await;
    assert_fails(attempt, "no answer within 1s");
    assert!(
        end.await.unwrap().unwrap().is_empty(),
        "the child has ended"
    );
}

/// What a health server answers with.
#[derive(Clone)]
struct Health {
    body: &'static [u8],
    grpc_status: &'static str,
}

async fn serve_health(health: Health) -> (SocketAddr, mpsc::Receiver<(String, Vec<u8>)>) {
    let (listener, address) = listen().await;
    let (calls, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let (calls, health) = (calls.clone(), health.clone());
                tokio::spawn(async move {
                    let path = request.uri().path().to_owned();
                    let (mut body, mut message) = (request.into_body(), Vec::new());
                    while let Some(Ok(chunk)) = body.data().await {
                        message.extend_from_slice(&chunk);
                    }
                    calls.send((path, message)).await.unwrap();
                    let response = hyper::Response::builder()
                        .header("content-type", "application/grpc")
                        .body(())
                        .unwrap();
                    let mut stream = respond.send_response(response, false).unwrap();
                    stream.send_data(health.body.into(), false).unwrap();
                    let mut trailers = hyper::HeaderMap::new();
                    trailers.insert("grpc-status", health.grpc_status.parse().unwrap());
                    trailers.insert("grpc-message", "words".parse().unwrap());
                    stream.send_trailers(trailers).unwrap();
                });
            }
        }
    });
    (address, receiver)
}

#[tokio::test]
async fn a_health_service_must_answer_serving() {
    let check = async |body: &'static [u8], grpc_status: &'static str| {
        let (address, mut calls) = serve_health(Health { body, grpc_status }).await;
        let handler = Handler::Grpc {
            ip: address.ip(),
            port: address.port(),
            service: "shop".to_owned(),
        };
        let attempt = attempt(handler).await;
        let (path, message) = calls.recv().await.unwrap();
        assert_eq!(path, "/grpc.health.v1.Health/Check");
        assert_eq!(message, b"\0\0\0\0\x06\x0a\x04shop");
        attempt
    };
    assert_eq!(check(b"\0\0\0\0\x02\x08\x01", "0").await, Attempt::Success);
    assert_fails(check(b"\0\0\0\0\x02\x08\x02", "0").await, "NOT_SERVING");
    assert_fails(check(b"\0\0\0\0\0", "0").await, "UNKNOWN");
    assert_fails(check(b"", "12").await, "gRPC status 12 words");
    assert_fails(check(b"\0\0\0\0\x02\x08\x01", "5").await, "gRPC status 5");
    assert_fails(check(b"junk", "0").await, "no HealthCheckResponse");
    let (address, _heads) = serve(|_, _| status(200)).await;
    let handler = Handler::Grpc {
        ip: address.ip(),
        port: address.port(),
        service: String::new(),
    };
    assert_eq!(
        attempt(handler).await.outcome(),
        Outcome::Failure,
        "HTTP/1.1"
    );
}
