//! What changed between two answers of a running viaduct: the rows that `viaduct get --watch` prints. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::admin::TableView;

/// Headings that end the part of a row by which it is known again.
const LAST_OF_KEY: [&str; 2] = ["NAME", "BACKEND"];

/// A cell that changes by itself.
const AGE: &str = "AGE";

/// The last answer.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeMap<String, String>);

impl Seen {
    /// The rows that are new or have changed since the last answer, in order; then those that are gone, told by their
    /// keys alone.
    pub(super) fn rows(&mut self, table: &TableView) -> Changes<Vec<String>> {
        let key_len = table
            .columns
            .iter()
            .position(|heading| LAST_OF_KEY.contains(&heading.as_str()))
            .map_or(table.columns.len(), |last| last + 1);
        let age = table.columns.iter().position(|heading| heading == AGE);
        let entries = table.rows.iter().map(|row| {
            let lasting = row.iter().enumerate().filter(|(i, _)| Some(*i) != age);
            let lasting: Vec<&str> = lasting.map(|(_, cell)| cell.as_str()).collect();
            let key = row[..key_len.min(row.len())].join("\t");
            (key, lasting.join("\t"), row.clone())
        });
        self.changes(entries)
    }

    /// The same for the items of a list.
    pub(super) fn items(&mut self, list: &Value) -> Changes<Value> {
        let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
        let entries = items.iter().map(|item| {
            let parts = [
                &item["kind"],
                &item["metadata"]["namespace"],
                &item["metadata"]["name"],
                &item["service"],
                &item["port"],
            ];
            let key: Vec<String> = parts.iter().map(ToString::to_string).collect();
            (key.join("\t"), item.to_string(), item.clone())
        });
        self.changes(entries)
    }

    fn changes<T>(&mut self, entries: impl Iterator<Item = (String, String, T)>) -> Changes<T> {
        let mut now = BTreeMap::new();
        let mut changed = Vec::new();
        for (key, content, entry) in entries {
            if self.0.get(&key) != Some(&content) {
                changed.push(entry);
            }
            now.insert(key, content);
        }
        let gone = self.0.keys().filter(|key| !now.contains_key(*key));
        let gone = gone.cloned().collect();
        self.0 = now;
        Changes { changed, gone }
    }
}

/// What is different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Changes<T> {
    /// New, or other than before.
    pub(super) changed: Vec<T>,
    /// Keys of what is there no more: the cells of a row separated by tabs.
    pub(super) gone: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(rows: &[[&str; 4]]) -> TableView {
        TableView {
            columns: ["NAMESPACE", "NAME", "READY", "AGE"]
                .map(str::to_owned)
                .to_vec(),
            rows: rows
                .iter()
                .map(|row| row.map(str::to_owned).to_vec())
                .collect(),
        }
    }

    #[test]
    fn only_what_changed_is_told_and_growing_older_is_no_change() {
        let mut seen = Seen::default();
        let first = table(&[["default", "a", "1/1", "1s"], ["default", "b", "0/1", "1s"]]);
        assert_eq!(seen.rows(&first).changed, first.rows);
        let older = table(&[["default", "a", "1/1", "2s"], ["default", "b", "0/1", "2s"]]);
        let nothing = seen.rows(&older);
        assert_eq!((nothing.changed.len(), nothing.gone.len()), (0, 0));
        let ready = table(&[["default", "b", "1/1", "3s"]]);
        let changes = seen.rows(&ready);
        assert_eq!(changes.changed, ready.rows);
        assert_eq!(changes.gone, ["default\ta"]);
    }

    #[test]
    fn items_are_known_by_kind_and_name() {
        let mut seen = Seen::default();
        let pod = |name: &str, phase: &str| json!({"kind": "Pod", "metadata": {"namespace": "default", "name": name}, "phase": phase});
        let list = |items: &[Value]| json!({ "items": items });
        seen.items(&list(&[pod("a", "Pending"), pod("b", "Running")]));
        let changes = seen.items(&list(&[pod("a", "Running"), pod("b", "Running")]));
        assert_eq!(changes.changed, [pod("a", "Running")]);
        assert_eq!(seen.items(&list(&[])).gone.len(), 2);
    }
}
