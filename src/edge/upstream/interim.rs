//! Answers before the answer (1xx): a server that sends nothing else would be listened to for as long as the request may
//! take. HTTP/1's are told by the library; HTTP/2's are counted as they pass.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use http::Request;
use hyper::ext::on_informational;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::body::RequestBody;
use crate::edge::wire::PREFACE;
use crate::edge::wire::frames::{Frames, HEADERS, Piece, RST_STREAM};
use crate::exchange::Delivery;
use crate::policy::forward::TransportError;
use crate::rejection::UpstreamFault;

/// For one request.
const MOST: u32 = 32;
/// Streams of one connection that have begun to be answered; we open fewer.
const STREAMS: usize = 4096;

/// How it reads where HTTP/2 ends for it. Nothing else there is of this kind.
pub(super) const TOO_MANY: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// How many came for one request over HTTP/1.
#[derive(Default)]
pub(super) struct Interim {
    count: AtomicU32,
    too_many: Notify,
}

impl Interim {
    pub(super) fn of(request: &mut Request<RequestBody>) -> Arc<Self> {
        let interim = Arc::new(Self::default());
        let counted = interim.clone();
        on_informational(request, move |_| {
            if counted.count.fetch_add(1, Ordering::Relaxed) >= MOST {
                counted.too_many.notify_one();
            }
        });
        interim
    }

    /// Waits until too many have come.
    pub(super) async fn too_many(&self) {
        self.too_many.notified().await;
    }

    /// They may all have come at once, and the answer behind them.
    pub(super) fn are_too_many(&self) -> bool {
        self.count.load(Ordering::Relaxed) > MOST
    }

    pub(super) fn error(&self) -> Box<TransportError> {
        Box::new(TransportError {
            fault: UpstreamFault::HttpProtocol,
            delivery: Delivery::Possible,
            detail: format!("more than {MOST} answers before the answer"),
            caller: None,
            body: None,
        })
    }
}

/// A connection by HTTP/2 that ends where too many came for one stream.
pub(super) struct Counted<I> {
    io: I,
    /// So much of the preface has not gone out yet.
    preface: usize,
    incoming: Frames,
    outgoing: Frames,
    /// Streams whose answers have begun and not ended, with how many heads there were.
    begun: Vec<(u32, u32)>,
}

impl<I> Counted<I> {
    pub(super) fn new(io: I) -> Self {
        let (incoming, outgoing) = (Frames::default(), Frames::default());
        Self { io, preface: PREFACE.len(), incoming, outgoing, begun: Vec::new() }
    }

    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (begun, mut too_many) = (&mut self.begun, false);
        self.incoming.read(bytes, |piece| {
            let Piece::Head(frame) = piece else { return };
            let at = begun.iter().position(|(stream, _)| *stream == frame.stream);
            match at {
                Some(at) if frame.kind == RST_STREAM || frame.ends_stream() => drop(begun.swap_remove(at)),
                // The last of them is the answer.
                Some(at) if frame.kind == HEADERS => {
                    begun[at].1 += 1;
                    too_many |= begun[at].1 > MOST + 1;
                }
                None if frame.kind == HEADERS && !frame.ends_stream() => {
                    begun.push((frame.stream, 1));
                    too_many |= begun.len() > STREAMS;
                }
                _ => {}
            }
        });
        if too_many { Err(io::Error::new(TOO_MANY, "too many answers before the answer")) } else { Ok(()) }
    }

    fn wrote<'a>(
        &mut self,
        slices: impl Iterator<Item = &'a [u8]>,
        poll: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(Ok(mut left)) = poll else { return poll };
        let begun = &mut self.begun;
        for slice in slices {
            let written = &slice[..slice.len().min(left)];
            left -= written.len();
            let (preface, written) = written.split_at(self.preface.min(written.len()));
            self.preface -= preface.len();
            // What comes of a stream that we have reset is of no account.
            self.outgoing.read(written, |piece| match piece {
                Piece::Head(frame) if frame.kind == RST_STREAM => {
                    begun.retain(|(stream, _)| *stream != frame.stream);
                }
                _ => {}
            });
        }
        poll
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => Poll::Ready(self.read(&buf.filled()[before..])),
            unready => unready,
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(std::iter::once(bytes), poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.wrote(slices.iter().map(|slice| &**slice), poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
