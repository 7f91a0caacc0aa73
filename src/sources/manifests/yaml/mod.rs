//! YAML → trees, one for each document, with the line of every field.
//!
//! Each document is parsed on its own, so that a syntax error costs one document only: `chunks` cuts the text, `reader`
//! builds the trees within bounds, `scalar` says what a word means.

mod chunks;
mod reader;
mod scalar;

use super::tree::{Node, SyntaxError, Value};
use chunks::chunks;
use reader::Reader;

/// Reads every document of `text`. Documents without content (comments only) are left out.
#[cfg(test)]
pub(super) fn parse_yaml(text: &str) -> Vec<Result<Node, SyntaxError>> {
    let parse = |(first_line, piece)| parse_piece(first_line, piece);
    pieces(text).into_iter().flat_map(parse).collect()
}

/// Cuts a file into pieces that have nothing to do with each other, each with the number of its first line.
pub(super) fn pieces(text: &str) -> Vec<(u32, &str)> {
    chunks(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Reads every document of a piece. Documents without content (comments only) are left out.
pub(super) fn parse_piece(first_line: u32, piece: &str) -> Vec<Result<Node, SyntaxError>> {
    let mut documents = Vec::new();
    let mut reader = Reader::new(piece, first_line);
    loop {
        match reader.document() {
            Ok(Some(Node {
                value: Value::Null, ..
            })) => {}
            Ok(Some(node)) => documents.push(Ok(node)),
            Ok(None) => break,
            Err(error) => {
                documents.push(Err(error));
                break;
            }
        }
    }
    documents
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::sources::manifests::tree::MAX_DEPTH;
    use crate::sources::manifests::tree::tests::written;

    /// The only document, written as JSON with the line of each value: `{a@1: 1@1}`.
    fn read(text: &str) -> String {
        let documents = parse_yaml(text);
        assert_eq!(documents.len(), 1, "{documents:?}");
        written(documents[0].as_ref().unwrap())
    }

    fn error(text: &str) -> (u32, String) {
        let found = parse_yaml(text).pop().unwrap().unwrap_err();
        (found.line, found.message)
    }

    #[test]
    fn values_know_their_lines() {
        assert_eq!(
            read("a: 1\nb:\n  - x\n  - y: true\n    z: {w: ~}\n"),
            "{a: 1@1, b: [x@3, {y: true@4, z: {w: null@5}@5}@4]@2}@1"
        );
        assert_eq!(
            read("# comment\n\na: |\n  x\nb: 'q'\r\nc: 2\n"),
            "{a: x\n@3, b: q@5, c: 2@6}@3"
        );
        assert_eq!(
            read("\u{feff}{a: [1, '1'], 8080: x}"),
            "{a: [1@1, 1@1]@1, 8080: x@1}@1"
        );
    }

    #[test]
    fn documents_are_told_apart_and_empty_ones_left_out() {
        let text = "# head\n---\na: 1\n---\n# nothing\n---\n--- # again\nb: '\n  ---'\n...\n---\n~\n--- {c: 3}\n";
        let documents: Vec<String> = parse_yaml(text)
            .iter()
            .map(|node| written(node.as_ref().unwrap()))
            .collect();
        assert_eq!(documents, ["{a: 1@3}@3", "{b:  ---@8}@8", "{c: 3@13}@13"]);
        for empty in [
            "",
            "\n\n",
            "# only\n",
            "---\n",
            "---\n---\n",
            "%YAML 1.1\n---\n",
            "null",
            "\u{feff}",
        ] {
            assert_eq!(parse_yaml(empty), [], "{empty:?}");
        }
        assert_eq!(read("%YAML 1.1\n---\na: 1\n"), "{a: 1@3}@3");
        assert_eq!(read("a: |\n  ----\n  x---\n"), "{a: ----\nx---\n@1}@1");
    }

    #[test]
    fn a_syntax_error_costs_one_document_and_has_its_line() {
        let documents = parse_yaml("a: 1\n---\nb: [1,\n---\nc: 3\n");
        assert_eq!(documents.len(), 3);
        assert!(documents[0].is_ok() && documents[2].is_ok());
        assert!((3..=4).contains(&documents[1].as_ref().unwrap_err().line));
        assert_eq!(error("a: 1\nb: \"open\n").0, 2);
        assert_eq!(error("a: *nothing").0, 1);
        assert_eq!(
            error("a: 1\n? [x]\n: 1\n"),
            (2, "a key must be a text".to_owned())
        );
        assert_eq!(
            error("a: !custom {}"),
            (1, "the tag !custom is not supported".to_owned())
        );
    }

    #[test]
    fn a_key_twice_is_an_error() {
        assert_eq!(
            error("a: 1\nb: 2\na: 3\n"),
            (3, "key \"a\" is there twice".to_owned())
        );
        assert_eq!(
            error("x: {1: a, '1': b}"),
            (1, "key \"1\" is there twice".to_owned())
        );
    }

    #[test]
    fn aliases_and_merge_keys_are_replaced() {
        assert_eq!(read("a: &x [1]\nb: *x\n"), "{a: [1@1]@1, b: [1@1]@2}@1");
        assert_eq!(
            read("a: &x {k: 1, l: 2}\nb:\n  <<: *x\n  l: 3\n"),
            "{a: {k: 1@1, l: 2@1}@1, b: {l: 3@4, k: 1@1}@2}@1"
        );
        assert_eq!(
            read("- &x {k: 1}\n- &y {k: 2, l: 2}\n- <<: [*x, *y]\n"),
            "[{k: 1@1}@1, {k: 2@2, l: 2@2}@2, {k: 1@1, l: 2@2}@3]@1"
        );
        assert_eq!(read("'<<': 1"), "{<<: 1@1}@1");
        assert_eq!(error("<<: 1").1, "only maps can be merged by <<");
        assert_eq!(error("&x [*x]").0, 1);
    }

    #[test]
    fn aliases_cannot_grow_without_bound() {
        let mut laughs = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..20 {
            let below = format!("*l{}", level - 1);
            writeln!(
                laughs,
                "l{level}: &l{level} [{}]",
                vec![below; 10].join(", ")
            )
            .unwrap();
        }
        assert!(error(&laughs).1.contains("values"), "{:?}", error(&laughs));
        let long = format!(
            "a: &a {}\nb: [{}]\n",
            "x".repeat(1 << 20),
            vec!["*a"; 20].join(", ")
        );
        assert!(error(&long).1.contains("bytes of text"));
    }

    #[test]
    fn nesting_has_a_bound() {
        let flow = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_yaml(&flow(MAX_DEPTH))[0].is_ok());
        assert!(error(&flow(MAX_DEPTH + 1)).1.contains("levels deep"));
        let block = |depth: usize| format!("{}x", "- ".repeat(depth));
        assert!(parse_yaml(&block(MAX_DEPTH))[0].is_ok());
        assert!(error(&block(100_000)).1.contains("levels deep"));
        assert!(parse_yaml(&"[".repeat(1 << 20))[0].is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[-a:\\[\\]{}&*!|>'\"%#?, \n\t<~.]{0,60}|(?s).{0,60}") {
            for document in parse_yaml(&text) {
                let lines = u32::try_from(text.split(['\r', '\n']).count()).unwrap() + 1;
                let line = document.map_or_else(|error| error.line, |node| node.line);
                prop_assert!((1..=lines).contains(&line));
            }
        }
    }
}
