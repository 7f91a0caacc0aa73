//! The parser's events → the tree of one document.
//!
//! Aliases are replaced by what they stand for, within bounds: a file of a few hundred bytes can describe billions of
//! values.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};

use super::scalar::resolve;
use crate::sources::manifests::tree::{MAX_DEPTH, MAX_NODES, Node, SyntaxError, Value};

/// How many bytes of text aliases may repeat: as much as a file may have itself.
const MAX_REPEATED_TEXT: usize = 16 << 20;

/// Builds the trees of one piece of text from the parser's events.
pub(super) struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    /// The line of the file at which the piece starts.
    first_line: u32,
    /// What the anchors of this document stand for; `None` while it is still being read.
    anchors: HashMap<usize, Option<Node>>,
    nodes: usize,
    repeated_text: usize,
}

impl<'a> Reader<'a> {
    /// A reader of one piece of a file, which starts at `first_line`.
    pub(super) fn new(chunk: &'a str, first_line: u32) -> Self {
        Self {
            events: Parser::new_from_str(chunk),
            first_line,
            anchors: HashMap::new(),
            nodes: 0,
            repeated_text: 0,
        }
    }

    /// The next document, or `None` at the end.
    pub(super) fn document(&mut self) -> Result<Option<Node>, SyntaxError> {
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
