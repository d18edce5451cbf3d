//! HTTP/1.1 as RFC 9112 has it, read beside the parser: where each message begins and ends, and what is wrong with it.
//!
//! The library's parser is lenient where it can be (a line may end in a bare LF, a `Content-Length` beside a
//! `Transfer-Encoding` is taken out, a fragment is cut off) and says nothing. What is decided on and what is forwarded would
//! still be the same, but whoever stood before us may have read something else. So the bytes are followed here, pipelined
//! requests included. What the parser itself refuses is left to it: it then reads nothing more of the connection.

use memchr::{memchr, memchr_iter, memchr2};

use crate::policy::identify::MAX_FIELDS;

/// Bytes of a line with the size of a chunk, and what follows it.
const CHUNK_LINE: usize = 1024;
/// Digits of the size of a chunk: more than 16 would be more than can be counted, or zeros for nothing.
const CHUNK_DIGITS: usize = 16;
/// Bytes of a chunk: whoever tells of more wants to see who counts wrong, and would be waited for.
const CHUNK: u64 = 1 << 30;

/// Where in a connection the bytes stand. Everything but a body is read by lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    #[default]
    RequestLine,
    Fields,
    /// So many bytes of a body are to come.
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// Nothing more is read here.
    Over,
}

/// What is wrong with a request whose head can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// A fragment in its target.
    pub fragment: bool,
    /// More than one field tells the length of its body, or one tells it in another way than by a number or `chunked`.
    pub two_lengths: bool,
    /// More fields than are taken, which end its head for the parser: that takes no more either, and says nothing of it.
    pub many_fields: bool,
}

/// Where the bytes that were read stop being a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A head with this wrong has ended here; its request can be refused with a reason.
    After(Seen),
    /// Here begins a field more than a head may have.
    Fields,
    /// The line that began here is of a head, and no parser should take it.
    Head,
    /// The line that began here is of a body.
    Body,
}

/// One connection's requests, as they come.
#[derive(Debug, Default)]
pub struct Reader {
    at: At,
    /// What has come of a line that is not whole.
    line: Vec<u8>,
    /// Bytes a line may have; the parser takes no longer head.
    longest: usize,
    heads: u64,
    /// What was last read was one whole head, and no body follows it.
    plain: bool,
    /// Of the head that is under way.
    fields: usize,
    seen: Seen,
    lengths: u8,
    length: u64,
    chunked: bool,
}

impl Reader {
    /// `longest`: bytes of a head.
    pub fn new(longest: usize) -> Self {
        Self { longest, ..Self::default() }
    }

    /// How many heads have ended.
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// All that has begun has ended.
    pub fn is_between(&self) -> bool {
        self.at == At::RequestLine && self.line.is_empty()
    }

    /// What was last read was one whole head, which no body follows, and no more.
    pub fn was_plain(&self) -> bool {
        self.plain
    }

    /// A head has begun and not ended.
    pub fn is_in_head(&self) -> bool {
        self.at == At::Fields || (self.at == At::RequestLine && !self.line.is_empty())
    }

    /// These bytes came in.
    ///
    /// # Errors
    /// How many of them may be passed on, and what stands in the way of the others.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), (usize, Stop)> {
        if self.is_between() && bytes.len() <= self.longest && is_plain_head(bytes) {
            self.heads += 1;
            self.plain = true;
            return Ok(());
        }
        self.plain = false;
        let mut from = 0;
        while from < bytes.len() {
            let rest = &bytes[from..];
            match &mut self.at {
                At::Over => return Ok(()),
                At::Body(left) | At::Chunk(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= taken as u64;
                    from += taken;
                    match self.at {
                        At::Body(0) => self.at = At::RequestLine,
                        At::Chunk(0) => self.at = At::ChunkEnd,
                        _ => {}
                    }
                }
                At::Fields if self.fields == MAX_FIELDS && self.line.is_empty() && rest[0] != b'\r' => {
                    self.heads += 1;
                    return Err(self.over(from, 0, Stop::Fields));
                }
                At::RequestLine | At::Fields | At::ChunkSize | At::ChunkEnd | At::Trailers => {
                    // Most lines are there whole, and one search then tells that nothing is wrong with their end.
                    if self.line.is_empty()
                        && let Some(end) = memchr2(b'\r', b'\n', rest)
                        && rest[end..].starts_with(b"\r\n")
                        && end + 2 <= self.longest()
                    {
                        match self.content(&rest[..end]) {
                            Ok(()) => from += end + 2,
                            Err(stop) => return Err(self.over(from, end + 2, stop)),
                        }
                        continue;
                    }
                    let end = memchr(b'\n', rest).map(|end| end + 1);
                    let piece = &rest[..end.unwrap_or(rest.len())];
                    let ended = if self.line.len() + piece.len() > self.longest() {
                        Err(self.broken())
                    } else if end.is_none() {
                        self.line.extend_from_slice(piece);
                        return Ok(());
                    } else if self.line.is_empty() {
                        self.line(piece)
                    } else {
                        let mut line = std::mem::take(&mut self.line);
                        line.extend_from_slice(piece);
                        self.line(&line)
                    };
                    match ended {
                        Ok(()) => from += piece.len(),
                        Err(stop) => {
                            let length = piece.len();
                            return Err(self.over(from, length, stop));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Nothing more is read behind the line of `length` bytes at `from`; how many bytes may be passed on.
    fn over(&mut self, from: usize, length: usize, stop: Stop) -> (usize, Stop) {
        self.at = At::Over;
        (if let Stop::After(_) = stop { from + length } else { from }, stop)
    }

    fn longest(&self) -> usize {
        if matches!(self.at, At::ChunkSize | At::ChunkEnd) { CHUNK_LINE } else { self.longest }
    }

    fn broken(&self) -> Stop {
        if matches!(self.at, At::RequestLine | At::Fields) { Stop::Head } else { Stop::Body }
    }

    /// A whole line, with its end.
    fn line(&mut self, line: &[u8]) -> Result<(), Stop> {
        let Some(line) = line.strip_suffix(b"\r\n").filter(|line| memchr(b'\r', line).is_none()) else {
            return Err(self.broken());
        };
        self.content(line)
    }

    /// A whole line, without its end.
    fn content(&mut self, line: &[u8]) -> Result<(), Stop> {
        self.at = match (self.at, line) {
            // Empty lines before a request are skipped (§2.2).
            (At::RequestLine, b"") => At::RequestLine,
            (At::RequestLine, line) => {
                let target = memchr(b' ', line).unwrap_or(line.len());
                self.seen.fragment = memchr(b'#', &line[target..]).is_some();
                At::Fields
            }
            (At::Fields, b"") => return self.head_ended(),
            (At::Fields, line) => {
                self.fields += 1;
                self.field(line);
                At::Fields
            }
            (At::ChunkSize, line) => match chunk_size(line).ok_or(Stop::Body)? {
                0 => At::Trailers,
                size => At::Chunk(size),
            },
            (At::ChunkEnd, b"") => At::ChunkSize,
            (At::ChunkEnd, _) => return Err(Stop::Body),
            (At::Trailers, b"") => At::RequestLine,
            (at, _) => at,
        };
        Ok(())
    }

    fn field(&mut self, line: &[u8]) {
        // No other begins like these two, and most lines are others.
        if !matches!(line[0] | 0x20, b'c' | b't') {
            return;
        }
        let colon = memchr(b':', line).unwrap_or(line.len());
        let (name, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default().trim_ascii());
        let plain = if name.eq_ignore_ascii_case(b"content-length") {
            // What is no number is refused by the parser.
            let digits = value.iter().all(u8::is_ascii_digit).then_some(value);
            let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
            self.length = number.unwrap_or_default();
            number.is_some()
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = value.eq_ignore_ascii_case(b"chunked");
            self.chunked
        } else {
            return;
        };
        self.lengths = self.lengths.saturating_add(1);
        self.seen.two_lengths |= self.lengths > 1 || !plain;
    }

    fn head_ended(&mut self) -> Result<(), Stop> {
        let (length, chunked) = (std::mem::take(&mut self.length), std::mem::take(&mut self.chunked));
        self.heads += 1;
        (self.lengths, self.fields) = (0, 0);
        let seen = std::mem::take(&mut self.seen);
        if seen != Seen::default() {
            return Err(Stop::After(seen));
        }
        self.at = match (chunked, length) {
            (true, _) => At::ChunkSize,
            (false, 0) => At::RequestLine,
            (false, length) => At::Body(length),
        };
        Ok(())
    }
}

/// Whether these bytes are one whole head of a request without a body and nothing is wrong with it. Most reads bring that and
/// no more, and three searches by the word see it, with a look at where each line begins.
fn is_plain_head(bytes: &[u8]) -> bool {
    // The place in its name that tells a field of the body's length from others: `Content-L`, `Transfer-`.
    const PLACE: usize = 8;
    let Some(head) = bytes.strip_suffix(b"\r\n\r\n") else { return false };
    let mut lines = 0;
    for end in memchr_iter(b'\n', head) {
        let begins = |at: usize| head.get(end + 1 + at).map(|byte| byte | 0x20);
        let of_length =
            matches!((begins(0), begins(PLACE)), (Some(b'c'), Some(b'l')) | (Some(b't'), Some(b'-')));
        // An LF alone, an empty line before the end, or a field that may tell of a body.
        if end == 0 || head[end - 1] != b'\r' || matches!(head.get(end + 1), None | Some(b'\r')) || of_length
        {
            return false;
        }
        lines += 1;
    }
    let starts = !matches!(head.first(), None | Some(b'\r'));
    starts && lines <= MAX_FIELDS && count(b'\r', head) == lines && memchr(b'#', head).is_none()
}

/// How often a byte stands in a text. In pieces that a byte can count: so the compiler has it look at sixteen at once, which in
/// so short a text as a head takes half of what `memchr` does.
fn count(byte: u8, text: &[u8]) -> usize {
    text.chunks(255)
        .map(|piece| usize::from(piece.iter().map(|one| u8::from(*one == byte)).sum::<u8>()))
        .sum()
}

/// `1F; name=value`, and nothing that only some readers take for it (§7.1).
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extension = line[digits..].trim_ascii_start();
    let told = extension.is_empty() && digits == line.len() || extension.first() == Some(&b';');
    let clean = extension.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control());
    if !told || !clean || digits > CHUNK_DIGITS {
        return None;
    }
    let size = u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
    (size <= CHUNK).then_some(size)
}

#[cfg(test)]
mod tests;
