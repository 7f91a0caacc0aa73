//! What changed between two answers of a running viaduct: the rows that `viaduct get --watch` prints, and how fast what
//! only grows has grown. Pure: the clock is the caller's.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use serde_json::Value;

use crate::admin::TableView;

/// Headings that end the part of a row by which it is known again.
const LAST_OF_KEY: [&str; 2] = ["NAME", "BACKEND"];

/// A cell that changes by itself.
const AGE: &str = "AGE";

/// The same in an object.
const AGE_KEY: &str = "seconds";

/// The column that counts what only grows.
const TOTAL: &str = "TOTAL";

/// The same in an object.
const TOTAL_KEY: &str = "flowsTotal";

/// The totals of the last answer, and when that was.
#[derive(Debug, Default)]
pub(super) struct Totals {
    at: Option<Instant>,
    by_key: HashMap<String, u64>,
}

impl Totals {
    /// Puts a column after the one of totals: how many more a second since the last answer. A table without that column
    /// stays as it is.
    pub(super) fn rate_rows(&mut self, table: &mut TableView, now: Instant) {
        let Some(total) = table.columns.iter().position(|heading| heading == TOTAL) else {
            return;
        };
        let key_len = key_len(table);
        table.columns.insert(total + 1, "RATE".to_owned());
        let rates = self.rates(now, &table.rows, |row| {
            let n = row.get(total)?.parse().ok()?;
            Some((row[..key_len.min(row.len())].join("\t"), n))
        });
        for (row, rate) in table.rows.iter_mut().zip(rates) {
            let cell = rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}/s"));
            row.insert(row.len().min(total + 1), cell);
        }
    }

    /// The same in the items of a list, as `flowsPerSecond`.
    pub(super) fn rate_items(&mut self, list: &mut Value, now: Instant) {
        let Some(items) = list["items"].as_array_mut() else {
            return;
        };
        let rates = self.rates(now, items, |item| {
            Some((key_of(item), item[TOTAL_KEY].as_u64()?))
        });
        for (item, rate) in items.iter_mut().zip(rates) {
            if let Some(rate) = rate {
                item["flowsPerSecond"] = rate.into();
            }
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    fn rates<T>(
        &mut self,
        now: Instant,
        entries: &[T],
        read: impl Fn(&T) -> Option<(String, u64)>,
    ) -> Vec<Option<f64>> {
        let elapsed = self
            .at
            .replace(now)
            .map(|at| now.saturating_duration_since(at));
        let elapsed = elapsed.map(|elapsed| elapsed.as_secs_f64().max(1e-3));
        let mut totals = HashMap::new();
        let mut rate = |entry: &T| {
            let (key, n) = read(entry)?;
            let before = self.by_key.get(&key).copied();
            totals.insert(key, n);
            // Less than before: it has gone and come again.
            Some(n.checked_sub(before?)? as f64 / elapsed?)
        };
        let rates = entries.iter().map(&mut rate).collect();
        self.by_key = totals;
        rates
    }
}

fn key_len(table: &TableView) -> usize {
    let last = |heading: &String| LAST_OF_KEY.contains(&heading.as_str());
    let last = table.columns.iter().position(last);
    last.map_or(table.columns.len(), |last| last + 1)
}

fn key_of(item: &Value) -> String {
    let parts = [
        &item["kind"],
        &item["metadata"]["namespace"],
        &item["metadata"]["name"],
        &item["service"],
        &item["port"],
    ];
    parts.map(ToString::to_string).join("\t")
}

// What it says but for what changes by itself.
fn lasting(item: &Value) -> String {
    let mut item = item.clone();
    if let Some(fields) = item.as_object_mut() {
        fields.remove(AGE_KEY);
    }
    item.to_string()
}

/// The last answer.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeMap<String, String>);

impl Seen {
    /// The rows that are new or have changed since the last answer, in order; then those that are gone, told by their
    /// keys alone.
    pub(super) fn rows(&mut self, table: &TableView) -> Changes<Vec<String>> {
        let key_len = key_len(table);
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
        let entries = items
            .iter()
            .map(|item| (key_of(item), lasting(item), item.clone()));
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
    fn a_rate_is_what_came_since_the_last_answer() {
        let answer = |totals: [&str; 2]| TableView {
            columns: ["NAMESPACE", "BACKEND", "TOTAL", "STATE"]
                .map(str::to_owned)
                .to_vec(),
            rows: ["a", "b"]
                .iter()
                .zip(totals)
                .map(|(name, total)| {
                    ["default", name, total, "ready"]
                        .map(str::to_owned)
                        .to_vec()
                })
                .collect(),
        };
        let mut totals = Totals::default();
        let start = Instant::now();
        let mut rates = |cells, ms| {
            let mut table = answer(cells);
            totals.rate_rows(&mut table, start + std::time::Duration::from_millis(ms));
            assert_eq!(table.columns[2..], ["TOTAL", "RATE", "STATE"]);
            table
                .rows
                .iter()
                .map(|row| row[3].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(rates(["10", "7"], 0), ["-", "-"]);
        assert_eq!(rates(["10", "107"], 500), ["0/s", "200/s"]);
        assert_eq!(rates(["0", "108"], 1500), ["-", "1/s"], "one began anew");

        let list =
            |n: u64| json!({"items": [{"kind": "Backend", "flowsTotal": n}, {"kind": "Pod"}]});
        let mut totals = Totals::default();
        totals.rate_items(&mut list(5), start);
        let mut later = list(6);
        totals.rate_items(&mut later, start + std::time::Duration::from_secs(2));
        assert_eq!(later["items"][0]["flowsPerSecond"], 0.5);
        assert!(later["items"][1].get("flowsPerSecond").is_none());
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
        let flow = |seconds: u64, bytes: u64| {
            list(&[json!({"kind": "Flow", "seconds": seconds, "bytes": bytes})])
        };
        assert_eq!(seen.items(&flow(1, 5)).changed.len(), 1);
        assert_eq!(seen.items(&flow(2, 5)).changed.len(), 0);
        assert_eq!(seen.items(&flow(3, 6)).changed.len(), 1);
    }
}
