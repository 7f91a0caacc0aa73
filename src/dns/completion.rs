//! What a Pod's resolver would ask next when a name of its search list does not exist. Pure.
//!
//! With `ndots:5` a Pod that wants `www.example.com` first asks for `www.example.com.NAMESPACE.svc.DOMAIN`, then goes on
//! through its list. A server that knows the Pod can follow the list itself and save the client the rounds. Only the
//! first name of the list is completed, and only for a client that is one running Pod: an address that several have, or
//! that of a node, says nothing about the namespace.
//!
//! Source: CoreDNS `autopath`, and the bugs that were found in it.

use std::net::IpAddr;

use hickory_proto::rr::{Name, RecordType};

use crate::routing::RoutingTable;

use super::names::Zone;

/// The namespace of the Pod behind `client`; `None` if it is not one Pod for certain.
pub(super) fn namespace_of(table: &RoutingTable, client: IpAddr) -> Option<&str> {
    match table.pods_at(client) {
        [pod] if !pod.finished && !pod.host_network => Some(&pod.namespace),
        _ => None,
    }
}

/// Whether questions of this type are completed: those that programs ask when they look for a host.
pub(super) fn is_completed(kind: RecordType) -> bool {
    matches!(kind, RecordType::A | RecordType::AAAA)
}

/// The names that a Pod of `namespace` asks for after `name`, in order; `None` if `name` does not come from the top of
/// its search list. `node_domains` stand behind those of the cluster in the list.
pub(super) fn next_names(
    zone: &Zone,
    name: &Name,
    namespace: &str,
    node_domains: &[Name],
) -> Option<Vec<Name>> {
    let n_domain = zone.apex.iter().len();
    let n_base = name.iter().len().checked_sub(n_domain + 2)?;
    let mut behind = name.iter().skip(n_base);
    let is = |label: Option<&[u8]>, wanted: &str| {
        label.is_some_and(|label| label.eq_ignore_ascii_case(wanted.as_bytes()))
    };
    if n_base == 0 || !is(behind.next(), namespace) || !is(behind.next(), "svc") {
        return None;
    }
    let base = Name::from_labels(name.iter().take(n_base)).ok()?;
    let services = Name::from_labels([&b"svc"[..]])
        .and_then(|svc| svc.append_domain(&zone.apex))
        .ok()?;
    let root = Name::root();
    let domains = [&services, &zone.apex]
        .into_iter()
        .chain(node_domains)
        .chain([&root]);
    // What is too long for a name is passed over, as the client does.
    Some(
        domains
            .filter_map(|domain| base.clone().append_domain(domain).ok())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{cluster, ip, pod, table};
    use super::super::names::parse_absolute;
    use super::*;

    fn next(name: &str, namespace: &str) -> Option<Vec<String>> {
        let zone = Zone::parse("cluster.local").unwrap();
        let node_domains = [parse_absolute("corp.example").unwrap()];
        let name = Name::from_ascii(name).unwrap();
        let names = next_names(&zone, &name, namespace, &node_domains)?;
        Some(names.iter().map(Name::to_ascii).collect())
    }

    #[test]
    fn the_rest_of_the_search_list_follows() {
        assert_eq!(
            next("www.example.com.NS.svc.Cluster.local.", "ns").unwrap(),
            [
                "www.example.com.svc.cluster.local.",
                "www.example.com.cluster.local.",
                "www.example.com.corp.example.",
                "www.example.com."
            ]
        );
    }

    #[test]
    fn only_the_top_of_the_list_is_completed() {
        for (name, namespace) in [
            ("www.other.svc.cluster.local.", "ns"),
            ("www.svc.cluster.local.", "ns"),
            ("ns.svc.cluster.local.", "ns"),
            ("www.ns.pod.cluster.local.", "ns"),
            ("www.ns.cluster.local.", "ns"),
            ("svc.cluster.local.", "ns"),
            ("cluster.local.", "ns"),
        ] {
            assert_eq!(next(name, namespace), None, "{name}");
        }
    }

    #[test]
    fn names_that_grow_too_long_are_passed_over() {
        let label = "x".repeat(60);
        let base = [&*label, &*label, &*label, &"y".repeat(48)].join(".");
        let names = next(&format!("{base}.ns.svc.cluster.local."), "ns").unwrap();
        // 232 octets and the domains behind them: all fit but none may be longer than 255.
        assert!(names.iter().all(|name| name.len() <= 254), "{names:?}");
        assert_eq!(names.last().unwrap(), &format!("{base}."));
    }

    #[test]
    fn a_client_is_one_running_pod_or_nobody() {
        assert_eq!(namespace_of(&table(), ip("10.1.0.1")), Some("ns"));
        assert_eq!(namespace_of(&table(), ip("10.1.0.9")), None, "finished");
        assert_eq!(namespace_of(&table(), ip("10.9.9.9")), None, "unknown");
        let mut builder = cluster();
        builder.apply(pod("two", "10.1.0.1", true));
        let shared = builder.build().table;
        assert_eq!(namespace_of(&shared, ip("10.1.0.1")), None, "shared");
    }
}
