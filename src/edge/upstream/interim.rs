//! Answers before the answer (1xx): a server that sends nothing else would be listened to for as long as the request may
//! take. They are counted as they pass.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::edge::wire::PREFACE;
use crate::edge::wire::frames::{Frames, HEADERS, Piece, RST_STREAM};

/// For one request.
pub(super) const MOST: u32 = 32;

/// How it reads where HTTP/2 ends for it. Nothing else there is of this kind.
pub(super) const TOO_MANY: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// What a head before the answer begins with; any minor version has its place.
const BEGINS: &[u8] = b"HTTP/1.? 1";

/// A connection that ends where too many came for one request.
pub(super) struct Counted<I, C> {
    io: I,
    counts: C,
}

impl<I, C: Counts + Default> Counted<I, C> {
    pub(super) fn new(io: I) -> Self {
        Self { io, counts: C::default() }
    }

    pub(super) fn into_inner(self) -> I {
        self.io
    }
}

/// How they are counted in what passes.
pub(super) trait Counts {
    /// These bytes came in.
    fn read(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// These bytes went out.
    fn wrote(&mut self, bytes: &[u8]);
}

/// By HTTP/1: followed only as long as each head begins as one before the answer does.
pub(super) struct Http1 {
    at: At,
    count: u32,
}

impl Default for Http1 {
    fn default() -> Self {
        Self { at: At::Answer, count: 0 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// So much of what they begin with has come.
    Beginning(usize),
    /// In one; whether a line has just ended.
    Within(bool),
    /// In the answer.
    Answer,
}

impl Counts for Http1 {
    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes {
            self.at = match self.at {
                At::Answer => return Ok(()),
                At::Beginning(matched) if BEGINS[matched] != *byte && BEGINS[matched] != b'?' => At::Answer,
                At::Beginning(matched) if matched + 1 < BEGINS.len() => At::Beginning(matched + 1),
                At::Beginning(_) => {
                    self.count += 1;
                    At::Within(false)
                }
                At::Within(true) if *byte == b'\n' => At::Beginning(0),
                At::Within(ended) => At::Within(*byte == b'\n' || ended && *byte == b'\r'),
            };
            if self.count > MOST {
                return Err(too_many());
            }
        }
        Ok(())
    }

    /// A request, or more of one: what comes next may be an answer to it.
    fn wrote(&mut self, _: &[u8]) {
        if self.at == At::Answer {
            (self.at, self.count) = (At::Beginning(0), 0);
        }
    }
}

fn too_many() -> io::Error {
    io::Error::new(TOO_MANY, "too many answers before the answer")
}

/// By HTTP/2: for each stream.
pub(super) struct Http2 {
    /// So much of the preface has not gone out yet.
    preface: usize,
    incoming: Frames,
    outgoing: Frames,
    /// Streams that we have opened and whose answers have not ended, with how many heads there were.
    open: Vec<(u32, u32)>,
    /// The last of them.
    last: u32,
}

impl Default for Http2 {
    fn default() -> Self {
        let (incoming, outgoing) = (Frames::default(), Frames::default());
        Self { preface: PREFACE.len(), incoming, outgoing, open: Vec::new(), last: 0 }
    }
}

impl Counts for Http2 {
    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (open, mut most) = (&mut self.open, false);
        self.incoming.read(bytes, |piece| {
            let Piece::Head(frame) = piece else { return };
            let at = open.iter().position(|(stream, _)| *stream == frame.stream);
            match at {
                Some(at) if frame.kind == RST_STREAM || frame.ends_stream() => drop(open.swap_remove(at)),
                // The last of them is the answer.
                Some(at) if frame.kind == HEADERS => {
                    open[at].1 += 1;
                    most |= open[at].1 > MOST + 1;
                }
                _ => {}
            }
        });
        if most { Err(too_many()) } else { Ok(()) }
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let (open, last) = (&mut self.open, &mut self.last);
        let (preface, frames) = bytes.split_at(self.preface.min(bytes.len()));
        self.preface -= preface.len();
        self.outgoing.read(frames, |piece| match piece {
            // It is opened once: trailers are a head, too.
            Piece::Head(frame) if frame.kind == HEADERS && frame.stream > *last => {
                *last = frame.stream;
                open.push((frame.stream, 0));
            }
            // What comes of a stream that we have reset is of no account, be it on its way already.
            Piece::Head(frame) if frame.kind == RST_STREAM => {
                open.retain(|(stream, _)| *stream != frame.stream);
            }
            _ => {}
        });
    }
}

impl<I, C: Counts> Counted<I, C> {
    fn wrote<'a>(
        &mut self,
        slices: impl Iterator<Item = &'a [u8]>,
        poll: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(Ok(mut left)) = poll else { return poll };
        for slice in slices {
            let written = &slice[..slice.len().min(left)];
            left -= written.len();
            self.counts.wrote(written);
        }
        poll
    }
}

impl<I: AsyncRead + Unpin, C: Counts + Unpin> AsyncRead for Counted<I, C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => Poll::Ready(self.counts.read(&buf.filled()[before..])),
            unready => unready,
        }
    }
}

impl<I: AsyncWrite + Unpin, C: Counts + Unpin> AsyncWrite for Counted<I, C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(std::iter::once(bytes), poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A request's head is one piece, for which the kernel has a shorter way.
        if let [slice] = slices {
            return self.poll_write(cx, slice);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of these pieces after a request was written.
    fn read(pieces: &[&str]) -> Result<u32, io::ErrorKind> {
        let mut counts = Http1::default();
        counts.wrote(b"GET / HTTP/1.1\r\n\r\n");
        for piece in pieces {
            counts.read(piece.as_bytes()).map_err(|error| error.kind())?;
        }
        Ok(counts.count)
    }

    #[test]
    fn heads_before_the_answer_are_counted_however_they_come() {
        let early = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nHTT";
        assert_eq!(read(&[answer]), Ok(0));
        assert_eq!(read(&[early, early, answer, early]), Ok(2));
        assert_eq!(read(&["HTTP/1.0 100 x\n\nHTTP/1.1 102 y\n\r\n", answer]), Ok(2));
        let whole = early.repeat(3) + answer;
        for cut in 1..whole.len() {
            assert_eq!(read(&[&whole[..cut], &whole[cut..]]), Ok(3), "{cut}");
        }
        let most = usize::try_from(MOST).expect("a few");
        assert_eq!(read(&[&early.repeat(most), answer]), Ok(MOST));
        assert_eq!(read(&[&early.repeat(most + 1)]), Err(TOO_MANY));
    }

    /// A frame without what it holds, which is not looked at.
    fn frame(kind: u8, flags: u8, stream: u32) -> Vec<u8> {
        let [s, t, u, v] = stream.to_be_bytes();
        match kind {
            RST_STREAM => vec![0, 0, 4, kind, flags, s, t, u, v, 0, 0, 0, 8],
            _ => vec![0, 0, 0, kind, flags, s, t, u, v],
        }
    }

    #[test]
    fn over_http2_what_is_over_is_not_kept_whoever_ended_it() {
        let (head, last, reset) = (frame(HEADERS, 0x4, 1), frame(HEADERS, 0x5, 1), frame(RST_STREAM, 0, 1));
        let most = usize::try_from(MOST).expect("a few");
        for (how, wrote, read) in [
            ("answered", vec![&head], vec![&head, &last]),
            ("answered before its trailers went out", vec![&head], vec![&last]),
            ("reset by upstream", vec![&head], vec![&reset]),
            ("reset by us while the answer was on its way", vec![&head, &reset], vec![&head]),
        ] {
            let mut counts = Http2::default();
            counts.wrote(PREFACE);
            wrote.iter().for_each(|frame| counts.wrote(frame));
            read.iter().for_each(|frame| counts.read(frame).expect("not too many"));
            counts.wrote(&last);
            assert!(counts.open.is_empty(), "{how}: {:?}", counts.open);
        }
        let mut counts = Http2::default();
        counts.wrote(&[PREFACE, &head].concat());
        // The last of them may be the answer.
        assert!(counts.read(&head.repeat(most + 1)).is_ok());
        assert_eq!(counts.read(&head).map_err(|error| error.kind()), Err(TOO_MANY));
    }
}
