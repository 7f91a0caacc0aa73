//! A document as a tree that knows the line of everything in it.
//!
//! Both notations, YAML and JSON, are read into it, within bounds that no file can exceed. It knows nothing of
//! Kubernetes; `decode` gives it types.

use std::sync::Arc;

/// How deep lists and maps may nest. Kubernetes' own objects stay below 20.
pub(super) const MAX_DEPTH: usize = 128;

/// How many values a document may have once its aliases are replaced by what they stand for: about 100 MB of tree,
/// and far more than 16 MiB of ordinary manifests contain.
pub(super) const MAX_NODES: usize = 2_000_000;

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// The line, from 1. For a value in a map this is the line of its key.
    pub(super) line: u32,
    /// The value.
    pub(super) value: Value,
}

/// The values that YAML and JSON have in common.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<str>),
    List(Vec<Node>),
    /// In the order of the document; no key twice.
    Map(Vec<(Arc<str>, Node)>),
}

/// Why a document could not be read at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct SyntaxError {
    /// The line, from 1.
    pub(super) line: u32,
    /// What is wrong there.
    pub(super) message: String,
}

impl SyntaxError {
    pub(super) fn new(line: u32, message: impl Into<String>) -> Self {
        Self {
            line,
            message: message.into(),
        }
    }
}

impl Node {
    /// The value under `key`, if this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else {
            return None;
        };
        let mut found = entries.iter().filter(|(known, _)| &**known == key);
        found.next().map(|(_, node)| node)
    }

    /// The text, if it is one.
    pub(super) fn text(&self) -> Option<&Arc<str>> {
        if let Value::Text(text) = &self.value {
            Some(text)
        } else {
            None
        }
    }

    /// The line of the longest part of `path` that is written here. Paths are Kubernetes': `spec.ports[0].port`,
    /// `metadata.labels[app.kubernetes.io/name]`.
    pub(super) fn line_of(&self, path: &str) -> u32 {
        let mut found = self;
        let mut rest = path;
        while let Some((segment, after)) = next_segment(rest) {
            let Some(child) = found.child(segment) else {
                break;
            };
            found = child;
            rest = after;
        }
        found.line
    }

    fn child(&self, segment: &str) -> Option<&Self> {
        if let Value::List(items) = &self.value {
            items.get(segment.parse::<usize>().ok()?)
        } else {
            // The API server itself writes `spec.LoadBalancerSourceRanges`.
            self.get(segment)
                .or_else(|| self.get(&decapitalised(segment)))
        }
    }
}

fn decapitalised(segment: &str) -> String {
    let mut letters = segment.chars();
    let first = letters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

/// The first segment of a path, without its punctuation, and the rest. `None` at the end.
fn next_segment(path: &str) -> Option<(&str, &str)> {
    if let Some(bracketed) = path.strip_prefix('[') {
        return bracketed.split_once(']');
    }
    let path = path.strip_prefix('.').unwrap_or(path);
    let end = path.find(['.', '[']).unwrap_or(path.len());
    (end > 0).then(|| path.split_at(end))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A tree on one line, with the line of each value after `@`.
    pub(in crate::sources::manifests) fn written(node: &Node) -> String {
        let value = match &node.value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(number) => number.to_string(),
            Value::Float(number) => format!("{number:?}"),
            Value::Text(text) => text.to_string(),
            Value::List(items) => format!(
                "[{}]",
                items.iter().map(written).collect::<Vec<_>>().join(", ")
            ),
            Value::Map(entries) => {
                let entries = entries
                    .iter()
                    .map(|(key, node)| format!("{key}: {}", written(node)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
            }
        };
        format!("{value}@{}", node.line)
    }

    fn text(line: u32, text: &str) -> Node {
        Node {
            line,
            value: Value::Text(text.into()),
        }
    }

    fn map(line: u32, entries: Vec<(&str, Node)>) -> Node {
        let entries = entries.into_iter().map(|(key, node)| (key.into(), node));
        Node {
            line,
            value: Value::Map(entries.collect()),
        }
    }

    fn service() -> Node {
        let ports = vec![
            map(8, vec![("port", text(8, "80"))]),
            map(
                9,
                vec![("port", text(9, "81")), ("nodePort", text(10, "1"))],
            ),
        ];
        let ports = Node {
            line: 7,
            value: Value::List(ports),
        };
        let labels = map(4, vec![("app.kubernetes.io/name", text(5, "web"))]);
        map(
            2,
            vec![
                ("metadata", map(3, vec![("labels", labels)])),
                ("spec", map(6, vec![("ports", ports)])),
            ],
        )
    }

    #[test]
    fn a_path_leads_to_its_line() {
        let tree = service();
        assert_eq!(tree.line_of("spec.ports[1].nodePort"), 10);
        assert_eq!(tree.line_of("spec.ports[0]"), 8);
        assert_eq!(tree.line_of("spec.Ports[1].nodePort"), 10);
        assert_eq!(tree.line_of("spec"), 6);
        assert_eq!(tree.line_of("metadata.labels[app.kubernetes.io/name]"), 5);
    }

    #[test]
    fn what_is_not_written_has_the_line_of_what_it_would_be_in() {
        let tree = service();
        assert_eq!(tree.line_of("spec.clusterIPs[0]"), 6);
        assert_eq!(tree.line_of("spec.ports[0].nodePort"), 8);
        assert_eq!(tree.line_of("spec.ports[2].port"), 7);
        assert_eq!(tree.line_of("metadata.labels[other]"), 4);
        assert_eq!(tree.line_of("status.loadBalancer"), 2);
        for odd in [
            "",
            ".",
            "[",
            "]",
            "spec..",
            "spec[",
            "a.b.c",
            "[0]",
            "spec.ports[-1]",
        ] {
            assert!([2, 6, 7].contains(&tree.line_of(odd)), "{odd}");
        }
    }
}
