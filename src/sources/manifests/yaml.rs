//! YAML → trees, one for each document, with the line of every field.
//!
//! Each document is parsed on its own, so that a syntax error costs one document only. Aliases are replaced by what
//! they stand for, within bounds: a file of a few hundred bytes can describe billions of values.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};

use super::scalar::resolve;
use super::tree::{MAX_DEPTH, MAX_NODES, Node, SyntaxError, Value};

/// How many bytes of text aliases may repeat: as much as a file may have itself.
const MAX_REPEATED_TEXT: usize = 16 << 20;

/// Reads every document of `text`. Documents without content (comments only) are left out.
pub(super) fn parse_yaml(text: &str) -> Vec<Result<Node, SyntaxError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    for (first_line, chunk) in chunks(text) {
        let mut reader = Reader::new(chunk, first_line);
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
    }
    documents
}

/// Cuts `text` before each `---` at the start of a line: YAML allows it nowhere else, not even in quotes or block
/// texts (YAML 1.2.2, section 9.1.2). Gives the number of the first line of each piece.
fn chunks(text: &str) -> Vec<(u32, &str)> {
    let mut found = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut offset = 0;
    for (line, number) in text.split_inclusive('\n').zip(1_u32..) {
        if is_marker(line) && offset > start {
            found.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    found.push((start_line, &text[start..]));
    found.retain(|(_, chunk)| has_content(chunk));
    found
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether there is more than blanks, comments and directives, which come before a `---`.
fn has_content(chunk: &str) -> bool {
    chunk.lines().any(|line| {
        let bare = line.trim();
        !bare.is_empty() && !bare.starts_with('#') && !line.starts_with('%')
    })
}

/// Builds the trees of one piece of text from the parser's events.
struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    /// The line of the file at which the piece starts.
    first_line: u32,
    /// What the anchors of this document stand for; `None` while it is still being read.
    anchors: HashMap<usize, Option<Node>>,
    nodes: usize,
    repeated_text: usize,
}

impl<'a> Reader<'a> {
    fn new(chunk: &'a str, first_line: u32) -> Self {
        Self {
            events: Parser::new_from_str(chunk),
            first_line,
            anchors: HashMap::new(),
            nodes: 0,
            repeated_text: 0,
        }
    }

    /// The next document, or `None` at the end.
    fn document(&mut self) -> Result<Option<Node>, SyntaxError> {
        (self.nodes, self.repeated_text) = (0, 0);
        self.anchors.clear();
        loop {
            let (event, line) = self.next()?;
            if event == Event::StreamEnd {
                return Ok(None);
            }
            let between = matches!(
                event,
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd
            );
            if !between {
                return self.node(event, line, 0).map(Some);
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, u32), SyntaxError> {
        match self.events.next_event() {
            Some(Ok((event, span))) => Ok((event, self.line(&span))),
            Some(Err(error)) => {
                let line = self.in_file(error.marker().line());
                Err(SyntaxError::new(line, error.info()))
            }
            None => Ok((Event::StreamEnd, self.first_line)),
        }
    }

    fn line(&self, span: &Span) -> u32 {
        self.in_file(span.start.line())
    }

    fn in_file(&self, line: usize) -> u32 {
        let line = u32::try_from(line).unwrap_or(u32::MAX).max(1);
        self.first_line.saturating_add(line - 1)
    }

    fn node(&mut self, event: Event<'a>, line: u32, depth: usize) -> Result<Node, SyntaxError> {
        if depth > MAX_DEPTH {
            let message = format!("nested more than {MAX_DEPTH} levels deep");
            return Err(SyntaxError::new(line, message));
        }
        self.count(1, line)?;
        let (value, anchor) = match event {
            Event::Alias(anchor) => return self.repeat(anchor, line),
            Event::Scalar(text, style, anchor, tag) => {
                let value = resolve(&text, style, tag.as_deref());
                (value.map_err(|why| SyntaxError::new(line, why))?, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.open(anchor, tag.as_deref(), "seq", line)?;
                (self.list(depth)?, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                self.open(anchor, tag.as_deref(), "map", line)?;
                (self.map(depth)?, anchor)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(SyntaxError::new(line, "a value is missing")),
        };
        let node = Node { line, value };
        if anchor > 0 {
            let copy = self.copy(&node, line)?;
            self.anchors.insert(anchor, Some(copy));
        }
        Ok(node)
    }

    /// Checks the tag of a list or map, and marks its anchor as not usable inside itself.
    fn open(
        &mut self,
        anchor: usize,
        tag: Option<&Tag>,
        name: &str,
        line: u32,
    ) -> Result<(), SyntaxError> {
        if anchor > 0 {
            self.anchors.insert(anchor, None);
        }
        match tag {
            Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == name) => {
                let message = format!("the tag {}{} is not supported", tag.handle, tag.suffix);
                Err(SyntaxError::new(line, message))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::List(items));
            }
            items.push(self.node(event, line, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut entries = Vec::new();
        let mut keys = HashSet::new();
        let mut merged = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let Event::Scalar(text, style, _, _) = event else {
                return Err(SyntaxError::new(line, "a key must be a text"));
            };
            let key = Arc::<str>::from(text);
            let (event, value_line) = self.next()?;
            let mut node = self.node(event, value_line, depth + 1)?;
            if &*key == "<<" && style == ScalarStyle::Plain {
                merged.push((line, node));
                continue;
            }
            if !keys.insert(Arc::clone(&key)) {
                return Err(SyntaxError::new(
                    line,
                    format!("key {key:?} is there twice"),
                ));
            }
            node.line = line;
            entries.push((key, node));
        }
        for (line, node) in merged {
            merge(node, line, &mut entries, &mut keys)?;
        }
        Ok(Value::Map(entries))
    }

    fn repeat(&mut self, anchor: usize, line: u32) -> Result<Node, SyntaxError> {
        let Some(Some(original)) = self.anchors.remove(&anchor) else {
            return Err(SyntaxError::new(
                line,
                "an alias for something that is not complete here",
            ));
        };
        let copy = self.copy(&original, line);
        self.anchors.insert(anchor, Some(original));
        copy
    }

    /// A copy of `node`, if the document may grow that much.
    fn copy(&mut self, node: &Node, line: u32) -> Result<Node, SyntaxError> {
        let (nodes, text) = size(node);
        self.count(nodes, line)?;
        self.repeated_text = self.repeated_text.saturating_add(text);
        if self.repeated_text > MAX_REPEATED_TEXT {
            let message = format!("aliases repeat more than {MAX_REPEATED_TEXT} bytes of text");
            return Err(SyntaxError::new(line, message));
        }
        Ok(node.clone())
    }

    fn count(&mut self, nodes: usize, line: u32) -> Result<(), SyntaxError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            let message = format!("more than {MAX_NODES} values, aliases included");
            return Err(SyntaxError::new(line, message));
        }
        Ok(())
    }
}

/// Adds what the merge key `<<` stands for: a map, or several. Keys that are there already win.
fn merge(
    source: Node,
    line: u32,
    entries: &mut Vec<(Arc<str>, Node)>,
    keys: &mut HashSet<Arc<str>>,
) -> Result<(), SyntaxError> {
    let maps = if let Value::List(maps) = source.value {
        maps
    } else {
        vec![source]
    };
    for map in maps {
        let Value::Map(merged) = map.value else {
            return Err(SyntaxError::new(line, "only maps can be merged by <<"));
        };
        let new = merged
            .into_iter()
            .filter(|(key, _)| keys.insert(Arc::clone(key)));
        entries.extend(new);
    }
    Ok(())
}

/// How many values and how many bytes of text a tree has.
fn size(node: &Node) -> (usize, usize) {
    let add = |(nodes, text): (usize, usize), (more, longer): (usize, usize)| {
        (nodes + more, text + longer)
    };
    match &node.value {
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => (1, 0),
        Value::Text(text) => (1, text.len()),
        Value::List(items) => items.iter().map(size).fold((1, 0), add),
        Value::Map(entries) => {
            let sizes = entries
                .iter()
                .map(|(key, node)| add(size(node), (0, key.len())));
            sizes.fold((1, 0), add)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
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
