//! Answers of HTTP/2 that leave together.
//!
//! The library writes each frame of a body by itself, and asks after each that all be sent: sixteen short answers would be
//! sixteen system calls. So where several were begun before a turn of the connection's task, what the turn writes is held
//! until the next one, which this asks for, or until it is a lot. A hit among sixteen streams costs 0.7 of what it did.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;

/// So much is held of one connection.
const MOST: usize = 64 * 1024;

/// What is held.
#[derive(Debug, Default)]
pub(super) struct Batch {
    held: BytesMut,
    /// The turn in which the oldest of it came.
    since: u64,
    /// The turn that has asked for another.
    asked: u64,
}

impl Batch {
    /// Whether so many more bytes may be held.
    pub(super) fn takes(&self, more: usize) -> bool {
        self.held.len() + more <= MOST
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Holds these bytes, which came in this turn.
    pub(super) fn hold<'a>(&mut self, slices: impl Iterator<Item = &'a [u8]>, turn: u64) {
        if self.held.is_empty() {
            self.since = turn;
            self.held.reserve(MOST);
        }
        slices.for_each(|slice| self.held.extend_from_slice(slice));
    }

    /// Whether what is held can wait for another turn of the task that `cx` is of, which will come.
    pub(super) fn waits(&mut self, turn: u64, cx: &Context<'_>) -> bool {
        if self.since != turn {
            return false;
        }
        if self.asked != turn {
            self.asked = turn;
            cx.waker().wake_by_ref();
        }
        true
    }

    /// Writes all of it; `wrote` is told what was, and whether more could be.
    pub(super) fn leave<I: AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
        mut wrote: impl FnMut(&[u8], Poll<io::Result<usize>>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let poll = Pin::new(&mut *io).poll_write(cx, &self.held);
            let written = ready!(wrote(&self.held, poll))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(written);
        }
        // Idle connections hold no memory for it.
        self.held = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::io::{AsyncRead, ReadBuf};

    use super::super::{Heads, Wire};
    use super::*;
    use crate::edge::deadlines::{Deadlines, Limits, Watch};

    /// A socket that takes so many bytes at once, and then none until it is asked again.
    struct Socket<'t> {
        takes: usize,
        full: bool,
        taken: &'t mut Vec<Vec<u8>>,
    }

    impl AsyncRead for Socket<'_> {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Socket<'_> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.full = !self.full && self.takes < bytes.len();
            if self.full {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let takes = self.takes.min(bytes.len());
            self.taken.push(bytes[..takes].to_vec());
            Poll::Ready(Ok(takes))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Writes one of `pieces`, and asks that it be sent.
    fn send<I: AsyncRead + AsyncWrite + Unpin>(
        wire: &mut Wire<I>,
        cx: &mut Context<'_>,
        pieces: &mut Vec<Vec<u8>>,
    ) -> Poll<()> {
        while let Some(piece) = pieces.first_mut() {
            while !piece.is_empty() {
                let written = ready!(Pin::new(&mut *wire).poll_write(cx, piece)).expect("written");
                piece.drain(..written);
            }
            pieces.remove(0);
            if Pin::new(&mut *wire).poll_flush(cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// What a socket is given of these pieces, written in one turn after so many answers were begun.
    async fn given(answers: usize, takes: usize, mut pieces: Vec<Vec<u8>>, shuts_down: bool) -> Vec<Vec<u8>> {
        let (second, deadlines) = (std::time::Duration::from_secs(1), Deadlines::default());
        let watch = deadlines.watch(Limits { head: second, idle: second, silence: second });
        watch.multiplexes();
        let mut taken = Vec::new();
        let socket = Socket { takes, full: false, taken: &mut taken };
        let mut wire = Wire::new(socket, watch.clone(), Arc::<Heads>::default(), 1024);
        let mut serving: Vec<_> = (0..answers).map(|_| watch.serve()).collect();
        serving.iter_mut().for_each(|serving| serving.moved());
        attended(&watch, |cx| {
            ready!(send(&mut wire, cx, &mut pieces));
            match shuts_down {
                true => Pin::new(&mut wire).poll_shutdown(cx).map(|shut| shut.expect("shut down")),
                // As the library does whenever it is polled.
                false => match Pin::new(&mut wire).poll_flush(cx) {
                    Poll::Ready(_) if wire.batch.is_empty() => Poll::Ready(()),
                    _ => Poll::Pending,
                },
            }
        })
        .await;
        taken
    }

    async fn attended(watch: &Watch, poll: impl FnMut(&mut Context<'_>) -> Poll<()>) {
        assert_eq!(watch.attend(pin!(poll_fn(poll)), false).await, Ok(()));
    }

    fn pieces(lengths: &[usize]) -> Vec<Vec<u8>> {
        lengths.iter().zip(0..).map(|(&length, byte)| vec![byte; length]).collect()
    }

    #[tokio::test]
    async fn answers_that_were_begun_together_leave_together_and_one_alone_at_once() {
        let all = pieces(&[300, 2000, 300, 2000]);
        assert_eq!(given(2, usize::MAX, all.clone(), false).await, [all.concat()]);
        assert_eq!(given(1, usize::MAX, all.clone(), false).await, all);
    }

    #[tokio::test]
    async fn no_more_is_held_than_so_much() {
        let all = pieces(&[40_000, 20_000, 10_000, 100_000]);
        let expected = [all[..2].concat(), all[2].clone(), all[3].clone()];
        assert_eq!(given(16, usize::MAX, all.clone(), false).await, expected);
    }

    #[tokio::test]
    async fn what_is_held_leaves_before_the_socket_is_shut() {
        let all = pieces(&[300, 2000]);
        assert_eq!(given(2, usize::MAX, all.clone(), true).await, [all.concat()]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_leaves_before_its_turn(
            answers in 0..4usize,
            takes in 1..70_000usize,
            lengths in proptest::collection::vec(1..80_000usize, 1..8),
            shuts_down: bool,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let all = pieces(&lengths);
            let given = runtime.block_on(given(answers, takes, all.clone(), shuts_down));
            prop_assert_eq!(given.concat(), all.concat());
        }
    }
}
