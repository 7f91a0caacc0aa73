//! Trees → Kubernetes types, strictly: a field of the wrong type and an unknown field are errors with their path.
//!
//! As in Go's JSON decoder, null means "not set": the empty text, zero, the empty list. So `labels: {app: null}` is a
//! label with an empty value, as the API server takes it.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::mismatch::Mismatch;
use super::tree::{Node, Value};

/// How many unknown fields of a document are told.
const MAX_UNKNOWN: usize = 100;

/// Something that a type has no place for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    /// The path, in Kubernetes' spelling: `spec.ports[0].port`. Empty for the whole document.
    pub(super) path: String,
    /// What is wrong.
    pub(super) message: String,
}

/// Decodes a tree.
///
/// # Errors
/// All unknown fields (at most a hundred), and the first value of a wrong type, behind which nothing more is looked at.
pub(super) fn decode<'de, T: Deserialize<'de>>(node: &'de Node) -> Result<T, Vec<Misfit>> {
    let unknown = RefCell::default();
    let reader = Reader {
        node,
        path: Path::Root,
        unknown: &unknown,
    };
    let decoded = T::deserialize(reader);
    let mut misfits = unknown.into_inner();
    match decoded {
        Ok(value) if misfits.is_empty() => Ok(value),
        Ok(_) => Err(misfits),
        Err(mismatch) => {
            misfits.push(Misfit {
                path: mismatch.path.unwrap_or_default(),
                message: mismatch.message,
            });
            Err(misfits)
        }
    }
}

/// Where in the document the reader is.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Key(&'a Self, &'a str),
    Index(&'a Self, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Self::Key(Self::Root, key) => f.write_str(key),
            // A key with a dot in it, such as a label's, would read as two fields.
            Self::Key(parent, key) if key.contains(['.', '[', ']']) => write!(f, "{parent}[{key}]"),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
        }
    }
}

/// Reads one node of the tree, and collects the fields nobody asked for.
#[derive(Clone, Copy)]
struct Reader<'de, 'p> {
    node: &'de Node,
    path: Path<'p>,
    unknown: &'p RefCell<Vec<Misfit>>,
}

impl<'de, 'p> Reader<'de, 'p> {
    fn is_null(&self) -> bool {
        self.node.value == Value::Null
    }

    fn read_child<T: DeserializeSeed<'de>>(
        node: &'de Node,
        path: Path<'_>,
        unknown: &RefCell<Vec<Misfit>>,
        seed: T,
    ) -> Result<T::Value, Mismatch> {
        let reader = Reader {
            node,
            path,
            unknown,
        };
        seed.deserialize(reader).map_err(|mut mismatch| {
            mismatch.path.get_or_insert_with(|| path.to_string());
            mismatch
        })
    }

    fn entries(&self, entries: &'de [(Arc<str>, Node)]) -> Entries<'de, 'p> {
        Entries {
            entries: entries.iter(),
            value: None,
            path: self.path,
            unknown: self.unknown,
        }
    }

    fn items(&self, items: &'de [Node]) -> Items<'de, 'p> {
        Items {
            items: items.iter().enumerate(),
            path: self.path,
            unknown: self.unknown,
        }
    }
}

/// Integers share one reading: null is zero, everything else what it says it is.
macro_rules! null_is_zero {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            if self.is_null() { visitor.visit_i64(0) } else { self.deserialize_any(visitor) }
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'de, '_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(self.items(items)),
            Value::Map(entries) => visitor.visit_map(self.entries(entries)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    null_is_zero! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16 deserialize_u32
        deserialize_u64 deserialize_f32 deserialize_f64
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.is_null() {
            visitor.visit_bool(false)
        } else {
            self.deserialize_any(visitor)
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.is_null() {
            visitor.visit_borrowed_str("")
        } else {
            self.deserialize_any(visitor)
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_str(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.is_null() {
            visitor.visit_seq(self.items(&[]))
        } else {
            self.deserialize_any(visitor)
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.is_null() {
            visitor.visit_map(self.entries(&[]))
        } else {
            self.deserialize_any(visitor)
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.deserialize_map(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    /// Only values of fields that the type does not have are read like this.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let mut unknown = self.unknown.borrow_mut();
        if unknown.len() < MAX_UNKNOWN {
            let path = self.path.to_string();
            let message = format!("unknown field {path:?}");
            unknown.push(Misfit { path, message });
        }
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
    }
}

struct Entries<'de, 'p> {
    entries: std::slice::Iter<'de, (Arc<str>, Node)>,
    value: Option<(&'de str, &'de Node)>,
    path: Path<'p>,
    unknown: &'p RefCell<Vec<Misfit>>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mismatch> {
        let Some((key, node)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some((key, node));
        seed.deserialize(StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let Some((key, node)) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        Reader::read_child(node, Path::Key(&self.path, key), self.unknown, seed)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

struct Items<'de, 'p> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
    path: Path<'p>,
    unknown: &'p RefCell<Vec<Misfit>>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mismatch> {
        let Some((index, node)) = self.items.next() else {
            return Ok(None);
        };
        Reader::read_child(node, Path::Index(&self.path, index), self.unknown, seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Namespace, Node as K8sNode, Pod, Service};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    use super::*;
    use crate::sources::manifests::yaml::parse_yaml;

    fn read<T: for<'de> Deserialize<'de>>(yaml: &str) -> Result<T, Vec<(String, String)>> {
        let tree = parse_yaml(yaml).remove(0).unwrap();
        let pairs = |misfits: Vec<Misfit>| {
            misfits
                .into_iter()
                .map(|misfit| (misfit.path, misfit.message))
                .collect()
        };
        decode(&tree).map_err(pairs)
    }

    fn misfit(spec: &str) -> (String, String) {
        let mut found = read::<Service>(&format!("spec: {spec}")).unwrap_err();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn pair(path: &str, message: &str) -> (String, String) {
        (path.to_owned(), message.to_owned())
    }

    #[test]
    fn a_service_is_read() {
        let service: Service = read("{apiVersion: v1, kind: Service, metadata: {name: web, labels: {a.b/c: d}}, spec: {ports: [{port: 80, targetPort: http}, {port: 81, targetPort: 8081}]}}").unwrap();
        assert_eq!(service.metadata.name.as_deref(), Some("web"));
        let ports = service.spec.unwrap().ports.unwrap();
        assert_eq!(
            ports[0].target_port,
            Some(IntOrString::String("http".to_owned()))
        );
        assert_eq!(ports[1].target_port, Some(IntOrString::Int(8081)));
    }

    #[test]
    fn values_of_a_wrong_type_have_their_path() {
        assert_eq!(
            misfit("{ports: [{port: 80}, {port: '80'}]}"),
            pair(
                "spec.ports[1].port",
                "expected an integer, found the string \"80\""
            )
        );
        assert_eq!(
            misfit("{ports: [{port: 80.0}]}"),
            pair(
                "spec.ports[0].port",
                "expected an integer, found the number 80.0"
            )
        );
        assert_eq!(
            misfit("{ports: [{port: 4294967376}]}"),
            pair(
                "spec.ports[0].port",
                "the integer 4294967376 is out of range for an integer"
            )
        );
        assert_eq!(
            misfit("{ports: [{port: 80, targetPort: 80.5}]}").0,
            "spec.ports[0].targetPort"
        );
        assert_eq!(
            misfit("{sessionAffinity: 5}"),
            pair(
                "spec.sessionAffinity",
                "expected a string, found the integer 5"
            )
        );
        assert_eq!(
            misfit("{selector: {a: 1}}"),
            pair("spec.selector.a", "expected a string, found the integer 1")
        );
        assert_eq!(
            misfit("{selector: {a.b/c: true}}").0,
            "spec.selector[a.b/c]"
        );
        assert_eq!(
            misfit("{ports: {port: 80}}"),
            pair("spec.ports", "expected a list, found a map")
        );
        assert_eq!(
            misfit("{publishNotReadyAddresses: yes}"),
            pair(
                "spec.publishNotReadyAddresses",
                "expected a boolean, found the string \"yes\""
            )
        );
        assert_eq!(misfit("[]").0, "spec");
        assert_eq!(read::<Service>("- 1").unwrap_err()[0].0, "");
    }

    #[test]
    fn unknown_fields_are_all_reported() {
        let found = read::<Service>("{metadata: {nam: x}, spec: {clusterip: None, ports: [{port: 80, targetport: {a: [1]}}]}, other: ~}").unwrap_err();
        let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "metadata.nam",
                "spec.clusterip",
                "spec.ports[0].targetport",
                "other"
            ]
        );
        assert_eq!(found[1].1, "unknown field \"spec.clusterip\"");
        let with_mismatch = read::<Service>("spec: {clusterip: None, ports: 1}").unwrap_err();
        assert_eq!(with_mismatch.len(), 2);
    }

    #[test]
    fn null_means_not_set() {
        let service: Service = read("{metadata: ~, spec: {type: ~, ports: [~, {port: ~}], clusterIPs: [~], selector: {a: ~}, publishNotReadyAddresses: ~}, status: ~}").unwrap();
        let spec = service.spec.unwrap();
        assert_eq!(
            spec.ports
                .unwrap()
                .iter()
                .map(|port| port.port)
                .collect::<Vec<_>>(),
            [0, 0]
        );
        assert_eq!(spec.cluster_ips, Some(vec![String::new()]));
        assert_eq!(spec.selector.unwrap()["a"], "");
        assert_eq!((spec.type_, spec.publish_not_ready_addresses), (None, None));
        let pod: Pod = read("{metadata: {deletionTimestamp: ~}, spec: {containers: ~}}").unwrap();
        assert_eq!(
            (
                pod.spec.unwrap().containers,
                pod.metadata.deletion_timestamp
            ),
            (vec![], None)
        );
    }

    #[test]
    fn times_and_quantities_are_read_as_kubernetes_writes_them() {
        let node: K8sNode =
            read("{status: {allocatable: {cpu: 2, memory: 1Gi, pods: '110', x: 0.5}}}").unwrap();
        let allocatable = node.status.unwrap().allocatable.unwrap();
        let found: Vec<&Quantity> = allocatable.values().collect();
        assert_eq!(
            found
                .iter()
                .map(|quantity| quantity.0.as_str())
                .collect::<Vec<_>>(),
            ["2", "1Gi", "110", "0.5"]
        );
        let namespace: Namespace =
            read("{metadata: {creationTimestamp: 2026-01-02T03:04:05Z}}").unwrap();
        assert!(namespace.metadata.creation_timestamp.is_some());
        let found = read::<Namespace>("{metadata: {creationTimestamp: yesterday}}").unwrap_err();
        assert_eq!(found[0].0, "metadata.creationTimestamp");
    }

    #[test]
    fn fields_that_hold_anything_are_not_unknown() {
        let fields = "{metadata: {managedFields: [{fieldsType: FieldsV1, fieldsV1: {'f:a': {}, b: [1, ~]}}]}}";
        assert!(read::<Namespace>(fields).is_ok());
    }
}
