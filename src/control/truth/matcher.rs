//! Compares a recorded value with ours. Symbols stand for what the server chose: the same one is always the same value.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// What the symbols of one case have turned out to be.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    bound: BTreeMap<String, Value>,
}

impl Symbols {
    /// Replaces bound symbols in a manifest or an expected text.
    pub(super) fn substitute(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => match self.bound.get(text) {
                Some(bound) => bound.clone(),
                None => Value::String(self.substitute_text(text)),
            },
            Value::Array(list) => list.iter().map(|item| self.substitute(item)).collect(),
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (key.clone(), self.substitute(value)))
                .collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    // Longer names first: `$ip4-2` begins with `$ip4`.
    fn substitute_text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (symbol, value) in self.bound.iter().rev() {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            text = text.replace(symbol, &value);
        }
        text
    }

    /// The first difference between what was recorded and what we have, with its path.
    pub(super) fn compare(
        &mut self,
        path: &str,
        expected: &Value,
        actual: &Value,
    ) -> Result<(), String> {
        let differs = || Err(format!("{path}: expected {expected}, have {actual}"));
        match (expected, actual) {
            (Value::String(text), _) if is_symbol(text) => self.bind(path, text, actual),
            (Value::String(text), Value::String(have)) => {
                let text = self.substitute_text(text);
                if matches_placeholders(&text, have) {
                    Ok(())
                } else {
                    differs()
                }
            }
            (Value::Object(summary), Value::Array(list)) if summary.contains_key("$count") => {
                if summary["$count"] != list.len() {
                    return differs();
                }
                self.compare(&format!("{path}[first]"), &summary["first"], &list[0])?;
                self.compare(
                    &format!("{path}[last]"),
                    &summary["last"],
                    &list[list.len() - 1],
                )
            }
            (Value::Object(expected), Value::Object(actual)) => {
                self.compare_maps(path, expected, actual)
            }
            (Value::Array(expected), Value::Array(actual)) if expected.len() == actual.len() => {
                let pairs = expected.iter().zip(actual).enumerate();
                for (i, (expected, actual)) in pairs {
                    self.compare(&format!("{path}[{i}]"), expected, actual)?;
                }
                Ok(())
            }
            _ if is_nothing(expected) && is_nothing(actual) => Ok(()),
            _ if expected == actual => Ok(()),
            _ => differs(),
        }
    }

    fn compare_maps(
        &mut self,
        path: &str,
        expected: &Map<String, Value>,
        actual: &Map<String, Value>,
    ) -> Result<(), String> {
        for (key, value) in expected {
            let have = actual.get(key).unwrap_or(&Value::Null);
            self.compare(&format!("{path}.{key}"), value, have)?;
        }
        match actual
            .iter()
            .find(|(key, value)| !expected.contains_key(*key) && !is_nothing(value))
        {
            Some((key, value)) => Err(format!("{path}.{key}: unexpected {value}")),
            None => Ok(()),
        }
    }

    fn bind(&mut self, path: &str, symbol: &str, actual: &Value) -> Result<(), String> {
        if let Some(bound) = self.bound.get(symbol) {
            if bound == actual {
                return Ok(());
            }
            return Err(format!("{path}: {symbol} was {bound}, have {actual}"));
        }
        let fits = match (&symbol[..3], actual) {
            ("$np", Value::Number(_)) => true,
            ("$ip", Value::String(text)) => text
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_ipv6() == symbol.starts_with("$ip6")),
            _ => false,
        };
        if !fits {
            return Err(format!("{path}: {symbol} cannot be {actual}"));
        }
        if let Some((other, _)) = self.bound.iter().find(|(_, value)| *value == actual) {
            return Err(format!("{path}: {symbol} is {actual}, as {other}"));
        }
        self.bound.insert(symbol.to_owned(), actual.clone());
        Ok(())
    }
}

fn is_symbol(text: &str) -> bool {
    let rest = ["$ip4", "$ip6", "$np"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix));
    rest.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '-'))
}

// Missing, null and empty lists mean the same.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

// `<uid>` and the like stand for any text.
fn matches_placeholders(expected: &str, actual: &str) -> bool {
    let mut text = expected.to_owned();
    for placeholder in ["<uid>", "<key>", "<i>", "<5 random>"] {
        text = text.replace(placeholder, "\0");
    }
    let parts: Vec<_> = text.split('\0').collect();
    let [first, middle @ .., last] = parts.as_slice() else {
        return text == actual;
    };
    let Some(mut rest) = actual.strip_prefix(first) else {
        return false;
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_comparison_is_strict_both_ways() {
        let differs = |expected: Value, actual: Value| {
            Symbols::default().compare("", &expected, &actual).is_err()
        };
        assert!(!differs(json!({"a": null}), json!({"b": []})));
        assert!(differs(json!({"a": 1}), json!({"a": 1, "b": 2})));
        assert!(differs(json!({"a": 1, "b": 2}), json!({"a": 1})));
        assert!(differs(
            json!(["$ip4", "$ip4"]),
            json!(["10.0.0.1", "10.0.0.2"])
        ));
        assert!(differs(
            json!(["$ip4", "$ip4-2"]),
            json!(["10.0.0.1", "10.0.0.1"])
        ));
        assert!(differs(json!("$ip4"), json!("fd00::1")));
        assert!(!differs(json!("a<i>b"), json!("a17b")));
        assert!(differs(json!("a<i>b"), json!("a17c")));
        assert!(!differs(
            json!({"$count": 2, "first": 1, "last": 2}),
            json!([1, 2])
        ));
    }
}
