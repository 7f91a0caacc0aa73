//! JSON → trees, with the line of every field.
//!
//! `.json` files are not left to the YAML reader: JSON writes characters beyond the basic plane as two escapes, which
//! YAML does not know. Several values may follow each other, as `kubectl` accepts them.

use std::collections::HashSet;
use std::sync::Arc;

use super::tree::{MAX_DEPTH, MAX_NODES, Node, SyntaxError, Value};

/// Reads every value of `text`. After an error nothing further is read: where the next value starts is unknown.
pub(super) fn parse_json(text: &str) -> Vec<Result<Node, SyntaxError>> {
    let mut reader = Reader {
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        line: 1,
        nodes: 0,
    };
    let mut documents = Vec::new();
    loop {
        reader.skip_blanks();
        if reader.rest.is_empty() {
            return documents;
        }
        reader.nodes = 0;
        match reader.value(0) {
            Ok(Node {
                value: Value::Null, ..
            }) => {}
            Ok(node) => documents.push(Ok(node)),
            Err(error) => {
                documents.push(Err(error));
                return documents;
            }
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
    line: u32,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Result<Node, SyntaxError> {
        let line = self.line;
        self.nodes += 1;
        if depth > MAX_DEPTH {
            return Err(self.error(format!("nested more than {MAX_DEPTH} levels deep")));
        }
        if self.nodes > MAX_NODES {
            return Err(self.error(format!("more than {MAX_NODES} values")));
        }
        let value = match self.rest.bytes().next() {
            Some(b'{') => self.map(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::Text(self.text()?.into()),
            Some(_) => self.word()?,
            None => return Err(self.error("the text ends where a value is expected")),
        };
        Ok(Node { line, value })
    }

    fn map(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut entries = Vec::new();
        let mut keys = HashSet::new();
        self.advance(1);
        if self.take('}') {
            return Ok(Value::Map(entries));
        }
        loop {
            self.skip_blanks();
            let line = self.line;
            if !self.rest.starts_with('"') {
                return Err(self.error("a key in quotes is expected"));
            }
            let key: Arc<str> = self.text()?.into();
            if !keys.insert(Arc::clone(&key)) {
                return Err(SyntaxError::new(
                    line,
                    format!("key {key:?} is there twice"),
                ));
            }
            self.expect(':')?;
            self.skip_blanks();
            let mut node = self.value(depth + 1)?;
            node.line = line;
            entries.push((key, node));
            if self.take('}') {
                return Ok(Value::Map(entries));
            }
            self.expect(',')?;
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        self.advance(1);
        if self.take(']') {
            return Ok(Value::List(items));
        }
        loop {
            self.skip_blanks();
            items.push(self.value(depth + 1)?);
            if self.take(']') {
                return Ok(Value::List(items));
            }
            self.expect(',')?;
        }
    }

    /// A text in quotes: its end is found here, its escapes are `serde_json`'s business.
    fn text(&mut self) -> Result<String, SyntaxError> {
        let mut escaped = false;
        let end = self.rest.bytes().skip(1).position(|byte| {
            let closes = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            closes
        });
        let Some(end) = end else {
            return Err(self.error("a text in quotes does not end"));
        };
        let quoted = self.advance(end + 2);
        serde_json::from_str(quoted).map_err(|error| self.error(bare_message(&error)))
    }

    /// A number or one of the three words.
    fn word(&mut self) -> Result<Value, SyntaxError> {
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')))
            .unwrap_or(self.rest.len());
        let word = self.advance(end);
        match word {
            "null" => return Ok(Value::Null),
            "true" => return Ok(Value::Bool(true)),
            "false" => return Ok(Value::Bool(false)),
            _ => {}
        }
        match serde_json::from_str::<serde_json::Number>(word) {
            Ok(number) => Ok(match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => Value::Int(number),
                (None, Some(number)) => Value::Float(number),
                (None, None) => return Err(self.error(format!("{word} is out of range"))),
            }),
            Err(_) if word.is_empty() => Err(self.error("a value is expected")),
            Err(_) => Err(self.error(format!("{word} is no JSON value"))),
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), SyntaxError> {
        if self.take(wanted) {
            return Ok(());
        }
        Err(match self.rest.chars().next() {
            Some(found) => self.error(format!("{wanted:?} is expected, not {found:?}")),
            None => self.error(format!("the text ends where {wanted:?} is expected")),
        })
    }

    fn take(&mut self, wanted: char) -> bool {
        self.skip_blanks();
        let found = self.rest.starts_with(wanted);
        if found {
            self.advance(wanted.len_utf8());
        }
        found
    }

    fn skip_blanks(&mut self) {
        let blanks = self.rest.len() - self.rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
        let lines = self
            .advance(blanks)
            .bytes()
            .filter(|byte| *byte == b'\n')
            .count();
        self.line = self
            .line
            .saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
    }

    /// Takes the next `length` bytes.
    fn advance(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn error(&self, message: impl Into<String>) -> SyntaxError {
        SyntaxError::new(self.line, message)
    }
}

/// `serde_json` adds a position, which here would be one within the text in quotes.
fn bare_message(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(end) => message[..end].to_owned(),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sources::manifests::tree::tests::written;

    fn read(text: &str) -> Vec<String> {
        parse_json(text)
            .iter()
            .map(|node| written(node.as_ref().unwrap()))
            .collect()
    }

    fn error(text: &str) -> (u32, String) {
        let found = parse_json(text).pop().unwrap().unwrap_err();
        (found.line, found.message)
    }

    #[test]
    fn values_know_their_lines() {
        let text = "{\n\t\"a\": [1, -2.5,\n\t\"x\"],\n\"b\":\n{\"c\": null, \"d\": true}, \"e\": {}, \"f\": []\n}\n";
        assert_eq!(
            read(text),
            ["{a: [1@2, -2.5@2, x@3]@2, b: {c: null@5, d: true@5}@4, e: {}@5, f: []@5}@1"]
        );
    }

    #[test]
    fn escapes_are_json_escapes() {
        assert_eq!(read(r#""\ud83d\ude00\/\u003c\\""#), ["\u{1f600}/<\\@1"]);
        assert_eq!(read("\u{feff}\"\u{1f600}\""), ["\u{1f600}@1"]);
    }

    #[test]
    fn several_values_may_follow_each_other() {
        assert_eq!(
            read("{\"a\":1}{\"b\":2}\n[]"),
            ["{a: 1@1}@1", "{b: 2@1}@1", "[]@2"]
        );
        assert_eq!(read(" null \n"), Vec::<String>::new());
        assert_eq!(read(""), Vec::<String>::new());
    }

    #[test]
    fn errors_have_a_line_and_say_what_is_wrong() {
        assert_eq!(
            error("{\n\"a\": 1,\n\"a\": 2}"),
            (3, "key \"a\" is there twice".to_owned())
        );
        assert_eq!(
            error("{\"a\": 1"),
            (
                1,
                "the text ends where '}' is expected".replace("'}'", "','")
            )
        );
        assert_eq!(
            error("{\n\"a\" 1}"),
            (2, "':' is expected, not '1'".to_owned())
        );
        assert_eq!(error("[1,]").1, "a value is expected");
        assert_eq!(error("{a: 1}").1, "a key in quotes is expected");
        assert_eq!(error("[010]").1, "010 is no JSON value");
        assert_eq!(error("\n\"open").0, 2);
        assert!(error("\"\\x\"").1.contains("escape"));
        assert!(error("\"\\ud83d\"").0 == 1);
        let after_good = parse_json("{} oops {}");
        assert_eq!((after_good.len(), after_good[1].is_err()), (2, true));
    }

    #[test]
    fn nesting_has_a_bound() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_json(&nested(MAX_DEPTH))[0].is_ok());
        assert!(error(&nested(MAX_DEPTH + 1)).1.contains("levels deep"));
        assert!(parse_json(&"[".repeat(1 << 20))[0].is_err());
    }

    /// What `serde_json` makes of the same tree.
    fn plain(node: &Node) -> serde_json::Value {
        match &node.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(number) => (*number).into(),
            Value::Float(number) => (*number).into(),
            Value::Text(text) => (**text).into(),
            Value::List(items) => items.iter().map(plain).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|(key, node)| (key.to_string(), plain(node)))
                .collect(),
        }
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            "\\PC{0,8}|[\"\\\\\n/]{0,4}".prop_map(serde_json::Value::from),
            Just(serde_json::Value::Null),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
                prop::collection::hash_map("\\PC{0,5}", inner, 0..5)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_serde_json_writes_reads_the_same(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let found: Vec<_> = parse_json(&text).into_iter().map(|node| plain(&node.unwrap())).collect();
            let expected: Vec<_> = Some(value).into_iter().filter(|value| !value.is_null()).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-a:\\[\\]{}\"\\\\, \n0-9.eEu]{0,60}|(?s).{0,60}") {
            let agrees = serde_json::from_str::<serde_json::Value>(&text).is_err() || parse_json(&text).iter().all(Result::is_ok) || text.contains('"');
            prop_assert!(agrees);
        }
    }
}
