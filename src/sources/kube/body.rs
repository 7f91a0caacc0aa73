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
pub(super) enum Bound {
    /// A whole answer: so many bytes, by then.
    Whole { bytes: usize, until: Instant },
    /// A stream without end, of lines of so many bytes.
    Lines { bytes: usize },
}

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
    lines: bool,
    until: Option<Pin<Box<Sleep>>>,
}

impl BoundedBody {
    pub(super) fn new(body: KubeBody, bound: Bound) -> Self {
        let (bytes, lines, until) = match bound {
            Bound::Whole { bytes, until } => (bytes, false, Some(Box::pin(sleep_until(until)))),
            Bound::Lines { bytes } => (bytes, true, None),
        };
        Self {
            body,
            count: 0,
            bytes,
            lines,
            until,
        }
    }

    fn admit(&mut self, data: &[u8]) -> Result<(), CutOff> {
        let last_line = data.iter().rposition(|byte| *byte == b'\n');
        let (count, longest) = match last_line.filter(|_| self.lines) {
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
        if let Some(until) = &mut this.until
            && until.as_mut().poll(cx).is_ready()
        {
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
    use std::time::Duration;

    use http_body_util::BodyExt;

    use super::*;

    async fn read(text: &str, bound: Bound) -> Result<String, String> {
        let body = BoundedBody::new(KubeBody::from(text.as_bytes().to_vec()), bound);
        let bytes = body.collect().await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&bytes.to_bytes()).into_owned())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[tokio::test]
    async fn a_whole_answer_ends_at_its_bound() {
        let bound = || Bound::Whole {
            bytes: 4,
            until: soon(),
        };
        assert_eq!(read("1\n34", bound()).await.unwrap(), "1\n34");
        assert_eq!(
            read("1\n345", bound()).await.unwrap_err(),
            "the answer has more than 4 bytes"
        );
    }

    #[tokio::test]
    async fn time_ends_it_too() {
        let bound = Bound::Whole {
            bytes: 4,
            until: Instant::now() - Duration::from_secs(1),
        };
        assert_eq!(
            read("1", bound).await.unwrap_err(),
            "the answer takes too long"
        );
    }

    #[test]
    fn a_stream_may_go_on_as_long_as_its_lines_end() {
        let mut body = BoundedBody::new(KubeBody::empty(), Bound::Lines { bytes: 4 });
        for part in ["1234\n12", "34", "\n\n", "1234\n"] {
            body.admit(part.as_bytes()).unwrap();
        }
        body.admit(b"12").unwrap();
        assert!(body.admit(b"345").is_err());
    }
}
