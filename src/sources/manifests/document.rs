//! Trees → objects: which kind a document is, whether its type fits, and what it is called if it does not.
//!
//! A `List` stands for its items. Kinds that are not read here are ignored with a warning, so that a directory may
//! hold a whole application.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::decode::{Misfit, decode};
use super::finding::{Finding, reason};
use super::manifest::{Manifest, Origin};
use super::tree::{Node, SyntaxError, Value};
use crate::control::{Kind, Object, ObjectKey};

/// How many documents of a file are read: ten times what a large cluster has in Services.
pub(super) const MAX_DOCUMENTS: usize = 100_000;

/// What a document turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Document {
    /// An object.
    Object(Arc<Manifest>),
    /// No object, but the name of the one that it should be, if that is readable.
    Refused(Option<ObjectKey>, Vec<Finding>),
    /// Not even a tree.
    Unparsable(Finding),
    /// Of a kind that is not read here.
    Ignored(Finding),
}

/// What the documents of a file are, in their order; the items of a `List` one by one.
pub(super) fn interpret(
    file: &Arc<Path>,
    documents: Vec<Result<Node, SyntaxError>>,
) -> Vec<Document> {
    let mut found = Vec::with_capacity(documents.len());
    for document in documents {
        if found.len() > MAX_DOCUMENTS {
            found.push(too_many(file));
            break;
        }
        match document {
            Ok(node) => interpret_node(file, node, &mut found),
            Err(error) => found.push(unparsable(file, error)),
        }
    }
    found
}

/// Says that a file has more than [`MAX_DOCUMENTS`].
pub(super) fn too_many(file: &Arc<Path>) -> Document {
    let message = format!("more than {MAX_DOCUMENTS} documents; the rest is not read");
    unparsable(file, SyntaxError::new(1, message))
}

fn unparsable(file: &Arc<Path>, error: SyntaxError) -> Document {
    Document::Unparsable(Finding {
        file: Arc::clone(file),
        line: error.line,
        object: None,
        field: String::new(),
        reason: reason::SYNTAX.to_owned(),
        message: error.message,
    })
}

fn interpret_node(file: &Arc<Path>, node: Node, found: &mut Vec<Document>) {
    match identify(&node) {
        Ok(Identity::List) => match into_items(node) {
            // Lists of lists end where nesting does.
            Ok(items) => items
                .into_iter()
                .for_each(|item| interpret_node(file, item, found)),
            Err((node, misfit)) => {
                found.push(refused(file, &node, reason::BAD_REQUEST, vec![misfit]))
            }
        },
        Ok(Identity::Of(kind)) => found.push(match decode_as(kind, &node) {
            Ok(object) => Document::Object(Arc::new(Manifest {
                object,
                origin: Origin {
                    file: Arc::clone(file),
                    line: node.line,
                    tree: Arc::new(node),
                },
            })),
            Err(misfits) => refused(file, &node, reason::BAD_REQUEST, misfits),
        }),
        Ok(Identity::Foreign(misfit)) => found.push(Document::Ignored(finding(
            file,
            &node,
            reason::WARNING,
            misfit,
        ))),
        Err((reason, misfit)) => found.push(refused(file, &node, reason, vec![misfit])),
    }
}

/// What `apiVersion` and `kind` say.
enum Identity {
    List,
    Of(Kind),
    Foreign(Misfit),
}

fn identify(node: &Node) -> Result<Identity, (&'static str, Misfit)> {
    if !matches!(node.value, Value::Map(_)) {
        let message = "a document is a map with apiVersion, kind and metadata".to_owned();
        let path = String::new();
        return Err((reason::BAD_REQUEST, Misfit { path, message }));
    }
    let read = |path: &str| match node.get(path).and_then(Node::text) {
        Some(text) if !text.is_empty() => Ok(&**text),
        Some(_) | None => {
            let message = match node.get(path) {
                None
                | Some(Node {
                    value: Value::Null | Value::Text(_),
                    ..
                }) => "is missing",
                Some(_) => "must be a string",
            };
            let (path, message) = (path.to_owned(), message.to_owned());
            Err((reason::BAD_REQUEST, Misfit { path, message }))
        }
    };
    let (kind, api_version) = (read("kind")?, read("apiVersion")?);
    if (kind, api_version) == ("List", "v1") {
        return Ok(Identity::List);
    }
    let Some(known) = Kind::ALL.into_iter().find(|known| known.as_str() == kind) else {
        let names = Kind::ALL.map(Kind::as_str).join(", ");
        let name = node
            .get("metadata")
            .and_then(|metadata| metadata.get("name")?.text());
        let name = name.map(|name| format!(" {name}")).unwrap_or_default();
        return Ok(Identity::Foreign(Misfit {
            path: "kind".to_owned(),
            message: format!("{kind}{name} is ignored; the kinds that are read are {names}"),
        }));
    };
    if known.api_version() == api_version {
        return Ok(Identity::Of(known));
    }
    let misfit = Misfit {
        path: "apiVersion".to_owned(),
        message: format!(
            "{kind} is not in {api_version:?} but in {:?}",
            known.api_version()
        ),
    };
    Err((reason::NO_MATCH, misfit))
}

/// The items of a `List`; `Err` gives the node back where there are none.
fn into_items(node: Node) -> Result<Vec<Node>, (Node, Misfit)> {
    if !matches!(
        node.get("items").map(|items| &items.value),
        None | Some(Value::Null | Value::List(_))
    ) {
        let (path, message) = ("items".to_owned(), "expected a list".to_owned());
        return Err((node, Misfit { path, message }));
    }
    let Value::Map(entries) = node.value else {
        return Ok(Vec::new());
    };
    let items = entries.into_iter().find(|(key, _)| &**key == "items");
    Ok(match items.map(|(_, items)| items.value) {
        Some(Value::List(items)) => items,
        Some(_) | None => Vec::new(),
    })
}

fn decode_as(kind: Kind, node: &Node) -> Result<Object, Vec<Misfit>> {
    fn boxed<'de, T: Deserialize<'de>>(node: &'de Node) -> Result<Box<T>, Vec<Misfit>> {
        decode(node).map(Box::new)
    }
    match kind {
        Kind::Namespace => boxed(node).map(Object::Namespace),
        Kind::Node => boxed(node).map(Object::Node),
        Kind::Service => boxed(node).map(Object::Service),
        Kind::Pod => boxed(node).map(Object::Pod),
        Kind::EndpointSlice => boxed(node).map(Object::EndpointSlice),
        Kind::Endpoints => boxed(node).map(Object::Endpoints),
    }
}

fn refused(file: &Arc<Path>, node: &Node, reason: &str, misfits: Vec<Misfit>) -> Document {
    let findings = misfits
        .into_iter()
        .map(|misfit| finding(file, node, reason, misfit));
    Document::Refused(key(node), findings.collect())
}

fn finding(file: &Arc<Path>, node: &Node, reason: &str, misfit: Misfit) -> Finding {
    Finding {
        file: Arc::clone(file),
        line: node.line_of(&misfit.path),
        object: key(node),
        field: misfit.path,
        reason: reason.to_owned(),
        message: misfit.message,
    }
}

/// The key of the object that a document describes, even if the rest of it cannot be read.
fn key(node: &Node) -> Option<ObjectKey> {
    let kind = node.get("kind")?.text()?;
    let kind = Kind::ALL
        .into_iter()
        .find(|known| known.as_str() == &**kind)?;
    let metadata = node.get("metadata")?;
    let name = metadata
        .get("name")?
        .text()
        .filter(|name| !name.is_empty())?;
    let namespace = match metadata.get("namespace") {
        _ if !kind.is_namespaced() => "".into(),
        None
        | Some(Node {
            value: Value::Null, ..
        }) => "default".into(),
        Some(namespace) => Arc::clone(namespace.text()?),
    };
    Some(ObjectKey {
        kind,
        namespace,
        name: Arc::clone(name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::manifests::yaml::parse_yaml;

    fn read(yaml: &str) -> Vec<Document> {
        interpret(&Path::new("web.yaml").into(), parse_yaml(yaml))
    }

    fn one(yaml: &str) -> Document {
        let mut found = read(yaml);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn shown(document: &Document) -> Vec<String> {
        match document {
            Document::Object(manifest) => vec![manifest.object.key().to_string()],
            Document::Refused(_, findings) => findings.iter().map(Finding::to_string).collect(),
            Document::Unparsable(finding) | Document::Ignored(finding) => vec![finding.to_string()],
        }
    }

    #[test]
    fn all_six_kinds_are_read() {
        for kind in Kind::ALL {
            let yaml = format!(
                "kind: {kind}\napiVersion: {}\nmetadata: {{name: a}}",
                kind.api_version()
            );
            let extra = match kind {
                Kind::EndpointSlice => "\naddressType: IPv4\nendpoints: []",
                Kind::Namespace | Kind::Node | Kind::Service | Kind::Pod | Kind::Endpoints => "",
            };
            let Document::Object(manifest) = one(&(yaml + extra)) else {
                panic!("{kind} was not read");
            };
            let namespace = if kind.is_namespaced() { "default" } else { "" };
            let key = ObjectKey {
                kind,
                namespace: namespace.into(),
                name: "a".into(),
            };
            assert_eq!(manifest.object.key(), key);
        }
    }

    #[test]
    fn an_object_knows_its_lines() {
        let Document::Object(manifest) = one(
            "# web\n---\nkind: Service\napiVersion: v1\nspec:\n  ports:\n  - port: 80\n    nodePort: 1\n",
        ) else {
            panic!("not read");
        };
        let origin = &manifest.origin;
        assert_eq!(
            (
                origin.line,
                origin.line_of("spec.ports[0].nodePort"),
                origin.line_of("spec.clusterIPs[0]")
            ),
            (3, 8, 5)
        );
        let finding = origin.finding(
            manifest.object.key(),
            "metadata.name",
            "FieldValueRequired",
            "is required",
        );
        assert_eq!(
            finding.to_string(),
            "web.yaml:3: Service default/: metadata.name: is required"
        );
    }

    #[test]
    fn lists_stand_for_their_items() {
        let yaml = "kind: List\napiVersion: v1\nmetadata: {resourceVersion: ''}\nitems:\n- kind: Service\n  apiVersion: v1\n  metadata: {name: a}\n- kind: List\n  apiVersion: v1\n  items:\n  - {kind: Pod, apiVersion: v1, metadata: {name: b}}\n- 5\n";
        let found = read(yaml);
        let all: Vec<String> = found.iter().flat_map(shown).collect();
        assert_eq!(
            all,
            [
                "Service default/a",
                "Pod default/b",
                "web.yaml:12: a document is a map with apiVersion, kind and metadata"
            ]
        );
        let Document::Object(manifest) = &found[0] else {
            panic!("not read")
        };
        assert_eq!(
            (
                manifest.origin.line,
                manifest.origin.line_of("metadata.name")
            ),
            (5, 7)
        );
        assert_eq!(read("{kind: List, apiVersion: v1, items: ~}"), []);
        assert_eq!(read("{kind: List, apiVersion: v1}"), []);
        assert_eq!(
            shown(&one("kind: List\napiVersion: v1\nitems: {}")),
            ["web.yaml:3: items: expected a list"]
        );
    }

    #[test]
    fn other_kinds_are_ignored_with_their_name() {
        let found = one("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n");
        let Document::Ignored(finding) = &found else {
            panic!("{found:?}")
        };
        assert_eq!(finding.reason, "Warning");
        assert_eq!(
            finding.to_string(),
            "web.yaml:2: kind: Deployment web is ignored; the kinds that are read are Namespace, Node, Service, Pod, EndpointSlice, Endpoints"
        );
    }

    #[test]
    fn a_kind_in_another_version_is_refused() {
        let found =
            one("apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: a}\n");
        assert_eq!(
            shown(&found),
            [
                "web.yaml:1: EndpointSlice default/a: apiVersion: EndpointSlice is not in \"discovery.k8s.io/v1beta1\" but in \"discovery.k8s.io/v1\""
            ]
        );
        assert!(
            matches!(&found, Document::Refused(Some(_), findings) if findings[0].reason == "NoMatch")
        );
    }

    #[test]
    fn documents_that_are_no_objects_are_refused() {
        assert_eq!(
            shown(&one("apiVersion: v1\nmetadata: {name: a}")),
            ["web.yaml:1: kind: is missing"]
        );
        assert_eq!(
            shown(&one("kind: Service\nmetadata: {name: a}")),
            ["web.yaml:1: Service default/a: apiVersion: is missing"]
        );
        assert_eq!(
            shown(&one("kind: 5\napiVersion: v1")),
            ["web.yaml:1: kind: must be a string"]
        );
        assert_eq!(
            shown(&one("kind: ~\napiVersion: v1")),
            ["web.yaml:1: kind: is missing"]
        );
        assert_eq!(
            shown(&one("hello")),
            ["web.yaml:1: a document is a map with apiVersion, kind and metadata"]
        );
    }

    #[test]
    fn all_misfits_of_a_document_are_told_with_their_lines() {
        let found = one(
            "kind: Service\napiVersion: v1\nmetadata:\n  name: a\n  namespace: shop\nspec:\n  clusterip: None\n  ports:\n  - port: 80\n    targetport: 1\n",
        );
        assert_eq!(
            shown(&found),
            [
                "web.yaml:7: Service shop/a: spec.clusterip: unknown field \"spec.clusterip\"",
                "web.yaml:10: Service shop/a: spec.ports[0].targetport: unknown field \"spec.ports[0].targetport\"",
            ]
        );
    }

    #[test]
    fn a_refused_document_has_a_key_only_if_it_says_so() {
        let key = |yaml: &str| match one(yaml) {
            Document::Refused(key, _) => key.map(|key| key.to_string()),
            Document::Object(_) | Document::Unparsable(_) | Document::Ignored(_) => {
                panic!("not refused: {yaml}")
            }
        };
        assert_eq!(
            key("{kind: Service, apiVersion: v1, metadata: {name: a}, x: 1}").as_deref(),
            Some("Service default/a")
        );
        assert_eq!(
            key("{kind: Node, apiVersion: v1, metadata: {name: a, namespace: b}, x: 1}").as_deref(),
            Some("Node a")
        );
        assert_eq!(
            key("{kind: Service, apiVersion: v1, metadata: {name: a, namespace: ~}, x: 1}")
                .as_deref(),
            Some("Service default/a")
        );
        assert_eq!(
            key("{kind: Service, apiVersion: v1, metadata: {name: 5}}"),
            None
        );
        assert_eq!(
            key("{kind: Service, apiVersion: v1, metadata: {name: a, namespace: 5}}"),
            None
        );
        assert_eq!(
            key("{kind: Service, apiVersion: v1, metadata: {name: ''}, x: 1}"),
            None
        );
        assert_eq!(key("{kind: Service, apiVersion: v1, metadata: 5}"), None);
    }

    #[test]
    fn unparsable_documents_leave_the_others_alone() {
        let found = read(
            "{kind: Pod, apiVersion: v1, metadata: {name: a}}\n---\nx: [\n---\n{kind: Pod, apiVersion: v1, metadata: {name: b}}\n",
        );
        let all: Vec<String> = found.iter().flat_map(shown).collect();
        assert_eq!(
            (all.len(), &*all[0], &*all[2]),
            (3, "Pod default/a", "Pod default/b")
        );
        assert!(
            matches!(&found[1], Document::Unparsable(finding) if finding.reason == "SyntaxError")
        );
    }
}
