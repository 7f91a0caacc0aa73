//! Capture: making the kernel deliver the traffic of virtual addresses to our listeners.
//!
//! A mode takes [`plan::Rules`] and works out what to change; only tables and chains of our own name are touched.
//! What is to be changed is computed by pure functions (`plan`, each mode's `render`); the modes themselves only run
//! the system's tools. One instance serves one family, so that one failing never stops the other. A new mode is one
//! file and its lines here; `ladder` says which to try.

mod conflicts;
mod iptables;
mod ladder;
mod local;
mod metrics;
mod nftables;
mod passive;
pub mod plan;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod samples;
mod stale_flows;
mod tool;
mod tproxy;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use tracing::debug;

use crate::model::Family;

use nftables::Purpose;
use plan::{Arrival, Rules};

pub use conflicts::conflicts;
pub use ladder::{Climbed, Ladder, ParseLadderError, Refusals};
pub use metrics::Metrics;

/// How traffic gets to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One table of nf_tables per family.
    Nftables,
    /// Own chains of x_tables.
    Iptables,
    /// Transparent sockets, to which nf_tables assigns packets as they are; no NAT.
    Tproxy,
    /// Virtual addresses become the node's own by routes, and listeners are bound to them; no netfilter.
    Local,
    /// Listeners are bound to the virtual addresses, which are loopback addresses; no rules at all.
    Loopback,
    /// Nothing is captured.
    None,
}

/// A word that names no capture mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no capture mode (auto, nftables, iptables, tproxy, local, loopback, none)")]
pub struct UnknownMode(pub String);

impl Mode {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Nftables,
        Self::Iptables,
        Self::Tproxy,
        Self::Local,
        Self::Loopback,
        Self::None,
    ];

    /// The mode of that name; `None` if there is none.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == name)
    }

    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Tproxy => "tproxy",
            Self::Local => "local",
            Self::Loopback => "loopback",
            Self::None => "none",
        }
    }
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        Self::parse(name).ok_or_else(|| UnknownMode(name.to_owned()))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The rules of one family in the kernel. Owned by whoever decides what they should be.
#[async_trait]
pub trait Capture: Send {
    /// The family it captures.
    fn family(&self) -> Family;

    /// Which mode it is.
    fn mode(&self) -> Mode;

    /// How captured traffic reaches listeners.
    fn arrival(&self) -> Arrival;

    /// Makes the kernel do exactly `rules`, whole. Works out the difference to what it applied last; the first call
    /// replaces whatever an earlier run left, in one transaction per table. UDP flows that the kernel would go on
    /// sending where nobody listens any more are forgotten, as far as the kernel allows.
    ///
    /// # Errors
    /// Nothing was changed, or it is not known what was; the next call replaces everything.
    async fn apply(&mut self, rules: &Rules) -> Result<(), CaptureError>;

    /// Checks that what was applied last is still there and complete; restores it in one transaction if not. True if
    /// it had to.
    ///
    /// # Errors
    /// The rules could not be read or restored.
    async fn reassert(&mut self) -> Result<bool, CaptureError>;

    /// Captures nothing new, and leaves established flows what they need to go on until [`Self::release`].
    ///
    /// # Errors
    /// New flows may still be captured.
    async fn drain(&mut self) -> Result<(), CaptureError> {
        self.apply(&Rules::translating(self.family())).await
    }

    /// Removes everything of ours in this family. Doing it twice is no error.
    ///
    /// # Errors
    /// Something of ours may be left.
    async fn release(&mut self) -> Result<(), CaptureError>;
}

/// Why the kernel does not do what we ask.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The tool is not there.
    #[error("`{tool}` is not installed; install it, or choose another --capture mode")]
    ToolMissing {
        /// Its name.
        tool: &'static str,
    },
    /// It could not be run.
    #[error("running `{tool}`: {source}")]
    Run {
        /// Its name.
        tool: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It did not end in time, for example because another program holds the lock of the firewall.
    #[error(
        "`{tool}` did not finish within {limit:?}; does another program hold the firewall's lock?"
    )]
    TimedOut {
        /// Its name.
        tool: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// It ended with an error: in the kernel's own words, and what to do about it.
    #[error("`{tool}` refused: {words}{remedy}")]
    Refused {
        /// Its name.
        tool: &'static str,
        /// What it wrote on standard error.
        words: String,
        /// What to do, beginning with "; "; empty if unknown.
        remedy: &'static str,
    },
}

/// Opens `mode` for `family` after checking that it can work here: the tool is present and rules of the needed kind
/// load. What other modes may have left stays; see [`remove_others`].
///
/// # Errors
/// The mode cannot work here: in the kernel's own words, with the remedy.
pub async fn open(
    mode: Mode,
    family: Family,
    metrics: &Metrics,
) -> Result<Box<dyn Capture>, CaptureError> {
    Ok(match mode {
        Mode::Nftables => {
            nftables::probe(family, Purpose::Translate).await?;
            Box::new(nftables::Nftables::new(family, metrics.clone()))
        }
        // It tries its tools to find those that work.
        Mode::Iptables => Box::new(iptables::Iptables::open(family, metrics.clone()).await?),
        Mode::Tproxy => {
            tproxy::probe(family).await?;
            Box::new(tproxy::Tproxy::new(family, metrics.clone()))
        }
        Mode::Local => {
            local::probe(family).await?;
            Box::new(local::Local::new(family))
        }
        Mode::Loopback | Mode::None => Box::new(passive::Passive::new(mode, family)),
    })
}

/// Removes what other modes than `mode` may have left of that family, as far as that is possible.
pub async fn remove_others(mode: Mode, family: Family) {
    let others = Mode::ALL.into_iter().filter(|other| match (mode, *other) {
        // Its addresses are routed as theirs are, and it removes those that it does not want itself.
        (Mode::Tproxy, Mode::Local) => false,
        // They have nothing to do with the kernel, and run beside those that do.
        (Mode::Loopback | Mode::None, _) => false,
        (_, other) => other != mode,
    });
    for other in others {
        // A mode that does not work here cannot have left anything that works, so this is no reason not to serve.
        if let Err(error) = remove(other, family).await {
            debug!(mode = %other, %family, %error, "nothing of another capture mode could be removed");
        }
    }
}

/// Checks that `mode` can work for `family`: what it needs is loaded for a moment, and nothing of it stays. Returns the
/// tool that it works by, where there are several.
///
/// # Errors
/// It cannot: in the kernel's own words, with the remedy.
pub async fn probe(mode: Mode, family: Family) -> Result<Option<String>, CaptureError> {
    match mode {
        Mode::Nftables => nftables::probe(family, Purpose::Translate).await?,
        Mode::Iptables => return iptables::probe(family).await.map(Some),
        Mode::Tproxy => tproxy::probe(family).await?,
        Mode::Local => local::probe(family).await?,
        Mode::Loopback | Mode::None => {}
    }
    Ok(None)
}

async fn remove(mode: Mode, family: Family) -> Result<(), CaptureError> {
    match mode {
        Mode::Nftables => nftables::remove(family, Purpose::Translate).await,
        Mode::Iptables => iptables::remove(family).await,
        Mode::Tproxy => tproxy::remove(family).await,
        Mode::Local => local::remove(family).await,
        Mode::Loopback | Mode::None => Ok(()),
    }
}

/// Removes what any mode may have left, in both families. Doing it twice is no error, nor is a mode that cannot work
/// here and so has left nothing.
///
/// # Errors
/// The first thing that could not be removed; everything else is.
pub async fn cleanup() -> Result<(), CaptureError> {
    let mut outcome = Ok(());
    for family in Family::BOTH {
        for mode in Mode::ALL {
            outcome = outcome.and(remove(mode, family).await);
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_parsed_by_the_names_they_print() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!("nft".parse::<Mode>(), Err(UnknownMode("nft".to_owned())));
    }
}
