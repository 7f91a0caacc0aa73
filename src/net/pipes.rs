//! Pipes as buffers in the kernel: `splice(2)` moves bytes from a socket into one and on to another socket, without a
//! copy to user space.
//!
//! Owns one pipe at a time. Pooling, and when to splice at all, is the relay's business.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, read};

/// A nonblocking pipe. Dropping it loses what is inside.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: u32,
}

impl Pipe {
    /// A pipe of about `wanted` bytes, or of what the kernel grants: past the quota `fs.pipe-user-pages-soft` a user
    /// without privileges gets pipes of two pages and may not enlarge them, so check [`Pipe::capacity`].
    ///
    /// # Errors
    /// Those of `pipe2(2)`, above all `EMFILE`.
    pub fn with_capacity(wanted: u32) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        let wanted = i32::try_from(wanted).unwrap_or(i32::MAX);
        let granted = match fcntl(&write, FcntlArg::F_SETPIPE_SZ(wanted)) {
            Ok(granted) => granted,
            Err(_refused) => fcntl(&write, FcntlArg::F_GETPIPE_SZ)?,
        };
        Ok(Self {
            read,
            write,
            capacity: u32::try_from(granted).unwrap_or(0),
        })
    }

    /// How many bytes it holds at most. Small segments fill it earlier: each occupies a page slot.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Moves bytes from `source` into this pipe. Only into an empty one: else `WouldBlock` could mean "source dry" as
    /// well as "pipe full". 0 = the source has ended.
    ///
    /// # Errors
    /// Those of `splice(2)`: `WouldBlock` if the source has nothing, the source's own error if it broke.
    pub fn fill(&self, source: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let len = usize::try_from(self.capacity).unwrap_or(usize::MAX);
        Ok(splice(source, None, &self.write, None, len, flags)?)
    }

    /// Moves up to `len` bytes of this pipe on to `sink`. No `SPLICE_F_MORE`: it corks the last piece for up to 200 ms.
    ///
    /// # Errors
    /// Those of `splice(2)`: `WouldBlock` if the sink is full.
    pub fn drain(&self, sink: impl AsFd, len: usize) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        Ok(splice(&self.read, None, sink, None, len, flags)?)
    }

    /// Reads `len` bytes back, for a sink that refuses to be spliced to.
    ///
    /// # Errors
    /// If fewer are inside.
    pub fn read_back(&self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match read(&self.read, &mut bytes[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => filled += n,
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_pass_through_and_the_end_shows_as_zero() {
        let (mut client, from) = UnixStream::pair().unwrap();
        let (to, mut server) = UnixStream::pair().unwrap();
        let pipe = Pipe::with_capacity(64 * 1024).unwrap();
        assert_eq!(pipe.capacity(), 64 * 1024);

        client.write_all(b"hello").unwrap();
        assert_eq!(pipe.fill(&from).unwrap(), 5);
        assert_eq!(pipe.drain(&to, 5).unwrap(), 5);
        let mut got = [0; 5];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");

        drop(client);
        assert_eq!(pipe.fill(&from).unwrap(), 0);
    }

    #[test]
    fn what_cannot_be_drained_can_be_read_back() {
        let (mut client, from) = UnixStream::pair().unwrap();
        let pipe = Pipe::with_capacity(4096).unwrap();
        client.write_all(b"hello").unwrap();
        assert_eq!(pipe.fill(&from).unwrap(), 5);
        assert_eq!(pipe.read_back(5).unwrap(), b"hello");
        assert_eq!(
            pipe.read_back(1).unwrap_err().kind(),
            io::ErrorKind::WouldBlock,
            "and then it is empty"
        );
    }
}
