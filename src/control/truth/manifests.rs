//! Expands the shorthands of recorded manifests: repetitions, long texts, counters.

use serde_json::{Value, json};

/// Expands `$repeat` and `$chars`; `i` is the counter of the enclosing repetition, if there is one.
pub(super) fn expand(value: &Value, i: Option<usize>) -> Value {
    match value {
        Value::Object(map) => {
            if let (Some(count), Some(item)) = (map.get("$repeat"), map.get("item")) {
                let count = usize::try_from(count.as_u64().unwrap()).unwrap();
                return (1..=count).map(|i| expand(item, Some(i))).collect();
            }
            if let Some(count) = map.get("$chars") {
                let count = usize::try_from(count.as_u64().unwrap()).unwrap();
                return json!("x".repeat(count));
            }
            map.iter()
                .map(|(key, value)| (key.clone(), expand(value, i)))
                .collect()
        }
        Value::Array(list) => list.iter().map(|item| expand(item, i)).collect(),
        Value::String(text) => match i {
            Some(i) if text == "$i" => json!(i),
            Some(i) => json!(
                text.replace("$hi", &((i - 1) / 250).to_string())
                    .replace("$lo", &((i - 1) % 250 + 1).to_string())
                    .replace("$i", &i.to_string())
            ),
            None => value.clone(),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}
