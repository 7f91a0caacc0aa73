//! The ladder: which capture modes to try, best first, and what became of each.
//!
//! A family takes the first mode that works here, shown by really loading and removing a harmless instance of it. The
//! families climb alone: one may end on another rung than the other.

use std::fmt;
use std::str::FromStr;

use crate::model::Family;

use super::{Capture, CaptureError, Metrics, Mode, UnknownMode, open};

/// The modes to try, in this order. Never empty; `loopback` and `none` stand alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder(Vec<Mode>);

/// What is no ladder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseLadderError {
    /// A word names no mode.
    #[error(transparent)]
    Unknown(#[from] UnknownMode),
    /// A mode that cannot be one of several.
    #[error("{0} stands alone: it serves other addresses than the modes beside it")]
    NotAlone(Mode),
}

impl Ladder {
    /// `auto`: every mode that captures a network's traffic, the one that costs least first.
    pub fn auto() -> Self {
        Self(vec![
            Mode::Nftables,
            Mode::Iptables,
            Mode::Tproxy,
            Mode::Local,
        ])
    }

    /// The modes, best first.
    pub fn rungs(&self) -> &[Mode] {
        &self.0
    }

    /// Whether it is this mode and no other.
    pub fn is(&self, mode: Mode) -> bool {
        self.0 == [mode]
    }

    /// Takes the first mode that works for `family`, and tells of those before it why they do not.
    ///
    /// # Errors
    /// None works: why, for each.
    pub async fn climb(&self, family: Family, metrics: &Metrics) -> Result<Climbed, Refusals> {
        let mut refusals = Refusals::default();
        for mode in &self.0 {
            match open(*mode, family, metrics).await {
                Ok(capture) => return Ok(Climbed { capture, refusals }),
                Err(error) => refusals.0.push((*mode, error)),
            }
        }
        Err(refusals)
    }
}

impl From<Mode> for Ladder {
    fn from(mode: Mode) -> Self {
        Self(vec![mode])
    }
}

impl FromStr for Ladder {
    type Err = ParseLadderError;

    fn from_str(text: &str) -> Result<Self, ParseLadderError> {
        if text == AUTO {
            return Ok(Self::auto());
        }
        let mut rungs = Vec::new();
        for word in text.split(',') {
            let mode: Mode = word.trim().parse()?;
            if !rungs.contains(&mode) {
                rungs.push(mode);
            }
        }
        let alone = |mode: &&Mode| matches!(mode, Mode::Loopback | Mode::None);
        match rungs.iter().find(alone) {
            Some(mode) if rungs.len() > 1 => Err(ParseLadderError::NotAlone(*mode)),
            Some(_) | None => Ok(Self(rungs)),
        }
    }
}

impl fmt::Display for Ladder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::auto() {
            return f.write_str(AUTO);
        }
        let words: Vec<&str> = self.0.iter().map(|mode| mode.as_str()).collect();
        f.write_str(&words.join(","))
    }
}

const AUTO: &str = "auto";

/// A mode that works, and those before it that do not.
pub struct Climbed {
    /// The mode, ready.
    pub capture: Box<dyn Capture>,
    /// The others.
    pub refusals: Refusals,
}

/// Modes that cannot work here, each with the kernel's own words.
#[derive(Debug, Default)]
pub struct Refusals(pub Vec<(Mode, CaptureError)>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (mode, error)) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { "; " };
            write!(f, "{separator}{mode}: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Mode>, ParseLadderError> {
        text.parse::<Ladder>().map(|ladder| ladder.0)
    }

    #[test]
    fn a_ladder_is_auto_or_a_list_of_modes() {
        assert_eq!(
            parse("auto"),
            Ok(vec![
                Mode::Nftables,
                Mode::Iptables,
                Mode::Tproxy,
                Mode::Local,
            ])
        );
        assert_eq!(
            parse("local, iptables,local"),
            Ok(vec![Mode::Local, Mode::Iptables])
        );
        assert_eq!(parse("none"), Ok(vec![Mode::None]));
        for text in ["auto", "nftables", "local,iptables"] {
            assert_eq!(text.parse::<Ladder>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_ladder_says_why() {
        assert_eq!(
            parse("local,none"),
            Err(ParseLadderError::NotAlone(Mode::None))
        );
        for text in ["", "magic", "nftables,", "auto,local"] {
            assert!(
                matches!(parse(text), Err(ParseLadderError::Unknown(_))),
                "{text}"
            );
        }
    }
}
