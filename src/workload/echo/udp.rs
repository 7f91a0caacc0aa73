//! The UDP side of a simulated Pod: each datagram comes back with the Pod's name before it.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;

/// The largest payload that an IPv4 datagram carries: 65,535 less the headers of IP and UDP.
const MAX_DATAGRAM: usize = 65_507;

/// Answers datagrams until it is dropped. Where name and datagram together are too large, the datagram comes back as it
/// is. An answer that the kernel does not take is lost, as datagrams may be.
pub(super) async fn serve(socket: UdpSocket, pod: Arc<str>) {
    let name = format!("{pod}: ").into_bytes();
    let mut buffer = name.clone();
    buffer.resize(name.len() + MAX_DATAGRAM, 0);
    loop {
        match socket.recv_from(&mut buffer[name.len()..]).await {
            Ok((n, client)) => {
                let whole = name.len() + n;
                let from = if whole <= MAX_DATAGRAM { 0 } else { name.len() };
                if let Err(error) = socket.send_to(&buffer[from..whole], client).await {
                    tracing::debug!(pod = &*pod, %client, %error, "answer lost");
                }
            }
            Err(error) => {
                tracing::debug!(pod = &*pod, %error, "no datagram");
                // Nothing that a datagram does ends here; whatever it is must not become a busy loop.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
