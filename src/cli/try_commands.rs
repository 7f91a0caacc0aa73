//! Commands to try, made from what is really served and from the tools that are really there. Pure but for the search
//! of `$PATH`.

use std::net::SocketAddr;

use crate::admin::Snapshot;
use crate::model::{Frontend, Protocol, ServiceKind, ServiceName};
use crate::routing::Route;

/// Which tools this machine has. What is missing is done with bash's `/dev/tcp` and `/dev/udp`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tools {
    pub(super) curl: bool,
    pub(super) dig: bool,
}

impl Tools {
    /// What `$PATH` has.
    pub(super) fn found() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let has = |tool: &str| {
            std::env::split_paths(&path).any(|directory| directory.join(tool).is_file())
        };
        Self {
            curl: has("curl"),
            dig: has("dig"),
        }
    }
}

/// At most three commands: HTTP to a TCP Service with the most backends, its name in DNS, an echo from a UDP one. `dns`
/// is the server and the cluster domain.
pub(super) fn try_commands(
    snapshot: &Snapshot,
    dns: Option<(SocketAddr, &str)>,
    tools: &Tools,
) -> Vec<String> {
    let mut routes: Vec<&Route> = snapshot
        .table
        .routes()
        .map(AsRef::as_ref)
        .filter(|r| !r.cluster.is_empty())
        .collect();
    routes.sort_by_key(|route| (std::cmp::Reverse(route.cluster.len()), route.key.clone()));
    let best = |protocol| routes.iter().find(|route| route.key.protocol == protocol);
    let web = best(Protocol::Tcp);
    let mut commands = Vec::new();
    commands.extend(
        web.and_then(|route| served_at(snapshot, route))
            .map(|address| http(address, tools)),
    );
    let named = web
        .or(best(Protocol::Udp))
        .map(|route| route.key.service.clone())
        .or_else(|| any_name(snapshot));
    if let (Some((server, domain)), Some(service)) = (dns, named) {
        commands.push(lookup(
            server,
            &format!("{}.{}.svc.{domain}", service.name, service.namespace),
            tools,
        ));
    }
    commands.extend(
        best(Protocol::Udp)
            .and_then(|route| served_at(snapshot, route))
            .map(udp_echo),
    );
    commands
}

fn any_name(snapshot: &Snapshot) -> Option<ServiceName> {
    let named = |kind: &ServiceKind| !matches!(kind, ServiceKind::ExternalName(_));
    snapshot
        .table
        .services()
        .filter(|entry| named(&entry.service.kind))
        .map(|entry| entry.service.name.clone())
        .min()
}

fn served_at(snapshot: &Snapshot, route: &Route) -> Option<SocketAddr> {
    let (frontend, _): &(Frontend, _) = route.frontends.first()?;
    Some(SocketAddr::new(
        frontend.ip,
        snapshot.table.served_port(frontend),
    ))
}

fn http(address: SocketAddr, tools: &Tools) -> String {
    if tools.curl {
        return format!("curl http://{address}/");
    }
    let (ip, port) = (address.ip(), address.port());
    format!(
        r#"bash -c 'exec 3<>/dev/tcp/{ip}/{port}; printf "GET / HTTP/1.0\r\n\r\n" >&3; cat <&3'"#
    )
}

fn lookup(server: SocketAddr, name: &str, tools: &Tools) -> String {
    let (ip, port) = (server.ip(), server.port());
    if tools.dig {
        return format!("dig +short @{ip} -p {port} {name}");
    }
    // A query for one address; the last four octets of the answer are that address.
    let labels: String = name
        .split('.')
        .filter(|label| !label.is_empty())
        .map(|l| format!(r"\x{:02x}{l}", l.len()))
        .collect();
    let query =
        format!(r"\x56\x44\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00{labels}\x00\x00\x01\x00\x01");
    format!(
        r#"bash -c 'exec 3<>/dev/udp/{ip}/{port}; printf "{query}" >&3; dd bs=512 count=1 <&3 2>/dev/null | tail -c 4 | od -An -tu1'"#
    )
}

fn udp_echo(address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!(r#"bash -c 'exec 3<>/dev/udp/{ip}/{port}; echo hello >&3; timeout 2 head -n 1 <&3'"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Tools = Tools {
        curl: false,
        dig: false,
    };

    #[test]
    fn what_is_missing_is_done_with_bash() {
        let address = "127.96.0.1:8080".parse().unwrap();
        assert_eq!(
            http(
                address,
                &Tools {
                    curl: true,
                    dig: true
                }
            ),
            "curl http://127.96.0.1:8080/"
        );
        assert!(http(address, &NOTHING).starts_with("bash -c 'exec 3<>/dev/tcp/127.96.0.1/8080;"));
        let dns = "127.0.0.1:5353".parse().unwrap();
        let name = "web.default.svc.cluster.local.";
        assert_eq!(
            lookup(
                dns,
                name,
                &Tools {
                    curl: true,
                    dig: true
                }
            ),
            format!("dig +short @127.0.0.1 -p 5353 {name}")
        );
        assert!(
            lookup(dns, name, &NOTHING)
                .contains(r"\x03web\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01")
        );
    }
}
