//! `viaduct get`: asks a running viaduct over its admin socket and prints what it says.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use crate::admin::{Resource, TableView};
use crate::config::default_admin_socket;

use super::ask::{ask, escape, pretty};
use super::print;

#[derive(Debug, Args)]
pub(super) struct Get {
    /// services, endpointslices, pods, nodes or backends
    #[arg(value_parser = parse_resource)]
    resource: &'static str,
    /// Only the object of this name; for backends, those of this Service
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

impl Get {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let socket = self
            .admin_socket
            .clone()
            .unwrap_or_else(default_admin_socket);
        let answer = ask(&socket, &self.url()).await?;
        let text = match self.output {
            Output::Table | Output::Wide => {
                let table: TableView =
                    serde_json::from_slice(&answer).context("reading the answer")?;
                if table.rows.is_empty() {
                    self.nothing_found()?;
                    return Ok(());
                }
                align(&table, self.all_namespaces)
            }
            Output::Json => pretty(&answer)?,
            Output::Yaml => {
                let list: serde_json::Value =
                    serde_json::from_slice(&answer).context("reading the answer")?;
                serde_saphyr::to_string(&list).context("writing YAML")?
            }
        };
        print(&text)
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
