//! The documents of a file as they were read last, by the text that they came from: an edit costs what it touches.
//!
//! A file with a hundred Services and their slices takes milliseconds to read; the one document that an edit changes
//! takes microseconds. Only pieces that were all objects are kept, and only those that the file still has.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use super::document::{Document, MAX_DOCUMENTS, interpret, too_many};
use super::json::parse_json;
use super::manifest::Manifest;
use super::yaml::{parse_piece, pieces};

/// What the pieces of a file said. Bounded by what the file has.
#[derive(Debug, Default)]
pub(super) struct Pieces(HashMap<u64, Piece>);

#[derive(Debug)]
struct Piece {
    first_line: u32,
    objects: Vec<Arc<Manifest>>,
}

impl Pieces {
    /// The documents in the text of a file; its name says in which notation.
    pub(super) fn read(&mut self, file: &Arc<Path>, text: &str) -> Vec<Document> {
        if file
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            return interpret(file, parse_json(text));
        }
        let mut before = std::mem::take(&mut self.0);
        let mut found = Vec::new();
        for (first_line, text) in pieces(text) {
            if found.len() > MAX_DOCUMENTS {
                found.push(too_many(file));
                break;
            }
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            let digest = hasher.finish();
            let known = before.remove(&digest).or_else(|| self.0.remove(&digest));
            let piece = known.map(|piece| piece.moved_to(first_line));
            let piece = piece.map_or_else(|| Piece::of(file, first_line, text), Ok);
            match piece {
                Ok(piece) => {
                    let objects = piece.objects.iter().map(Arc::clone);
                    found.extend(objects.map(Document::Object));
                    self.0.insert(digest, piece);
                }
                Err(documents) => found.extend(documents),
            }
        }
        found
    }
}

impl Piece {
    /// `Err` with the documents if something is wrong with one.
    fn of(file: &Arc<Path>, first_line: u32, text: &str) -> Result<Self, Vec<Document>> {
        let documents = interpret(file, parse_piece(first_line, text));
        let objects: Option<Vec<_>> = documents
            .iter()
            .map(|document| match document {
                Document::Object(manifest) => Some(Arc::clone(manifest)),
                Document::Refused(..) | Document::Unparsable(_) | Document::Ignored(_) => None,
            })
            .collect();
        let objects = objects.ok_or(documents)?;
        Ok(Self {
            first_line,
            objects,
        })
    }

    fn moved_to(mut self, first_line: u32) -> Self {
        if first_line != self.first_line {
            for manifest in &mut self.objects {
                let line = &mut Arc::make_mut(manifest).origin.line;
                *line = line.wrapping_add(first_line).wrapping_sub(self.first_line);
            }
            self.first_line = first_line;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(document: &Document) -> String {
        match document {
            Document::Object(manifest) => {
                let origin = &manifest.origin;
                format!(
                    "{} at {}, its ports at {}",
                    manifest.object.key(),
                    origin.line,
                    origin.line_of("spec.ports[0].port")
                )
            }
            Document::Refused(_, findings) => format!("{findings:?}"),
            Document::Unparsable(finding) | Document::Ignored(finding) => format!("{finding:?}"),
        }
    }

    fn service(name: &str, port: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  ports:\n  - port: {port}\n"
        )
    }

    #[test]
    fn what_an_edit_does_not_touch_is_not_read_again() {
        let file: Arc<Path> = Path::new("a.yaml").into();
        let mut pieces = Pieces::default();
        let manifest_of = |document: &Document| match document {
            Document::Object(manifest) => Arc::clone(manifest),
            Document::Refused(..) | Document::Unparsable(_) | Document::Ignored(_) => {
                panic!("{document:?}")
            }
        };
        let [a, b] = [service("a", "80"), service("b", "80")];
        let first = pieces.read(&file, &format!("---\n{a}---\n{b}"));
        let again = pieces.read(&file, &format!("---\n{a}---\n{}", service("b", "81")));
        assert!(Arc::ptr_eq(
            &manifest_of(&first[0]),
            &manifest_of(&again[0])
        ));
        assert!(!Arc::ptr_eq(
            &manifest_of(&first[1]),
            &manifest_of(&again[1])
        ));
        let tree = &manifest_of(&again[0]).origin.tree;
        let moved = manifest_of(&pieces.read(&file, &format!("# a\n# b\n---\n{a}"))[0]);
        assert!(Arc::ptr_eq(tree, &moved.origin.tree));
        assert_eq!(
            (
                moved.origin.line,
                moved.origin.line_of("spec.ports[0].port")
            ),
            (4, 9)
        );
        assert_eq!(pieces.0.len(), 1);
    }

    proptest! {
        #[test]
        fn what_was_read_before_makes_no_difference(
            texts in prop::collection::vec(prop::collection::vec((0_u8..3, 0_u8..4), 0..5), 1..6),
        ) {
            let file: Arc<Path> = Path::new("a.yaml").into();
            let mut kept = Pieces::default();
            for text in texts {
                let text: String = text.iter().map(|(name, port)| {
                    let port = ["80", "81", "bad", "[" ][usize::from(*port)];
                    format!("---\n{}{}", "# a line\n".repeat(usize::from(*name)), service(&format!("s{name}"), port))
                }).collect();
                let read = |pieces: &mut Pieces| pieces.read(&file, &text).iter().map(shown).collect::<Vec<_>>();
                prop_assert_eq!(read(&mut kept), read(&mut Pieces::default()));
            }
        }
    }
}
