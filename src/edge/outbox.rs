//! What a worker writes leaves together, once it has gone through all that was ready.
//!
//! Of many connections a good part is ready at once. Were each answer written as soon as it is there, each would wake its
//! reader, who would be done and asleep again before the next: waking a core costs the kernel more than sending. And the
//! answers of HTTP/2, which the library writes frame by frame, would be as many system calls. So short writes are held until
//! the task that sends them has its turn, which stands in the queue behind all that are ready, or until there are many. A hit
//! over one of 64 connections costs 0.73 of what it did, a refusal 0.9, a pass-through 0.95.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::deadlines::Watch;

/// What is longer is written at once, without a copy. Held, a page of 20 KB costs 0.66 of what it does written at once.
const SHORT: usize = 32 * 1024;
/// So much is held for one socket.
const MOST: usize = 64 * 1024;
/// For so many sockets: the first of them waits for the last.
const SOCKETS: usize = 32;
/// Room for so much at least: then it serves the next answer, too, which takes a hundredth less than asking for its own.
const ROOM: usize = 4 * 1024;

/// The sockets of one worker that have something to send. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Outbox(Rc<RefCell<Due>>);

#[derive(Debug, Default)]
struct Due {
    sockets: Vec<Rc<Side>>,
    /// Whoever sends for them; without one nothing is held.
    sender: Option<Waker>,
    /// Room that was sent from: for no more than [`SOCKETS`], and of each no more than [`SHORT`].
    rooms: Vec<Vec<u8>>,
}

impl Outbox {
    /// Sends what is held, for as long as this is polled; it never ends.
    pub async fn run(self) {
        let _ended = Ended(&self);
        std::future::poll_fn(|cx| {
            let mut due = self.0.borrow_mut();
            if !due.sender.as_ref().is_some_and(|sender| sender.will_wake(cx.waker())) {
                due.sender = Some(cx.waker().clone());
            }
            drop(due);
            self.send();
            Poll::Pending
        })
        .await
    }

    fn send(&self) {
        let (mut sockets, mut rooms) = {
            let mut due = self.0.borrow_mut();
            (mem::take(&mut due.sockets), mem::take(&mut due.rooms))
        };
        for socket in sockets.drain(..) {
            let room = socket.with(|outgoing| {
                outgoing.due = false;
                outgoing.send();
                outgoing.room()
            });
            if rooms.len() < SOCKETS {
                rooms.extend(room);
            }
        }
        // What they were in serves again.
        let mut due = self.0.borrow_mut();
        if due.sockets.is_empty() {
            (due.sockets, due.rooms) = (sockets, rooms);
        }
    }

    /// Room for what `socket` holds, where it will be asked to send it.
    fn takes(&self, socket: &Rc<Side>) -> Option<Vec<u8>> {
        let mut due = self.0.borrow_mut();
        due.sender.as_ref()?;
        if due.sockets.len() >= SOCKETS {
            drop(due);
            self.send();
            due = self.0.borrow_mut();
        }
        due.sockets.push(socket.clone());
        if due.sockets.len() == 1
            && let Some(sender) = &due.sender
        {
            sender.wake_by_ref();
        }
        Some(due.rooms.pop().unwrap_or_default())
    }
}

struct Ended<'o>(&'o Outbox);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.0.borrow_mut().sender = None;
        self.0.send();
    }
}

/// A socket, for whoever writes to it and whoever sends for it.
#[derive(Debug)]
struct Side {
    outgoing: RefCell<Outgoing>,
    /// Whoever flushes has something to wait for, or to hear. Beside the cell: a flush is asked for six times in a request.
    waits: Cell<bool>,
}

impl Side {
    fn with<T>(&self, act: impl FnOnce(&mut Outgoing) -> T) -> T {
        let mut outgoing = self.outgoing.borrow_mut();
        let done = act(&mut outgoing);
        self.waits.set(outgoing.full || outgoing.failed.is_some());
        done
    }
}

/// What a socket has to send. The socket is among it: in halves it would be one more place in memory to look at.
#[derive(Debug)]
struct Outgoing {
    stream: TcpStream,
    held: Vec<u8>,
    /// Of which so much is sent: [`MOST`] at the most. Of this size all of a socket is in two lines of the caches.
    gone: u32,
    /// The kernel takes no more for now: whoever writes waits for it.
    full: bool,
    /// It will be sent.
    due: bool,
    failed: Option<io::Error>,
    /// Whoever writes.
    writer: Option<Waker>,
    /// Whom it interests what the kernel has taken.
    watch: Option<Rc<Watch>>,
}

impl Outgoing {
    fn send(&mut self) {
        while !self.full && self.has_left() {
            match send(&self.stream, &self.held[self.gone as usize..]) {
                Ok(0) => return self.fail(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.went(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.full = true;
                    self.wake();
                }
                Err(error) => return self.fail(error),
            }
        }
        if !self.full {
            self.held.clear();
            self.gone = 0;
        }
    }

    fn has_left(&self) -> bool {
        (self.gone as usize) < self.held.len()
    }

    /// The room that nothing is in any more. Idle connections hold none.
    fn room(&mut self) -> Option<Vec<u8>> {
        let room = self.held.is_empty().then(|| mem::take(&mut self.held))?;
        (ROOM..=SHORT).contains(&room.capacity()).then_some(room)
    }

    fn went(&mut self, count: usize) {
        self.gone += count as u32;
        self.took(count);
    }

    /// The kernel has taken so much.
    fn took(&self, count: usize) {
        if let Some(watch) = &self.watch {
            watch.add_sent(count as u64);
        }
    }

    fn fail(&mut self, error: io::Error) {
        (self.held, self.gone, self.full) = (Vec::new(), 0, false);
        self.failed = Some(error);
        self.wake();
    }

    fn wake(&self) {
        if let Some(writer) = &self.writer {
            writer.wake_by_ref();
        }
    }

    /// Sends what is held, and waits for the kernel to take it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        while self.has_left() {
            self.full = true;
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held[self.gone as usize..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.went(count);
        }
        (self.held, self.gone, self.full) = (Vec::new(), 0, false);
        Poll::Ready(Ok(()))
    }
}

/// A peer that is gone is an error, not a signal; where there is no such flag, the socket says so.
#[cfg(not(target_vendor = "apple"))]
const NO_SIGNAL: SendFlags = SendFlags::NOSIGNAL;
#[cfg(target_vendor = "apple")]
const NO_SIGNAL: SendFlags = SendFlags::empty();

/// Past the C library, for which each call is a point of cancellation, with two atomic steps around it.
fn send(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    stream.try_io(Interest::WRITABLE, || Ok(rustix::net::send(stream, bytes, NO_SIGNAL)?))
}

/// A socket whose short writes leave with those of others.
#[derive(Debug)]
pub struct Socket {
    side: Rc<Side>,
    outbox: Outbox,
}

impl Socket {
    /// One of the worker whose outbox that is; `watch` is told what the kernel takes.
    pub fn new(stream: TcpStream, outbox: Outbox, watch: Option<Rc<Watch>>) -> Self {
        let outgoing = Outgoing {
            stream,
            held: Vec::new(),
            gone: 0,
            full: false,
            due: false,
            failed: None,
            writer: None,
            watch,
        };
        let side = Side { outgoing: RefCell::new(outgoing), waits: Cell::new(false) };
        Self { side: Rc::new(side), outbox }
    }

    fn take<'a>(
        &self,
        cx: &mut Context<'_>,
        total: usize,
        slices: impl Iterator<Item = &'a [u8]>,
        at_once: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.side.with(|outgoing| {
            let fits = total <= SHORT && outgoing.held.len() + total <= MOST;
            let room = match fits && !outgoing.full && outgoing.failed.is_none() {
                true if outgoing.due => Some(mem::take(&mut outgoing.held)),
                true => self.outbox.takes(&self.side),
                false => None,
            };
            if let Some(mut room) = room {
                outgoing.due = true;
                if room.capacity() - room.len() < total {
                    match room.len() {
                        // What comes first is most often all …
                        0 => room = Vec::with_capacity(total.max(ROOM)),
                        // … and what comes behind it, as of HTTP/2, is not the last.
                        length => room.reserve_exact(MOST - length),
                    }
                }
                outgoing.held = room;
                slices.for_each(|slice| outgoing.held.extend_from_slice(slice));
                if !outgoing.writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker())) {
                    outgoing.writer = Some(cx.waker().clone());
                }
                return Poll::Ready(Ok(total));
            }
            ready!(outgoing.poll_send(cx))?;
            let poll = at_once(Pin::new(&mut outgoing.stream), cx);
            if let Poll::Ready(Ok(count)) = &poll {
                outgoing.took(*count);
            }
            poll
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.side.with(|outgoing| {
            if outgoing.watch.as_ref().is_some_and(|watch| watch.is_cut_short()) {
                outgoing.stream.set_zero_linger().ok();
            }
        });
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.side.outgoing.borrow_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(cx, bytes.len(), std::iter::once(bytes), |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total = slices.iter().map(|slice| slice.len()).sum();
        let bytes = slices.iter().map(|slice| &**slice);
        self.take(cx, total, bytes, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What is held leaves by itself; what the kernel did not take is waited for.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.side.waits.get() {
            true => self.side.with(|outgoing| outgoing.poll_send(cx)),
            false => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.side.with(|outgoing| {
            ready!(outgoing.poll_send(cx))?;
            Pin::new(&mut outgoing.stream).poll_shutdown(cx)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use futures_util::FutureExt;
    use proptest::prelude::*;
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::runtime::LocalOptions;
    use tokio::task::yield_now;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::edge::deadlines::{Deadlines, Limits};

    fn watch() -> Rc<Watch> {
        let second = Duration::from_secs(1);
        Deadlines::default().watch(Limits { head: second, idle: second, silence: second })
    }

    /// Bytes that have left it.
    fn sent(socket: &Socket) -> u64 {
        socket.side.outgoing.borrow().watch.as_ref().expect("watched").sent()
    }

    /// A socket of the worker whose outbox that is, and its peer.
    async fn pair(outbox: &Outbox) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (ours, theirs) = (ours.expect("connected"), theirs.expect("accepted").0);
        // So that a lot does not fit.
        SockRef::from(&ours).set_send_buffer_size(32 * 1024).expect("small");
        (Socket::new(ours, outbox.clone(), Some(watch())), theirs)
    }

    /// One that is sent for.
    async fn outbox() -> Outbox {
        let outbox = Outbox::default();
        TaskTracker::new().spawn_local(outbox.clone().run());
        yield_now().await;
        outbox
    }

    fn bytes(length: usize, seed: usize) -> Vec<u8> {
        (0..length).map(|at| ((at + seed) % 251) as u8).collect()
    }

    async fn exactly(peer: &mut TcpStream, length: usize) -> Vec<u8> {
        let mut read = vec![0; length];
        peer.read_exact(&mut read).await.expect("read");
        read
    }

    #[tokio::test(flavor = "local")]
    async fn short_writes_leave_after_all_that_is_ready_and_a_long_one_at_once_behind_them() {
        let outbox = outbox().await;
        let ((mut one, mut peer), (mut other, mut other_peer)) = (pair(&outbox).await, pair(&outbox).await);
        one.write_all(b"head").await.expect("taken");
        one.flush().await.expect("will be sent");
        other.write_all(b"other").await.expect("taken");
        one.write_all(b" and body").await.expect("taken");
        assert_eq!((sent(&one), sent(&other)), (0, 0), "held");
        yield_now().await;
        assert_eq!((sent(&one), sent(&other)), (13, 5));
        assert_eq!(exactly(&mut peer, 13).await, b"head and body");
        assert_eq!(exactly(&mut other_peer, 5).await, b"other");
        one.write_all(b"short").await.expect("taken");
        assert!(one.write(&bytes(SHORT + 1, 0)).now_or_never().is_some_and(|wrote| wrote.is_ok()));
        assert!(sent(&one) > 13 + 5, "before the turn");
        assert_eq!(exactly(&mut peer, 5).await, b"short");
    }

    #[tokio::test(flavor = "local")]
    async fn the_first_of_many_sockets_does_not_wait_for_the_last() {
        let outbox = outbox().await;
        let mut pairs = Vec::new();
        for _ in 0..=SOCKETS {
            pairs.push(pair(&outbox).await);
        }
        for (socket, _) in &mut pairs {
            assert!(socket.write_all(b"x").now_or_never().is_some_and(|wrote| wrote.is_ok()));
        }
        let sent: Vec<_> = pairs.iter().map(|(socket, _)| sent(socket)).collect();
        assert_eq!(sent, [vec![1; SOCKETS], vec![0]].concat());
    }

    #[tokio::test(flavor = "local")]
    async fn room_that_was_sent_from_serves_again_and_no_more_is_kept_than_is_used_at_once() {
        let outbox = outbox().await;
        let rooms = || outbox.0.borrow().rooms.iter().map(Vec::capacity).collect::<Vec<_>>();
        let mut pairs = Vec::new();
        for _ in 0..2 * SOCKETS {
            pairs.push(pair(&outbox).await);
        }
        for sent in [1, ROOM, ROOM + 1, SHORT] {
            pairs[0].0.write_all(&bytes(sent, 0)).await.expect("taken");
            assert!(rooms().is_empty(), "it is in use");
            yield_now().await;
            assert_eq!(rooms(), [sent.max(ROOM)]);
            exactly(&mut pairs[0].1, sent).await;
        }
        for _ in 0..2 {
            for (socket, _) in &mut pairs {
                socket.write_all(b"x").await.expect("taken");
            }
            yield_now().await;
            assert!((1..=SOCKETS).contains(&rooms().len()), "{}", rooms().len());
        }
        // What comes piece by piece gets more room than is kept.
        let before = rooms().len();
        pairs[0].0.write_all(&bytes(SHORT, 0)).await.expect("taken");
        pairs[0].0.write_all(&bytes(SHORT, 0)).await.expect("taken");
        yield_now().await;
        assert!(rooms().iter().all(|room| *room <= SHORT) && rooms().len() < before);
    }

    #[tokio::test(flavor = "local")]
    async fn what_is_held_leaves_before_the_socket_is_shut_and_also_where_it_is_dropped() {
        for shuts_down in [true, false] {
            let outbox = outbox().await;
            let (mut socket, mut peer) = pair(&outbox).await;
            socket.write_all(b"the last").await.expect("taken");
            if shuts_down {
                socket.shutdown().await.expect("shut");
            }
            drop(socket);
            let mut read = Vec::new();
            peer.read_to_end(&mut read).await.expect("read");
            assert_eq!(read, b"the last");
        }
    }

    #[tokio::test(flavor = "local")]
    async fn where_nobody_sends_nothing_is_held() {
        let outbox = Outbox::default();
        let sending = TaskTracker::new().spawn_local(outbox.clone().run());
        yield_now().await;
        let (mut socket, mut peer) = pair(&outbox).await;
        socket.write_all(b"held, ").await.expect("taken");
        assert_eq!(sent(&socket), 0);
        sending.abort();
        assert!(sending.await.is_err());
        assert_eq!(sent(&socket), 6, "sent as the sender ends");
        socket.write_all(b"written").await.expect("written");
        assert_eq!(sent(&socket), 13);
        assert_eq!(exactly(&mut peer, 13).await, b"held, written");
    }

    #[tokio::test(flavor = "local")]
    async fn whoever_wrote_hears_that_the_peer_is_gone() {
        let outbox = outbox().await;
        let (mut socket, peer) = pair(&outbox).await;
        SockRef::from(&peer).set_linger(Some(std::time::Duration::ZERO)).expect("a reset");
        drop(peer);
        let failed = async {
            while socket.write_all(b"nobody").await.is_ok() && socket.flush().await.is_ok() {
                yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(5), failed).await.expect("an error");
    }

    #[tokio::test(flavor = "local")]
    async fn a_peer_that_does_not_read_is_waited_for() {
        let outbox = outbox().await;
        let (mut socket, mut peer) = pair(&outbox).await;
        let mut written = 0;
        // Until the kernel has no more room, which shows once the sender had its turn.
        while poll_fn(|cx| Pin::new(&mut socket).poll_flush(cx)).now_or_never().is_some() {
            written += socket.write(&bytes(SHORT, written)).now_or_never().expect("taken").expect("taken");
            yield_now().await;
        }
        let gone = sent(&socket);
        assert!(gone < written as u64, "{gone} of {written}");
        assert!(socket.write(b"x").now_or_never().is_none(), "no more is held than it was");
        let (flushed, read) = tokio::join!(socket.flush(), exactly(&mut peer, written));
        flushed.expect("sent");
        let expected: Vec<u8> = (0..written / SHORT).flat_map(|piece| bytes(SHORT, piece * SHORT)).collect();
        assert!(read == expected);
        assert_eq!(sent(&socket), written as u64);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_is_lost_or_changes_its_place(
            lengths in proptest::collection::vec((1..3 * SHORT, any::<bool>(), any::<bool>()), 1..12),
        ) {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build_local(LocalOptions::default()).expect("a runtime");
            let (read, expected) = runtime.block_on(async {
                let outbox = outbox().await;
                let (mut socket, mut peer) = pair(&outbox).await;
                let pieces: Vec<_> = lengths.iter().map(|(length, ..)| bytes(*length, *length)).collect();
                let writes = async {
                    for (piece, (_, flushes, yields)) in pieces.iter().zip(&lengths) {
                        socket.write_all(piece).await.expect("written");
                        if *flushes {
                            socket.flush().await.expect("flushed");
                        }
                        if *yields {
                            yield_now().await;
                        }
                    }
                    socket.shutdown().await.expect("shut");
                };
                let mut read = Vec::new();
                let ((), length) = tokio::join!(writes, peer.read_to_end(&mut read));
                assert_eq!(length.expect("read"), read.len());
                (read, pieces.concat())
            });
            prop_assert!(read == expected);
        }
    }
}
