//! One direction of a TCP flow: how bytes get from a source to a sink, and when to copy and when to splice. Pure: no
//! sockets, no reactor, no clock; [`Path`] does the system calls.
//!
//! ```text
//!            small or mixed: copy through the thread's buffer
//!  source ──────────────────────────────────────────────────► sink
//!            bulk: splice through a pooled pipe, held only while bytes are in it
//! ```
//!
//! Two full reads in a row or a write that would block make a direction bulk; a chunk under 4 KiB makes it small
//! again. What a blocked sink has not taken is all that is ever kept, and nothing more is read until it has: that is
//! the back-pressure.

use std::io;

/// How much one pump moves at most before others get their turn: 512 KiB, some 100 µs of work.
const BUDGET: usize = 512 * 1024;

/// A chunk below this costs less to copy than to splice.
const WORTH_SPLICING: usize = 4 * 1024;

/// Full reads in a row after which a direction counts as bulk.
const FULL_READS: u8 = 2;

/// What a direction asks of the kernel. Nothing blocks: `WouldBlock` means that the task is woken when it is worth
/// another try.
pub(super) trait Path {
    /// A buffer in the kernel.
    type Pipe;

    /// Reads from the source; 0 = it has ended.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize>;
    /// Writes to the sink.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Tells the sink that nothing more comes.
    fn finish(&mut self) -> io::Result<()>;
    /// An empty pipe; `None` if none is to be had now.
    fn take_pipe(&mut self) -> Option<Self::Pipe>;
    /// Gives an empty pipe back.
    fn return_pipe(&mut self, pipe: Self::Pipe);
    /// Moves bytes from the source into an empty pipe; 0 = the source has ended.
    fn fill(&mut self, pipe: &Self::Pipe) -> io::Result<usize>;
    /// Moves up to `len` bytes from the pipe to the sink.
    fn drain(&mut self, pipe: &Self::Pipe, len: usize) -> io::Result<usize>;
    /// Reads the last `len` bytes back out of a pipe.
    fn read_back(&mut self, pipe: &Self::Pipe, len: usize) -> io::Result<Vec<u8>>;
}

/// How far a pump got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// As far as source and sink allow; the task will be woken.
    Blocked,
    /// As far as its budget allows: pump again when others had their turn.
    Yield,
    /// To the end: the source has ended and the sink has everything, the end included.
    Done,
}

/// Which end broke, and how. What had not been delivered is lost, so this must become a reset, never an end.
#[derive(Debug)]
pub(super) enum Broken {
    /// Reading failed.
    Source(io::Error),
    /// Writing failed.
    Sink(io::Error),
}

/// The state of one direction.
#[derive(Debug)]
pub(super) struct Direction<P> {
    held: Held<P>,
    gait: Gait,
    source_ended: bool,
    done: bool,
    moved: u64,
}

/// Bytes taken from the source that the sink has not taken yet.
#[derive(Debug)]
enum Held<P> {
    Nothing,
    Rest { bytes: Box<[u8]>, sent: usize },
    Pipe { pipe: P, len: usize },
}

/// How bytes are moved at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gait {
    Copy {
        full_reads: u8,
    },
    Splice,
    /// Splicing has been refused: by the kernel's build, a sandbox, or the kind of socket.
    CopyForGood,
}

impl<P> Direction<P> {
    pub(super) fn new() -> Self {
        Self {
            held: Held::Nothing,
            gait: Gait::Copy { full_reads: 0 },
            source_ended: false,
            done: false,
            moved: 0,
        }
    }

    /// Bytes delivered to the sink so far.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether everything, the end included, has been delivered.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether it holds bytes that the sink has not taken: it reads nothing before that.
    pub(super) fn is_stalled(&self) -> bool {
        !matches!(self.held, Held::Nothing)
    }

    /// Moves what can be moved; `buffer` is scratch space shared with other flows.
    pub(super) fn pump(
        &mut self,
        path: &mut impl Path<Pipe = P>,
        buffer: &mut [u8],
    ) -> Result<Progress, Broken> {
        let limit = self.moved.saturating_add(BUDGET as u64);
        while !self.done {
            match self.deliver(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Blocked);
                }
                Err(error) => return Err(Broken::Sink(error)),
            }
            if self.source_ended {
                path.finish().map_err(Broken::Sink)?;
                self.done = true;
            } else if self.moved >= limit {
                return Ok(Progress::Yield);
            } else {
                match self.take(path, buffer) {
                    Ok(()) => {}
                    Err(Broken::Source(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Progress::Blocked);
                    }
                    Err(broken) => return Err(broken),
                }
            }
        }
        Ok(Progress::Done)
    }

    // Hands the sink what is held, until nothing is.
    fn deliver(&mut self, path: &mut impl Path<Pipe = P>) -> io::Result<()> {
        loop {
            match &mut self.held {
                Held::Nothing => return Ok(()),
                Held::Rest { bytes, sent } => {
                    let n = accepted(path.write(&bytes[*sent..])?)?;
                    self.moved += n as u64;
                    *sent += n;
                    if *sent == bytes.len() {
                        self.held = Held::Nothing;
                    }
                }
                Held::Pipe { pipe, len } => match path.drain(pipe, *len) {
                    Ok(n) => {
                        let n = accepted(n)?;
                        self.moved += n as u64;
                        *len -= n;
                        if *len == 0
                            && let Held::Pipe { pipe, .. } =
                                std::mem::replace(&mut self.held, Held::Nothing)
                        {
                            path.return_pipe(pipe);
                        }
                    }
                    Err(error) if is_refusal(&error) => {
                        self.gait = Gait::CopyForGood;
                        let bytes = path.read_back(pipe, *len)?.into_boxed_slice();
                        self.held = Held::Rest { bytes, sent: 0 };
                    }
                    Err(error) => return Err(error),
                },
            }
        }
    }

    // Takes one chunk from the source. Nothing is held before.
    fn take(&mut self, path: &mut impl Path<Pipe = P>, buffer: &mut [u8]) -> Result<(), Broken> {
        match self.gait {
            Gait::Copy { .. } | Gait::CopyForGood => self.copy(path, buffer),
            Gait::Splice => self.splice(path).map_err(Broken::Source),
        }
    }

    fn copy(&mut self, path: &mut impl Path<Pipe = P>, buffer: &mut [u8]) -> Result<(), Broken> {
        let n = path.read(buffer).map_err(Broken::Source)?;
        if n == 0 {
            self.source_ended = true;
            return Ok(());
        }
        let sent = match path.write(&buffer[..n]) {
            Ok(sent) => accepted(sent).map_err(Broken::Sink)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(Broken::Sink(error)),
        };
        self.moved += sent as u64;
        if sent < n {
            let bytes = buffer[sent..n].into();
            self.held = Held::Rest { bytes, sent: 0 };
        }
        if let Gait::Copy { full_reads } = &mut self.gait {
            *full_reads = if n == buffer.len() {
                *full_reads + 1
            } else {
                0
            };
            if *full_reads == FULL_READS || sent < n {
                self.gait = Gait::Splice;
            }
        }
        Ok(())
    }

    fn splice(&mut self, path: &mut impl Path<Pipe = P>) -> io::Result<()> {
        let Some(pipe) = path.take_pipe() else {
            self.gait = Gait::Copy { full_reads: 0 };
            return Ok(());
        };
        match path.fill(&pipe) {
            Ok(0) => {
                path.return_pipe(pipe);
                self.source_ended = true;
            }
            Ok(len) => {
                if len < WORTH_SPLICING {
                    self.gait = Gait::Copy { full_reads: 0 };
                }
                self.held = Held::Pipe { pipe, len };
            }
            Err(error) => {
                path.return_pipe(pipe);
                if !is_refusal(&error) {
                    return Err(error);
                }
                self.gait = Gait::CopyForGood;
            }
        }
        Ok(())
    }
}

// A sink that takes none of some bytes, without saying why, would have us spin.
fn accepted(n: usize) -> io::Result<usize> {
    if n == 0 {
        Err(io::ErrorKind::WriteZero.into())
    } else {
        Ok(n)
    }
}

// Errors by which `splice(2)` itself is refused, as opposed to an end that broke.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
    )
}
