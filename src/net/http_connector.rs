//! Connections of HTTP clients that stay open for minutes and must notice when the other side is gone.
//!
//! Knows nothing of what is asked over them.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;

/// After so long without a byte the kernel asks whether the peer is still there.
const PROBE_AFTER: Duration = Duration::from_secs(30);
/// Between two such questions.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Questions without an answer that end a connection: it is given up 45 s after its peer has vanished.
const PROBES: u32 = 3;

/// A TCP connector for `http` and, under TLS, `https`; connecting may take `connect_timeout`.
pub fn http_connector(connect_timeout: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    connector.set_keepalive(Some(PROBE_AFTER));
    connector.set_keepalive_interval(Some(PROBE_EVERY));
    connector.set_keepalive_retries(Some(PROBES));
    // Unanswered data, such as a request, counts the same.
    connector.set_tcp_user_timeout(Some(PROBE_AFTER + PROBES * PROBE_EVERY));
    connector
}
