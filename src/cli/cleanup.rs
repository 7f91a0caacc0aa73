//! `viaduct cleanup`: removes what any capture mode may have left in the kernel.

use anyhow::Context;
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct Cleanup {}

impl Cleanup {
    // Everything owned is recognised by its names; foreign rules stay. Doing it twice is no error.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        crate::capture::cleanup()
            .await
            .context("removing our rules")?;
        crate::net::local_addresses::remove_leftovers()
            .context("removing our addresses from the loopback interface")?;
        Ok(())
    }
}
