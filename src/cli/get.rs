//! `viaduct get`: asks a running viaduct over its admin socket and prints what it says.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::admin::{Resource, TableView};
use crate::config::default_admin_socket;

use super::ask::{ask, escape, pretty};
use super::print;
use super::watch::{Seen, Totals};

#[derive(Debug, Args)]
pub(super) struct Get {
    /// services, endpointslices, pods, nodes, backends or flows
    #[arg(value_parser = parse_resource)]
    resource: &'static str,
    /// Only the object of this name; for backends and flows, those of this Service
    name: Option<String>,
    /// Namespace to look in
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Look in all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Go on and print what changes
    #[arg(short, long)]
    watch: bool,
    /// Admin socket of the viaduct to ask
    #[arg(long, value_name = "PATH", env = "VIADUCT_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Wide,
    Json,
    Yaml,
}

fn parse_resource(name: &str) -> Result<&'static str, String> {
    let known = Resource::ALL
        .iter()
        .find(|(_, names)| names.contains(&name))
        .and_then(|(_, names)| names.first());
    let all = || {
        Resource::ALL
            .iter()
            .filter_map(|(_, names)| names.first().copied())
            .collect::<Vec<_>>()
            .join(", ")
    };
    known.copied().ok_or_else(|| format!("known are {}", all()))
}

/// How often a watch asks.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

impl Get {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let socket = self
            .admin_socket
            .clone()
            .unwrap_or_else(default_admin_socket);
        if self.watch {
            return self.watch(&socket).await;
        }
        let answer = ask(&socket, &self.url()).await?;
        let text = match self.output {
            Output::Table | Output::Wide => {
                let table = read_table(&answer)?;
                if table.rows.is_empty() {
                    self.nothing_found()?;
                    return Ok(());
                }
                align(&table, self.all_namespaces)
            }
            Output::Json => pretty(&answer)?,
            Output::Yaml => yaml(&read_list(&answer)?)?,
        };
        print(&text)
    }

    // Ends when the process that is asked does.
    async fn watch(&self, socket: &Path) -> anyhow::Result<()> {
        let (mut seen, mut totals) = (Seen::default(), Totals::default());
        let mut headings = true;
        let mut ticks = tokio::time::interval(WATCH_INTERVAL);
        loop {
            ticks.tick().await;
            let answer = ask(socket, &self.url()).await?;
            let text = match self.output {
                Output::Table | Output::Wide => {
                    let mut table = read_table(&answer)?;
                    totals.rate_rows(&mut table, Instant::now());
                    self.changed_rows(&table, &mut seen, &mut headings)
                }
                Output::Json | Output::Yaml => {
                    let mut list = read_list(&answer)?;
                    totals.rate_items(&mut list, Instant::now());
                    self.changed_items(&list, &mut seen)?
                }
            };
            print(&text)?;
        }
    }

    // Aligned within one answer; the headings stand above the first.
    fn changed_rows(&self, table: &TableView, seen: &mut Seen, headings: &mut bool) -> String {
        let changes = seen.rows(table);
        let mut text = String::new();
        if !changes.changed.is_empty() {
            let changed = TableView {
                columns: table.columns.clone(),
                rows: changes.changed,
            };
            let all = align(&changed, self.all_namespaces);
            let skipped = usize::from(!std::mem::replace(headings, false));
            text.extend(all.split_inclusive('\n').skip(skipped));
        }
        for key in changes.gone {
            text.push_str(&format!("{}{GAP}gone\n", key.replace('\t', GAP)));
        }
        text
    }

    fn changed_items(&self, list: &Value, seen: &mut Seen) -> anyhow::Result<String> {
        let changes = seen.items(list);
        let write = |item: &Value| match self.output {
            Output::Yaml => Ok(format!("---\n{}", yaml(item)?)),
            Output::Json | Output::Table | Output::Wide => {
                Ok(serde_json::to_string_pretty(item)? + "\n")
            }
        };
        changes.changed.iter().map(write).collect()
    }

    fn url(&self) -> String {
        let output = match self.output {
            Output::Table => "table",
            Output::Wide => "wide",
            Output::Json | Output::Yaml => "json",
        };
        let mut url = format!("/v1/{}?output={output}", self.resource);
        if !self.all_namespaces {
            url.push_str(&format!("&namespace={}", escape(&self.namespace)));
        }
        if let Some(name) = &self.name {
            url.push_str(&format!("&name={}", escape(name)));
        }
        url
    }

    // As kubectl: a name that is not there is an error, an empty list is not.
    fn nothing_found(&self) -> anyhow::Result<()> {
        match &self.name {
            Some(name) => bail!("{} {name:?} not found", self.resource),
            None if self.all_namespaces => eprintln!("No resources found"),
            None => eprintln!("No resources found in {} namespace.", self.namespace),
        }
        Ok(())
    }
}

fn read_table(answer: &[u8]) -> anyhow::Result<TableView> {
    serde_json::from_slice(answer).context("reading the answer")
}

fn read_list(answer: &[u8]) -> anyhow::Result<Value> {
    serde_json::from_slice(answer).context("reading the answer")
}

fn yaml(value: &Value) -> anyhow::Result<String> {
    serde_saphyr::to_string(value).context("writing YAML")
}

/// Between columns.
const GAP: &str = "   ";

/// Columns aligned as kubectl does, three blanks between; the namespace only if it is wanted.
pub(super) fn align(table: &TableView, with_namespace: bool) -> String {
    let first = usize::from(!with_namespace);
    let lines: Vec<&[String]> = std::iter::once(&table.columns)
        .chain(&table.rows)
        .map(|row| &row[first.min(row.len())..])
        .collect();
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            if column > 0 {
                text.push_str(GAP);
            }
            text.push_str(cell);
            // The formatter's own padding ends at 65,535.
            if column + 1 < line.len() {
                text.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: &[&str]| {
            cells
                .iter()
                .map(|cell| (*cell).to_owned())
                .collect::<Vec<_>>()
        };
        let table = TableView {
            columns: row(&["NAMESPACE", "NAME", "AGE"]),
            rows: vec![row(&["default", "web→1", "3s"])],
        };
        assert_eq!(align(&table, false), "NAME    AGE\nweb→1   3s\n");
        assert_eq!(
            align(&table, true),
            "NAMESPACE   NAME    AGE\ndefault     web→1   3s\n"
        );
    }

    #[test]
    fn a_cell_may_be_longer_than_a_formatter_pads() {
        let long = "x".repeat(70_000);
        let table = TableView {
            columns: vec!["A".to_owned(), "B".to_owned()],
            rows: vec![vec![long.clone(), "b".to_owned()]],
        };
        assert!(align(&table, true).ends_with(&format!("{long}   b\n")));
    }
}
