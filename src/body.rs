//! Bodies as they pass: one enum either way, no box per frame.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::domain::secret_guard::{Scan, SecretFound};
use crate::time::{Instant, sleep_until};

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection it came from failed.
    #[error("the connection broke")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
    /// Nothing came for too long.
    #[error("the body was silent for too long")]
    Silent,
    /// More came than is allowed.
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    /// It held our secret.
    #[error("the body held a secret of this proxy")]
    Secret,
}

impl From<SecretFound> for BodyError {
    fn from(SecretFound: SecretFound) -> Self {
        Self::Secret
    }
}

// ---- from the caller ----

/// A request's body.
#[derive(Debug, Default)]
pub enum RequestBody {
    /// None.
    #[default]
    Empty,
    /// Held whole, so that it can be sent again.
    Held(Bytes),
    /// As it comes.
    Streaming(Box<Inbound>),
}

impl RequestBody {
    /// A second copy, where one can be made.
    pub fn replay(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Held(bytes) => Some(Self::Held(bytes.clone())),
            Self::Streaming(_) => None,
        }
    }
}

/// How a caller's body broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadFault {
    /// More came than so many bytes.
    TooLarge(u64),
    /// Nothing came for too long.
    Silent,
    /// The caller has left.
    Broken,
}

impl UploadFault {
    /// What an error says of the body it came from.
    pub fn of(error: &BodyError) -> Self {
        match error {
            BodyError::TooLarge(limit) => Self::TooLarge(*limit),
            BodyError::Silent => Self::Silent,
            BodyError::Broken(_) | BodyError::Secret => Self::Broken,
        }
    }
}

/// How far a caller's body is.
#[derive(Debug, Default)]
pub struct Upload {
    whole: AtomicBool,
    broke: OnceLock<UploadFault>,
}

impl Upload {
    /// Whether the caller has sent all of it.
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }

    /// How it broke, where it did.
    pub fn broke(&self) -> Option<UploadFault> {
        self.broke.get().copied()
    }
}

/// A caller's body as it comes, bounded in size and in silence.
#[derive(Debug)]
pub struct Inbound {
    body: Incoming,
    /// Read before, and put back.
    unread: Bytes,
    left: u64,
    limit: u64,
    silence: Silence,
    upload: Arc<Upload>,
}

impl Inbound {
    /// At most `limit` bytes, with at most `idle` between two frames.
    pub fn new(body: Incoming, limit: u64, idle: Duration) -> Self {
        let silence = Silence::new(idle);
        Self { body, unread: Bytes::new(), left: limit, limit, silence, upload: Arc::default() }
    }

    /// How far it is, to be asked while it is on its way.
    pub fn upload(&self) -> Arc<Upload> {
        self.upload.clone()
    }

    /// The same body with `bytes`, which were read from it, in front again.
    #[must_use]
    pub fn preceded_by(mut self: Box<Self>, bytes: Bytes) -> Box<Self> {
        self.unread = bytes;
        self
    }

    /// The length, where the caller said it.
    pub fn exact_len(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Held(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Streaming(inbound) => inbound.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Held(bytes) => bytes.is_empty(),
            Self::Streaming(inbound) => inbound.unread.is_empty() && inbound.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Held(bytes) => SizeHint::with_exact(bytes.len() as u64),
            // What was put back is no longer in the hint, so neither is the length.
            Self::Streaming(inbound) if !inbound.unread.is_empty() => SizeHint::default(),
            Self::Streaming(inbound) => inbound.body.size_hint(),
        }
    }
}

impl Inbound {
    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.upload.broke.set(UploadFault::of(&error)).ok();
        Poll::Ready(Some(Err(error)))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.unread.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.unread)))));
        }
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending if self.silence.poll(cx).is_ready() => return self.fail(BodyError::Silent),
                Poll::Pending => return Poll::Pending,
            };
            self.silence.broken();
            let data = match frame {
                None => {
                    self.upload.whole.store(true, Ordering::Relaxed);
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return self.fail(BodyError::Broken(error.into())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    // A caller's trailers are fields that no allowlist has seen.
                    Err(_) => continue,
                },
            };
            let Some(left) = self.left.checked_sub(data.len() as u64) else {
                return self.fail(BodyError::TooLarge(self.limit));
            };
            self.left = left;
            if self.body.is_end_stream() {
                self.upload.whole.store(true, Ordering::Relaxed);
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }
}

// ---- from upstream, to the caller ----

/// Something that lives as long as a response's body does and is told of each byte.
pub trait Tail {
    /// So many bytes were handed to the connection.
    fn sent(&mut self, bytes: usize);
}

/// What a streaming body came over; handed back once the body was read to its end.
pub trait Lease {
    /// The body is whole: the connection may serve again.
    fn finish(self: Box<Self>);

    /// The body ended early.
    fn broken(self: Box<Self>, error: &BodyError);
}

/// A response's body.
pub struct ResponseBody {
    source: Source,
    tail: Option<Box<dyn Tail>>,
}

enum Source {
    Empty,
    Full(Bytes),
    Streaming(Box<Outbound>),
}

impl ResponseBody {
    /// No body.
    pub fn empty() -> Self {
        Self { source: Source::Empty, tail: None }
    }

    /// All of it at once.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { source: Source::Full(bytes.into()), tail: None }
    }

    /// As upstream sends it.
    pub fn streaming(outbound: Outbound) -> Self {
        Self { source: Source::Streaming(Box::new(outbound)), tail: None }
    }

    /// The same body with `bytes`, which were read from it, in front again.
    #[must_use]
    pub fn preceded_by(mut self, bytes: Bytes) -> Self {
        match &mut self.source {
            Source::Streaming(outbound) => outbound.unread = bytes,
            Source::Full(rest) => *rest = join(bytes, std::mem::take(rest)),
            Source::Empty => self.source = Source::Full(bytes),
        }
        self
    }

    /// Whether none of it is still to come.
    pub fn is_at_hand(&self) -> bool {
        matches!(self.source, Source::Empty | Source::Full(_))
    }

    /// What it comes over, while it is still coming.
    pub fn lease(&mut self) -> Option<&mut Option<Box<dyn Lease>>> {
        match &mut self.source {
            Source::Streaming(outbound) if !outbound.ended => Some(&mut outbound.lease),
            _ => None,
        }
    }

    /// Keeps `tail` until this body is sent or dropped.
    pub fn set_tail(&mut self, tail: Box<dyn Tail>) {
        self.tail = Some(tail);
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.source {
            Source::Empty => "empty",
            Source::Full(_) => "full",
            Source::Streaming(_) => "streaming",
        };
        write!(f, "ResponseBody({kind})")
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Empty => return Poll::Ready(None),
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                (!bytes.is_empty()).then(|| Ok(bytes))
            }
            Source::Streaming(outbound) => match outbound.poll(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return Poll::Pending,
            },
        };
        if let (Some(Ok(data)), Some(tail)) = (&frame, &mut this.tail) {
            tail.sent(data.len());
        }
        Poll::Ready(frame.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Full(bytes) => bytes.is_empty(),
            Source::Streaming(outbound) => outbound.ended && outbound.unread.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Streaming(outbound) => outbound.size_hint(),
        }
    }
}

/// A body on its way from upstream.
pub enum Arriving {
    /// Over a connection.
    Wire(Wire),
    /// All there.
    Held(Bytes),
}

/// A body that comes over a connection.
pub type Wire = Box<dyn Body<Data = Bytes, Error = BodyError> + Unpin>;

/// Upstream's body as it comes: searched for the secret, bounded in silence; its connection goes back when it is whole.
pub struct Outbound {
    body: Wire,
    scan: Option<Scan>,
    silence: Silence,
    lease: Option<Box<dyn Lease>>,
    /// Read before, and put back.
    unread: Bytes,
    ended: bool,
}

impl Outbound {
    /// `scan`: what to search for, `None` where nothing can be found (a body that is not text is searched all the same).
    pub fn new(body: Wire, scan: Option<Scan>, idle: Duration, lease: Option<Box<dyn Lease>>) -> Self {
        let mut outbound =
            Self { body, scan, silence: Silence::new(idle), lease, unread: Bytes::new(), ended: false };
        if outbound.body.is_end_stream() {
            outbound.end();
        }
        outbound
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(lease) = self.lease.take() {
            lease.finish();
        }
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.ended = true;
        if let Some(lease) = self.lease.take() {
            lease.broken(&error);
        }
        Poll::Ready(Some(Err(error)))
    }

    /// Bytes still to come, where that is known.
    pub fn size_hint(&self) -> SizeHint {
        // What was put back is no longer in the hint, so neither is the length.
        match (self.unread.is_empty(), self.ended) {
            (false, _) => SizeHint::default(),
            (true, true) => SizeHint::with_exact(0),
            (true, false) => self.body.size_hint(),
        }
    }

    /// The next piece.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if !self.unread.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.unread))));
        }
        while !self.ended {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending if self.silence.poll(cx).is_ready() => return self.fail(BodyError::Silent),
                Poll::Pending => return Poll::Pending,
            };
            self.silence.broken();
            let data = match frame {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return self.fail(error),
                None => {
                    self.end();
                    let rest = self.scan.take().map(Scan::finish).unwrap_or_default();
                    return Poll::Ready((!rest.is_empty()).then_some(Ok(rest)));
                }
            };
            let data = match &mut self.scan {
                Some(scan) => match scan.push(data) {
                    Ok(data) => data,
                    Err(found) => return self.fail(found.into()),
                },
                None => data,
            };
            // With a known length the end is known here, and the connection can go back before the caller has read on.
            if self.body.is_end_stream() {
                self.end();
                let rest = self.scan.take().map(Scan::finish).unwrap_or_default();
                return Poll::Ready(Some(Ok(join(data, rest))));
            }
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(data)));
            }
        }
        Poll::Ready(None)
    }
}

/// Both, in one piece.
pub(crate) fn join(head: Bytes, tail: Bytes) -> Bytes {
    match (head.is_empty(), tail.is_empty()) {
        (_, true) => head,
        (true, false) => tail,
        (false, false) => [head, tail].concat().into(),
    }
}

/// A timer that is armed only while nothing comes.
#[derive(Debug)]
struct Silence {
    idle: Duration,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Silence {
    fn new(idle: Duration) -> Self {
        Self { idle, timer: None }
    }

    fn broken(&mut self) {
        self.timer = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let idle = self.idle;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + idle)));
        timer.as_mut().poll(cx)
    }
}
