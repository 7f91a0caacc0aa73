//! The body of an answer, with bounds: on its length or on the length of its lines, and on how long it may take.
//!
//! Without them a server, or whatever answers in its place, could fill our memory with one answer, or hold up a list
//! for ever with a byte now and then. Bytes pass as they are.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame};
use kube::client::Body as KubeBody;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::BoxError;

/// What an answer may come to.
pub(super) struct Bound {
    /// Bytes of it, or of each of its lines.
    pub(super) bytes: usize,
    /// Whether it is a stream of lines.
    pub(super) per_line: bool,
    /// When it has to be over.
    pub(super) until: Instant,
}

/// Who is told that an answer was not over in time.
pub(super) type OnStall = Box<dyn Fn() + Send>;

/// Why an answer is cut off.
#[derive(Debug, thiserror::Error)]
pub(super) enum CutOff {
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
    #[error("the answer takes too long")]
    TooSlow,
}

/// A body within its bound.
pub(super) struct BoundedBody {
    body: KubeBody,
    count: usize,
    bytes: usize,
    per_line: bool,
    until: Pin<Box<Sleep>>,
    on_stall: OnStall,
}

impl BoundedBody {
    pub(super) fn new(body: KubeBody, bound: Bound, on_stall: OnStall) -> Self {
        Self {
            body,
            count: 0,
            bytes: bound.bytes,
            per_line: bound.per_line,
            until: Box::pin(sleep_until(bound.until)),
            on_stall,
        }
    }

    fn admit(&mut self, data: &[u8]) -> Result<(), CutOff> {
        let last_line = data.iter().rposition(|byte| *byte == b'\n');
        let (count, longest) = match last_line.filter(|_| self.per_line) {
            None => (self.count + data.len(), self.count + data.len()),
            Some(end) => {
                let rest = data.len() - end - 1;
                // Lines that begin and end in one frame cost no more than the frame, which is short.
                let first = data.iter().position(|byte| *byte == b'\n').unwrap_or(end);
                (rest, rest.max(self.count + first))
            }
        };
        self.count = count;
        if longest > self.bytes {
            return Err(CutOff::TooLong(self.bytes));
        }
        Ok(())
    }
}

impl Body for BoundedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.until.as_mut().poll(cx).is_ready() {
            (this.on_stall)();
            return Poll::Ready(Some(Err(CutOff::TooSlow.into())));
        }
        let frame = match pin!(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => return Poll::Pending,
        };
        let admitted = frame.data_ref().map_or(Ok(()), |data| this.admit(data));
        Poll::Ready(Some(admitted.map(|()| frame).map_err(Into::into)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use http_body_util::BodyExt;

    use super::*;

    async fn read(text: &str, bound: Bound) -> (Result<String, String>, bool) {
        let body = KubeBody::from(text.as_bytes().to_vec());
        let told = Arc::new(AtomicBool::new(false));
        let note = Arc::clone(&told);
        let on_stall = Box::new(move || note.store(true, Ordering::Relaxed));
        let read = BoundedBody::new(body, bound, on_stall).collect().await;
        let read = read.map_err(|error| error.to_string());
        let read = read.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        (read, told.load(Ordering::Relaxed))
    }

    fn bound(seconds: i64) -> Bound {
        let (now, off) = (Instant::now(), Duration::from_secs(seconds.unsigned_abs()));
        Bound {
            bytes: 4,
            per_line: false,
            until: if seconds < 0 { now - off } else { now + off },
        }
    }

    #[tokio::test]
    async fn a_whole_answer_ends_at_its_bound() {
        assert_eq!(
            read("1\n34", bound(3600)).await,
            (Ok("1\n34".to_owned()), false)
        );
        let (refused, stalled) = read("1\n345", bound(3600)).await;
        assert_eq!(refused.unwrap_err(), "the answer has more than 4 bytes");
        assert!(!stalled);
    }

    #[tokio::test]
    async fn time_ends_it_too_and_somebody_is_told() {
        let (refused, stalled) = read("1", bound(-1)).await;
        assert_eq!(refused.unwrap_err(), "the answer takes too long");
        assert!(stalled);
    }

    #[tokio::test]
    async fn a_stream_may_go_on_as_long_as_its_lines_end() {
        let lines = Bound {
            per_line: true,
            ..bound(3600)
        };
        let mut body = BoundedBody::new(KubeBody::empty(), lines, Box::new(|| {}));
        for part in ["1234\n12", "34", "\n\n", "1234\n"] {
            body.admit(part.as_bytes()).unwrap();
        }
        body.admit(b"12").unwrap();
        assert!(body.admit(b"345").is_err());
    }
}
