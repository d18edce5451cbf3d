//! HTTP/2's floods: frames that cost us work and bring nobody anything.
//!
//! A `PING` has to be answered, a `SETTINGS` acknowledged, a stream that is opened and reset at once has begun a request.
//! The library bounds some of these and not others. So every frame that comes in is counted against what the connection may
//! spend: a burst, so much a second, and more for every answer that it takes. Clients who ask for something and read
//! what they get never come near it, whatever they send beside.

use std::time::Duration;

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, Frames, HEADERS, PADDED, PRIORITY, Piece, RST_STREAM,
    SETTINGS, WINDOW_UPDATE,
};
use super::windows::Windows;
use crate::time::Instant;

/// What a connection may spend at once …
const BURST: u32 = 256;
/// … and gains each second.
const PER_SECOND: u32 = 32;
/// What it may have saved of what it gained by taking answers: whoever moves its windows after each of their frames does so
/// a few hundred times at once, where it was given a few MiB at once.
const SAVED: u32 = 4096;
/// For a stream that is reset, by the peer or for what it did wrong.
const RESET: u32 = 4;
/// For a frame of an answer, and one more for each KiB of it: a window is moved often by who reads in small pieces.
const ANSWER: u32 = 4;
/// A frame of a body that is no longer than this brings nothing.
const TINY: u32 = 16;

/// Bytes of trailers, which are dropped.
const TRAILERS: u32 = 16 * 1024;

/// What one connection has sent, and been sent.
#[derive(Debug)]
pub struct Counts {
    incoming: Frames,
    outgoing: Frames,
    /// What it may still spend.
    left: u32,
    since: Instant,
    in_head: bool,
    heads: u64,
    /// The stream that was opened last.
    newest: u32,
    /// Of the trailers under way, what has come.
    trailers: Option<Vec<u8>>,
    /// Settings are under way.
    in_settings: bool,
    windows: Windows,
}

/// Why a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More came than any client sends that wants an answer.
    #[error("more frames came than any client sends that wants an answer")]
    Flood,
    /// Trailers that hold what belongs in a head (§8.1), or may do.
    #[error("trailers came that are none")]
    Trailers,
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

impl Counts {
    /// Of a connection that has just begun.
    pub fn new() -> Self {
        Self {
            incoming: Frames::default(),
            outgoing: Frames::default(),
            left: BURST,
            since: Instant::now(),
            in_head: false,
            heads: 0,
            newest: 0,
            trailers: None,
            in_settings: false,
            windows: Windows::default(),
        }
    }

    /// How long answers that the peer gives no window for are held, where there are too many of them; and whether some of
    /// any have gone out since this was last asked.
    pub fn patience(&mut self) -> (Option<Duration>, bool) {
        self.windows.patience()
    }

    /// The head of a request, or trailers, have begun and not ended.
    pub fn is_in_head(&self) -> bool {
        self.in_head
    }

    /// How many of them have ended.
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// These bytes came in.
    ///
    /// # Errors
    /// What came costs more than the connection may spend, or is malformed in a way that the library does not mind.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let Self { incoming, in_head, heads, newest, trailers, in_settings, windows, .. } = self;
        let (mut cost, mut fault) = (0u32, None);
        incoming.read(bytes, |piece| match piece {
            Piece::Head(Frame { length, kind, flags, stream, word }) => {
                let ends = flags & END_STREAM != 0;
                let opens = kind == HEADERS && stream > *newest;
                cost = cost.saturating_add(match kind {
                    DATA if flags & PADDED == 0 && (ends || length > TINY) => 0,
                    HEADERS if opens => 0,
                    RST_STREAM => RESET,
                    _ => 1,
                });
                *trailers = None;
                *in_settings = kind == SETTINGS;
                match kind {
                    SETTINGS => windows.settings(),
                    WINDOW_UPDATE => windows.moved(stream, word),
                    RST_STREAM => windows.ended(stream),
                    _ => {}
                }
                if opens {
                    *newest = stream;
                    windows.opened(stream);
                } else if kind == HEADERS {
                    *trailers = Some(Vec::new());
                    if flags & (PADDED | PRIORITY) != 0 || flags & END_HEADERS == 0 || length > TRAILERS {
                        fault = Some(Fault::Trailers);
                    }
                }
                if matches!(kind, HEADERS | CONTINUATION) {
                    *in_head = flags & END_HEADERS == 0;
                    *heads += u64::from(!*in_head);
                }
            }
            Piece::Rest(piece, _) if *in_settings => windows.setting(piece),
            Piece::Rest(piece, last) => {
                let Some(block) = trailers else { return };
                block.extend_from_slice(piece);
                if last && !are_trailers(block).unwrap_or(false) {
                    fault = Some(Fault::Trailers);
                }
            }
        });
        self.spend(cost)?;
        fault.map_or(Ok(()), Err)
    }

    /// These bytes go out.
    ///
    /// # Errors
    /// More streams had to be reset than the connection may spend.
    pub fn written(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let Self { outgoing, windows, .. } = self;
        let (mut cost, mut gain) = (0u32, 0u32);
        outgoing.read(bytes, |piece| {
            let Piece::Head(frame) = piece else { return };
            match frame.kind {
                DATA => windows.sent(frame.stream, frame.length),
                HEADERS => windows.answered(frame.stream),
                // Resets that say that nothing is wrong end the body of a request that was answered before it was whole.
                RST_STREAM => cost += if frame.word == 0 { 0 } else { RESET },
                _ => return,
            }
            if frame.kind == RST_STREAM || frame.ends_stream() {
                windows.ended(frame.stream);
            }
            if frame.kind != RST_STREAM {
                gain += ANSWER + frame.length / 1024;
            }
        });
        self.left = self.left.saturating_add(gain).min(SAVED);
        self.spend(cost)
    }

    fn spend(&mut self, cost: u32) -> Result<(), Fault> {
        if cost > self.left {
            let elapsed = self.since.elapsed().min(Duration::from_secs(60));
            let gained = elapsed.as_millis() * u128::from(PER_SECOND) / 1000;
            let filled = self.left.saturating_add(u32::try_from(gained).unwrap_or(BURST)).min(BURST);
            self.left = self.left.max(filled);
            self.since = Instant::now();
        }
        self.left = self.left.checked_sub(cost).ok_or(Fault::Flood)?;
        Ok(())
    }
}

/// Whether no name in a block of fields (RFC 7541 §6) begins with a colon; `None`: it is no block. The library drops such
/// fields from trailers, where they make a request malformed. What refers to fields of earlier blocks could be any.
fn are_trailers(mut block: &[u8]) -> Option<bool> {
    /// The last field of the static table whose name begins with a colon, and the last of all.
    const PSEUDO: usize = 14;
    const STATIC: usize = 61;
    while let Some(first) = block.first() {
        let (bits, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => {
                integer(&mut block, 5)?;
                continue;
            }
            _ => (4, true),
        };
        let index = integer(&mut block, bits)?;
        if literal && index == 0 {
            let name = string(&mut block)?;
            // A colon, or its seven bits in Huffman's code.
            if matches!(name, (false, [b':', ..]) | (true, [0xb8 | 0xb9, ..])) {
                return Some(false);
            }
        } else if index <= PSEUDO || index > STATIC {
            return Some(false);
        }
        if literal {
            string(&mut block)?;
        }
    }
    Some(true)
}

/// §5.1, as long as it is worth reading.
fn integer(block: &mut &[u8], bits: u8) -> Option<usize> {
    let most = (1usize << bits) - 1;
    let (first, rest) = block.split_first()?;
    *block = rest;
    let mut value = usize::from(*first) & most;
    if value < most {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let (next, rest) = block.split_first()?;
        *block = rest;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// §5.2: whether it is in Huffman's code, and its bytes.
fn string<'a>(block: &mut &'a [u8]) -> Option<(bool, &'a [u8])> {
    let coded = block.first()? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (string, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some((coded, string))
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

    #[tokio::test(flavor = "local", start_paused = true)]
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
        ] {
            assert_eq!(taken(&frame, &[]), most, "{frame:?}");
        }
        let mut counts = Counts::new();
        for stream in 1..1000u32 {
            let mut open = frame(1, 5, b"head");
            open[5..9].copy_from_slice(&stream.to_be_bytes());
            assert_eq!(counts.read(&open), Ok(()), "what they cost is counted by what becomes of them");
        }
        let answer = frame(1, 4, b"head");
        for frame in [[ping.clone(), ping].concat(), reset.clone()] {
            assert_eq!(taken(&frame, &answer), 1000, "{frame:?}: one for an answer");
        }
        assert_eq!(taken(&[], &reset), 64, "streams that we had to reset");
        assert_eq!(taken(&[], &frame(3, 0, &[0; 4])), 1000, "nothing was wrong with these");
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn whoever_is_given_much_at_once_may_move_its_windows_as_often() {
        let mut counts = Counts::new();
        let (data, update) = (frame(0, 0, &[b'x'; 16 * 1024]), frame(8, 0, &[0, 0, 0x40, 0]));
        // 4 MiB, and a window of the stream and one of the connection for each frame.
        assert_eq!(counts.written(&data.repeat(256)), Ok(()));
        assert_eq!(counts.read(&update.repeat(512)), Ok(()));
        // It can be saved, but not without end.
        assert_eq!(counts.written(&data.repeat(1000)), Ok(()));
        let most = usize::try_from(SAVED).expect("a few");
        assert_eq!(counts.read(&update.repeat(most)), Ok(()));
        assert_eq!(counts.read(&update), Err(Fault::Flood));
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn what_a_connection_may_spend_comes_back_with_time() {
        let mut counts = Counts::new();
        let ping = frame(6, 0, &[0; 8]);
        for _ in 0..3 {
            assert_eq!(counts.read(&ping.repeat(256)), Ok(()));
            crate::time::sleep(Duration::from_secs(8)).await;
        }
        assert_eq!(counts.read(&ping.repeat(257)), Err(Fault::Flood));
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn frames_are_found_however_they_are_cut_and_heads_end_with_their_last_frame() {
        let all = [
            frame(4, 0, &[0, 4, 0, 0, 0, 0]),
            frame(1, 0, b"begins"),
            frame(9, 0, b"goes on"),
            frame(9, END_HEADERS, b"ends"),
            frame(0, 0, &[6; 500]),
            frame(3, 0, &[0, 0, 0, 8]),
            frame(1, 5, b"\0\x01x\x01y"),
        ]
        .concat();
        for size in [1, 2, 5, 9, 13, 1000] {
            let mut counts = Counts::new();
            for piece in all.chunks(size) {
                counts.read(piece).expect("few");
            }
            assert_eq!(
                (counts.heads(), counts.is_in_head(), counts.left),
                (2, false, BURST - 1 - 2 - RESET - 1)
            );
        }
        let mut counts = Counts::new();
        counts.read(&frame(1, 1, b"begins")[..10]).expect("few");
        assert!(counts.is_in_head());
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn trailers_hold_nothing_that_belongs_in_a_head() {
        for (block, taken) in [
            (&b""[..], true),
            (b"\0\x03x-a\x01b", true),
            (b"\x20\x40\x03x-a\x01b\x10\x03x-c\0", true),
            // `accept-charset` and `age`, from the static table.
            (b"\x0f\0\x01b\x0f\x06\x01b\x8f", true),
            (b"\0\x05:path\x01/", false),
            (b"\0\x03x-a\x01b\x40\x05:path\x01/", false),
            // `:path` in Huffman's code, `:method: GET`, and `:path` by its index.
            (b"\0\x84\xb9\x58\xd3\x3f\x01/", false),
            (b"\x82", false),
            (b"\x04\x01/", false),
            (b"\x44\x01/", false),
            // What an earlier block has put in the table.
            (b"\xbe", false),
            (b"\x7e\x01/", false),
            // No block.
            (b"\x80", false),
            (b"\0\x05x", false),
            (b"\0\x7f\xff\xff\xff\xff", false),
        ] {
            let all = [frame(1, 4, b"opens"), frame(1, 5, block)].concat();
            for size in [1, 3, 1000] {
                let mut counts = Counts::new();
                let fault = all.chunks(size).find_map(|piece| counts.read(piece).err());
                assert_eq!(fault, (!taken).then_some(Fault::Trailers), "{block:x?} in pieces of {size}");
            }
        }
        let mut counts = Counts::new();
        let padded = [frame(1, 4, b"opens"), frame(1, 5 | PADDED, b"\x01\0\x01a\x01b\0")].concat();
        assert_eq!(counts.read(&padded), Err(Fault::Trailers), "nor is it looked for in padding");
    }
}
