//! Capture without netfilter: virtual addresses become the node's own (`local` routes on `lo`), and listeners are bound
//! to them.
//!
//! Every route carries [`PROTOCOL`], so what is ours is found again after a crash; no other route is touched. An address
//! that established connections still use keeps its route until they have ended.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use async_trait::async_trait;
use tracing::debug;

use crate::model::Family;
use crate::net::local_routes::LocalRoutes;
use crate::net::netlink::IpVersion;
use crate::net::socket_lists::tcp_addresses;

use super::plan::{Arrival, Rules};
use super::tool::refused_by_rtnetlink;
use super::{Capture, CaptureError, Mode};

/// The protocol number of our routes (`ip route show table local proto 86`): free in `rt_protos`, and a V.
pub(super) const PROTOCOL: u8 = 86;

/// What a probe makes local for a moment: reserved by RFC 1112 and RFC 6666, so nobody has them in use.
const PROBE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(240, 86, 86, 86)),
    IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0x86)),
];

/// One family's addresses. Owns what should be in the kernel.
pub(super) struct Local {
    family: Family,
    /// What was asked for last; `None` before the first time.
    wanted: Option<BTreeSet<IpAddr>>,
    /// What there are routes for, as far as is known.
    routed: BTreeSet<IpAddr>,
}

impl Local {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            wanted: None,
            routed: BTreeSet::new(),
        }
    }

    /// The addresses that applying `rules` would make the node's own.
    pub(super) fn lacks(&self, rules: &Rules) -> BTreeSet<IpAddr> {
        wanted(rules).difference(&self.routed).copied().collect()
    }

    /// Makes these the node's own besides.
    pub(super) async fn extend(&mut self, fresh: &BTreeSet<IpAddr>) -> Result<(), CaptureError> {
        let Some(wanted) = &mut self.wanted else {
            return Ok(());
        };
        wanted.extend(fresh);
        self.bring_about(Some(self.routed.clone())).await.map(drop)
    }

    // True if a route was missing.
    async fn bring_about(
        &mut self,
        routed: Option<BTreeSet<IpAddr>>,
    ) -> Result<bool, CaptureError> {
        let (family, wanted) = (self.family, self.wanted.clone().unwrap_or_default());
        let change = move || change(family, routed, &wanted);
        let (routed, missing) = blocking(change).await?;
        self.routed = routed;
        Ok(missing)
    }
}

#[async_trait]
impl Capture for Local {
    fn family(&self) -> Family {
        self.family
    }

    fn mode(&self) -> Mode {
        Mode::Local
    }

    fn arrival(&self) -> Arrival {
        Arrival::Direct
    }

    async fn apply(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        let known = self.wanted.replace(wanted(rules)).is_some();
        let routed = known.then(|| self.routed.clone());
        self.bring_about(routed).await.map(drop)
    }

    async fn reassert(&mut self) -> Result<bool, CaptureError> {
        if self.wanted.is_none() {
            return Ok(false);
        }
        self.bring_about(None).await
    }

    // Without its address a connection ends; nobody listens there any more, so new ones are refused.
    async fn drain(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    async fn release(&mut self) -> Result<(), CaptureError> {
        self.wanted = None;
        self.routed.clear();
        remove(self.family).await
    }
}

/// Makes an address local and takes it back.
pub(super) async fn probe(family: Family) -> Result<(), CaptureError> {
    blocking(move || {
        let routes = open(family)?;
        let probe = PROBE.into_iter().filter(|ip| Family::of(*ip) == family);
        for ip in probe {
            routes.add(ip)?;
            routes.remove(ip)?;
        }
        Ok(())
    })
    .await
}

/// Removes every route of ours of that family.
pub(super) async fn remove(family: Family) -> Result<(), CaptureError> {
    blocking(move || {
        let routes = open(family)?;
        routes
            .list()?
            .into_iter()
            .try_for_each(|ip| routes.remove(ip))
    })
    .await
}

fn wanted(rules: &Rules) -> BTreeSet<IpAddr> {
    let frontends = rules.redirects.keys().map(|frontend| frontend.ip);
    let others = frontends.filter(|ip| !rules.local_addresses.contains(ip) && !ip.is_loopback());
    others.collect()
}

// From what is `routed` (unknown: asked) to `wanted`. Returns what is routed then, and whether a wanted route was
// missing.
fn change(
    family: Family,
    routed: Option<BTreeSet<IpAddr>>,
    wanted: &BTreeSet<IpAddr>,
) -> io::Result<(BTreeSet<IpAddr>, bool)> {
    let routes = open(family)?;
    let mut routed = match routed {
        Some(routed) => routed,
        None => routes.list()?,
    };
    let missing: Vec<IpAddr> = wanted.difference(&routed).copied().collect();
    let mut was_missing = false;
    for ip in &missing {
        // Somebody else's route does as well, and is not listed among ours.
        was_missing |= routes.add(*ip)?;
        routed.insert(*ip);
    }
    let unwanted: Vec<IpAddr> = routed.difference(wanted).copied().collect();
    if !unwanted.is_empty() {
        let in_use = tcp_addresses(version(family)).unwrap_or_else(|error| {
            debug!(%family, %error, "connections cannot be listed; addresses go at once");
            BTreeSet::new()
        });
        for ip in unwanted.iter().filter(|ip| !in_use.contains(ip)) {
            routes.remove(*ip)?;
            routed.remove(ip);
        }
    }
    Ok((routed, was_missing))
}

fn open(family: Family) -> io::Result<LocalRoutes> {
    LocalRoutes::open(version(family), PROTOCOL)
}

fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

// The kernel answers in microseconds, but 10,000 times.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, CaptureError> {
    let outcome = match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(died) => Err(io::Error::other(died)),
    };
    outcome.map_err(|error| refused_by_rtnetlink(&error))
}
