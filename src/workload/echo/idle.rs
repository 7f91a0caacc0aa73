//! A stream that fails once nothing has moved on it for a while, whoever of the two ends is to blame.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::net::sockets::reset_on_close;

/// Fails with `TimedOut` when a read or a write has waited for `limit` since the last byte in either direction.
#[derive(Debug)]
pub(super) struct Idle<S: AsFd> {
    stream: S,
    limit: Duration,
    reset: ResetOnClose,
    alarm: Pin<Box<Sleep>>,
}

/// Makes a stream end by a reset, from wherever that is decided; its owner may be deep in a library.
#[derive(Clone, Debug, Default)]
pub(super) struct ResetOnClose(Arc<AtomicBool>);

impl ResetOnClose {
    /// It shall.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<S: AsFd> Idle<S> {
    /// The time begins now.
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            limit,
            reset: ResetOnClose::default(),
            alarm: Box::pin(tokio::time::sleep(limit)),
        }
    }

    /// Decides how it ends.
    pub(super) fn reset_on_close(&self) -> ResetOnClose {
        self.reset.clone()
    }

    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        moved: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            self.alarm.as_mut().reset(Instant::now() + self.limit);
            return moved;
        }
        ready!(self.alarm.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsFd> Drop for Idle<S> {
    fn drop(&mut self) {
        if self.reset.is_set() {
            reset_on_close(&self.stream);
        }
    }
}

impl<S: AsyncRead + AsFd + Unpin> AsyncRead for Idle<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watch(context, moved)
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Idle<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, moved)
    }

    // A socket flushes and shuts down without waiting, so these say nothing about whether bytes move.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.is_set() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
