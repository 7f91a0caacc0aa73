//! TCP probes: a connection that opens. HTTP and gRPC probes open theirs here too.

use std::io;

use tokio::net::TcpStream;

use super::attempt::Attempt;

/// Opens a connection and closes it at once.
pub(super) async fn probe(host: &str, port: u16) -> Attempt {
    match connect(host, port).await {
        Ok(_) => Attempt::Success,
        Err(error) => Attempt::Failure(error.to_string()),
    }
}

/// A connection to an address or a name; every address of a name is tried in turn.
pub(super) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    TcpStream::connect((host, port)).await.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("connecting to {host} port {port}: {error}"),
        )
    })
}
