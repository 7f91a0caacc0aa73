//! A decoded object together with the place where its author wrote it.

use std::path::Path;
use std::sync::Arc;

use super::finding::{Finding, reason};
use super::tree::Node;
use crate::control::{Object, ObjectKey};

/// An object and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The object, decoded but neither defaulted nor validated. One without a name has an empty one.
    pub object: Object,
    /// Its place.
    pub origin: Origin,
}

/// Where an object was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// The file, as the user named its directory.
    pub file: Arc<Path>,
    /// The line of the document, from 1.
    pub line: u32,
    /// As it was read; since then the document may have moved within its file.
    pub(super) tree: Arc<Node>,
}

impl Origin {
    /// The line of a field such as `spec.ports[0].nodePort`; if the field is not written, that of the innermost part
    /// of the path that is.
    pub fn line_of(&self, field: &str) -> u32 {
        let (now, then) = (self.line, self.tree.line);
        let line_of = |field: &str| {
            self.tree
                .line_of(field)
                .wrapping_add(now)
                .wrapping_sub(then)
        };
        match field.strip_prefix("spec.clusterIPs") {
            // The API server speaks of the list; people write its first entry.
            Some("" | "[0]") if line_of("spec.clusterIPs") == line_of("spec") => {
                line_of("spec.clusterIP")
            }
            Some(_) | None => line_of(field),
        }
    }

    /// Something to tell about a field of this object.
    pub fn finding(
        &self,
        object: ObjectKey,
        field: impl Into<String>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Finding {
        let field = field.into();
        Finding {
            file: Arc::clone(&self.file),
            line: self.line_of(&field),
            object: Some(object),
            field,
            reason: reason.into(),
            message: message.into(),
        }
    }
    /// The same about a field that costs the object nothing.
    pub fn warning(
        &self,
        object: ObjectKey,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Finding {
        self.finding(object, field, reason::WARNING, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::manifests::document::Document;
    use crate::sources::manifests::pieces::Pieces;

    fn line_of(spec: &str, field: &str) -> u32 {
        let text = format!("kind: Service\napiVersion: v1\nspec:\n{spec}");
        let document = Pieces::default()
            .read(&Path::new("a.yaml").into(), &text)
            .remove(0);
        let Document::Object(manifest) = document else {
            panic!("{document:?}")
        };
        manifest.origin.line_of(field)
    }

    #[test]
    fn the_first_cluster_ip_is_found_where_it_is_written() {
        let alone = "  ports: []\n  clusterIP: 10.96.0.1\n";
        assert_eq!(line_of(alone, "spec.clusterIPs"), 5);
        assert_eq!(line_of(alone, "spec.clusterIPs[0]"), 5);
        assert_eq!(line_of(alone, "spec.clusterIPs[1]"), 3);
        let both = "  clusterIP: 10.96.0.1\n  clusterIPs:\n  - 10.96.0.1\n";
        assert_eq!(line_of(both, "spec.clusterIPs"), 5);
        assert_eq!(line_of("  ports: []\n", "spec.clusterIPs"), 3);
    }
}
