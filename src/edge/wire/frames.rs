//! The frames of HTTP/2 (RFC 9113 §4.1), cut out of bytes that come in any pieces.

pub(in crate::edge) const DATA: u8 = 0;
pub(in crate::edge) const HEADERS: u8 = 1;
pub(in crate::edge) const RST_STREAM: u8 = 3;
pub(in crate::edge) const SETTINGS: u8 = 4;
pub(in crate::edge) const WINDOW_UPDATE: u8 = 8;
pub(in crate::edge) const CONTINUATION: u8 = 9;

pub(in crate::edge) const END_STREAM: u8 = 0x1;
pub(in crate::edge) const END_HEADERS: u8 = 0x4;
pub(in crate::edge) const PADDED: u8 = 0x8;
pub(in crate::edge) const PRIORITY: u8 = 0x20;

/// The head of a frame, and the first bytes of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::edge) struct Frame {
    pub(in crate::edge) length: u32,
    pub(in crate::edge) kind: u8,
    pub(in crate::edge) flags: u8,
    pub(in crate::edge) stream: u32,
    /// What a stream was reset for, or by how much a window moves; else 0.
    pub(in crate::edge) word: u32,
}

impl Frame {
    /// Whether nothing more comes of its stream from this side.
    pub(in crate::edge) fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

/// Cuts bytes into frames.
#[derive(Debug, Default)]
pub(in crate::edge) struct Frames {
    head: [u8; 13],
    have: usize,
    /// Bytes of the frame that are still to come.
    left: usize,
}

/// What [`Frames`] come in.
pub(in crate::edge) enum Piece<'a> {
    /// A head is complete, with its word where it has one.
    Head(Frame),
    /// Some of what the frame holds, and whether it is the last of it.
    Rest(&'a [u8], bool),
}

impl Frames {
    pub(in crate::edge) fn read(&mut self, mut bytes: &[u8], mut each: impl FnMut(Piece<'_>)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
                self.left -= piece.len();
                bytes = rest;
                each(Piece::Rest(piece, self.left == 0));
                continue;
            }
            let (piece, rest) = bytes.split_at((self.wanted() - self.have).min(bytes.len()));
            self.head[self.have..self.have + piece.len()].copy_from_slice(piece);
            self.have += piece.len();
            bytes = rest;
            if self.have == self.wanted() {
                let [a, b, c, kind, flags, s, t, u, v, word @ ..] = self.head;
                let length = u32::from_be_bytes([0, a, b, c]);
                let stream = u32::from_be_bytes([s & 0x7f, t, u, v]);
                let word = if self.have > 9 { u32::from_be_bytes(word) } else { 0 };
                self.left = length as usize - (self.have - 9);
                self.have = 0;
                each(Piece::Head(Frame { length, kind, flags, stream, word }));
            }
        }
    }

    fn wanted(&self) -> usize {
        let has_word = self.have >= 9
            && matches!(self.head[3], RST_STREAM | WINDOW_UPDATE)
            && self.head[..3] == [0, 0, 4];
        if has_word { 13 } else { 9 }
    }
}
