//! Durations as Go writes them: `30s`, `1m30s`, `250ms`.
//!
//! Kubernetes' flags and annotations use this format, so ours do. Only reading is here; there is no sign, because no
//! setting of ours can be negative.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDurationError {
    /// Nothing there.
    #[error("is empty; a duration looks like 30s, 1m30s or 250ms")]
    Empty,
    /// A negative duration.
    #[error("{0:?} is negative")]
    Negative(String),
    /// A part that is no number.
    #[error("{0:?} is no duration; one looks like 30s, 1m30s or 250ms")]
    Malformed(String),
    /// A number without its unit.
    #[error("{0:?} lacks a unit (ns, us, ms, s, m, h)")]
    MissingUnit(String),
    /// A unit that Go does not know either, such as `d`.
    #[error("unknown unit {unit:?} in {text:?}; the units are ns, us, ms, s, m, h")]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// More than Go's 64-bit count of nanoseconds holds (about 292 years).
    #[error("{0:?} is too long")]
    TooLong(String),
}

/// Parses a duration as Go's `time.ParseDuration` does: one or more decimal numbers, each with a unit
/// (`ns us µs ms s m h`), or a bare `0`. Fractions of a nanosecond are cut off.
///
/// # Errors
/// Says what is wrong with the text, and quotes it.
pub fn parse_go_duration(text: &str) -> Result<Duration, ParseDurationError> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if unsigned.starts_with('-') {
        return Err(ParseDurationError::Negative(text.to_owned()));
    }
    match unsigned {
        "" if text.is_empty() => return Err(ParseDurationError::Empty),
        "" => return Err(ParseDurationError::Malformed(text.to_owned())),
        "0" => return Ok(Duration::ZERO),
        _ => {}
    }
    let too_long = || ParseDurationError::TooLong(text.to_owned());
    let mut total: u128 = 0;
    let mut rest = unsigned;
    while !rest.is_empty() {
        let (nanos, after) = take_part(rest, text)?;
        total = total.checked_add(nanos).ok_or_else(too_long)?;
        rest = after;
    }
    i64::try_from(total)
        .map(|nanos| Duration::from_nanos(nanos.unsigned_abs()))
        .map_err(|_| too_long())
}

/// Nanoseconds of the first `number unit` of `rest`, and what follows it.
fn take_part<'a>(rest: &'a str, text: &str) -> Result<(u128, &'a str), ParseDurationError> {
    let malformed = || ParseDurationError::Malformed(text.to_owned());
    let (whole, after) = split_while(rest, |c| c.is_ascii_digit());
    let (fraction, after) = match after.strip_prefix('.') {
        Some(after) => split_while(after, |c| c.is_ascii_digit()),
        None => ("", after),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(malformed());
    }
    let (unit, after) = split_while(after, |c| c != '.' && !c.is_ascii_digit());
    let scale = nanos_of(unit, text)?;
    let too_long = || ParseDurationError::TooLong(text.to_owned());
    let whole: u64 = match whole {
        "" => 0,
        digits => digits.parse().map_err(|_| too_long())?,
    };
    let nanos = u128::from(whole) * u128::from(scale) + scaled_fraction(fraction, scale);
    Ok((nanos, after))
}

/// The nanoseconds of `0.<digits>` times `scale`. Digits past the 18th are below a nanosecond for every unit.
fn scaled_fraction(digits: &str, scale: u64) -> u128 {
    let (mut value, mut divisor) = (0_u128, 1_u128);
    for digit in digits.bytes().take(18) {
        value = value * 10 + u128::from(digit - b'0');
        divisor *= 10;
    }
    value * u128::from(scale) / divisor
}

fn nanos_of(unit: &str, text: &str) -> Result<u64, ParseDurationError> {
    match unit {
        "ns" => Ok(1),
        // Two characters look alike here: the micro sign and the Greek letter. Go takes both.
        "us" | "\u{b5}s" | "\u{3bc}s" => Ok(1_000),
        "ms" => Ok(1_000_000),
        "s" => Ok(1_000_000_000),
        "m" => Ok(60_000_000_000),
        "h" => Ok(3_600_000_000_000),
        "" => Err(ParseDurationError::MissingUnit(text.to_owned())),
        unknown => Err(ParseDurationError::UnknownUnit {
            unit: unknown.to_owned(),
            text: text.to_owned(),
        }),
    }
}

fn split_while(text: &str, accept: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !accept(c)).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_read_as_go_reads_them() {
        let cases = [
            ("0", Duration::ZERO),
            ("30s", Duration::from_secs(30)),
            ("1m30s", Duration::from_secs(90)),
            ("250ms", Duration::from_millis(250)),
            ("1.5h", Duration::from_secs(5400)),
            (".5s", Duration::from_millis(500)),
            ("1.s", Duration::from_secs(1)),
            ("+5s", Duration::from_secs(5)),
            ("3us", Duration::from_micros(3)),
            ("3\u{b5}s", Duration::from_micros(3)),
            ("3\u{3bc}s", Duration::from_micros(3)),
            ("0.9ns", Duration::ZERO),
            ("1h1m1s1ms1us1ns", Duration::new(3661, 1_001_001)),
            (
                "9223372036854775807ns",
                Duration::from_nanos(i64::MAX as u64),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_go_duration(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        use ParseDurationError as E;
        let quoted = |text: &str| text.to_owned();
        assert_eq!(parse_go_duration(""), Err(E::Empty));
        assert_eq!(parse_go_duration("-1s"), Err(E::Negative(quoted("-1s"))));
        assert_eq!(parse_go_duration("10"), Err(E::MissingUnit(quoted("10"))));
        assert_eq!(
            parse_go_duration("1d"),
            Err(E::UnknownUnit {
                unit: quoted("d"),
                text: quoted("1d")
            })
        );
        for text in ["+", "s", ".s", "soon", " 1s", "1s ", "+-1s"] {
            assert!(parse_go_duration(text).is_err(), "{text}");
        }
        for text in ["9223372036854775808ns", "2562048h", "99999999999999999999s"] {
            assert_eq!(parse_go_duration(text), Err(E::TooLong(quoted(text))));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_within_bounds_or_refused(text in "[-+0-9.hmsnuµx]{0,30}|\\PC*") {
            let longest = Duration::from_nanos(i64::MAX as u64);
            prop_assert!(parse_go_duration(&text).is_ok_and(|read| read <= longest) || parse_go_duration(&text).is_err());
        }

        #[test]
        fn written_parts_add_up(h in 0_u64..1000, m in 0_u64..1000, s in 0_u64..100_000, ms in 0_u64..100_000) {
            let text = format!("{h}h{m}m{s}s{ms}ms");
            let expected = Duration::from_secs(h * 3600 + m * 60 + s) + Duration::from_millis(ms);
            prop_assert_eq!(parse_go_duration(&text), Ok(expected));
        }
    }
}
