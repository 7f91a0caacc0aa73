//! Capture without NAT: packets are assigned to transparent sockets as they are (TPROXY), marked, and kept here by a policy
//! route.
//!
//! The table is that of `nftables` in another layout. Addresses with UDP frontends become local besides, as in `local`:
//! the kernel says "port unreachable" only from an address that it takes for its own. Connection tracking is not needed,
//! so none of its flows need be forgotten.

use std::io;

use async_trait::async_trait;

use crate::model::{Family, Protocol};
use crate::net::netlink::IpVersion;
use crate::net::policy_route::PolicyRoute;

use super::local::Local;
use super::nftables::{self, Loaded, MARK, Purpose};
use super::plan::{Arrival, Rules};
use super::tool::refused_by_rtnetlink;
use super::{Capture, CaptureError, Metrics, Mode};

/// The routing table, and the rule's place: after the kernel's own and those of most network plugins, before `main`.
const TABLE: u32 = 8600;

/// One family's table and routes.
pub(super) struct Tproxy {
    family: Family,
    table: Loaded,
    local: Local,
    metrics: Metrics,
}

impl Tproxy {
    pub(super) fn new(family: Family, metrics: Metrics) -> Self {
        metrics.has_table(family);
        Self {
            family,
            table: Loaded::new(family, Purpose::Divert),
            local: Local::new(family),
            metrics,
        }
    }
}

#[async_trait]
impl Capture for Tproxy {
    fn family(&self) -> Family {
        self.family
    }

    fn mode(&self) -> Mode {
        Mode::Tproxy
    }

    fn arrival(&self) -> Arrival {
        Arrival::Diverted
    }

    async fn apply(&mut self, rules: &Rules) -> Result<(), CaptureError> {
        let datagrams = datagrams(rules);
        if self.table.is_known() {
            // The node calls an address that is its own from another one, so it becomes that before it is captured; in
            // between, a connection to it would be refused.
            let fresh = self.local.lacks(&datagrams);
            if !fresh.is_empty() {
                let early = rules.redirects.keys();
                let early = early.filter(|frontend| fresh.contains(&frontend.ip));
                self.table.silence(early).await?;
                self.local.extend(&fresh).await?;
            }
        } else {
            on_route(self.family, PolicyRoute::add)?;
        }
        let changed = self.table.change(rules).await;
        changed.inspect_err(|_| self.metrics.table_refused(self.family))?;
        self.local.apply(&datagrams).await
    }

    async fn reassert(&mut self) -> Result<bool, CaptureError> {
        if !self.table.is_known() {
            return Ok(false);
        }
        let routed = on_route(self.family, PolicyRoute::is_there)?;
        if !routed {
            on_route(self.family, PolicyRoute::add)?;
        }
        let tabled = self.table.reassert().await;
        let tabled = tabled.inspect_err(|_| self.metrics.table_refused(self.family))?;
        let local = self.local.reassert().await?;
        Ok(!routed || tabled || local)
    }

    // Connections belong to their sockets, which are still found.
    async fn drain(&mut self) -> Result<(), CaptureError> {
        self.table.change(&Rules::none(self.family)).await
    }

    async fn release(&mut self) -> Result<(), CaptureError> {
        let tabled = self.table.release().await;
        let local = self.local.release().await;
        tabled
            .and(local)
            .and(on_route(self.family, PolicyRoute::remove))
    }
}

fn datagrams(rules: &Rules) -> Rules {
    let redirects = rules.redirects.iter();
    let redirects = redirects.filter(|(frontend, _)| frontend.protocol == Protocol::Udp);
    Rules {
        redirects: redirects
            .map(|(frontend, port)| (*frontend, *port))
            .collect(),
        ..rules.clone()
    }
}

/// Loads a table like ours, makes the policy route under another mark, and takes both back.
pub(super) async fn probe(family: Family) -> Result<(), CaptureError> {
    nftables::probe(family, Purpose::Divert).await?;
    super::local::probe(family).await?;
    let probe = |route: PolicyRoute| PolicyRoute {
        mark: MARK << 1,
        table: TABLE + 1,
        ..route
    };
    on_route(family, |route| {
        let added = probe(route).add();
        added.and(probe(route).remove())
    })
}

/// Removes the table and the policy route of that family.
pub(super) async fn remove(family: Family) -> Result<(), CaptureError> {
    let tabled = nftables::remove(family, Purpose::Divert).await;
    tabled.and(on_route(family, PolicyRoute::remove))
}

// Not on another thread: the kernel answers in microseconds.
fn on_route<T>(
    family: Family,
    work: impl FnOnce(PolicyRoute) -> io::Result<T>,
) -> Result<T, CaptureError> {
    let route = PolicyRoute {
        version: match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        },
        mark: MARK,
        table: TABLE,
        protocol: super::local::PROTOCOL,
    };
    work(route).map_err(|error| refused_by_rtnetlink(&error))
}
