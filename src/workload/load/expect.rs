//! What a load is expected to come to, as an operator writes it: `p99<5ms,errors=0`. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::Report;

/// One condition on a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    text: String,
    figure: Figure,
    comparison: Comparison,
    bound: f64,
}

/// A text that is no condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no condition; write FIGURE, one of < <= = >= >, and a value, as p99<5ms, errors=0, errors<0.1%, rate>=990; figures are {known}", known = KNOWN)]
pub struct InvalidExpectation(String);

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// The condition, as written.
    pub condition: String,
    /// What was found.
    pub found: String,
}

const KNOWN: &str = "p50 p90 p99 p99.9 p99.99 max mean errors done sent rate";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Time(Time),
    Errors,
    ErrorPercent,
    Done,
    Sent,
    Rate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    Mean,
    P50,
    P90,
    P99,
    P99_9,
    P99_99,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    Equal,
    AtLeast,
    More,
}

impl FromStr for Expectation {
    type Err = InvalidExpectation;

    fn from_str(text: &str) -> Result<Self, InvalidExpectation> {
        parse(text.trim()).ok_or_else(|| InvalidExpectation(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Expectation> {
    let signs = [
        ("<=", Comparison::AtMost),
        (">=", Comparison::AtLeast),
        ("<", Comparison::Less),
        (">", Comparison::More),
        ("=", Comparison::Equal),
    ];
    let (name, comparison, value) = signs.into_iter().find_map(|(sign, comparison)| {
        let (name, value) = text.split_once(sign)?;
        Some((name.trim(), comparison, value.trim()))
    })?;
    let time = |time| Some((Figure::Time(time), parse_time(value)?));
    let number = |figure| Some((figure, parse_number(value)?));
    let (figure, bound) = match name {
        "p50" => time(Time::P50),
        "p90" => time(Time::P90),
        "p99" => time(Time::P99),
        "p99.9" => time(Time::P99_9),
        "p99.99" => time(Time::P99_99),
        "max" => time(Time::Max),
        "mean" => time(Time::Mean),
        "errors" => match value.strip_suffix('%') {
            Some(percent) => Some((Figure::ErrorPercent, parse_number(percent)?)),
            None => number(Figure::Errors),
        },
        "done" => number(Figure::Done),
        "sent" => number(Figure::Sent),
        "rate" => number(Figure::Rate),
        _unknown => None,
    }?;
    Some(Expectation {
        text: text.to_owned(),
        figure,
        comparison,
        bound,
    })
}

fn parse_number(text: &str) -> Option<f64> {
    let number: f64 = text.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

// A number and its unit, in seconds.
fn parse_time(text: &str) -> Option<f64> {
    let units = [
        ("ms", 1e-3),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ns", 1e-9),
        ("s", 1.0),
    ];
    let (number, unit) = units
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))?;
    Some(parse_number(number)? * unit)
}

impl Expectation {
    /// Judges a report.
    ///
    /// # Errors
    ///
    /// What was found instead. A time without a single answer is unmet: there is nothing to judge by.
    pub fn judge(&self, report: &Report) -> Result<(), Unmet> {
        let unmet = |found| {
            Err(Unmet {
                condition: self.text.clone(),
                found,
            })
        };
        if matches!(self.figure, Figure::Time(_)) && report.done == 0 {
            return unmet("no answer at all".to_owned());
        }
        let found = self.figure.of(report);
        let holds = match self.comparison {
            Comparison::Less => found < self.bound,
            Comparison::AtMost => found <= self.bound,
            Comparison::Equal => (found - self.bound).abs() < f64::EPSILON,
            Comparison::AtLeast => found >= self.bound,
            Comparison::More => found > self.bound,
        };
        if holds {
            return Ok(());
        }
        unmet(match self.figure {
            Figure::Time(_) => format!("{:?}", Duration::from_secs_f64(found)),
            Figure::ErrorPercent => format!("{found:.3}%"),
            Figure::Errors | Figure::Done | Figure::Sent | Figure::Rate => found.to_string(),
        })
    }
}

impl Figure {
    #[allow(clippy::cast_precision_loss, reason = "counts below 2^53")]
    fn of(self, report: &Report) -> f64 {
        let latency = &report.latency;
        match self {
            Self::Time(Time::Mean) => latency.mean,
            Self::Time(Time::P50) => latency.p50,
            Self::Time(Time::P90) => latency.p90,
            Self::Time(Time::P99) => latency.p99,
            Self::Time(Time::P99_9) => latency.p99_9,
            Self::Time(Time::P99_99) => latency.p99_99,
            Self::Time(Time::Max) => latency.max,
            Self::Errors => report.n_errors() as f64,
            Self::ErrorPercent => {
                let all = (report.done + report.n_errors()).max(1);
                100.0 * report.n_errors() as f64 / all as f64
            }
            Self::Done => report.done as f64,
            Self::Sent => report.sent as f64,
            Self::Rate => report.rate,
        }
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not hold: {}", self.condition, self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tally::{Failure, Finished, Tally};
    use super::*;

    fn report() -> Report {
        let mut tally = Tally::new(Duration::ZERO, Duration::from_secs(1));
        for ms in 1..=99 {
            tally.count(Finished {
                due: Duration::ZERO,
                begun: Some(Duration::ZERO),
                over: Duration::from_millis(ms),
                outcome: Ok(None),
            });
        }
        tally.failures.insert(Failure::Reset, 1);
        Report::new(([127, 0, 0, 1], 80).into(), Duration::from_secs(1), &tally)
    }

    #[test]
    fn conditions_hold_or_say_what_was_found() {
        let report = report();
        for (condition, holds) in [
            ("p50<60ms", true),
            ("p50 <= 0.04s", false),
            ("max<100ms", true),
            ("max<99ms", false),
            ("p99.99>90000us", true),
            ("mean>1s", false),
            ("errors=1", true),
            ("errors=0", false),
            ("errors<=1%", true),
            ("errors<1%", false),
            ("done>=99", true),
            ("done>99", false),
            ("sent=99", true),
            ("rate>=99", true),
            ("rate<99", false),
        ] {
            let judged = condition.parse::<Expectation>().unwrap().judge(&report);
            assert_eq!(judged.is_ok(), holds, "{condition}: {judged:?}");
        }
        let unmet = "errors=0".parse::<Expectation>().unwrap().judge(&report);
        assert_eq!(unmet.unwrap_err().to_string(), "errors=0 does not hold: 1");
    }

    #[test]
    fn without_an_answer_no_time_holds() {
        let nothing = Tally::new(Duration::ZERO, Duration::from_secs(1));
        let report = Report::new(([127, 0, 0, 1], 80).into(), Duration::ZERO, &nothing);
        let judged = "p99<5ms".parse::<Expectation>().unwrap().judge(&report);
        assert_eq!(judged.unwrap_err().found, "no answer at all");
        assert_eq!(
            "errors=0".parse::<Expectation>().unwrap().judge(&report),
            Ok(())
        );
    }

    #[test]
    fn what_is_no_condition_is_told_with_the_known_figures() {
        for text in [
            "",
            "p99",
            "p99<5",
            "p98<5ms",
            "errors=-1",
            "errors=none",
            "rate<5ms",
            "p50<5%",
            "<5ms",
        ] {
            let error = text.parse::<Expectation>().unwrap_err();
            assert_eq!(error, InvalidExpectation(text.to_owned()));
            assert!(error.to_string().contains("p99.99"), "{error}");
        }
    }
}
