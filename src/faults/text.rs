//! Faults as their author writes them: `delay=5ms±2ms; error=1%; rate=10MB/s; stall=1s/10s; refuse`.
//!
//! One reader for annotations and for `viaduct fault`. Writes them back in one canonical form.

use std::fmt;
use std::time::Duration;

use crate::model::{Protocol, parse_go_duration};

/// Everything that shall go wrong at one place. The default is that nothing does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// How late an answer is; between client and backend, how long a new flow waits.
    pub delay: Option<Delay>,
    /// How often an HTTP answer is status 500.
    pub error: Chance,
    /// Bytes per second of answers, per connection.
    pub rate: Option<u64>,
    /// How often the connection is reset instead.
    pub reset: Chance,
    /// How often a datagram is lost.
    pub loss: Chance,
    /// How often a datagram comes twice.
    pub duplicate: Chance,
    /// How often an answer is cut short.
    pub cut: Chance,
    /// When nothing moves.
    pub stall: Option<Stall>,
    /// Connections are refused.
    pub refuse: bool,
    /// Everything is taken and nothing comes back.
    pub blackhole: bool,
    /// How long readiness lasts until it turns.
    pub flap: Option<Duration>,
    /// Decides which answers chance meets: the same seed, the same answers.
    pub seed: u64,
}

/// A delay, evenly spread over `mean` ± `jitter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// Its middle.
    pub mean: Duration,
    /// How far from it; never more than the middle.
    pub jitter: Duration,
}

/// A stall that comes again and again: the first `lasts` of each `every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// How long nothing moves; less than `every`.
    pub lasts: Duration,
    /// From one beginning to the next.
    pub every: Duration,
}

/// How often something happens, in millionths; at most 1,000,000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chance(u32);

/// Where faults are to take effect, for what cannot be done everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the answers of a simulated Pod.
    Pod,
    /// Between a client and any backend.
    Between,
}

/// The longest delay, stall and flap. A test that needs more is a blackhole.
const LONGEST: Duration = Duration::from_secs(3600);

/// What can be written, in the order in which it is written back.
const KNOWN: [&str; 12] = [
    "delay=5ms±2ms",
    "error=1%",
    "rate=10MB/s",
    "reset=1%",
    "loss=1%",
    "duplicate=1%",
    "cut=1%",
    "stall=1s/10s",
    "refuse",
    "blackhole",
    "flap=5s",
    "seed=1",
];

/// Why a text names no faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseFaultsError {
    /// No such fault.
    #[error("unknown fault {0:?}; known are {known}", known = KNOWN.join("; "))]
    Unknown(String),
    /// A value that does not fit.
    #[error("{key}: {why}, as in {example}")]
    Value {
        /// The fault.
        key: &'static str,
        /// What is wrong.
        why: String,
        /// One that would do.
        example: &'static str,
    },
    /// The same fault twice.
    #[error("{0} is there twice")]
    Twice(&'static str),
    /// Nothing there.
    #[error("names no fault; known are {known}", known = KNOWN.join("; "))]
    Nothing,
    /// A fault that cannot be made there.
    #[error("{fault} {why}")]
    Unfit {
        /// The fault.
        fault: &'static str,
        /// Why not.
        why: &'static str,
    },
}

impl Faults {
    /// Reads faults separated by `;`.
    ///
    /// # Errors
    /// Names the first one that does not do, and what would.
    pub fn parse(text: &str) -> Result<Self, ParseFaultsError> {
        let mut faults = Self::default();
        let mut seen = Vec::new();
        for part in text.split(';').map(str::trim).filter(|p| !p.is_empty()) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key.trim(), Some(value.trim())),
                None => (part, None),
            };
            let example = example_of(key);
            let example = example.ok_or_else(|| ParseFaultsError::Unknown(key.to_owned()))?;
            let key = name_of(example);
            if seen.contains(&key) {
                return Err(ParseFaultsError::Twice(key));
            }
            seen.push(key);
            faults
                .set(key, value)
                .map_err(|why| ParseFaultsError::Value { key, why, example })?;
        }
        if seen.is_empty() {
            return Err(ParseFaultsError::Nothing);
        }
        Ok(faults)
    }

    /// Reads the value of the annotation `viaduct.dev/simulate`: `echo`, then faults if there are any.
    ///
    /// # Errors
    /// As [`Faults::parse`], and for what a simulated Pod cannot do.
    pub fn parse_simulation(text: &str) -> Result<Self, ParseFaultsError> {
        let (mode, rest) = text.split_once(';').unwrap_or((text, ""));
        if mode.trim() != "echo" {
            // The mode has one value so far, and its absence is a likely slip.
            return Self::parse(text).and_then(|faults| faults.fit(Place::Pod));
        }
        if rest.trim().is_empty() {
            return Ok(Self::default());
        }
        Self::parse(rest)?.fit(Place::Pod)
    }

    /// The same, if all of them can be made at that place.
    ///
    /// # Errors
    /// Names one that cannot.
    pub fn fit(self, place: Place) -> Result<Self, ParseFaultsError> {
        let unfit = |fault, why| Err(ParseFaultsError::Unfit { fault, why });
        match place {
            Place::Between if !self.error.is_never() => unfit(
                "error",
                "is for simulated Pods: between client and backend nobody reads what is carried",
            ),
            Place::Between if self.flap.is_some() => unfit(
                "flap",
                "is for simulated Pods: the readiness of other backends is not ours",
            ),
            Place::Between | Place::Pod => Ok(self),
        }
    }

    /// The same, if each of them can meet something of what goes there. Where nothing is known to go, all can.
    ///
    /// # Errors
    /// Names one that cannot.
    pub fn fit_protocols(self, protocols: &[Protocol]) -> Result<Self, ParseFaultsError> {
        let never_met = |fault, by: Protocol, why| {
            if protocols.is_empty() || protocols.contains(&by) {
                Ok(())
            } else {
                Err(ParseFaultsError::Unfit { fault, why })
            }
        };
        let of_udp = "is for datagrams, and nothing there is UDP";
        let of_tcp = "is for connections, and nothing there is TCP";
        for (is_on, fault, by, why) in [
            (!self.loss.is_never(), "loss", Protocol::Udp, of_udp),
            (
                !self.duplicate.is_never(),
                "duplicate",
                Protocol::Udp,
                of_udp,
            ),
            (!self.reset.is_never(), "reset", Protocol::Tcp, of_tcp),
            (!self.error.is_never(), "error", Protocol::Tcp, of_tcp),
            (self.flap.is_some(), "flap", Protocol::Tcp, of_tcp),
        ] {
            if is_on {
                never_met(fault, by, why)?;
            }
        }
        Ok(self)
    }

    fn set(&mut self, key: &str, value: Option<&str>) -> Result<(), String> {
        let given = || value.ok_or_else(|| "needs a value".to_owned());
        let alone = || match value {
            None => Ok(true),
            Some(_) => Err("takes no value".to_owned()),
        };
        match key {
            "delay" => self.delay = Some(parse_delay(given()?)?),
            "error" => self.error = parse_chance(given()?)?,
            "rate" => self.rate = Some(parse_rate(given()?)?),
            "reset" => self.reset = parse_chance(given()?)?,
            "loss" => self.loss = parse_chance(given()?)?,
            "duplicate" => self.duplicate = parse_chance(given()?)?,
            "cut" => self.cut = parse_chance(given()?)?,
            "stall" => self.stall = Some(parse_stall(given()?)?),
            "refuse" => self.refuse = alone()?,
            "blackhole" => self.blackhole = alone()?,
            "flap" => self.flap = Some(parse_span(given()?)?),
            _seed => {
                let number = given()?;
                let whole = number.parse();
                self.seed = whole.map_err(|_| format!("{number:?} is no whole number"))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(Delay { mean, jitter }) = self.delay {
            parts.push(match jitter {
                Duration::ZERO => format!("delay={mean:?}"),
                _ => format!("delay={mean:?}±{jitter:?}"),
            });
        }
        if let Some(rate) = self.rate {
            parts.push(format!("rate={rate}B/s"));
        }
        for (key, chance) in [
            ("error", self.error),
            ("reset", self.reset),
            ("loss", self.loss),
            ("duplicate", self.duplicate),
            ("cut", self.cut),
        ] {
            if !chance.is_never() {
                parts.push(format!("{key}={chance}"));
            }
        }
        if let Some(Stall { lasts, every }) = self.stall {
            parts.push(format!("stall={lasts:?}/{every:?}"));
        }
        for (key, on) in [("refuse", self.refuse), ("blackhole", self.blackhole)] {
            if on {
                parts.push(key.to_owned());
            }
        }
        if let Some(flap) = self.flap {
            parts.push(format!("flap={flap:?}"));
        }
        if self.seed != 0 {
            parts.push(format!("seed={}", self.seed));
        }
        f.write_str(&parts.join("; "))
    }
}

impl Chance {
    /// Certainty, in millionths.
    pub const ALWAYS: u32 = 1_000_000;

    /// Whether it never happens.
    pub fn is_never(self) -> bool {
        self.0 == 0
    }

    /// Whether it happens for a number drawn evenly from 0 to 999,999.
    pub fn meets(self, drawn: u32) -> bool {
        drawn < self.0
    }
}

impl fmt::Display for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / 10_000.0)
    }
}

fn example_of(key: &str) -> Option<&'static str> {
    KNOWN.into_iter().find(|example| name_of(example) == key)
}

fn name_of(example: &'static str) -> &'static str {
    example.split_once('=').map_or(example, |(name, _)| name)
}

fn parse_delay(text: &str) -> Result<Delay, String> {
    let parts = text.split_once('±').or_else(|| text.split_once("+-"));
    let (mean, jitter) = parts.unwrap_or((text, "0"));
    let mean = parse_span(mean)?;
    let jitter = parse_go_duration(jitter.trim()).map_err(|error| error.to_string())?;
    if jitter > mean {
        return Err("the jitter is more than the delay".to_owned());
    }
    Ok(Delay { mean, jitter })
}

fn parse_stall(text: &str) -> Result<Stall, String> {
    let (lasts, every) = text
        .split_once('/')
        .ok_or_else(|| format!("{text:?} does not say how often"))?;
    let (lasts, every) = (parse_span(lasts)?, parse_span(every)?);
    if lasts >= every {
        return Err("it would never end".to_owned());
    }
    Ok(Stall { lasts, every })
}

fn parse_span(text: &str) -> Result<Duration, String> {
    match parse_go_duration(text.trim()) {
        Ok(Duration::ZERO) => Err("must be more than 0".to_owned()),
        Ok(span) if span > LONGEST => Err("is more than an hour".to_owned()),
        Ok(span) => Ok(span),
        Err(error) => Err(error.to_string()),
    }
}

// Decimals past the fourth are below a millionth and cut off.
fn parse_chance(text: &str) -> Result<Chance, String> {
    let wrong = || format!("{text:?} is no percentage from 0% to 100%");
    let number = text.strip_suffix('%').ok_or_else(wrong)?.trim();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if number.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    let fraction: String = fraction.chars().chain("0000".chars()).take(4).collect();
    let millionths: u32 = format!("{whole}{fraction}").parse().map_err(|_| wrong())?;
    if millionths > Chance::ALWAYS {
        return Err(wrong());
    }
    Ok(Chance(millionths))
}

fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no number of B/s, kB/s, MB/s or GB/s");
    let number = text.strip_suffix("B/s").ok_or_else(wrong)?;
    let (number, unit) = match number.as_bytes().last() {
        Some(b'k') => (&number[..number.len() - 1], 1_000),
        Some(b'M') => (&number[..number.len() - 1], 1_000_000),
        Some(b'G') => (&number[..number.len() - 1], 1_000_000_000),
        Some(_) | None => (number, 1),
    };
    let number: u64 = number.trim().parse().map_err(|_| wrong())?;
    match number.checked_mul(unit) {
        None | Some(0) => Err(wrong()),
        Some(rate) => Ok(rate),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(text: &str) -> String {
        match Faults::parse(text) {
            Ok(faults) => faults.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_fault_can_be_written() {
        let all = KNOWN.join(";");
        let faults = Faults::parse(&all).unwrap();
        assert_eq!(
            faults.to_string(),
            "delay=5ms±2ms; rate=10000000B/s; error=1%; reset=1%; loss=1%; duplicate=1%; cut=1%; stall=1s/10s; \
             refuse; blackhole; flap=5s; seed=1"
        );
        assert_eq!(Faults::parse(&faults.to_string()), Ok(faults));
    }

    #[test]
    fn values_are_narrowed_at_both_ends() {
        for (text, expected) in [
            ("delay=1h", "delay=3600s"),
            ("delay = 5ms +- 5ms ;", "delay=5ms±5ms"),
            ("reset=0.1%", "reset=0.1%"),
            ("reset=100%", "reset=100%"),
            ("reset=0.0001%", "reset=0.0001%"),
            ("reset=0%", ""),
            ("rate=1B/s", "rate=1B/s"),
            ("rate=8 kB/s", "rate=8000B/s"),
            ("seed=18446744073709551615", "seed=18446744073709551615"),
        ] {
            assert_eq!(said(text), expected, "{text}");
        }
        for (text, expected) in [
            ("delay=0", "delay: must be more than 0"),
            ("delay=61m", "delay: is more than an hour"),
            ("delay=1ms±2ms", "delay: the jitter is more than the delay"),
            ("delay=5", "delay: \"5\" lacks a unit"),
            ("delay", "delay: needs a value, as in delay=5ms±2ms"),
            ("reset=1", "reset: \"1\" is no percentage"),
            ("reset=100.0001%", "reset: \"100.0001%\" is no percentage"),
            ("reset=-1%", "reset: \"-1%\" is no percentage"),
            ("reset=%", "reset: \"%\" is no percentage"),
            ("rate=0MB/s", "rate: \"0MB/s\" is no number"),
            ("rate=10MB", "rate: \"10MB\" is no number"),
            (
                "rate=99999999999GB/s",
                "rate: \"99999999999GB/s\" is no number",
            ),
            ("stall=1s", "stall: \"1s\" does not say how often"),
            ("stall=1s/1s", "stall: it would never end"),
            ("refuse=yes", "refuse: takes no value"),
            ("seed=-1", "seed: \"-1\" is no whole number"),
            ("reset=1%; reset=2%", "reset is there twice"),
            (
                "latency=5ms",
                "unknown fault \"latency\"; known are delay=5ms±2ms; error=1%;",
            ),
            (" ; ", "names no fault; known are"),
        ] {
            assert!(said(text).starts_with(expected), "{text}: {}", said(text));
        }
    }

    #[test]
    fn the_annotation_begins_with_its_mode() {
        let read = |text| Faults::parse_simulation(text).map(|faults| faults.to_string());
        assert_eq!(read("echo"), Ok(String::new()));
        assert_eq!(read("echo;"), Ok(String::new()));
        assert_eq!(read("echo; delay=5ms"), Ok("delay=5ms".into()));
        assert_eq!(read("delay=5ms"), Ok("delay=5ms".into()));
        assert!(read("").is_err() && read("ehco").is_err());
    }

    #[test]
    fn a_fault_that_can_meet_nothing_is_refused() {
        let fits = |text, protocols: &[Protocol]| {
            let faults = Faults::parse(text).unwrap();
            faults.fit_protocols(protocols).is_ok()
        };
        for (text, over_tcp, over_udp) in [
            ("loss=1%", false, true),
            ("duplicate=1%", false, true),
            ("reset=1%", true, false),
            ("error=1%", true, false),
            ("flap=1s", true, false),
            (
                "delay=1ms; cut=1%; rate=1MB/s; stall=1s/2s; refuse",
                true,
                true,
            ),
        ] {
            assert_eq!(fits(text, &[Protocol::Tcp]), over_tcp, "{text}");
            assert_eq!(fits(text, &[Protocol::Udp]), over_udp, "{text}");
            assert!(fits(text, &[Protocol::Tcp, Protocol::Udp]) && fits(text, &[]));
        }
    }

    #[test]
    fn not_every_fault_can_be_made_everywhere() {
        for (text, ok) in [("error=1%", false), ("flap=1s", false), ("reset=1%", true)] {
            let faults = Faults::parse(text).unwrap();
            assert_eq!(faults.clone().fit(Place::Between).is_ok(), ok, "{text}");
            assert!(faults.fit(Place::Pod).is_ok());
        }
    }

    proptest! {
        #[test]
        fn no_text_upsets_it(text in "[a-z=%;/±. 0-9]{0,40}") {
            if let Ok(faults) = Faults::parse(&text) {
                let written = faults.to_string();
                prop_assert!(written.is_empty() || Faults::parse(&written) == Ok(faults));
            }
        }
    }
}
