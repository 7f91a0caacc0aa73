//! From a JSON document to an object: which kind it is, wrong types, unknown fields.
//!
//! Wrong types are refused, null is unset. Unknown fields are a warning, or in strict decoding (manifest files,
//! kubectl) refused too. Only what is asked of every document: validation comes later.

use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::Value;

use super::object::{Kind, Object};
use super::rejection::{Rejection, Warning};

/// What to do about a field that the kind does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFields {
    /// Accept the object and warn.
    Warn,
    /// Refuse it.
    Refuse,
}

/// Decodes a document by its `kind` and `apiVersion`.
///
/// # Errors
/// 400 BadRequest: of a kind that is not served, a value of the wrong type, or unknown fields where those are refused.
pub fn decode(
    mut document: Value,
    unknown: UnknownFields,
) -> Result<(Object, Vec<Warning>), Rejection> {
    let kind = kind_of(&document)?;
    nulls_to_empty_texts(&mut document, kind);
    let (object, unknown_fields) = match kind {
        Kind::Namespace => narrow(document).map(|(o, f)| (Object::Namespace(o), f)),
        Kind::Node => narrow(document).map(|(o, f)| (Object::Node(o), f)),
        Kind::Service => narrow(document).map(|(o, f)| (Object::Service(o), f)),
        Kind::Pod => narrow(document).map(|(o, f)| (Object::Pod(o), f)),
        Kind::EndpointSlice => narrow(document).map(|(o, f)| (Object::EndpointSlice(o), f)),
        Kind::Endpoints => narrow(document).map(|(o, f)| (Object::Endpoints(o), f)),
    }
    .map_err(|why| not_handled(kind, &why))?;
    let complaints: Vec<_> = unknown_fields
        .iter()
        .map(|path| format!("unknown field \"{path}\""))
        .collect();
    if unknown == UnknownFields::Refuse && !complaints.is_empty() {
        let why = format!("strict decoding error: {}", complaints.join(", "));
        return Err(not_handled(kind, &why));
    }
    let warnings = complaints.into_iter().map(Warning::plain).collect();
    Ok((object, warnings))
}

fn kind_of(document: &Value) -> Result<Kind, Rejection> {
    let text = |field: &str| {
        document
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (name, version) = (text("kind"), text("apiVersion"));
    Kind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == name && kind.api_version() == version)
        .ok_or_else(|| {
            Rejection::bad_request(format!(
                "no kind \"{name}\" of version \"{version}\" is served"
            ))
        })
}

fn not_handled(kind: Kind, why: &str) -> Rejection {
    let version = kind.api_version().rsplit('/').next().unwrap_or_default();
    Rejection::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
    ))
}

fn narrow<T: DeserializeOwned>(document: Value) -> Result<(Box<T>, Vec<String>), String> {
    let mut unknown = Vec::new();
    let mut note = |path: Path<'_>| {
        let path = spelled(&path);
        // These two have served their purpose.
        if path != "kind" && path != "apiVersion" {
            unknown.push(path);
        }
    };
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(document, &mut track);
    let result: Result<T, _> = serde_ignored::deserialize(tracked, &mut note);
    match result {
        Ok(object) => Ok((Box::new(object), unknown)),
        Err(error) => Err(format!("{}: {error}", track.path())),
    }
}

// As `spec.ports[0].name`; optional values in between leave no trace.
fn spelled(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", spelled(parent)),
        Path::Map { parent, key } => {
            let parent = spelled(parent);
            if parent.is_empty() {
                key.clone()
            } else {
                format!("{parent}.{key}")
            }
        }
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => spelled(parent),
    }
}

// A null in a map or list of texts is an empty text.
fn nulls_to_empty_texts(document: &mut Value, kind: Kind) {
    let of_service = [
        "/spec/selector",
        "/spec/clusterIPs",
        "/spec/ipFamilies",
        "/spec/externalIPs",
        "/spec/loadBalancerSourceRanges",
    ];
    let of_kind = if kind == Kind::Service {
        &of_service[..]
    } else {
        &[]
    };
    let of_all = ["/metadata/labels", "/metadata/annotations"];
    for pointer in of_all.iter().chain(of_kind) {
        let texts: Vec<&mut Value> = match document.pointer_mut(pointer) {
            Some(Value::Object(map)) => map.values_mut().collect(),
            Some(Value::Array(list)) => list.iter_mut().collect(),
            Some(_) | None => Vec::new(),
        };
        for text in texts {
            if text.is_null() {
                *text = Value::String(String::new());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec})
    }

    #[test]
    fn unknown_fields_are_named_by_their_path() {
        let document = service(json!({"ports": [{"port": 80, "targetport": 1}]}));
        let (_, warnings) = decode(document.clone(), UnknownFields::Warn).unwrap();
        assert_eq!(
            warnings[0].message,
            "unknown field \"spec.ports[0].targetport\""
        );
        let rejection = decode(document, UnknownFields::Refuse).unwrap_err();
        assert_eq!(rejection.code, 400);
    }

    #[test]
    fn wrong_types_are_refused_with_the_path_and_nulls_are_unset() {
        let refused = |spec| decode(service(spec), UnknownFields::Warn).unwrap_err();
        assert!(
            refused(json!({"ports": [{"port": "80"}]}))
                .message
                .contains("spec.ports[0].port")
        );
        assert_eq!(refused(json!({"ports": [{"port": 80.0}]})).code, 400);
        assert_eq!(refused(json!({"sessionAffinity": 5})).code, 400);
        let spec = json!({"ports": null, "selector": {"a": null}});
        let (object, _) = decode(service(spec), UnknownFields::Refuse).unwrap();
        let Object::Service(service) = object else {
            unreachable!("a Service was given")
        };
        let spec = service.spec.unwrap();
        assert_eq!(
            (spec.ports, spec.selector.unwrap()["a"].as_str()),
            (None, "")
        );
        assert!(decode(json!({"kind": "Deployment"}), UnknownFields::Warn).is_err());
    }
}
