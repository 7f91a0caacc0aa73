//! What is wrong with a manifest, and where: one line for people, one object for programs.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::ser::Serializer;

use crate::control::ObjectKey;

/// Why a manifest was refused where no field rule of Kubernetes has a name for it. `reason` of validation errors is
/// the API server's (`FieldValueInvalid`, …).
pub(super) mod reason {
    /// No file system error, but no YAML or JSON either.
    pub(crate) const SYNTAX: &str = "SyntaxError";
    /// A value of the wrong type or an unknown field; what the API server answers to these.
    pub(crate) const BAD_REQUEST: &str = "BadRequest";
    /// A value that must be there is not.
    pub(crate) const REQUIRED: &str = "FieldValueRequired";
    /// A kind under an API version that does not have it.
    pub(crate) const NO_MATCH: &str = "NoMatch";
    /// A second manifest of one object.
    pub(crate) const DUPLICATE: &str = "AlreadyExists";
    /// The file cannot be read, or is too large.
    pub(crate) const UNREADABLE: &str = "Unreadable";
    /// Nothing is refused: the rest works, but probably not as meant.
    pub(crate) const WARNING: &str = "Warning";
}

/// Something to tell the author of a manifest.
///
/// Shown as `web.yaml:12: Service default/web: spec.ports[0].port: message`; parts that are not known are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file, as the user named its directory.
    #[serde(serialize_with = "as_shown")]
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: u32,
    /// The object, where the document says which it is.
    #[serde(serialize_with = "as_text")]
    pub object: Option<ObjectKey>,
    /// The field, in Kubernetes' spelling; empty where it is the whole document.
    pub field: String,
    /// A word for programs: the API server's, where it has one.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file.display(), self.line)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

fn as_shown<S: Serializer>(path: &Arc<Path>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn as_text<S: Serializer>(object: &Option<ObjectKey>, serializer: S) -> Result<S::Ok, S::Error> {
    match object {
        Some(object) => serializer.collect_str(object),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::Kind;

    fn finding() -> Finding {
        Finding {
            file: Path::new("web.yaml").into(),
            line: 12,
            object: Some(ObjectKey {
                kind: Kind::Service,
                namespace: "default".into(),
                name: "web".into(),
            }),
            field: "spec.ports[0].port".to_owned(),
            reason: "FieldValueInvalid".to_owned(),
            message: "must be between 1 and 65535".to_owned(),
        }
    }

    #[test]
    fn a_finding_is_one_line() {
        let full =
            "web.yaml:12: Service default/web: spec.ports[0].port: must be between 1 and 65535";
        assert_eq!(finding().to_string(), full);
        let bare = Finding {
            object: None,
            field: String::new(),
            ..finding()
        };
        assert_eq!(bare.to_string(), "web.yaml:12: must be between 1 and 65535");
    }

    #[test]
    fn a_finding_is_one_object() {
        let mut expected = json!({
            "file": "web.yaml", "line": 12, "object": "Service default/web", "field": "spec.ports[0].port",
            "reason": "FieldValueInvalid", "message": "must be between 1 and 65535",
        });
        assert_eq!(serde_json::to_value(finding()).unwrap(), expected);
        expected["object"] = json!(null);
        let without_object = Finding {
            object: None,
            ..finding()
        };
        assert_eq!(serde_json::to_value(without_object).unwrap(), expected);
    }
}
