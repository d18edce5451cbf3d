//! HTTP/1.1 to upstream, for requests that are at hand whole: whoever asks sends and reads by itself.
//!
//! hyper's client is a task for each connection, with channels for requests, answers and bodies between it and whoever asks;
//! without them a pass-through takes 0.93 of the instructions. Bodies that stream up while the answer comes down remain hyper's
//! (`upload`).

use std::future::{Future, poll_fn};
use std::io;
use std::mem::{MaybeUninit, take};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::unconstrained;
use tokio_util::io::poll_read_buf;

use super::interim::MOST as MOST_INTERIM;
use super::{BROKE, fault};
use crate::policy::forward::Outgoing;
use crate::rejection::UpstreamFault;
use crate::time::Timestamp;

mod chunked;
mod head;
#[cfg(test)]
mod tests;

pub use chunked::Chunked;
use chunked::Piece;
pub use head::{Framing, Head};

/// A head that is not whole by then is too long.
const LONGEST_HEAD: usize = 512 * 1024;
/// What is read at once where nobody knows how much will come.
const SOME: usize = 8 * 1024;
/// What is read at once of a body whose length is known.
const MUCH: usize = 64 * 1024;
/// Less room than this is not read into.
const LITTLE: usize = 1024;

/// A connection, for one request at a time.
pub struct Http1<I> {
    io: I,
    /// When it was made.
    pub(super) born: Timestamp,
    /// Of the request, of which so much has gone.
    outgoing: Vec<u8>,
    gone: usize,
    sending: Sending,
    /// Read and not used yet.
    read: BytesMut,
    /// Whoever asks is woken by what comes: it found nothing when it looked.
    listens: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Done,
    UnderWay,
    /// It did not take all of the request; what it says all the same counts.
    Refused,
}

/// Why there is no answer.
#[derive(Debug)]
pub struct Failed {
    /// What failed.
    pub fault: UpstreamFault,
    /// For the log.
    pub detail: String,
    /// Surely nothing of the request has left.
    pub unsent: bool,
}

impl From<head::Fault> for Failed {
    fn from((fault, detail): head::Fault) -> Self {
        Self { fault, detail, unsent: false }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        (BROKE, fault::chain(&error)).into()
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Http1<I> {
    /// Over `io`, which is there since `born` and over which nothing is under way.
    pub fn new(io: I, born: Timestamp) -> Self {
        let (outgoing, read) = (Vec::new(), BytesMut::new());
        Self { io, born, outgoing, gone: 0, sending: Sending::Done, read, listens: false }
    }

    /// What it goes over, for another way to speak; of one that [is quiet](Self::is_quiet).
    pub(super) fn into_io(self) -> I {
        self.io
    }

    /// Whether all has left it, and upstream has said nothing since its last answer, not even that it leaves: then it may be
    /// asked again, by the task of this `cx`, which is woken by what comes next.
    pub fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        let (idle, io, mut room) = (self.is_done(), &mut self.io, [0]);
        // Unconstrained: nothing to read is not the same as no more budget for reading.
        let mut quiet = pin!(unconstrained(poll_fn(|cx| {
            let flushed = matches!(Pin::new(&mut *io).poll_flush(cx), Poll::Ready(Ok(())));
            Poll::Ready(
                flushed && Pin::new(&mut *io).poll_read(cx, &mut ReadBuf::new(&mut room)).is_pending(),
            )
        })));
        self.listens = idle && quiet.as_mut().poll(cx) == Poll::Ready(true);
        self.listens
    }

    /// The connection for the next request, where nothing of this one is left: all of it went out, and nothing came in that is
    /// not used. It keeps no room while it waits.
    pub(super) fn idle(mut self: Box<Self>) -> Option<Box<Self>> {
        self.is_done().then(|| {
            self.read = BytesMut::new();
            self
        })
    }

    /// Sends `request`, whose body is not a stream, and reads the head of the answer into the room that it has for that.
    ///
    /// # Errors
    /// There is none; the connection is of no use any more.
    pub async fn ask(&mut self, request: &mut Outgoing) -> Result<Head, Failed> {
        (self.outgoing, self.gone, self.sending) = (head::write(request), 0, Sending::UnderWay);
        let mut interim = 0;
        poll_fn(|cx| self.poll_head(cx, request, &mut interim)).await
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        request: &mut Outgoing,
        interim: &mut u32,
    ) -> Poll<Result<Head, Failed>> {
        if let Err(error) = self.send(cx)
            && self.gone == 0
        {
            return Poll::Ready(Err(Failed { unsent: true, ..error.into() }));
        }
        // The answer to what has just left is not there yet. Not to look for it, and to send past the C library (`outbox`), takes
        // 0.995 of a pass-through.
        if take(&mut self.listens) {
            return Poll::Pending;
        }
        loop {
            let mut before = self.read.len();
            if ready!(self.poll_some(cx))? == 0 {
                return Poll::Ready(Err(closed().into()));
            }
            // What came later without the end of a line leaves it no more whole than it was.
            while before == 0 || memchr::memchr(b'\n', &self.read[before..]).is_some() {
                let Some(head) = head::parse(&mut self.read, request)? else { break };
                let status = head.parts.status;
                if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Ok(head));
                }
                *interim += 1;
                if *interim > MOST_INTERIM {
                    return Poll::Ready(Err(too_many().into()));
                }
                (self.read, before) = (head.rest.into(), 0);
                request.room = head.parts.headers;
            }
            if self.read.len() > LONGEST_HEAD {
                let (fault, detail) = (UpstreamFault::HeadTooLarge, "the answer's head is too long");
                return Poll::Ready(Err((fault, detail.to_owned()).into()));
            }
        }
    }

    /// The body behind `head`, where it has come with it; else it is [read](Self::poll_body).
    pub fn whole(&mut self, head: &mut Head) -> Option<Bytes> {
        let mut rest = take(&mut head.rest);
        if let Framing::Length(length) = head.framing
            && let Ok(length) = usize::try_from(length)
            && length <= rest.len()
        {
            let body = rest.split_to(length);
            // What comes behind an answer is of none that was asked for.
            head.stays &= rest.is_empty();
            return Some(body);
        }
        self.read = rest.into();
        None
    }

    /// The next of a body; `None` where it is whole.
    pub fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        framing: &mut Framing,
    ) -> Poll<Option<io::Result<Bytes>>> {
        self.send(cx).ok();
        loop {
            let read = match framing {
                Framing::Length(0) => return Poll::Ready(None),
                Framing::Length(left) if !self.read.is_empty() => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(self.read.len());
                    *left -= count as u64;
                    return Poll::Ready(Some(Ok(self.read.split_to(count).freeze())));
                }
                Framing::Close if !self.read.is_empty() => {
                    return Poll::Ready(Some(Ok(take(&mut self.read).freeze())));
                }
                Framing::Chunked(coding) => match coding.next(&mut self.read) {
                    Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(data))),
                    Ok(Piece::End) => {
                        *framing = Framing::Length(0);
                        return Poll::Ready(None);
                    }
                    Ok(Piece::More) => ready!(self.poll_some(cx)),
                    Err(error) => Err(error),
                },
                Framing::Length(left) if *left > SOME as u64 => {
                    // What comes in little pieces shares its room, however long they are held.
                    if self.read.capacity() - self.read.len() < LITTLE {
                        self.read.reserve(usize::try_from(*left).unwrap_or(usize::MAX).min(MUCH));
                    }
                    ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read))
                }
                Framing::Length(_) | Framing::Close => ready!(self.poll_some(cx)),
                Framing::Unclear => Err(io::Error::new(io::ErrorKind::InvalidData, "its length is unclear")),
            };
            match read {
                Ok(0) if *framing == Framing::Close => {
                    *framing = Framing::Length(0);
                    return Poll::Ready(None);
                }
                Ok(0) => return Poll::Ready(Some(Err(closed()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    fn is_done(&self) -> bool {
        self.sending == Sending::Done && self.read.is_empty()
    }

    /// Goes on sending what is left of the request. Also where all is written: what the socket holds may wait for the peer.
    fn send(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.sending == Sending::Refused {
            return Ok(());
        }
        let Poll::Ready(sent) = self.poll_send(cx) else {
            self.sending = Sending::UnderWay;
            return Ok(());
        };
        self.sending = if sent.is_ok() { Sending::Done } else { Sending::Refused };
        self.outgoing = Vec::new();
        sent
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gone < self.outgoing.len() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.outgoing[self.gone..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.gone += count,
            }
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Reads what there is. On the stack, so that whoever waits holds no room for it, and what has come takes no more than it
    /// is long.
    fn poll_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [MaybeUninit::uninit(); SOME];
        let mut some = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut some))?;
        self.read.extend_from_slice(some.filled());
        Poll::Ready(Ok(some.filled().len()))
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed before message completed")
}

fn too_many() -> head::Fault {
    (UpstreamFault::HttpProtocol, "too many answers before the answer".to_owned())
}
