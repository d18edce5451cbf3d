//! HTTP/2's floods: frames that cost us work and bring nobody anything.
//!
//! A `PING` has to be answered, a `SETTINGS` acknowledged, a stream that is opened and reset at once has begun a request.
//! The library bounds some of these and not others. So every frame that comes in is counted against what the connection may
//! spend: a burst, so much a second, and more for every answer that it takes. Clients who ask for something and read
//! what they get never come near it, whatever they send beside.

use std::time::Duration;

use crate::time::Instant;

/// What a connection may spend at once …
const BURST: u32 = 256;
/// … and gains each second.
const PER_SECOND: u32 = 32;
/// For a stream that is reset, by the peer or for what it did wrong.
const RESET: u32 = 4;
/// For a frame of an answer, and one more for each KiB of it: a window is moved often by who reads in small pieces.
const ANSWER: u32 = 4;
/// A frame of a body that is no longer than this brings nothing.
const TINY: u32 = 16;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// The head of a frame (RFC 9113 §4.1), and the first bytes of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
    /// What a stream was reset for.
    reason: u32,
}

/// Cuts bytes into frames.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; 13],
    have: usize,
    /// Bytes of the frame that are still to come.
    left: usize,
}

impl Frames {
    /// Hands over each frame whose head is complete, and of a reset its reason.
    fn read(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (self.wanted() - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == self.wanted() {
                let [a, b, c, kind, flags, _, _, _, _, reason @ ..] = self.head;
                let length = u32::from_be_bytes([0, a, b, c]);
                self.left = length as usize - (self.have - 9);
                self.have = 0;
                each(Frame { length, kind, flags, reason: u32::from_be_bytes(reason) });
            }
        }
    }

    fn wanted(&self) -> usize {
        let is_reset = self.have >= 9 && self.head[3] == RST_STREAM && self.head[..3] == [0, 0, 4];
        if is_reset { 13 } else { 9 }
    }
}

/// What one connection has sent, and been sent.
#[derive(Debug)]
pub(super) struct Counts {
    incoming: Frames,
    outgoing: Frames,
    /// What it may still spend.
    left: u32,
    since: Instant,
    in_head: bool,
    heads: u64,
}

/// More came than any client sends that wants an answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("more frames came than any client sends that wants an answer")]
pub(super) struct Flood;

impl Counts {
    pub(super) fn new() -> Self {
        let (incoming, outgoing) = Default::default();
        Self { incoming, outgoing, left: BURST, since: Instant::now(), in_head: false, heads: 0 }
    }

    /// The head of a request, or trailers, have begun and not ended.
    pub(super) fn is_in_head(&self) -> bool {
        self.in_head
    }

    /// How many of them have ended.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// These bytes came in.
    ///
    /// # Errors
    /// What came costs more than the connection may spend.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), Flood> {
        let (mut cost, mut heads, mut in_head) = (0u32, 0, self.in_head);
        self.incoming.read(bytes, |frame| {
            let ends = frame.flags & END_STREAM != 0;
            cost = cost.saturating_add(match frame.kind {
                DATA if frame.flags & PADDED == 0 && (ends || frame.length > TINY) => 0,
                HEADERS => 0,
                RST_STREAM => RESET,
                _ => 1,
            });
            if matches!(frame.kind, HEADERS | CONTINUATION) {
                in_head = frame.flags & END_HEADERS == 0;
                heads += u64::from(!in_head);
            }
        });
        self.heads += heads;
        self.in_head = in_head;
        self.spend(cost)
    }

    /// These bytes go out.
    ///
    /// # Errors
    /// More streams had to be reset than the connection may spend.
    pub(super) fn written(&mut self, bytes: &[u8]) -> Result<(), Flood> {
        let (mut cost, mut gain) = (0u32, 0u32);
        self.outgoing.read(bytes, |frame| match frame.kind {
            DATA | HEADERS => gain += ANSWER + frame.length / 1024,
            // Resets that say that nothing is wrong end the body of a request that was answered before it was whole.
            RST_STREAM if frame.reason != 0 => cost += RESET,
            _ => {}
        });
        self.left = self.left.saturating_add(gain).min(BURST);
        self.spend(cost)
    }

    fn spend(&mut self, cost: u32) -> Result<(), Flood> {
        if cost > self.left {
            let gained =
                self.since.elapsed().min(Duration::from_secs(60)).as_millis() * u128::from(PER_SECOND) / 1000;
            self.left = self.left.saturating_add(u32::try_from(gained).unwrap_or(BURST)).min(BURST);
            self.since = Instant::now();
        }
        self.left = self.left.checked_sub(cost).ok_or(Flood)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// How many of `frame` are taken, up to 1000, each preceded by the answer `answer`.
    fn taken(frame: &[u8], answer: &[u8]) -> usize {
        let mut counts = Counts::new();
        let one = |_: &usize| counts.written(answer).is_ok() && counts.read(frame).is_ok();
        (0..1000).take_while(one).count()
    }

    #[tokio::test(start_paused = true)]
    async fn what_brings_nothing_ends_after_a_burst_and_what_brings_something_does_not() {
        let ping = frame(6, 0, &[0; 8]);
        let reset = frame(3, 0, &[0, 0, 0, 8]);
        for (frame, most) in [
            (ping.clone(), 256),
            (frame(4, 0, &[]), 256),
            (frame(2, 0, &[0; 5]), 256),
            (frame(8, 0, &[0, 0, 0, 1]), 256),
            (frame(9, 4, &[]), 256),
            (frame(0xbe, 0, b"grease"), 256),
            (frame(0, 0, &[]), 256),
            (frame(0, 0, b"x"), 256),
            (frame(0, PADDED, &[99; 100]), 256),
            (reset.clone(), 64),
            (frame(0, 0, &[b'x'; 100]), 1000),
            (frame(0, END_STREAM, &[]), 1000),
            (frame(1, 5, b"head"), 1000),
        ] {
            assert_eq!(taken(&frame, &[]), most, "{frame:?}");
        }
        let answer = frame(1, 4, b"head");
        for frame in [[ping.clone(), ping].concat(), reset.clone()] {
            assert_eq!(taken(&frame, &answer), 1000, "{frame:?}: one for an answer");
        }
        assert_eq!(taken(&[], &reset), 64, "streams that we had to reset");
        assert_eq!(taken(&[], &frame(3, 0, &[0; 4])), 1000, "nothing was wrong with these");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_connection_may_spend_comes_back_with_time() {
        let mut counts = Counts::new();
        let ping = frame(6, 0, &[0; 8]);
        for _ in 0..3 {
            assert_eq!(counts.read(&ping.repeat(256)), Ok(()));
            crate::time::sleep(Duration::from_secs(8)).await;
        }
        assert_eq!(counts.read(&ping.repeat(257)), Err(Flood));
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_found_however_they_are_cut_and_heads_end_with_their_last_frame() {
        let all = [
            frame(4, 0, &[0, 4, 0, 0, 0, 0]),
            frame(1, 0, b"begins"),
            frame(9, 0, b"goes on"),
            frame(9, END_HEADERS, b"ends"),
            frame(0, 0, &[6; 500]),
            frame(3, 0, &[0, 0, 0, 8]),
            frame(1, 5, b"whole"),
        ]
        .concat();
        for size in [1, 2, 5, 9, 13, 1000] {
            let mut counts = Counts::new();
            for piece in all.chunks(size) {
                counts.read(piece).expect("few");
            }
            assert_eq!((counts.heads(), counts.is_in_head(), counts.left), (2, false, BURST - 1 - 2 - RESET));
        }
        let mut counts = Counts::new();
        counts.read(&frame(1, 1, b"begins")[..10]).expect("few");
        assert!(counts.is_in_head());
    }
}
