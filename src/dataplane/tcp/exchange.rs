//! Both directions of a TCP flow together: what an end or a break of one means for the other. Pure, like
//! [`Direction`].
//!
//! | what happens | what follows |
//! | --- | --- |
//! | a side ends (FIN) | the other side is told once it has everything; its own direction stays open |
//! | both have ended | finished: closing both sockets sends what FIN is missing |
//! | reading from a side fails (RST) | the other side is reset |
//! | writing to a side fails | what it sent before is still delivered, then the other side is reset |

use super::direction::{Broken, Direction, Path, Progress};

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Backend,
}

impl Side {
    /// The side it talks to.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

/// Whether the sink of a direction is told when its source has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndOfStream {
    Announce,
    /// The sockets are closed or reset right afterwards, which tells it.
    Keep,
}

/// The two ends, as the directions between them use them.
pub(super) trait Ends {
    /// A buffer in the kernel.
    type Pipe;
    /// One direction's use of the ends.
    type Path<'a>: Path<Pipe = Self::Pipe>
    where
        Self: 'a;

    /// The direction that reads from `source`.
    fn path(&mut self, source: Side, end: EndOfStream) -> Self::Path<'_>;
}

/// How a flow stands after a pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Both directions wait for the kernel; the task will be woken.
    Blocked,
    /// There is more to do when others had their turn.
    Yield,
    /// Both directions have ended orderly.
    Finished,
    /// That side broke; the other must be reset.
    Reset(Side),
}

/// A flow's state.
#[derive(Debug)]
pub(super) struct Exchange<P> {
    to_backend: Direction<P>,
    to_client: Direction<P>,
    // The side that takes nothing any more, because writing to it failed.
    deaf: Option<Side>,
}

impl<P> Exchange<P> {
    pub(super) fn new() -> Self {
        Self {
            to_backend: Direction::new(),
            to_client: Direction::new(),
            deaf: None,
        }
    }

    /// Bytes delivered so far: to the backend, to the client.
    pub(super) fn moved(&self) -> (u64, u64) {
        (self.to_backend.moved(), self.to_client.moved())
    }

    /// Whether nothing is being read from that side: it has ended, or the other side is stalled. A reset of it would
    /// go unnoticed.
    pub(super) fn is_unread(&self, side: Side) -> bool {
        let direction = match side {
            Side::Client => &self.to_backend,
            Side::Backend => &self.to_client,
        };
        direction.is_done() || direction.is_stalled()
    }

    /// Moves what can be moved in both directions.
    pub(super) fn pump(&mut self, ends: &mut impl Ends<Pipe = P>, buffer: &mut [u8]) -> Outcome {
        let mut yielded = false;
        for source in [Side::Client, Side::Backend] {
            match self.pump_from(source, ends, buffer) {
                Ok(Progress::Yield) => yielded = true,
                Ok(Progress::Blocked | Progress::Done) => {}
                Err(side) => return Outcome::Reset(side),
            }
        }
        // The second direction may have found out that the side which the first one reads from is deaf.
        if let Some(deaf) = self.deaf
            && self.from(deaf).is_done()
        {
            Outcome::Reset(deaf)
        } else if self.to_backend.is_done() && self.to_client.is_done() {
            Outcome::Finished
        } else if yielded {
            Outcome::Yield
        } else {
            Outcome::Blocked
        }
    }

    // Pumps the direction that reads from `source`; an error is the side that broke.
    fn pump_from(
        &mut self,
        source: Side,
        ends: &mut impl Ends<Pipe = P>,
        buffer: &mut [u8],
    ) -> Result<Progress, Side> {
        let sink = source.other();
        if self.deaf == Some(sink) {
            return Ok(Progress::Done);
        }
        let end = if self.from(sink).is_done() || self.deaf == Some(source) {
            EndOfStream::Keep
        } else {
            EndOfStream::Announce
        };
        let mut path = ends.path(source, end);
        match self.from(source).pump(&mut path, buffer) {
            Ok(progress) => Ok(progress),
            Err(Broken::Source(error)) => {
                tracing::debug!(side = ?source, %error, "read failed");
                Err(source)
            }
            Err(Broken::Sink(error)) => {
                tracing::debug!(side = ?sink, %error, "write failed");
                if self.deaf.is_some() {
                    return Err(sink);
                }
                self.deaf = Some(sink);
                // Nothing is told of the end of a direction that was cut off, so it does not count as done.
                Ok(Progress::Blocked)
            }
        }
    }

    fn from(&mut self, side: Side) -> &mut Direction<P> {
        match side {
            Side::Client => &mut self.to_backend,
            Side::Backend => &mut self.to_client,
        }
    }
}
