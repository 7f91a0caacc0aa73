//! The deployment under `config/`: what the API server would read in it, and that the base and the chart are the same.
//!
//! The chart is rendered by hand, because Helm is not everywhere:
//! `helm template viaduct config/helm/viaduct --namespace kube-system --kube-version 1.36.0 > tests/golden/helm-viaduct.yaml`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap()
}

/// The objects of a text by kind.
fn objects(text: &str) -> BTreeMap<String, Value> {
    let mut objects = BTreeMap::new();
    for part in text.split("\n---\n").filter(|part| part.contains("kind:")) {
        let object: Value = serde_saphyr::from_str(part).unwrap();
        let kind = object["kind"].as_str().unwrap().to_owned();
        assert!(
            objects.insert(kind.clone(), object).is_none(),
            "{kind} twice"
        );
    }
    objects
}

/// The objects of the kustomize base, as its files have them.
fn base() -> BTreeMap<String, Value> {
    let list: Value =
        serde_saphyr::from_str(&read("config/kubernetes/kustomization.yaml")).unwrap();
    let files = list["resources"].as_array().unwrap();
    let texts: Vec<String> = files
        .iter()
        .map(|file| read(&format!("config/kubernetes/{}", file.as_str().unwrap())))
        .collect();
    objects(&texts.join("\n---\n"))
}

fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let narrowed: T = serde_json::from_value(object.clone()).unwrap();
    serde_json::to_value(narrowed).unwrap()
}

#[test]
fn every_object_of_the_base_is_one_that_kubernetes_knows_without_loss() {
    let base = base();
    for (kind, object) in &base {
        let again = match kind.as_str() {
            "ServiceAccount" => through::<ServiceAccount>(object),
            "ClusterRole" => through::<ClusterRole>(object),
            "ClusterRoleBinding" => through::<ClusterRoleBinding>(object),
            "ConfigMap" => through::<ConfigMap>(object),
            "DaemonSet" => through::<DaemonSet>(object),
            other => panic!("{other} is not expected"),
        };
        assert_eq!(&again, object);
    }
    assert_eq!(base.len(), 5);
}

#[test]
fn the_chart_is_the_base() {
    let mut base = base();
    let mut chart = objects(&read("tests/golden/helm-viaduct.yaml"));
    // Helm prints its values in the order of the alphabet and without their comments; what they say is the same.
    for objects in [&mut base, &mut chart] {
        let data = &mut objects.get_mut("ConfigMap").unwrap()["data"]["viaduct.yaml"];
        *data = serde_saphyr::from_str(data.as_str().unwrap()).unwrap();
    }
    assert_eq!(chart, base);
}

#[test]
fn the_configuration_of_the_base_can_be_used() {
    let base = base();
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("viaduct.yaml");
    let text = base["ConfigMap"]["data"]["viaduct.yaml"].as_str().unwrap();
    std::fs::write(&file, text).unwrap();
    let args = &base["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["args"];
    let args = args
        .as_array()
        .unwrap()
        .iter()
        .map(|arg| arg.as_str().unwrap());
    let args = args.filter(|arg| !arg.starts_with("--config="));
    let output = Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .args(args)
        .arg("--config")
        .arg(&file)
        .args(["--write-config-to", "-"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let held: Value = serde_saphyr::from_str(&String::from_utf8(output.stdout).unwrap()).unwrap();
    let said: Value = serde_saphyr::from_str(text).unwrap();
    for (key, value) in said.as_object().unwrap() {
        assert_eq!(&held[key], value, "{key}");
    }
    // The kubelet kills what drains for longer than it grants.
    let grace = &base["DaemonSet"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
    assert_eq!((grace, &said["drainTimeout"]), (&30.into(), &"25s".into()));
}

// kubectl is an extra: what it would change is covered by the tests above, so its absence is told and no failure.
#[test]
fn kubectl_renders_the_base_as_it_is_written() {
    let rendered = Command::new("kubectl")
        .arg("kustomize")
        .arg(repository("config/kubernetes"))
        .output();
    let Ok(rendered) = rendered else {
        eprintln!("SKIPPED kubectl_renders_the_base_as_it_is_written: there is no kubectl");
        return;
    };
    assert!(rendered.status.success(), "{rendered:?}");
    assert_eq!(
        objects(&String::from_utf8(rendered.stdout).unwrap()),
        base()
    );
}
