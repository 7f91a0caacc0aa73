//! What a write answers: accepted with warnings, or rejected with a cause per field.
//!
//! Codes, reasons and wording are the API server's own, so that a finding here can be searched for there.

use std::fmt;

use serde::Serialize;

/// Why an object was not accepted. Nothing of the attempt remains: no address, no port, no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Rejection {
    /// The HTTP status an API server would answer: 400, 404, 409, 422 or 500.
    pub code: u16,
    /// The machine-readable word for it: `Invalid`, `NotFound`, …
    pub reason: &'static str,
    /// The whole sentence, causes included.
    pub message: String,
    /// One entry per field in error; empty where no field is to blame.
    pub causes: Vec<Cause>,
    /// What is odd whether or not the object is accepted.
    pub warnings: Vec<Warning>,
    /// Whether the same object may be accepted once somebody releases an address or a port.
    pub retry: bool,
}

/// One field in error.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Cause {
    /// The path, as `spec.ports[0].name`; empty where the error has none.
    pub field: String,
    /// `FieldValueInvalid`, `FieldValueRequired`, …; empty where the error has none.
    pub reason: &'static str,
    /// What is wrong, with the value.
    pub message: String,
}

/// Something odd about an accepted object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The path of the field; empty where the message names it in its own words.
    pub field: String,
    /// The message, without the path.
    pub message: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.causes.is_empty() {
            return f.write_str(&self.message);
        }
        for (n, cause) in self.causes.iter().enumerate() {
            if n > 0 {
                f.write_str("; ")?;
            }
            cause.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl Warning {
    /// A warning about one field.
    pub(super) fn on(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }

    /// A warning whose message names what it is about.
    pub(super) fn plain(message: impl Into<String>) -> Self {
        Self::on("", message)
    }
}

impl Rejection {
    /// 422: the fields of `causes` are wrong. `resource` is the kind with its group, as in messages.
    pub(super) fn invalid(resource: &str, name: &str, causes: Vec<Cause>) -> Self {
        let joined = match causes.as_slice() {
            [one] => one.to_string(),
            several => {
                let texts: Vec<_> = several.iter().map(ToString::to_string).collect();
                format!("[{}]", texts.join(", "))
            }
        };
        Self {
            code: 422,
            reason: "Invalid",
            message: format!("{resource} \"{name}\" is invalid: {joined}"),
            causes,
            warnings: Vec::new(),
            retry: false,
        }
    }

    /// 500: nothing is wrong with the object, but it cannot be served.
    pub(super) fn internal(message: String) -> Self {
        Self {
            code: 500,
            reason: "InternalError",
            message: format!("Internal error occurred: {message}"),
            causes: vec![Cause::of_nobody(&message)],
            warnings: Vec::new(),
            retry: false,
        }
    }

    /// 404.
    pub(super) fn not_found(resource: &str, name: &str) -> Self {
        Self::plain(404, "NotFound", format!("{resource} \"{name}\" not found"))
    }

    /// 409: somebody was first.
    pub(super) fn already_exists(resource: &str, name: &str) -> Self {
        Self::plain(
            409,
            "AlreadyExists",
            format!("{resource} \"{name}\" already exists"),
        )
    }

    /// 409: the writer looked at an older version.
    pub(super) fn conflict(resource: &str, name: &str, why: &str) -> Self {
        Self::plain(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}"),
        )
    }

    /// 400: not the object it says it is.
    pub(super) fn bad_request(message: String) -> Self {
        Self::plain(400, "BadRequest", message)
    }

    /// 500 without the usual preamble.
    pub(super) fn unexplained(message: String) -> Self {
        Self::plain(500, "", message)
    }

    /// The same, worth another try when something is released.
    pub(super) fn worth_retrying(mut self) -> Self {
        self.retry = true;
        self
    }

    fn plain(code: u16, reason: &'static str, message: String) -> Self {
        Self {
            code,
            reason,
            message,
            causes: Vec::new(),
            warnings: Vec::new(),
            retry: false,
        }
    }
}

impl Cause {
    /// Something is wrong that no field is to blame for.
    pub(super) fn of_nobody(message: &str) -> Self {
        Self {
            field: String::new(),
            reason: "",
            message: message.to_owned(),
        }
    }

    /// The value is missing.
    pub(super) fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, "FieldValueRequired", "Required value", detail)
    }

    /// The value is malformed.
    pub(super) fn invalid(field: impl Into<String>, value: &impl Serialize, detail: &str) -> Self {
        let lead = format!("Invalid value: {}", shown(value));
        Self::new(field, "FieldValueInvalid", &lead, detail)
    }

    /// The value is none of the known ones.
    pub(super) fn not_supported(field: impl Into<String>, value: &str, known: &[&str]) -> Self {
        let known: Vec<_> = known.iter().map(|word| format!("\"{word}\"")).collect();
        let lead = format!("Unsupported value: {}", shown(&value));
        let detail = format!("supported values: {}", known.join(", "));
        Self::new(field, "FieldValueNotSupported", &lead, &detail)
    }

    /// The value has been used by an earlier entry.
    pub(super) fn duplicate(field: impl Into<String>, value: &impl Serialize) -> Self {
        let lead = format!("Duplicate value: {}", shown(value));
        Self::new(field, "FieldValueDuplicate", &lead, "")
    }

    /// The field may not be set here.
    pub(super) fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, "FieldValueForbidden", "Forbidden", detail)
    }

    /// The list is longer than `most`.
    pub(super) fn too_many(field: impl Into<String>, count: usize, most: usize) -> Self {
        let lead = format!("Too many: {count}");
        let detail = format!("must have at most {most} items");
        Self::new(field, "FieldValueTooMany", &lead, &detail)
    }

    /// The text is longer than `most` bytes.
    pub(super) fn too_long(field: impl Into<String>, most: usize) -> Self {
        let detail = format!("may not be more than {most} bytes");
        Self::new(field, "FieldValueTooLong", "Too long", &detail)
    }

    fn new(field: impl Into<String>, reason: &'static str, lead: &str, detail: &str) -> Self {
        let message = if detail.is_empty() {
            lead.to_owned()
        } else {
            format!("{lead}: {detail}")
        };
        Self {
            field: field.into(),
            reason,
            message,
        }
    }
}

// Values are shown as JSON, which is how Go prints strings, numbers, lists and missing pointers in these messages.
fn shown(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cause_stands_alone_and_several_are_bracketed() {
        let one = vec![Cause::required("spec.ports", "")];
        assert_eq!(
            Rejection::invalid("Service", "a", one).message,
            "Service \"a\" is invalid: spec.ports: Required value"
        );
        let two = vec![
            Cause::invalid("x", &vec!["a"], "bad"),
            Cause::invalid("y", &Option::<&str>::None, "bad"),
        ];
        let rejection = Rejection::invalid("Service", "a", two);
        assert_eq!(
            rejection.message,
            "Service \"a\" is invalid: [x: Invalid value: [\"a\"]: bad, y: Invalid value: null: bad]"
        );
        assert_eq!(
            rejection.to_string(),
            "x: Invalid value: [\"a\"]: bad; y: Invalid value: null: bad"
        );
    }
}
