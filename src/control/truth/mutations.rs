//! Alters what was recorded, one place at a time: a matcher that still agrees would not have noticed ours being wrong there.
//!
//! Every run alters one field, one cause and one symbol of each case, as far as it has them; `--ignored` alters every
//! place there is, which takes minutes.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use super::{SERVICES, SLICES, cases, services, slices};

#[test]
fn a_service_case_that_expects_something_else_fails() {
    alterations_are_noticed(SERVICES, services::play, one_of_each);
}

#[test]
fn a_slice_case_that_expects_something_else_fails() {
    alterations_are_noticed(SLICES, slices::play, one_of_each);
}

#[test]
#[ignore = "takes minutes"]
fn a_case_that_expects_something_else_anywhere_fails() {
    alterations_are_noticed(SERVICES, services::play, |all| all);
    alterations_are_noticed(SLICES, slices::play, |all| all);
}

type Choice = fn(Vec<Alteration>) -> Vec<Alteration>;

fn alterations_are_noticed(text: &str, play: fn(&Value) -> Result<(), String>, choose: Choice) {
    let mut unnoticed = Vec::new();
    let mut untouched = Vec::new();
    for case in cases(text) {
        let chosen = choose(alterations(&case));
        if chosen.is_empty() {
            untouched.push(case["id"].clone());
        }
        for alteration in chosen {
            if play(&alteration.applied_to(&case)).is_ok() {
                unnoticed.push(format!("{} {alteration:?}", case["id"]));
            }
        }
    }
    assert!(
        unnoticed.is_empty() && untouched.is_empty(),
        "{} alterations go unnoticed:\n{}\nnothing to alter in {untouched:?}",
        unnoticed.len(),
        unnoticed.join("\n"),
    );
}

/// One other expectation.
#[derive(Clone, Debug)]
struct Alteration {
    of: Part,
    place: Path,
    to: Value,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Field,
    Cause,
    Symbol,
}

impl Alteration {
    fn applied_to(&self, case: &Value) -> Value {
        let mut altered = case.clone();
        *at_mut(&mut altered, &self.place) = self.to.clone();
        altered
    }
}

fn one_of_each(all: Vec<Alteration>) -> Vec<Alteration> {
    let mut rng = StdRng::seed_from_u64(u64::try_from(all.len()).unwrap());
    let parts = [Part::Field, Part::Cause, Part::Symbol].into_iter();
    let chosen = parts.filter_map(|part| {
        let of_part: Vec<_> = all
            .iter()
            .filter(|alteration| alteration.of == part)
            .collect();
        of_part
            .choose(&mut rng)
            .map(|alteration| (*alteration).clone())
    });
    chosen.collect()
}

/// A place in what a case expects: the step, and the way from its outcome.
type Path = (usize, Vec<Step>);

#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Index(usize),
}

fn alterations(case: &Value) -> Vec<Alteration> {
    let mut found = Vec::new();
    for (n, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        let mut places = Vec::new();
        walk(&step["outcome"], &mut Vec::new(), &mut places);
        for place in places {
            let place = (n, place);
            let value = at(case, &place);
            let in_cause = place
                .1
                .iter()
                .any(|step| matches!(step, Step::Key(key) if key == "causes"));
            let is_symbol = |text: &str| text.starts_with("$ip") || text.starts_with("$np");
            let of = if in_cause {
                Part::Cause
            } else if value.as_str().is_some_and(is_symbol) {
                Part::Symbol
            } else {
                Part::Field
            };
            let others = instead_of(value).into_iter();
            found.extend(others.map(|to| Alteration {
                of,
                place: place.clone(),
                to,
            }));
        }
    }
    found.retain(|alteration| means_something(case, alteration));
    found
}

/// What the schema says nothing about: the message where causes are listed too, the words of Go's decoder, figures of a
/// bulk that the case has no use for.
fn means_something(case: &Value, alteration: &Alteration) -> bool {
    let (n, path) = &alteration.place;
    let outcome = &case["steps"][*n]["outcome"];
    let to = |key: &str| alteration.to.get(key).is_none();
    let of_message = |holder: &Value| {
        let in_go = |text: &str| text.contains(": json: ");
        holder["causes"].is_array() || holder["message"].as_str().is_some_and(in_go)
    };
    let holder = match path.as_slice() {
        [Step::Key(first), ..] if first == "first_rejection" => &outcome["first_rejection"],
        _ => outcome,
    };
    match path.last() {
        Some(Step::Key(key)) if key == "message" && path.len() <= 2 => !of_message(holder),
        _ if holder["message"].is_string() && alteration.to.is_object() && to("message") => {
            !of_message(holder)
        }
        _ => true,
    }
}

fn walk(value: &Value, path: &mut Vec<Step>, places: &mut Vec<Vec<Step>>) {
    places.push(path.clone());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                path.push(Step::Key(key.clone()));
                walk(value, path, places);
                path.pop();
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                path.push(Step::Index(i));
                walk(value, path, places);
                path.pop();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn at<'a>(case: &'a Value, (n, path): &Path) -> &'a Value {
    path.iter()
        .fold(&case["steps"][n]["outcome"], |value, step| match step {
            Step::Key(key) => &value[key],
            Step::Index(i) => &value[i],
        })
}

fn at_mut<'a>(case: &'a mut Value, (n, path): &Path) -> &'a mut Value {
    let outcome = &mut case["steps"][*n]["outcome"];
    path.iter().fold(outcome, |value, step| match step {
        Step::Key(key) => &mut value[key],
        Step::Index(i) => &mut value[i],
    })
}

/// Other values for a place, each of which means something else there.
fn instead_of(value: &Value) -> Vec<Value> {
    match value {
        Value::Null => vec![json!("x")],
        Value::Bool(claim) => vec![json!(!claim)],
        Value::Number(number) => vec![json!(number.as_i64().unwrap() + 1)],
        Value::String(symbol) if symbol.starts_with("$np") => vec![json!("$ip4-9"), json!(1)],
        Value::String(symbol) if symbol.starts_with("$ip4") => {
            vec![json!("$ip6-9"), json!("10.0.0.1")]
        }
        Value::String(symbol) if symbol.starts_with("$ip6") => {
            vec![json!("$ip4-9"), json!("fd00::1")]
        }
        Value::String(text) => vec![json!(format!("{text}x"))],
        Value::Array(list) => {
            let mut longer = list.clone();
            longer.push(json!({"x": "x"}));
            let mut others = vec![json!(longer)];
            others.extend((!list.is_empty()).then(|| json!(list[1..])));
            others
        }
        Value::Object(map) => {
            let mut more = map.clone();
            more.insert("x".to_owned(), json!("x"));
            let mut others = vec![json!(more)];
            let is_nothing =
                |inner: &Value| inner.is_null() || inner.as_array().is_some_and(Vec::is_empty);
            for (key, _) in map.iter().filter(|(_, inner)| !is_nothing(inner)) {
                let mut less = map.clone();
                less.remove(key);
                others.push(json!(less));
            }
            others
        }
    }
}
