//! The three-way merge of a manifest file that is read again: what its author changed is changed, the rest stays.
//!
//! Works on JSON, as `kubectl apply` does. `ports` of a Service are matched by port and protocol, maps by key, other
//! lists are one value.

use serde_json::{Map, Value};

/// Applies the difference between `before` and `after`, two contents of a file, to `stored`.
pub(super) fn three_way(before: &Value, after: &Value, stored: &Value) -> Value {
    merge_at("", before, after, stored)
}

fn merge_at(path: &str, before: &Value, after: &Value, stored: &Value) -> Value {
    if before == after {
        return stored.clone();
    }
    match (before, after, stored) {
        (before, Value::Object(after), Value::Object(stored)) => {
            let nothing = Map::new();
            let before = before.as_object().unwrap_or(&nothing);
            Value::Object(merge_maps(path, before, after, stored))
        }
        (before, Value::Array(after), Value::Array(stored)) if path == ".spec.ports" => {
            let before = before.as_array().map(Vec::as_slice).unwrap_or_default();
            merge_ports(path, before, after, stored)
        }
        _ => after.clone(),
    }
}

fn merge_maps(
    path: &str,
    before: &Map<String, Value>,
    after: &Map<String, Value>,
    stored: &Map<String, Value>,
) -> Map<String, Value> {
    let mut merged = stored.clone();
    for key in before.keys() {
        if after.get(key).is_none_or(Value::is_null) {
            merged.remove(key);
        }
    }
    for (key, value) in after.iter().filter(|(_, value)| !value.is_null()) {
        let path = format!("{path}.{key}");
        let old = before.get(key).unwrap_or(&Value::Null);
        match stored.get(key) {
            Some(kept) => {
                merged.insert(key.clone(), merge_at(&path, old, value, kept));
            }
            // Written before, unchanged, and gone since: it stays gone.
            None if old == value => {}
            None => {
                merged.insert(key.clone(), value.clone());
            }
        }
    }
    merged
}

// In the order of the new file, then what the file has never had.
fn merge_ports(path: &str, before: &[Value], after: &[Value], stored: &[Value]) -> Value {
    let lists = [before, after, stored];
    if lists.iter().any(|list| has_twins(list)) {
        return Value::Array(after.to_vec());
    }
    let find = |list: &[Value], port: &Value| {
        list.iter()
            .find(|other| key_of(other) == key_of(port))
            .cloned()
    };
    let entry_path = format!("{path}[]");
    let mut merged: Vec<_> = after
        .iter()
        .map(|port| match find(stored, port) {
            Some(kept) => {
                let old = find(before, port).unwrap_or(Value::Null);
                merge_at(&entry_path, &old, port, &kept)
            }
            None => port.clone(),
        })
        .collect();
    let foreign = |port: &&Value| find(before, port).is_none() && find(after, port).is_none();
    merged.extend(stored.iter().filter(foreign).cloned());
    Value::Array(merged)
}

fn key_of(port: &Value) -> (Option<i64>, &str) {
    let protocol = port.get("protocol").and_then(Value::as_str);
    (
        port.get("port").and_then(Value::as_i64),
        protocol.filter(|word| !word.is_empty()).unwrap_or("TCP"),
    )
}

fn has_twins(ports: &[Value]) -> bool {
    let mut seen = std::collections::HashSet::new();
    !ports.iter().all(|port| seen.insert(key_of(port)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_author_never_wrote_or_did_not_change_stays() {
        let before = json!({"spec": {"ipFamilies": ["IPv6"], "type": "NodePort"}});
        let after = json!({"spec": {"ipFamilies": ["IPv6"], "type": "ClusterIP"}});
        let stored =
            json!({"spec": {"ipFamilies": ["IPv6", "IPv4"], "type": "NodePort", "clusterIP": "x"}});
        assert_eq!(
            three_way(&before, &after, &stored),
            json!({"spec": {"ipFamilies": ["IPv6", "IPv4"], "type": "ClusterIP", "clusterIP": "x"}})
        );
        assert_eq!(three_way(&after, &after, &stored), stored);
    }

    #[test]
    fn what_the_author_removes_goes_and_what_others_added_to_a_map_stays() {
        let before = json!({"labels": {"a": "1", "b": "1"}, "list": [1]});
        let after = json!({"labels": {"a": "2"}});
        let stored = json!({"labels": {"a": "1", "b": "1", "c": "3"}, "list": [1]});
        assert_eq!(
            three_way(&before, &after, &stored),
            json!({"labels": {"a": "2", "c": "3"}})
        );
    }

    #[test]
    fn ports_are_matched_by_port_and_protocol() {
        let port =
            |name, number, protocol| json!({"name": name, "port": number, "protocol": protocol});
        let before = json!({"spec": {"ports": [port("a", 80, "TCP"), port("b", 53, "UDP")]}});
        let after = json!({"spec": {"ports": [{"name": "c", "port": 53, "protocol": "UDP"}, {"name": "a", "port": 80}]}});
        let stored = json!({"spec": {"ports": [
            {"name": "a", "port": 80, "protocol": "TCP", "nodePort": 30001},
            {"name": "b", "port": 53, "protocol": "UDP", "nodePort": 30002},
        ]}});
        let merged = three_way(&before, &after, &stored);
        assert_eq!(
            merged["spec"]["ports"],
            json!([
                {"name": "c", "port": 53, "protocol": "UDP", "nodePort": 30002},
                {"name": "a", "port": 80, "nodePort": 30001},
            ])
        );
    }
}
