//! What a YAML scalar means: text, number, truth value or nothing.
//!
//! The rules are the core schema of YAML 1.2 (section 10.3.2). So `yes`, `no`, `on` and `off` are texts, and a leading
//! zero does not make a number octal. kubectl still reads YAML 1.1 there: it takes `yes` for a boolean and 010 for 8.

use std::sync::Arc;

use saphyr_parser::{ScalarStyle, Tag};

use crate::sources::manifests::tree::Value;

/// The value of a scalar. `Err` says what is wrong with its tag.
pub(super) fn resolve(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let as_text = || Value::Text(Arc::from(text));
    let Some(tag) = tag else {
        return Ok(if style == ScalarStyle::Plain {
            plain(text)
        } else {
            as_text()
        });
    };
    let meaning = if tag.is_yaml_core_schema() {
        tag.suffix.as_str()
    } else if tag.handle.is_empty() && tag.suffix == "!" {
        "str"
    } else {
        return Err(format!(
            "the tag {}{} is not supported",
            tag.handle, tag.suffix
        ));
    };
    let value = match meaning {
        "str" => Some(as_text()),
        "int" => parse_int(text),
        "float" => parse_float(text).or_else(|| parse_int(text)),
        "bool" => parse_bool(text),
        "null" => parse_null(text),
        other => return Err(format!("the tag !!{other} is not supported")),
    };
    value.ok_or_else(|| format!("{text:?} does not fit its tag !!{meaning}"))
}

/// The value of a scalar without quotes and without a tag.
fn plain(text: &str) -> Value {
    parse_null(text)
        .or_else(|| parse_bool(text))
        .or_else(|| parse_int(text))
        .or_else(|| parse_float(text))
        .unwrap_or_else(|| Value::Text(Arc::from(text)))
}

fn parse_null(text: &str) -> Option<Value> {
    matches!(text, "" | "~" | "null" | "Null" | "NULL").then_some(Value::Null)
}

fn parse_bool(text: &str) -> Option<Value> {
    match text {
        "true" | "True" | "TRUE" => Some(Value::Bool(true)),
        "false" | "False" | "FALSE" => Some(Value::Bool(false)),
        _ => None,
    }
}

/// A whole number. One that does not fit 64 bits becomes a float, which no Kubernetes integer accepts.
fn parse_int(text: &str) -> Option<Value> {
    let based = |digits: &str, radix| {
        let plain_digits = digits.chars().all(|c| c.is_digit(radix));
        plain_digits.then(|| i64::from_str_radix(digits, radix).ok())?
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return based(digits, 16).map(Value::Int);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return based(digits, 8).map(Value::Int);
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    match text.parse() {
        Ok(number) => Some(Value::Int(number)),
        Err(_) => text.parse().ok().map(Value::Float),
    }
}

fn parse_float(text: &str) -> Option<Value> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = match rest {
        ".inf" | ".Inf" | ".INF" => f64::INFINITY,
        _ if matches!(text, ".nan" | ".NaN" | ".NAN") => f64::NAN,
        _ => {
            let starts_well = rest.strip_prefix('.').unwrap_or(rest);
            // Rust also parses "inf" and "nan", which are texts here; a number starts with a digit.
            if !starts_well.starts_with(|c: char| c.is_ascii_digit()) {
                return None;
            }
            rest.parse().ok()?
        }
    };
    Some(Value::Float(if negative { -magnitude } else { magnitude }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Value {
        resolve(text, ScalarStyle::Plain, None).unwrap()
    }

    fn tagged(text: &str, handle: &str, suffix: &str) -> Result<Value, String> {
        let tag = Tag {
            handle: handle.to_owned(),
            suffix: suffix.to_owned(),
        };
        resolve(text, ScalarStyle::Plain, Some(&tag))
    }

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        for text in ["", "~", "null", "Null", "NULL"] {
            assert_eq!(read(text), Value::Null, "{text}");
        }
        for (text, value) in [("true", true), ("True", true), ("FALSE", false)] {
            assert_eq!(read(text), Value::Bool(value), "{text}");
        }
        let ints = [
            ("80", 80),
            ("-1", -1),
            ("+7", 7),
            ("010", 10),
            ("0", 0),
            ("0x1F", 31),
            ("0o17", 15),
            ("9223372036854775807", i64::MAX),
        ];
        for (text, value) in ints {
            assert_eq!(read(text), Value::Int(value), "{text}");
        }
        let floats = [
            ("80.0", 80.0),
            ("1e3", 1000.0),
            (".5", 0.5),
            ("-1.", -1.0),
            ("+.inf", f64::INFINITY),
            ("-.INF", f64::NEG_INFINITY),
            ("9223372036854775808", 9_223_372_036_854_775_808.0),
        ];
        for (text, value) in floats {
            assert_eq!(read(text), Value::Float(value), "{text}");
        }
        assert!(matches!(read(".nan"), Value::Float(number) if number.is_nan()));
    }

    #[test]
    fn everything_else_is_text() {
        for text in [
            "yes", "No", "on", "off", "y", "tRUE", "nil", "inf", "nan", "-", "+", ".", "e3", "0x",
            "0o8", "1_000", "10:30", "10.0.0.1", "1.2.3", "0xg", "- 1", "+-1", "-0x1",
        ] {
            assert_eq!(read(text), Value::Text(text.into()), "{text}");
        }
    }

    #[test]
    fn quotes_make_texts() {
        for style in [
            ScalarStyle::SingleQuoted,
            ScalarStyle::DoubleQuoted,
            ScalarStyle::Literal,
            ScalarStyle::Folded,
        ] {
            assert_eq!(resolve("80", style, None), Ok(Value::Text("80".into())));
        }
    }

    #[test]
    fn tags_of_the_core_schema_decide_and_others_are_refused() {
        const CORE: &str = "tag:yaml.org,2002:";
        assert_eq!(tagged("80", CORE, "str"), Ok(Value::Text("80".into())));
        assert_eq!(tagged("80", "", "!"), Ok(Value::Text("80".into())));
        assert_eq!(tagged("80", CORE, "int"), Ok(Value::Int(80)));
        assert_eq!(tagged("true", CORE, "bool"), Ok(Value::Bool(true)));
        assert_eq!(tagged("80.5", CORE, "float"), Ok(Value::Float(80.5)));
        assert!(tagged("web", CORE, "int").is_err());
        assert!(tagged("aGk=", CORE, "binary").is_err());
        assert!(tagged("x", "!", "custom").is_err());
    }

    proptest! {
        #[test]
        fn whole_numbers_read_as_themselves(number: i64) {
            prop_assert_eq!(read(&number.to_string()), Value::Int(number));
        }

        #[test]
        fn every_plain_scalar_has_a_value(text in "[-+.0-9a-fox_eE]{0,12}|\\PC{0,12}") {
            let is_known = match read(&text) {
                Value::Text(same) => *same == *text,
                Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => true,
                Value::List(_) | Value::Map(_) => false,
            };
            prop_assert!(is_known);
        }
    }
}
