//! Metadata of any object: its name, labels and annotations.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{each, names};
use crate::control::object::Kind;
use crate::control::rejection::Cause;

/// All annotations of an object together, in bytes of keys and values.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// What is said of an object without a name.
pub(crate) const NAMELESS: &str = "name or generateName is required";

/// Judges what every object has.
pub(in crate::control) fn judge_metadata(metadata: &ObjectMeta, kind: Kind) -> Vec<Cause> {
    let mut wrong = Vec::new();
    match metadata.name.as_deref().unwrap_or_default() {
        "" => {
            let is_generated = metadata.generate_name.is_some();
            let message = if is_generated {
                "generateName cannot be used here: the name would be another one each time the manifest is read"
            } else {
                NAMELESS
            };
            wrong.push(Cause::required("metadata.name", message));
        }
        name => {
            let faults = match kind {
                Kind::Service | Kind::Namespace => names::dns_label(name),
                Kind::Node | Kind::Pod | Kind::EndpointSlice | Kind::Endpoints => {
                    names::dns_subdomain(name)
                }
            };
            wrong.extend(each("metadata.name", name, faults));
        }
    }
    if kind.is_namespaced()
        && let Some(namespace) = metadata.namespace.as_deref()
    {
        wrong.extend(each(
            "metadata.namespace",
            namespace,
            names::dns_label(namespace),
        ));
    }
    if let Some(labels) = &metadata.labels {
        wrong.extend(judge_labels(labels, "metadata.labels"));
    }
    if let Some(annotations) = &metadata.annotations {
        wrong.extend(judge_annotations(annotations));
    }
    wrong
}

/// Judges a map of labels, a selector among them.
pub(in crate::control) fn judge_labels(
    labels: &BTreeMap<String, String>,
    field: &str,
) -> Vec<Cause> {
    let mut wrong = Vec::new();
    for (key, value) in labels {
        wrong.extend(each(field, key, names::qualified_name(key)));
        wrong.extend(each(field, value, names::label_value(value)));
    }
    wrong
}

fn judge_annotations(annotations: &BTreeMap<String, String>) -> Vec<Cause> {
    const FIELD: &str = "metadata.annotations";
    let mut wrong = Vec::new();
    let mut size = 0;
    for (key, value) in annotations {
        let faults = names::qualified_name(&key.to_lowercase());
        wrong.extend(each(FIELD, key, faults));
        size += key.len() + value.len();
    }
    if size > MAX_ANNOTATIONS {
        wrong.push(Cause::too_long(FIELD, MAX_ANNOTATIONS));
    }
    wrong
}
