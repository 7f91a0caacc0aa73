//! What is asked of the API server: kinds with their selectors. Pure.
//!
//! Source: kube-proxy's informers (`ProxyServer.Run`). Filters on the watch make a label that is added look like a
//! deletion, which is what it means. With DNS on there are no filters, because headless Services and their slices are
//! names; routing then leaves out by itself what it does not serve.

use crate::control::Kind;
use crate::model::NodeName;

/// What DNS needs beyond what routing does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsNeeds {
    /// There is no DNS.
    Nothing,
    /// Every Service and slice, and which namespaces there are.
    Names,
    /// These, and the addresses of all Pods.
    NamesAndPods,
}

/// A kind with its server-side filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) kind: Kind,
    pub(super) labels: Option<&'static str>,
    pub(super) fields: Option<String>,
}

/// All that is watched.
pub(super) fn interest(node: &NodeName, dns: DnsNeeds) -> Vec<Watched> {
    let plain = |kind| Watched {
        kind,
        labels: None,
        fields: None,
    };
    let own_node = Watched {
        fields: Some(format!("metadata.name={node}")),
        ..plain(Kind::Node)
    };
    let mut watched = match dns {
        DnsNeeds::Nothing => vec![
            Watched {
                labels: Some("!service.kubernetes.io/service-proxy-name"),
                fields: Some("spec.clusterIP!=None".to_owned()),
                ..plain(Kind::Service)
            },
            Watched {
                labels: Some("!service.kubernetes.io/headless"),
                ..plain(Kind::EndpointSlice)
            },
        ],
        DnsNeeds::Names => vec![
            plain(Kind::Service),
            plain(Kind::EndpointSlice),
            plain(Kind::Namespace),
        ],
        DnsNeeds::NamesAndPods => vec![
            plain(Kind::Service),
            plain(Kind::EndpointSlice),
            plain(Kind::Namespace),
            plain(Kind::Pod),
        ],
    };
    watched.push(own_node);
    watched
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(dns: DnsNeeds) -> Vec<String> {
        let node = NodeName::parse("n1").unwrap();
        let line = |w: &Watched| {
            format!(
                "{} labels={} fields={}",
                w.kind,
                w.labels.unwrap_or("-"),
                w.fields.as_deref().unwrap_or("-")
            )
        };
        interest(&node, dns).iter().map(line).collect()
    }

    #[test]
    fn without_dns_the_server_filters_as_for_kube_proxy() {
        assert_eq!(
            told(DnsNeeds::Nothing),
            [
                "Service labels=!service.kubernetes.io/service-proxy-name fields=spec.clusterIP!=None",
                "EndpointSlice labels=!service.kubernetes.io/headless fields=-",
                "Node labels=- fields=metadata.name=n1",
            ]
        );
    }

    #[test]
    fn with_dns_nothing_is_filtered_and_namespaces_come_too() {
        let names = told(DnsNeeds::Names);
        assert_eq!(
            names,
            [
                "Service labels=- fields=-",
                "EndpointSlice labels=- fields=-",
                "Namespace labels=- fields=-",
                "Node labels=- fields=metadata.name=n1",
            ]
        );
        let with_pods = told(DnsNeeds::NamesAndPods);
        assert_eq!(with_pods.len(), names.len() + 1);
        assert!(with_pods.contains(&"Pod labels=- fields=-".to_owned()));
    }
}
