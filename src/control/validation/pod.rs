//! The few rules of Pods that matter to whoever routes to them: names, ports, probes, addresses.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata::judge_metadata;
use super::{each, ips, judge_port_number, judge_protocol, names};
use crate::control::object::Kind;
use crate::control::rejection::Cause;

const SCHEMES: [&str; 2] = ["HTTP", "HTTPS"];

/// `IsHTTPHeaderName` of the API server.
const HEADER_NAME: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";

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
            let path = format!("{path}.{name}");
            wrong.extend(judge_probe(probe, &path));
            // Only readiness can wait for several successes.
            if let Some(n) = probe.success_threshold.filter(|n| *n != 1)
                && name != "readinessProbe"
            {
                wrong.push(Cause::invalid(
                    format!("{path}.successThreshold"),
                    &n,
                    "must be 1",
                ));
            }
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
    wrong.extend(judge_handler(probe, path));
    wrong
}

fn judge_handler(probe: &Probe, path: &str) -> Vec<Cause> {
    let mut wrong = Vec::new();
    if let Some(exec) = &probe.exec
        && exec.command.as_ref().is_none_or(Vec::is_empty)
    {
        wrong.push(Cause::required(format!("{path}.exec.command"), ""));
    }
    if let Some(tcp) = &probe.tcp_socket {
        wrong.extend(judge_port(&tcp.port, &format!("{path}.tcpSocket.port")));
    }
    if let Some(grpc) = &probe.grpc {
        wrong.extend(judge_port_number(&format!("{path}.grpc.port"), grpc.port));
    }
    if let Some(http) = &probe.http_get {
        let path = format!("{path}.httpGet");
        wrong.extend(judge_port(&http.port, &format!("{path}.port")));
        let scheme = http.scheme.as_deref().unwrap_or_default();
        if !SCHEMES.contains(&scheme) {
            let field = format!("{path}.scheme");
            wrong.push(Cause::not_supported(field, scheme, &SCHEMES));
        }
        for (i, header) in http.http_headers.iter().flatten().enumerate() {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if header.name.is_empty() || !header.name.bytes().all(known) {
                let field = format!("{path}.httpHeaders[{i}].name");
                wrong.push(Cause::invalid(field, &header.name, HEADER_NAME));
            }
        }
    }
    wrong
}

fn judge_port(port: &IntOrString, field: &str) -> Vec<Cause> {
    match port {
        IntOrString::Int(number) => judge_port_number(field, *number).into_iter().collect(),
        IntOrString::String(name) => each(field, name, names::port_name(name)).collect(),
    }
}
