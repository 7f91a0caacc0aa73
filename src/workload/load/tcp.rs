//! Requests over TCP: a line and its answer, on a kept connection or on a new one each.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::TcpWork;
use super::client::{Answer, connect, failure_of};
use super::pattern::{Echo, fill, judge};
use super::tally::Failure;

/// How much longer than the request an answer may be: the name before it.
const MAX_NAME: usize = 1024;

/// One connection at a time.
#[derive(Debug)]
pub(super) struct TcpClient {
    work: TcpWork,
    origin: Option<SocketAddr>,
    stream: Option<TcpStream>,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl TcpClient {
    pub(super) fn new(work: TcpWork, origin: Option<SocketAddr>) -> Self {
        Self {
            work,
            origin,
            stream: None,
            request: Vec::new(),
            answer: Vec::new(),
        }
    }

    /// Dropped half way, it leaves no connection behind: an answer that comes late is nobody's.
    pub(super) async fn exchange(&mut self, number: u64) -> Result<Answer<'_>, Failure> {
        fill(&mut self.request, number, self.work.request_size, true);
        self.answer.clear();
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.work.target, self.origin).await?,
        };
        let failed = |error| failure_of(&error);
        stream.write_all(&self.request).await.map_err(failed)?;
        while !self.is_whole()? {
            let n = stream.read_buf(&mut self.answer).await.map_err(failed)?;
            if n == 0 {
                return Err(Failure::Closed);
            }
        }
        if self.work.keep {
            self.stream = Some(stream);
        }
        Ok(Answer {
            sent: self.request.len(),
            received: self.answer.len(),
            backend: self.backend()?,
        })
    }

    // An answer that runs over its end is none of ours.
    fn is_whole(&self) -> Result<bool, Failure> {
        let n = self.answer.len();
        match self.work.response_size {
            Some(size) if n > size => Err(Failure::Mismatch),
            Some(size) => Ok(n == size),
            None if n > self.request.len() + MAX_NAME => Err(Failure::Mismatch),
            None => Ok(self.answer.ends_with(b"\n")),
        }
    }

    fn backend(&self) -> Result<Option<&str>, Failure> {
        if self.work.response_size.is_some() {
            return Ok(None);
        }
        match judge(&self.answer, &self.request) {
            Echo::From(name) => Ok(Some(name)),
            Echo::Plain => Ok(None),
            Echo::Other => Err(Failure::Mismatch),
        }
    }
}
