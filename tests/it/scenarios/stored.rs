//! Stored objects as a scenario compares them: slices as a line of text, other objects field by field.

use serde_json::Value;

/// `IPv4 http:8080/TCP 10.1.0.4 10.1.0.5(unready)`, endpoints sorted.
pub(super) fn shown_slice(slice: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = |name: &str| slice[name].as_array().cloned().unwrap_or_default();
    let port = |port: &Value| match text(&port["name"]).as_str() {
        "" => format!("{}/{}", port["port"], text(&port["protocol"])),
        name => format!("{name}:{}/{}", port["port"], text(&port["protocol"])),
    };
    let endpoint = |endpoint: &Value| {
        let conditions = &endpoint["conditions"];
        let [ready, serving, terminating] =
            [("ready", true), ("serving", true), ("terminating", false)]
                .map(|(name, absent)| conditions[name].as_bool().unwrap_or(absent));
        let state = match (ready, serving, terminating) {
            (true, _, false) => "",
            (true, _, true) => "(ready,terminating)",
            (false, true, true) => "(terminating)",
            (false, false, true) => "(stopped)",
            (false, _, false) => "(unready)",
        };
        format!("{}{state}", text(&endpoint["addresses"][0]))
    };
    let mut endpoints: Vec<String> = rows("endpoints").iter().map(endpoint).collect();
    endpoints.sort();
    let ports: Vec<String> = rows("ports").iter().map(port).collect();
    let or = |list: Vec<String>, with: &str, none: &str| match list.is_empty() {
        true => none.to_owned(),
        false => list.join(with),
    };
    format!(
        "{} {} {}",
        text(&slice["addressType"]),
        or(ports, ",", "no-ports"),
        or(endpoints, " ", "no-endpoints")
    )
}

/// Whether `found` has everything that `expected` names; null names what is not there, lists are compared whole.
pub(super) fn contains(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Object(_) | Value::Null, Value::Object(fields)) => fields
            .iter()
            .all(|(name, value)| contains(found.get(name).unwrap_or(&Value::Null), value)),
        (Value::Array(found), Value::Array(expected)) => {
            found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| contains(f, e))
        }
        (found, expected) => found == expected,
    }
}

/// The part of `found` that `expected` names.
pub(super) fn cut(found: &Value, expected: &Value) -> Value {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => expected
            .iter()
            .map(|(name, value)| {
                let found = found.get(name).unwrap_or(&Value::Null);
                (name.clone(), cut(found, value))
            })
            .collect(),
        (found, _) => found.clone(),
    }
}
