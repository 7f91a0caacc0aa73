//! The short way for a change of few elements: straight to the kernel, over a socket that stays open.
//!
//! A run of `nft` takes some milliseconds whatever it does, and several more where it takes something out. What cannot go
//! this way, goes by `nft`.

use std::io;

use crate::model::Family;
use crate::net::netlink::IpVersion;
use crate::net::nf_tables::{CommitError, Edit, Transactions};

use super::render::Table;

/// Owns the socket, from its first use to the first error.
#[derive(Default)]
pub(super) struct Shortcut(Option<Transactions>);

impl Shortcut {
    /// Carries out `edits` of `table`, all or none.
    ///
    /// # Errors
    /// It may not be known whether they were; the next time begins with a new socket.
    pub(super) async fn commit(
        &mut self,
        table: Table,
        edits: Vec<Edit>,
    ) -> Result<(), CommitError> {
        let version = match table.family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let opened = self.0.take();
        // The kernel takes its time where another transaction is in progress.
        let work = move || {
            let transactions = opened.map_or_else(Transactions::open, Ok)?;
            transactions.commit(version, table.name(), edits)?;
            Ok::<_, CommitError>(transactions)
        };
        let finished = tokio::task::spawn_blocking(work).await;
        let committed = finished.unwrap_or_else(|died| Err(io::Error::other(died).into()));
        self.0 = Some(committed?);
        Ok(())
    }
}
