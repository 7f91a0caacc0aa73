//! Why a value does not fit its type, in the words of people who write YAML.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

/// A value of the wrong type. The innermost reader that sees it go by adds its path.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// Where; unknown to the type that refused the value.
    pub(super) path: Option<String>,
    /// What is wrong, for the author of the manifest.
    pub(super) message: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            path: None,
            message: message.to_string(),
        }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = in_words(&expected.to_string()).to_owned();
        Self::custom(format!("expected {expected}, found {}", describe(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = in_words(&expected.to_string()).to_owned();
        Self::custom(format!(
            "{} is out of range for {expected}",
            describe(found)
        ))
    }
}

/// What people call what Rust types are called in messages.
fn in_words(expected: &str) -> &str {
    match expected {
        "i32" | "i64" | "u32" | "u64" | "a 32-bit integer" => "an integer",
        "IntOrString" => "an integer or a string",
        "Quantity" => "a quantity",
        "a sequence" => "a list",
        other => other,
    }
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "serde's enum; a tree holds nothing of the rest"
)]
fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("the boolean {value}"),
        Unexpected::Signed(number) => format!("the integer {number}"),
        Unexpected::Float(number) => format!("the number {number:?}"),
        Unexpected::Str(text) => format!("the string {text:?}"),
        Unexpected::Unit => "null".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}
