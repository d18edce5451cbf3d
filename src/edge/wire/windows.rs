//! HTTP/2's windows (RFC 9113 §5.2): whether a peer lets the answers through that it has asked for.
//!
//! Who opens streams and no window has us hold an answer for each. A client that is slow, or has paused a download, has a
//! few such streams, or moves its windows every now and then; many of which nothing may be sent are no client's.

use std::time::Duration;

/// So many answers of which next to nothing may be sent …
const UNWANTED: usize = 8;
/// … are held for so long: longer than the word of who opens each window once it knows of the answer is under way.
const UNWANTED_HELD: Duration = Duration::from_secs(1);
/// Bytes of a window that are next to nothing.
const NOTHING: i64 = 1024;

/// So many answers whose windows are used up …
const UNREAD: usize = 32;
/// … are held for so long: a network may stand still for a moment.
const UNREAD_HELD: Duration = Duration::from_secs(5);
/// Bytes of answers that have to go out in that time.
const LEAST: u32 = 1024;

/// Streams that are looked at; the library lets fewer be open.
const MOST: usize = 512;
/// §6.9.2.
const INITIAL: u32 = 65_535;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// A stream whose answer has not gone out whole.
#[derive(Debug, Clone, Copy)]
struct Open {
    stream: u32,
    answered: bool,
    /// By how much its window was moved.
    moved: i64,
    sent: i64,
}

/// The windows that one peer has given us.
#[derive(Debug)]
pub(super) struct Windows {
    connection: i64,
    initial: i64,
    open: Vec<Open>,
    /// Of a setting, what has come.
    setting: [u8; 6],
    have: usize,
    /// Bytes of answers that went out since it was last asked.
    sent: u32,
}

impl Default for Windows {
    fn default() -> Self {
        let initial = i64::from(INITIAL);
        Self { connection: initial, initial, open: Vec::new(), setting: [0; 6], have: 0, sent: 0 }
    }
}

impl Windows {
    /// A request has begun.
    pub(super) fn opened(&mut self, stream: u32) {
        if self.open.len() < MOST {
            self.open.push(Open { stream, answered: false, moved: 0, sent: 0 });
        }
    }

    /// Its answer has gone out whole, or none is wanted any more.
    pub(super) fn ended(&mut self, stream: u32) {
        if let Some(at) = self.open.iter().position(|open| open.stream == stream) {
            self.open.swap_remove(at);
        }
    }

    /// Its answer has begun.
    pub(super) fn answered(&mut self, stream: u32) {
        if let Some(open) = self.find(stream) {
            open.answered = true;
        }
    }

    /// Some of it went out.
    pub(super) fn sent(&mut self, stream: u32, bytes: u32) {
        self.connection -= i64::from(bytes);
        self.sent = self.sent.saturating_add(bytes);
        if let Some(open) = self.find(stream) {
            open.sent += i64::from(bytes);
        }
    }

    /// The peer moves a window.
    pub(super) fn moved(&mut self, stream: u32, by: u32) {
        let by = i64::from(by & 0x7fff_ffff);
        if stream == 0 {
            self.connection = self.connection.saturating_add(by);
        } else if let Some(open) = self.find(stream) {
            open.moved = open.moved.saturating_add(by);
        }
    }

    /// The peer's settings begin.
    pub(super) fn settings(&mut self) {
        self.have = 0;
    }

    /// Some of what they say.
    pub(super) fn setting(&mut self, piece: &[u8]) {
        for byte in piece {
            self.setting[self.have] = *byte;
            self.have += 1;
            if self.have == self.setting.len() {
                let [a, b, value @ ..] = self.setting;
                self.have = 0;
                if u16::from_be_bytes([a, b]) == INITIAL_WINDOW_SIZE {
                    self.initial = i64::from(u32::from_be_bytes(value));
                }
            }
        }
    }

    /// How long the answers that may not be sent are held, where there are too many of them; and whether some of any have
    /// gone out.
    pub(super) fn patience(&mut self) -> (Option<Duration>, bool) {
        let moves = self.sent >= LEAST;
        if moves {
            self.sent = 0;
        }
        if self.open.len() < UNWANTED {
            return (None, moves);
        }
        let (mut unwanted, mut unread) = (0, 0);
        for open in self.open.iter().filter(|open| open.answered) {
            let window = self.initial.saturating_add(open.moved);
            if window <= open.sent || self.connection <= 0 {
                unread += 1;
                unwanted += usize::from(window < NOTHING);
            }
        }
        let patience = match (unwanted, unread) {
            (UNWANTED.., _) => Some(UNWANTED_HELD),
            (_, UNREAD..) => Some(UNREAD_HELD),
            _ => None,
        };
        (patience, moves)
    }

    fn find(&mut self, stream: u32) -> Option<&mut Open> {
        self.open.iter_mut().find(|open| open.stream == stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(windows: &mut Windows, streams: std::ops::Range<u32>) {
        for stream in streams {
            windows.opened(stream);
            windows.answered(stream);
        }
    }

    #[test]
    fn answers_without_any_window_are_not_held_for_long() {
        let mut windows = Windows::default();
        windows.settings();
        for piece in [&[0, 3, 0, 0, 0, 9, 0][..], &[4, 0, 0], &[0, 0]] {
            windows.setting(piece);
        }
        asked(&mut windows, 1..8);
        windows.opened(8);
        assert_eq!(windows.patience().0, None, "one is not answered yet");
        windows.answered(8);
        assert_eq!(windows.patience().0, Some(UNWANTED_HELD));
        windows.moved(3, 1);
        windows.sent(3, 1);
        assert_eq!(windows.patience().0, Some(UNWANTED_HELD), "a byte is no window");
        windows.moved(3, 5000);
        assert_eq!(windows.patience().0, None);
        windows.sent(3, 5000);
        assert_eq!(windows.patience().0, None, "it was wanted, and is one of few");
        asked(&mut windows, 9..10);
        assert_eq!(windows.patience().0, Some(UNWANTED_HELD));
        windows.ended(9);
        assert_eq!(windows.patience().0, None);
        windows.settings();
        windows.setting(&[0, 4, 0, 1, 0, 0]);
        asked(&mut windows, 20..60);
        assert_eq!(windows.patience().0, None, "there is room for all of them");
    }

    #[test]
    fn answers_that_have_used_their_windows_up_are_held_a_little_longer() {
        let mut windows = Windows::default();
        asked(&mut windows, 1..32);
        windows.sent(1, INITIAL);
        assert_eq!(windows.patience(), (None, true), "few");
        asked(&mut windows, 32..33);
        assert_eq!(
            windows.patience(),
            (Some(UNREAD_HELD), false),
            "the connection's window is all of theirs"
        );
        windows.moved(0, 100_000);
        assert_eq!(windows.patience().0, None);
        windows.sent(2, 100);
        assert!(!windows.patience().1, "next to nothing");
        windows.sent(2, 1000);
        assert!(windows.patience().1);
        for stream in 1..33 {
            windows.moved(0, INITIAL);
            windows.sent(stream, INITIAL);
        }
        assert_eq!(windows.patience().0, Some(UNREAD_HELD), "each has used up its own");
    }

    #[test]
    fn no_more_streams_are_kept_than_can_be_open() {
        let mut windows = Windows::default();
        for stream in 0..10_000 {
            windows.opened(stream);
        }
        assert_eq!(windows.open.len(), MOST);
        for stream in 0..10_000 {
            windows.ended(stream);
        }
        assert!(windows.open.is_empty());
    }
}
