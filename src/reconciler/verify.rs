//! What a whole set of manifests comes to without anything being run: the work of `viaduct check`.
//!
//! The manifests go the way that they go in the running process, `Intake` and `Standalone` and then the table's
//! builder; only nothing is kept, published or opened.

use std::sync::Arc;

use jiff::Timestamp;

use crate::balancers::Algorithms;
use crate::control::{ControlPlane, Kind, ObjectKey};
use crate::model::{Algorithm, NodeName};
use crate::routing::{Conflict, TableBuilder};
use crate::sources::convert::Note;
use crate::sources::manifests::Update;

use super::intake::Intake;
use super::remark::Remark;
use super::standalone::Standalone;

/// Everything there is to tell about the manifests of a first look, given to an empty control plane on a node of that
/// name.
pub fn verify(
    control: ControlPlane,
    node_name: NodeName,
    updates: Vec<Update>,
    now: Timestamp,
) -> Vec<Remark> {
    let mut standalone = Standalone::new(Intake::new(control, None, None), node_name, None);
    let outcome = standalone.take(updates, now);
    let mut builder = TableBuilder::new(Arc::new(Algorithms::default()), Algorithm::default());
    for event in outcome.events {
        builder.apply(event);
    }
    let mut remarks = outcome.remarks;
    for conflict in builder.build().conflicts {
        remarks.push(standalone.remark(&loser(&conflict), &about(&conflict)));
    }
    remarks
}

fn loser(conflict: &Conflict) -> ObjectKey {
    let service = &conflict.loser.service;
    ObjectKey {
        kind: Kind::Service,
        namespace: service.namespace.clone(),
        name: service.name.clone(),
    }
}

fn about(conflict: &Conflict) -> Note {
    Note {
        field: String::new(),
        message: conflict.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Config;
    use crate::sources::manifests::Directory;

    /// What is told about the manifests of one file, a line each.
    fn told(manifests: &str) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.yaml");
        std::fs::write(&file, manifests).unwrap();
        let updates = Directory::of_file(file).scan().unwrap();
        let control = ControlPlane::new(Config {
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            node_port_range: 30000..=32767,
            load_balancer_range: None,
            pod_cidr: None,
            allow_loopback_endpoints: true,
            own_node: None,
            max_endpoints_per_slice: 100,
            seed: 1,
        });
        let node = NodeName::parse("here").unwrap();
        let remarks = verify(control.unwrap(), node, updates, Timestamp::UNIX_EPOCH);
        let line = |remark: &Remark| match remark {
            Remark::Problem(finding) => format!("problem {finding}"),
            Remark::Warning(finding) => format!("warning {finding}"),
            Remark::Derived(key, note) => format!("derived {key}: {note}"),
            Remark::Healed(file) => format!("healed {}", file.display()),
            Remark::Accepted(key) => format!("accepted {key}"),
            Remark::Probed { pod, .. } => format!("probed {pod}"),
        };
        let place = format!("{}/", directory.path().display());
        let lines = remarks.iter().map(line);
        lines.map(|line| line.replace(&place, "")).collect()
    }

    fn service(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  ports: [{{port: 80}}]\n{spec}---\n"
        )
    }

    #[test]
    fn nothing_is_told_of_good_manifests() {
        assert_eq!(told(""), [""; 0]);
        assert_eq!(told(&service("web", "  type: NodePort\n")), [""; 0]);
    }

    #[test]
    fn what_is_asked_for_comes_before_what_is_free() {
        // The first Service is content with any address, so it does not get the one that the second asks for.
        let any = service("any", "");
        let only = service("only", "  clusterIP: 10.96.0.7\n");
        assert_eq!(told(&(any + &only)), [""; 0]);
    }

    #[test]
    fn an_address_asked_for_twice_is_a_problem_of_the_second() {
        let both = ["a", "b"].map(|name| service(name, "  clusterIP: 10.96.0.7\n"));
        assert_eq!(
            told(&both.concat()),
            [
                "problem a.yaml:13: Service default/b: spec.clusterIPs: Invalid value: [\"10.96.0.7\"]: \
                 failed to allocate IP 10.96.0.7: provided IP is already allocated"
            ]
        );
    }

    #[test]
    fn an_external_address_claimed_twice_is_a_warning_for_the_second() {
        let both = ["a", "b"].map(|name| service(name, "  externalIPs: [192.0.2.1]\n"));
        let conflict = "warning a.yaml:8: Service default/b: 192.0.2.1:80/TCP is held by default/a; default/b takes over when it goes";
        let mut told = told(&both.concat());
        told.retain(|line| !line.contains("spec.externalIPs is deprecated"));
        assert_eq!(told, [conflict]);
    }

    #[test]
    fn an_annotation_that_cannot_be_used_is_a_warning_at_its_line() {
        let manifest = service("web", "").replace(
            "{name: web}",
            "\n  name: web\n  annotations:\n    viaduct.dev/lb-algorithm: magic",
        );
        let [line] = told(&manifest).try_into().unwrap();
        assert!(
            line.starts_with("warning a.yaml:6: Service default/web: metadata.annotations"),
            "{line}"
        );
    }
}
