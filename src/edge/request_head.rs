//! What the parser of HTTP/1.1 keeps to itself of a request: whether its target has a fragment, and whether its fields
//! tell the length of the body twice.
//!
//! A fragment has no place in a request (RFC 9112 §3.2), yet the library cuts it off and says nothing; nor does it say
//! that it took out a `Content-Length` beside a `Transfer-Encoding` (§6.3). What is decided on and what is forwarded would
//! still be the same, but whoever stood before us may have read the request with it. So the bytes of a head are looked at
//! as they pass. What is no head is left alone: saying what is wrong with it is the parser's part. Pipelined heads, which
//! come with the end of another request, are not seen.

use std::sync::{Mutex, PoisonError};

use memchr::memchr;

/// Where in a head the bytes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    #[default]
    Method,
    Target,
    /// Behind a `#` in the target.
    Fragment,
    /// In a line of which nothing more is asked.
    Line,
    /// Where a field begins.
    Field,
    /// So many bytes into a name that may be one of these.
    Name(Length, u8),
    /// The head has ended, or it is none.
    Over,
}

/// What tells the length of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Content,
    Transfer,
}

impl Length {
    /// Its name and what ends it.
    fn field(self) -> &'static [u8] {
        match self {
            Self::Content => b"content-length:",
            Self::Transfer => b"transfer-encoding:",
        }
    }
}

/// What a head holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen {
    /// A fragment in its target.
    pub(super) fragment: bool,
    /// Both a `Content-Length` and a `Transfer-Encoding`.
    pub(super) two_lengths: bool,
}

/// The head of a request that is under way on one connection.
#[derive(Debug, Default)]
pub(super) struct RequestHead(Mutex<Reading>);

#[derive(Debug, Default)]
struct Reading {
    at: At,
    fragment: bool,
    content: bool,
    transfer: bool,
}

impl RequestHead {
    /// These bytes came in where a request may begin.
    pub(super) fn read(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(bytes);
    }

    /// A request was made of it: what it held. The next head begins.
    pub(super) fn end(&self) -> Seen {
        let Reading { fragment, content, transfer, .. } =
            std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        Seen { fragment, two_lengths: content && transfer }
    }
}

impl Reading {
    fn read(&mut self, mut bytes: &[u8]) {
        while let [byte, rest @ ..] = bytes {
            bytes = rest;
            self.at = match (self.at, byte) {
                (At::Over, _) => return,
                // Most of a head is in lines that nothing is asked of.
                (At::Line, b'\n') => At::Field,
                (At::Line, _) => match memchr(b'\n', rest) {
                    Some(end) => {
                        bytes = &rest[end + 1..];
                        At::Field
                    }
                    None => return,
                },
                (At::Method, b'A'..=b'Z' | b'-') => At::Method,
                // The parser skips empty lines before a request.
                (At::Method, b'\r' | b'\n') => At::Method,
                (At::Method, b' ') => At::Target,
                (At::Target, b'#') => At::Fragment,
                (At::Target, b' ') => At::Line,
                (At::Fragment, b' ') => {
                    self.fragment = true;
                    At::Line
                }
                (At::Target | At::Fragment, 0x21..) => self.at,
                (At::Method | At::Target | At::Fragment, _) => At::Over,
                (At::Field, b'\r' | b'\n') => At::Over,
                (At::Field, b'c' | b'C') => At::Name(Length::Content, 1),
                (At::Field, b't' | b'T') => At::Name(Length::Transfer, 1),
                (At::Field, _) => At::Line,
                (At::Name(..), b'\n') => At::Field,
                (At::Name(length, at), byte) => {
                    let field = length.field();
                    if field[usize::from(at)] != byte.to_ascii_lowercase() {
                        At::Line
                    } else if usize::from(at) + 1 < field.len() {
                        At::Name(length, at + 1)
                    } else {
                        match length {
                            Length::Content => self.content = true,
                            Length::Transfer => self.transfer = true,
                        }
                        At::Line
                    }
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_pieces(text: &str, expected: Seen) {
        for size in [1, 3, 7, 1000] {
            let head = RequestHead::default();
            text.as_bytes().chunks(size).for_each(|piece| head.read(piece));
            assert_eq!(head.end(), expected, "{text} in pieces of {size}");
            assert_eq!(head.end(), Seen::default(), "and the next head begins anew");
        }
    }

    #[test]
    fn a_fragment_is_seen_in_a_request_line_and_nowhere_else_however_it_is_cut() {
        for (text, fragment) in [
            ("GET /providers#x HTTP/1.1\r\n", true),
            ("GET /providers?a=1# HTTP/1.1\r\n", true),
            ("\r\nGET http://x/providers#f HTTP/1.1\r\n", true),
            ("GET /providers HTTP/1.1\r\nx-note: a # b\r\n\r\n", false),
            ("GET /providers HTTP/1.1\r\n\r\n# ", false),
            ("{\"colour\": \"#fff\"} GET /#x HTTP/1.1", false),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n# #", false),
            ("", false),
        ] {
            in_pieces(text, Seen { fragment, two_lengths: false });
        }
    }

    #[test]
    fn two_lengths_are_seen_in_one_head_and_nowhere_else_however_it_is_cut() {
        let (content, transfer) = ("Content-Length: 4\r\n", "transfer-ENCODING:chunked\r\n");
        for (fields, two_lengths) in [
            (format!("{content}{transfer}\r\n"), true),
            (format!("{transfer}host: x\r\n{content}\r\n"), true),
            (format!("{transfer}host: x\n{}", content.replace('\r', "")), true),
            (format!("t: 1\r\nc\r\n\n{content}{transfer}"), false),
            (format!("content-type: a\r\n{content}te: x\r\n\r\n{transfer}"), false),
            (format!("x-{content}{transfer}\r\n"), false),
            (format!("x: {content}\r\n{transfer}"), false),
            (format!("content-length-of: 1\r\ncontent-lengt: 2\r\n{transfer}\r\n"), false),
            (format!("{content}{content}\r\n"), false),
            (format!("{transfer}{transfer}\r\n"), false),
        ] {
            in_pieces(
                &format!("POST /a HTTP/1.1\r\nhost: x\r\n{fields}"),
                Seen { fragment: false, two_lengths },
            );
        }
        let both = format!("POST /a#b HTTP/1.1\r\n{content}{transfer}\r\n");
        in_pieces(&both, Seen { fragment: true, two_lengths: true });
    }
}
