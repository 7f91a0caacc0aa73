//! `tests/scenarios/ROWS.md`: every row of the specifications' tables, and what shows it. Neither side may be missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A section and the number of a row or rule in it.
type Row = (String, usize);

/// The sections that must be shown whole, with the number of their rows.
const SECTIONS: &[(&str, usize)] = &[
    ("service-proxy 1", 4),
    ("service-proxy 1.1", 5),
    ("service-proxy 1.2", 7),
    ("service-proxy 2", 9),
    ("service-proxy 3.1", 4),
    ("service-proxy 3.2", 4),
    ("service-proxy 3.3", 6),
    ("service-proxy 3.4", 6),
    ("service-proxy 3.5", 1),
    ("service-proxy 4", 7),
    ("service-proxy 4.1", 4),
    ("service-proxy 4.2", 5),
    ("service-proxy 4.3", 5),
    ("service-proxy 5", 8),
    ("service-proxy 6", 6),
    ("service-proxy 7.1", 7),
    ("service-proxy 7.2", 5),
    ("service-proxy 7.3", 9),
    ("service-proxy 7.4", 1),
    ("service-proxy 7.5", 1),
    ("service-proxy 8.1", 6),
    ("service-proxy 8.2", 5),
    ("service-proxy 8.3", 15),
    ("service-proxy 8.4", 4),
    ("service-proxy 10", 6),
    ("control-plane 1", 14),
    ("control-plane 2", 28),
    ("control-plane 2.1", 7),
    ("control-plane 3", 20),
    ("control-plane 3.1", 5),
    ("control-plane 4", 6),
    ("control-plane 4.1", 3),
    ("control-plane 5.1", 5),
    ("control-plane 5.2", 7),
    ("control-plane 5.3", 3),
    ("control-plane 5.4", 8),
    ("control-plane 5.5", 2),
    ("control-plane 5.6", 5),
    ("control-plane 5.7", 4),
    ("control-plane 5.8", 5),
    ("control-plane 6", 6),
    ("control-plane 6.1", 8),
    ("control-plane 7", 13),
    ("control-plane 8", 5),
    ("control-plane 9", 3),
    ("dns 1", 8),
    ("dns 2.1", 4),
    ("dns 2.2", 4),
    ("dns 2.3", 3),
    ("dns 2.4", 10),
    ("dns 2.5", 5),
    ("dns 2.6", 3),
    ("dns 2.7", 1),
    ("dns 3", 7),
    ("dns 4", 15),
    ("dns 5", 4),
    ("dns 6", 16),
    ("dns 7", 20),
    ("dns 8", 4),
    ("dns 9", 2),
    ("dns 10", 7),
    ("dns 11", 10),
    ("dns 12", 6),
];

/// What `ROWS.md` says: each row with the names of what shows it.
fn rows(text: &str) -> Result<BTreeMap<Row, Vec<String>>, String> {
    let mut rows = BTreeMap::new();
    let mut section = "";
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        }
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, _, shown_by] = cells.as_slice() else {
            continue;
        };
        let Ok(number) = number.parse::<usize>() else {
            continue;
        };
        let names: Vec<String> = shown_by
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        if names.is_empty() {
            return Err(format!("nothing shows {section} row {number}"));
        }
        if rows.insert((section.to_owned(), number), names).is_some() {
            return Err(format!("{section} row {number} is there twice"));
        }
    }
    Ok(rows)
}

/// The rows that a scenario's comments name: `service-proxy 3.3 row 2`.
fn tags(text: &str) -> BTreeSet<Row> {
    let comments = text
        .lines()
        .take_while(|line| !line.starts_with("-- "))
        .filter(|line| line.starts_with('#'));
    let text = comments
        .map(|line| line.trim_start_matches(['#', ' ']))
        .collect::<Vec<_>>()
        .join(" ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let tag = |words: &[&str]| match words {
        [
            document @ ("service-proxy" | "control-plane"),
            section,
            "row",
            number,
        ] => {
            let number = number.trim_end_matches([':', ',', '.', ';']);
            Some((format!("{document} {section}"), number.parse().ok()?))
        }
        _ => None,
    };
    words.windows(4).filter_map(tag).collect()
}

/// The rules that `dns.rows` asks about: the first cell of each of its lines, `2.1 3`.
fn asked(text: &str) -> BTreeSet<Row> {
    let cells = text.lines().filter(|line| !line.starts_with('#'));
    let rule = |line: &str| {
        let (section, number) = line.split_once('|')?.0.trim().split_once(' ')?;
        Some((format!("dns {section}"), number.parse().ok()?))
    };
    cells.filter_map(rule).collect()
}

#[test]
fn every_row_of_the_specifications_is_shown() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| {
        std::fs::read_to_string(root.join(path)).map_err(|error| format!("{path}: {error}"))
    };
    let rows = rows(&read("tests/scenarios/ROWS.md").unwrap()).unwrap();
    let questions = asked(&read("tests/data/dns.rows").unwrap());
    let mut wrong = Vec::new();
    for &(section, count) in SECTIONS {
        let known: Vec<usize> = rows
            .keys()
            .filter(|(known, _)| known == section)
            .map(|(_, row)| *row)
            .collect();
        if known != (1..=count).collect::<Vec<_>>() {
            wrong.push(format!(
                "{section} has {count} rows, and {known:?} are listed"
            ));
        }
    }
    for ((section, row), names) in &rows {
        for name in names {
            let shown = if name.ends_with(".scn") {
                read(&format!("tests/scenarios/{name}"))
                    .map(|text| tags(&text).contains(&(section.clone(), *row)))
            } else if name == "dns.rows" {
                Ok(questions.contains(&(section.clone(), *row)))
            } else {
                let (path, test) = name.split_once("::").unwrap_or((name, ""));
                read(path).map(|text| text.contains(&format!("fn {test}(")))
            };
            if shown != Ok(true) {
                wrong.push(format!(
                    "{section} row {row}: {name} does not show it: {shown:?}"
                ));
            }
        }
    }
    let strangers = questions.iter().filter(|row| {
        let names = rows.get(row);
        !names.is_some_and(|names| names.iter().any(|name| name == "dns.rows"))
    });
    wrong.extend(strangers.map(|(section, row)| {
        format!("dns.rows asks about {section} row {row}, which does not name it")
    }));
    for entry in std::fs::read_dir(root.join("tests/scenarios")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".scn") {
            continue;
        }
        let tags = tags(&read(&format!("tests/scenarios/{name}")).unwrap());
        let strangers = tags
            .iter()
            .filter(|row| !rows.get(row).is_some_and(|names| names.contains(&name)));
        wrong.extend(strangers.map(|(section, row)| {
            format!("{name} names {section} row {row}, which does not name it")
        }));
        if tags.is_empty() {
            wrong.push(format!("{name} names no row"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn rows_and_tags_are_told_apart_from_prose() {
    let text = "# service-proxy 3.3 row 2: a\n# service-proxy 3.3 row 4, control-plane\n# 8 row 1 and rows\napply x\n-- x --\n# service-proxy 1 row 1\n";
    let expected = [
        ("service-proxy 3.3".to_owned(), 2),
        ("service-proxy 3.3".to_owned(), 4),
        ("control-plane 8".to_owned(), 1),
    ];
    assert_eq!(tags(text), expected.into());
    let text = "# 1 1 | comment\n2.1 3 | says | web | A\nprose\n";
    assert_eq!(asked(text), [("dns 2.1".to_owned(), 3)].into());
    assert!(rows("## a 1\n| 1 | b | nothing |").is_err());
    assert!(rows("## a 1\n| 1 | b | `c.scn` |\n| 1 | b | `c.scn` |").is_err());
    let one = rows(
        "## a 1\n| row | says | shown by |\n| --- | --- | --- |\n| 1 | b | `c.scn`, `d.rs::e` |",
    )
    .unwrap();
    assert_eq!(one.into_values().next().unwrap(), ["c.scn", "d.rs::e"]);
}
