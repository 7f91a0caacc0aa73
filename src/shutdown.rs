//! Shutdown: from signals to the two stages in which everything stops, and to requests to reload.
//!
//! It only says when. Who stops accepting, drains or aborts watches the tokens here; the order is `app`'s.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two stages: *begun*, when work in hand may still be finished, and *hurried*, when it may not. Neither is ever
/// taken back. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    begun: CancellationToken,
    hurried: CancellationToken,
}

impl Shutdown {
    /// Nothing has begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins an orderly end.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// Ends at once; begins too where nothing has begun.
    pub fn hurry(&self) {
        self.begun.cancel();
        self.hurried.cancel();
    }

    /// Cancelled when an orderly end begins. Children of it can be ended on their own.
    pub fn begun(&self) -> &CancellationToken {
        &self.begun
    }

    /// Cancelled when nothing may take time any more.
    pub fn hurried(&self) -> &CancellationToken {
        &self.hurried
    }

    /// Catches SIGTERM and SIGINT from now on; the future performs what they ask for: the first begins, the second
    /// hurries. It ends with the second.
    ///
    /// # Errors
    ///
    /// A handler could not be installed.
    pub fn signal(&self) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let this = self.clone();
        Ok(async move {
            let mut name = next_of(&mut terminate, &mut interrupt).await;
            tracing::info!(signal = name, "shutdown begins");
            this.begin();
            name = next_of(&mut terminate, &mut interrupt).await;
            tracing::info!(signal = name, "shutdown hurries");
            this.hurry();
        })
    }
}

/// SIGHUP as a series of requests to reload. Requests that come before the last one was looked at are one.
#[derive(Debug)]
pub struct Reloads(Signal);

impl Reloads {
    /// Catches SIGHUP from now on, which otherwise ends the process.
    ///
    /// # Errors
    ///
    /// The handler could not be installed.
    pub fn catch() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Waits for the next request. May be dropped and called again without losing one.
    pub async fn requested(&mut self) {
        // `None` would mean that the runtime is going away, which then drops this future too.
        while self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

async fn next_of(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        Some(()) = terminate.recv() => "SIGTERM",
        Some(()) = interrupt.recv() => "SIGINT",
        else => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal::*, raise};
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    // One test for all signals: they reach every receiver in the process.
    #[tokio::test]
    async fn the_first_signal_begins_the_second_hurries_and_hangup_only_reloads() {
        let shutdown = Shutdown::new();
        let mut reloads = Reloads::catch().unwrap();
        let task = tokio::spawn(shutdown.signal().unwrap());

        raise(SIGHUP).unwrap();
        timeout(PATIENCE, reloads.requested()).await.unwrap();
        assert!(!shutdown.begun().is_cancelled());

        raise(SIGTERM).unwrap();
        timeout(PATIENCE, shutdown.begun().cancelled())
            .await
            .unwrap();
        assert!(!shutdown.hurried().is_cancelled());

        raise(SIGINT).unwrap();
        timeout(PATIENCE, shutdown.hurried().cancelled())
            .await
            .unwrap();
        timeout(PATIENCE, task).await.unwrap().unwrap();
    }

    #[test]
    fn hurrying_begins_too_and_clones_share_the_stages() {
        let shutdown = Shutdown::new();
        let clone = shutdown.clone();
        clone.begin();
        assert!(shutdown.begun().is_cancelled() && !shutdown.hurried().is_cancelled());
        let shutdown = Shutdown::new();
        shutdown.clone().hurry();
        assert!(shutdown.begun().is_cancelled() && shutdown.hurried().is_cancelled());
    }
}
