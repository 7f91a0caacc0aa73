//! Where the health and metrics servers listen, and what becomes of an address that is taken.
//!
//! `dev` goes to the next free port. `run` serves without, tells so and tries again; or, if it was told to, ends. Source:
//! kube-proxy's `--bind-address-hard-fail`.

use std::io;
use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::TcpListener;

use crate::admin::{self, HealthServer, MetricsServer};
use crate::config::Config;
use crate::sources::kube::{Notice, Notices};

use super::Part;

/// How far from a taken port `dev` looks for the next free one.
pub(super) const NEXT_FREE: u16 = 100;

/// The address of a server, and its socket unless the address is taken.
pub(super) struct Place {
    address: SocketAddr,
    listener: io::Result<TcpListener>,
}

impl Place {
    /// Binds the address that `flag` names, if there is one.
    ///
    /// # Errors
    ///
    /// It is taken, and `--bind-address-hard-fail` is set.
    pub(super) async fn bind(
        flag: &str,
        address: Option<SocketAddr>,
        config: &Config,
    ) -> anyhow::Result<Option<Self>> {
        let Some(address) = address else {
            return Ok(None);
        };
        let mut place = Self::at(address).await;
        let tries = if config.dev { NEXT_FREE } else { 0 };
        for offset in 1..=tries {
            if place.listener.is_ok() {
                break;
            }
            place = Self::at(shifted(address, offset)).await;
        }
        match place.listener {
            Err(error) if config.bind_address_hard_fail => Err(error).with_context(|| {
                format!("--{flag} {address}, which --bind-address-hard-fail makes necessary")
            }),
            listener => Ok(Some(Self { listener, ..place })),
        }
    }

    async fn at(address: SocketAddr) -> Self {
        let listener = admin::bind(address).await;
        let bound = listener.as_ref().ok().and_then(|l| l.local_addr().ok());
        let port = bound.map_or(address.port(), |bound| bound.port());
        Self {
            address: SocketAddr::new(address.ip(), port),
            listener,
        }
    }

    /// Serves health there. Returns the address.
    pub(super) fn serve_health(
        self,
        server: HealthServer,
        part: &Part,
        notices: &Notices,
    ) -> SocketAddr {
        self.tell(notices, Notice::health_server);
        let listener = self.listener.ok();
        let serving = admin::serve_health(server, self.address, listener, part.stop.clone());
        part.tasks.spawn(serving);
        self.address
    }

    /// Serves metrics there. Returns the address.
    pub(super) fn serve_metrics(
        self,
        server: MetricsServer,
        part: &Part,
        notices: &Notices,
    ) -> SocketAddr {
        self.tell(notices, Notice::metrics_server);
        let listener = self.listener.ok();
        let serving = admin::serve_metrics(server, self.address, listener, part.stop.clone());
        part.tasks.spawn(serving);
        self.address
    }

    fn tell(&self, notices: &Notices, notice: fn(String) -> Notice) {
        if let Err(error) = &self.listener {
            let address = self.address;
            notices.tell(notice(format!(
                "{address} cannot be listened on: {error}; it is tried again"
            )));
        }
    }
}

/// The address so many ports further.
pub(super) fn shifted(address: SocketAddr, offset: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port().saturating_add(offset))
}
