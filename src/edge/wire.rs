//! A connection's bytes on their way to the parser, and back: read strictly as they pass.
//!
//! Which protocol it is shows in the first bytes, and decides who parses them. What no parser should take is not passed on: in
//! its place comes what none does, so that the library answers and closes as it does for anything that is no HTTP.

use std::cell::{Cell, OnceCell};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::deadlines::Watch;

pub(super) mod frames;
pub mod http1;
pub mod http2;
mod windows;

use http1::{Reader, Seen, Stop};
use http2::{Counts, Fault};

/// What HTTP/2 begins with (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No parser of HTTP/1.1 takes a NUL, wherever in a head it stands; the rest makes it look.
const NO_HEAD: &[u8] = b"\0\r\n\r\n";
/// Nor does one of chunks, or else the LF behind it.
const NO_CHUNK: &[u8] = b"\0\n\r\n\r\n";
/// What ends a head before it has too many fields.
const END_OF_HEAD: &[u8] = b"\r\n";

/// What is wrong with the requests of one connection, for whoever serves them.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// So many. Only the connection's own task writes it.
    served: Cell<u64>,
    /// The last one that is read of a connection, as its number, and what is wrong with it.
    wrong: OnceCell<(u64, Seen)>,
    flood: Cell<bool>,
}

impl Heads {
    /// The next request is served: what is wrong with it, where something is.
    pub(super) fn next(&self) -> Option<Seen> {
        let served = self.served.get() + 1;
        self.served.set(served);
        self.wrong.get().filter(|(number, _)| *number == served).map(|(_, seen)| *seen)
    }

    /// How many were served.
    pub(super) fn served(&self) -> u64 {
        self.served.get()
    }

    /// Whether the connection was ended for a flood of frames.
    pub(super) fn was_flood(&self) -> bool {
        self.flood.get()
    }
}

#[derive(Debug)]
enum Protocol {
    /// Too little has come to tell.
    Unknown,
    Http1(Reader),
    Http2(Box<Counts>),
    /// No more is read but this.
    Ended(&'static [u8]),
    /// The peer sends no more, and may wait for the answer to what it has sent.
    HalfClosed,
}

/// A socket whose bytes are read as they pass.
pub(super) struct Wire<I> {
    io: I,
    watch: Rc<Watch>,
    protocol: Protocol,
    /// What came first, or while a request was served, which the library has not asked for yet.
    ahead: Vec<u8>,
    longest: usize,
    /// So much of HTTP/2's preface is to be passed on.
    preface: usize,
    /// Our side is.
    closed: bool,
}

impl<I> Wire<I> {
    /// `longest`: bytes of a head that the parser takes.
    pub(super) fn new(io: I, watch: Rc<Watch>, longest: usize) -> Self {
        let (protocol, ahead, preface) = (Protocol::Unknown, Vec::new(), PREFACE.len());
        Self { io, watch, protocol, ahead, longest, preface, closed: false }
    }

    /// These bytes came in: how many of them are passed on.
    fn read(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.protocol {
            Protocol::Http1(reader) => {
                let heads = reader.heads();
                let read = reader.read(bytes);
                self.watch.head(reader.heads() > heads, reader.is_in_head());
                match read {
                    Ok(()) => Ok(bytes.len()),
                    Err((passed, stop)) => Ok(self.stop(passed, stop)),
                }
            }
            Protocol::Http2(counts) => {
                let heads = counts.heads();
                let preface = bytes.len().min(self.preface);
                self.preface -= preface;
                let read = counts.read(&bytes[preface..]);
                self.watch.head(counts.heads() > heads, counts.is_in_head());
                read.map_err(|fault| ended(&self.watch.heads, fault))?;
                hold(&self.watch, counts);
                Ok(bytes.len())
            }
            Protocol::Unknown | Protocol::Ended(_) | Protocol::HalfClosed => Ok(bytes.len()),
        }
    }

    /// The peer sends no more: whether it has sent whole requests of which the last is being served. The library, which takes
    /// that for its leaving, does not hear of it then.
    fn half_closes(&mut self) -> bool {
        let served = self.watch.heads.served();
        let waits = matches!(&self.protocol, Protocol::Http1(reader) if reader.is_between() && reader.heads() == served)
            && self.watch.is_serving();
        if waits {
            self.watch.half_closes();
            self.protocol = Protocol::HalfClosed;
        }
        waits
    }

    /// Whether the peer is known to speak HTTP/1.
    pub(super) fn is_http1(&self) -> bool {
        matches!(self.protocol, Protocol::Http1(_))
    }

    /// Whether all that came has been answered and nothing of it is left with the library: the last of it was one whole request,
    /// without a body. (Of what comes in pieces, or with a body, the library may keep some, like an empty line.)
    fn rests(&self) -> bool {
        let served = self.watch.heads.served();
        let answered = matches!(&self.protocol, Protocol::Http1(reader) if reader.was_plain() && reader.heads() == served);
        answered && self.ahead.is_empty() && !self.watch.is_serving()
    }

    fn stop(&mut self, passed: usize, stop: Stop) -> usize {
        let Protocol::Http1(reader) = &self.protocol else { return passed };
        let (number, many_fields) = (reader.heads(), Seen { many_fields: true, ..Seen::default() });
        // Nothing is read after it, so it is the only one.
        let ended = match stop {
            Stop::After(seen) => {
                self.watch.heads.wrong.set((number, seen)).ok();
                &[]
            }
            Stop::Fields => {
                self.watch.heads.wrong.set((number, many_fields)).ok();
                END_OF_HEAD
            }
            Stop::Head => NO_HEAD,
            Stop::Body => NO_CHUNK,
        };
        self.protocol = Protocol::Ended(ended);
        passed
    }

    fn flushed(&self, flushed: &Poll<io::Result<()>>) {
        match flushed {
            Poll::Pending => self.watch.stalled(),
            Poll::Ready(_) => self.watch.drained(),
        }
    }

    /// So many bytes of these were written, or none could be.
    fn wrote<'a>(
        &mut self,
        slices: impl Iterator<Item = &'a [u8]>,
        total: usize,
        poll: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(Ok(count)) = poll else {
            if poll.is_pending() {
                self.watch.stalled();
            }
            return poll;
        };
        if count == total {
            self.watch.drained();
        }
        if let Protocol::Http2(counts) = &mut self.protocol {
            let mut left = count;
            for slice in slices {
                let written = &slice[..slice.len().min(left)];
                left -= written.len();
                counts.written(written).map_err(|fault| ended(&self.watch.heads, fault))?;
            }
            hold(&self.watch, counts);
        }
        poll
    }
}

fn hold(watch: &Watch, counts: &mut Counts) {
    let (patience, moves) = counts.patience();
    watch.held(patience, moves);
}

fn ended(heads: &Heads, fault: Fault) -> io::Error {
    heads.flood.set(fault == Fault::Flood);
    io::Error::new(io::ErrorKind::ConnectionAborted, fault)
}

impl<I: AsyncRead + Unpin> Wire<I> {
    /// Whether the peer speaks HTTP/2, as soon as that shows. What it has said by then is passed on at once: whoever reads a
    /// request that is there whole needs no second look, and no more room.
    pub(super) fn poll_multiplexes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut bytes = [0; 2048];
        while let Protocol::Unknown = self.protocol {
            let mut some = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut some))?;
            let ended = some.filled().is_empty();
            self.ahead.extend_from_slice(some.filled());
            if self.ahead.starts_with(PREFACE) {
                self.watch.multiplexes();
                self.protocol = Protocol::Http2(Box::default());
            } else if ended || !PREFACE.starts_with(&self.ahead) {
                self.protocol = Protocol::Http1(Reader::new(self.longest));
            }
        }
        Poll::Ready(Ok(matches!(self.protocol, Protocol::Http2(_))))
    }

    /// What came ahead, or comes now.
    fn poll_bytes(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let rest = self.ahead.split_off(self.ahead.len().min(buf.remaining()));
        buf.put_slice(&self.ahead);
        self.ahead = rest;
        Poll::Ready(Ok(()))
    }

    /// Hears whether the peer leaves, for as long as it says nothing else.
    fn poll_leaving(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut bytes = [0; 1024];
        let mut some = ReadBuf::new(&mut bytes);
        if !matches!(self.protocol, Protocol::Http1(_)) || !self.ahead.is_empty() {
            return Ok(());
        }
        let Poll::Ready(heard) = Pin::new(&mut self.io).poll_read(cx, &mut some) else { return Ok(()) };
        heard?;
        if some.filled().is_empty() {
            self.half_closes();
        } else {
            self.ahead = some.filled().to_vec();
            // It may be waited for.
            cx.waker().wake_by_ref();
        }
        Ok(())
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Wire<I> {
    /// Waits until a request begins, with no room for it until then: the first one, which shows whether the peer speaks HTTP/2,
    /// or the next one of HTTP/1.
    pub(super) fn poll_begins(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if let Protocol::Unknown = self.protocol {
            return self.poll_multiplexes(cx);
        }
        // What the kernel takes no more of is held below, and nobody else asks for it to be sent.
        let sent = Pin::new(&mut self.io).poll_flush(cx);
        self.flushed(&sent);
        ready!(sent)?;
        if self.ahead.is_empty() {
            let mut bytes = [MaybeUninit::uninit(); 2048];
            let mut some = ReadBuf::uninit(&mut bytes);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut some))?;
            self.ahead.extend_from_slice(some.filled());
        }
        Poll::Ready(Ok(false))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Wire<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if let Protocol::Unknown = this.protocol {
            ready!(this.poll_multiplexes(cx))?;
        }
        if let Protocol::HalfClosed = this.protocol {
            // Nobody has to be woken: the answer ends the connection, or the sweep does.
            return if this.watch.is_serving() { Poll::Pending } else { Poll::Ready(Ok(())) };
        }
        if !matches!(this.protocol, Protocol::Ended(_)) {
            match this.poll_bytes(cx, buf) {
                // The library has something to do, be it in the turn in which it was said to rest.
                Poll::Ready(Ok(())) => this.watch.rests(false),
                unready => return unready,
            }
            if buf.filled().len() == before && buf.remaining() > 0 && this.half_closes() {
                return Poll::Pending;
            }
            let passed = this.read(&buf.filled()[before..])?;
            buf.set_filled(before + passed);
        }
        if let Protocol::Ended(rest) = &mut this.protocol {
            let (now, later) = rest.split_at(rest.len().min(buf.remaining()));
            buf.put_slice(now);
            *rest = later;
            if buf.filled().len() == before {
                // The answer to what has come ends the connection; until then nothing more is wanted of it.
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(std::iter::once(bytes), bytes.len(), poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        let total = slices.iter().map(|slice| slice.len()).sum();
        self.wrote(slices.iter().map(|slice| &**slice), total, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// Asked for each time that the connection is polled.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.watch.listens() {
            self.poll_leaving(cx)?;
        }
        let poll = Pin::new(&mut self.io).poll_flush(cx);
        self.flushed(&poll);
        if self.watch.is_crowded() {
            self.watch.rests(poll.is_ready() && self.rests());
        }
        poll
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.watch.rests(false);
        if !this.closed {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            this.closed = true;
            this.watch.closes();
        }
        // A peer of HTTP/2 moves its windows as it reads. Were the socket closed before those come, the kernel would answer them
        // with a reset, and what the peer has not read yet would be lost to it. So they are read until it closes its side, too.
        if !matches!(this.protocol, Protocol::Http2(_)) {
            return Poll::Ready(Ok(()));
        }
        let mut bytes = [0; 256];
        loop {
            let mut rest = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut this.io).poll_read(cx, &mut rest)) {
                Ok(()) if !rest.filled().is_empty() => this.watch.closes(),
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use futures_util::FutureExt;
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::task::yield_now;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::edge::deadlines::{Deadlines, Limits};
    use crate::edge::outbox::{Outbox, Socket};
    use crate::time::timeout;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMITS: Limits = Limits { head: SECOND, idle: SECOND, silence: SECOND };

    #[tokio::test(flavor = "local")]
    async fn a_peer_of_http2_is_heard_until_it_has_closed_its_side_too() {
        for (begins, waits) in [(PREFACE, true), (b"GET / HTTP/1.1\r\n\r\n", false)] {
            let watch = Deadlines::default().watch(LIMITS);
            let (ours, mut theirs) = duplex(64);
            let mut wire = Wire::new(ours, watch, 1024);
            theirs.write_all(begins).await.expect("sent");
            wire.read_exact(&mut vec![0; begins.len()]).await.expect("read");
            let mut closing = pin!(wire.shutdown());
            assert_eq!(closing.as_mut().now_or_never().is_none(), waits);
            if waits {
                for _ in 0..3 {
                    let sent = theirs.write_all(&[0; 64]).now_or_never();
                    assert!(sent.is_some(), "what came before was not read");
                    assert!(closing.as_mut().now_or_never().is_none());
                }
                drop(theirs);
                closing.await.expect("closed");
            }
        }
    }

    /// A connection over which so much has been read.
    async fn having_read(bytes: &[u8]) -> (Deadlines, Rc<Watch>, Wire<DuplexStream>, DuplexStream) {
        let deadlines = Deadlines::default();
        let watch = deadlines.watch(LIMITS);
        let (ours, mut theirs) = duplex(64);
        let mut wire = Wire::new(ours, watch.clone(), 1024);
        theirs.write_all(bytes).await.expect("sent");
        wire.read_exact(&mut vec![0; bytes.len()]).await.expect("read");
        (deadlines, watch, wire, theirs)
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

    #[tokio::test(flavor = "local")]
    async fn who_is_served_for_long_is_heard_leaving() {
        let (deadlines, watch, mut wire, theirs) = having_read(REQUEST).await;
        let serving = watch.serve();
        assert_eq!(watch.heads.next(), None);
        drop(theirs);
        wire.flush().await.expect("flushed");
        assert!(!serving.is_last(), "most are answered before anybody listens");
        deadlines.sweep();
        wire.flush().await.expect("flushed");
        assert!(serving.is_last());
        // The library does not hear of it before the answer.
        assert!(wire.read_u8().now_or_never().is_none());
        drop(serving);
        assert!(wire.read_u8().await.is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof));
    }

    #[tokio::test(flavor = "local")]
    async fn who_is_served_for_long_and_breaks_off_ends_the_connection() {
        let deadlines = Deadlines::default();
        let watch = deadlines.watch(LIMITS);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (theirs, ours) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut theirs, ours) = (theirs.expect("connected"), ours.expect("accepted").0);
        theirs.write_all(REQUEST).await.expect("sent");
        let mut wire = Wire::new(ours, watch.clone(), 1024);
        wire.read_exact(&mut [0; REQUEST.len()]).await.expect("read");
        let _serving = watch.serve();
        SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).expect("a socket");
        drop(theirs);
        deadlines.sweep();
        let broken = async {
            loop {
                match wire.flush().await {
                    Ok(()) => yield_now().await,
                    Err(error) => break error.kind(),
                }
            }
        };
        assert_eq!(timeout(SECOND * 10, broken).await, Ok(io::ErrorKind::ConnectionReset));
    }

    #[tokio::test(flavor = "local")]
    async fn what_comes_while_one_is_served_is_read_behind_it_and_who_sent_it_has_not_left() {
        let (deadlines, watch, mut wire, mut theirs) = having_read(REQUEST).await;
        let serving = watch.serve();
        assert_eq!(watch.heads.next(), None);
        deadlines.sweep();
        wire.flush().await.expect("flushed");
        theirs.write_all(REQUEST).await.expect("sent");
        wire.flush().await.expect("flushed");
        drop(theirs);
        wire.flush().await.expect("flushed");
        assert!(!serving.is_last(), "there is another");
        drop(serving);
        let mut read = Vec::new();
        assert_eq!(wire.read_to_end(&mut read).await.ok(), Some(REQUEST.len()));
        assert_eq!(read, REQUEST);
    }

    #[tokio::test(flavor = "local")]
    async fn who_is_to_be_served_again_has_not_left() {
        let (deadlines, watch, mut wire, theirs) = having_read(&REQUEST.repeat(2)).await;
        drop(theirs);
        for last in [false, true] {
            let serving = watch.serve();
            assert_eq!(watch.heads.next(), None);
            deadlines.sweep();
            wire.flush().await.expect("flushed");
            assert_eq!(serving.is_last(), last);
        }
    }

    #[tokio::test(flavor = "local")]
    async fn among_a_crowd_rests_whose_whole_requests_have_been_answered() {
        let with_body = b"GET / HTTP/1.1\r\ncontent-length: 1\r\n\r\n.";
        for (read, served, rests, closes) in [
            (REQUEST.to_vec(), 1, true, true),
            (REQUEST.to_vec(), 1, true, false),
            (REQUEST.to_vec(), 0, false, true),
            (REQUEST.repeat(2), 2, false, true),
            ([REQUEST, b"\r\n"].concat(), 1, false, true),
            ([REQUEST, b"GET"].concat(), 1, false, true),
            (with_body.to_vec(), 1, false, true),
        ] {
            let (deadlines, watch, mut wire, mut theirs) = having_read(&read).await;
            (0..served).for_each(|_| assert_eq!(watch.heads.next(), None));
            wire.flush().await.expect("flushed");
            assert!(!watch.is_resting(), "there is no crowd");
            let _crowd: Vec<_> = (0..2000).map(|_| deadlines.watch(LIMITS)).collect();
            wire.flush().await.expect("flushed");
            assert_eq!(watch.is_resting(), rests, "{read:?}, {served}");
            let serving = watch.serve();
            wire.flush().await.expect("flushed");
            assert!(!watch.is_resting(), "it is served");
            drop(serving);
            wire.flush().await.expect("flushed");
            assert_eq!(watch.is_resting(), rests);
            // Of those that rest one closes, and to the other more comes.
            if closes {
                wire.shutdown().await.expect("closed");
            } else {
                theirs.write_all(b"G").await.expect("sent");
                wire.read_u8().await.expect("read");
            }
            assert!(!watch.is_resting());
        }
    }

    #[tokio::test(flavor = "local")]
    async fn who_waits_for_the_next_request_is_sent_the_rest_of_the_last_answer() {
        let (watch, outbox) = (Deadlines::default().watch(LIMITS), Outbox::default());
        TaskTracker::new().spawn_local(outbox.clone().run());
        yield_now().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let theirs = TcpSocket::new_v4().expect("a socket");
        theirs.set_recv_buffer_size(4096).expect("an option");
        let (theirs, ours) = tokio::join!(theirs.connect(address), listener.accept());
        let (mut theirs, ours) = (theirs.expect("connected"), ours.expect("accepted").0);
        SockRef::from(&ours).set_send_buffer_size(4096).expect("an option");
        let mut wire = Wire::new(Socket::new(ours, outbox, Some(watch.clone())), watch, 1024);
        theirs.write_all(REQUEST).await.expect("sent");
        wire.read_exact(&mut [0; REQUEST.len()]).await.expect("read");
        // More than the kernel takes, and not too much to be held until the end of the turn.
        let answer = vec![7; 32 * 1024];
        wire.write_all(&answer).await.expect("written");
        wire.flush().await.expect("flushed");
        let mut read = vec![0; answer.len()];
        tokio::select! {
            _ = poll_fn(|cx| wire.poll_begins(cx)) => panic!("no request has begun"),
            read = timeout(SECOND * 10, theirs.read_exact(&mut read)) => read.expect("in time").expect("read"),
        };
    }
}
