//! The running configuration as `/configz` shows it: under kube-proxy's names for whoever reads those, and under ours.
//!
//! Nothing in it is secret: credentials are in the kubeconfig, which is shown by its path only.

use serde_json::{Value, json};

use super::{Config, kube_proxy};

/// The configuration, keyed by component config group as in kube-proxy.
pub fn configz(config: &Config) -> Value {
    let settings = &config.settings;
    let cidrs = settings.cluster_cidr.iter().flatten();
    let cidrs = cidrs.map(|cidr| cidr.0.to_string());
    let seconds = |duration: std::time::Duration| format!("{}s", duration.as_secs_f64());
    let iptables = json!({
        "localhostNodePorts": config.localhost_node_ports,
        "masqueradeAll": config.masquerade_all,
        "minSyncPeriod": seconds(config.min_sync_period),
        "syncPeriod": seconds(config.sync_period),
    });
    let (limits, floor) = (&config.tracking_limits, &config.tracking_floor);
    let conntrack = json!({
        "maxPerCore": limits.max_per_core.or(floor.max_per_core),
        "min": limits.min.or(floor.min),
        "tcpBeLiberal": limits.tcp_be_liberal,
        "tcpCloseWaitTimeout": limits.tcp_close_wait.or(floor.tcp_close_wait).map(seconds),
        "tcpEstablishedTimeout": limits.tcp_established.or(floor.tcp_established).map(seconds),
        "udpStreamTimeout": limits.udp_stream.map(seconds),
        "udpTimeout": limits.udp.map(seconds),
    });
    json!({
        "kubeproxy.config.k8s.io": {
            "apiVersion": kube_proxy::API_VERSION,
            "kind": kube_proxy::KIND,
            "hostnameOverride": config.node_name.as_str(),
            "clientConnection": {
                "kubeconfig": settings.kubeconfig,
                "qps": config.api_rate.map_or(-1.0, |rate| rate.per_second),
                "burst": config.api_rate.map_or(0, |rate| rate.burst),
            },
            "conntrack": conntrack,
            "mode": config.capture.to_string(),
            "clusterCIDR": cidrs.collect::<Vec<_>>().join(","),
            "detectLocalMode": settings.detect_local_mode,
            "detectLocal": {
                "bridgeInterface": settings.pod_bridge_interface,
                "interfaceNamePrefix": settings.pod_interface_name_prefix,
            },
            "nodePortAddresses": settings.nodeport_addresses,
            "healthzBindAddress": address(config.healthz),
            "metricsBindAddress": address(config.metrics),
            "bindAddressHardFail": config.bind_address_hard_fail,
            "oomScoreAdj": config.oom_score_adj,
            "iptables": iptables,
            "udpIdleTimeout": seconds(config.udp_idle_timeout),
        },
        "viaduct.dev": settings,
    })
}

fn address(address: Option<std::net::SocketAddr>) -> String {
    address.map_or_else(String::new, |address| address.to_string())
}
