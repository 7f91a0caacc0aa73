//! The few rules of Pods that matter to whoever routes to them: names, ports, probes, addresses.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};

use super::metadata::judge_metadata;
use super::{each, ips, judge_port_number, judge_protocol, names};
use crate::control::object::Kind;
use crate::control::rejection::Cause;

/// Judges `pod`.
pub(in crate::control) fn judge_pod(pod: &Pod) -> Vec<Cause> {
    let mut wrong = judge_metadata(&pod.metadata, Kind::Pod);
    if let Some(spec) = &pod.spec {
        for (i, container) in spec.containers.iter().enumerate() {
            let path = format!("spec.containers[{i}]");
            wrong.extend(judge_container(container, &path));
        }
        for (i, container) in spec.init_containers.iter().flatten().enumerate() {
            let path = format!("spec.initContainers[{i}]");
            wrong.extend(judge_container(container, &path));
        }
        for (field, label) in [
            ("spec.hostname", &spec.hostname),
            ("spec.subdomain", &spec.subdomain),
        ] {
            if let Some(label) = label.as_deref().filter(|label| !label.is_empty()) {
                wrong.extend(each(field, label, names::dns_label(label)));
            }
        }
    }
    let addresses = pod
        .status
        .iter()
        .filter_map(|status| status.pod_ips.as_ref());
    for (i, entry) in addresses.flatten().enumerate() {
        let field = format!("status.podIPs[{i}]");
        // Spelling is the kubelet's business; only what is no address at all is refused.
        let tolerated = std::slice::from_ref(&entry.ip);
        wrong.extend(ips::judge_ip(&field, &entry.ip, tolerated));
    }
    wrong
}

fn judge_container(container: &Container, path: &str) -> Vec<Cause> {
    let mut wrong = Vec::new();
    let mut seen = HashSet::new();
    for (i, port) in container.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("{path}.ports[{i}].{name}");
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            wrong.extend(each(&field("name"), name, names::port_name(name)));
            if !seen.insert(name) {
                wrong.push(Cause::duplicate(field("name"), &name));
            }
        }
        wrong.extend(judge_port_number(
            &field("containerPort"),
            port.container_port,
        ));
        wrong.extend(judge_protocol(&field("protocol"), port.protocol.as_deref()));
    }
    for (name, probe) in [
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
        ("livenessProbe", &container.liveness_probe),
    ] {
        if let Some(probe) = probe {
            wrong.extend(judge_probe(probe, &format!("{path}.{name}")));
        }
    }
    wrong
}

fn judge_probe(probe: &Probe, path: &str) -> Vec<Cause> {
    let handlers = [
        probe.exec.is_some(),
        probe.grpc.is_some(),
        probe.http_get.is_some(),
        probe.tcp_socket.is_some(),
    ];
    let mut wrong = Vec::new();
    match handlers.iter().filter(|present| **present).count() {
        0 => wrong.push(Cause::required(path, "must specify a handler type")),
        1 => {}
        _ => wrong.push(Cause::forbidden(
            path,
            "may not specify more than 1 handler type",
        )),
    }
    for (name, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if let Some(value) = value.filter(|value| *value < 0) {
            wrong.push(Cause::invalid(
                format!("{path}.{name}"),
                &value,
                "must be greater than or equal to 0",
            ));
        }
    }
    wrong
}
