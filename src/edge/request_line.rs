//! What the parser of HTTP/1.1 keeps to itself of a request line: whether its target has a fragment.
//!
//! A fragment has no place in a request (RFC 9112 §3.2), yet the library cuts it off and says nothing. What is decided on
//! and what is forwarded would still be the same, but whoever stood before us may have read the target with it. So the
//! bytes of a request line are looked at as they pass. What is no request line is left alone: saying what is wrong with
//! it is the parser's part. Pipelined lines, which come with the end of another request, are not seen.

use std::sync::{Mutex, PoisonError};

/// Where in a request line the bytes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    #[default]
    Method,
    Target,
    /// Behind a `#` in the target.
    Fragment,
    /// The line has ended, or it is none.
    Over,
    /// It has ended, and had a fragment.
    Found,
}

/// The request line that is under way on one connection.
#[derive(Debug, Default)]
pub(super) struct RequestLine(Mutex<At>);

impl RequestLine {
    /// These bytes came in where a request may begin.
    pub(super) fn read(&self, bytes: &[u8]) {
        let mut at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes {
            *at = match (*at, byte) {
                (At::Method, b'A'..=b'Z' | b'-') => At::Method,
                // The parser skips empty lines before a request.
                (At::Method, b'\r' | b'\n') => At::Method,
                (At::Method, b' ') => At::Target,
                (At::Target, b'#') => At::Fragment,
                (At::Fragment, b' ') => At::Found,
                (At::Target | At::Fragment, 0x21..) => *at,
                (At::Found, _) => return,
                (At::Over, _) => return,
                (At::Method | At::Target | At::Fragment, _) => At::Over,
            };
        }
    }

    /// A request was made of it: whether its target had a fragment. The next line begins.
    pub(super) fn end(&self) -> bool {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)) == At::Found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_is_seen_in_a_request_line_and_nowhere_else_however_it_is_cut() {
        for (text, expected) in [
            ("GET /providers#x HTTP/1.1\r\n", true),
            ("GET /providers?a=1# HTTP/1.1\r\n", true),
            ("\r\nGET http://x/providers#f HTTP/1.1\r\n", true),
            ("GET /providers HTTP/1.1\r\nx-note: a # b\r\n\r\n", false),
            ("GET /providers HTTP/1.1\r\n\r\n# ", false),
            ("{\"colour\": \"#fff\"} GET /#x HTTP/1.1", false),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n# #", false),
            ("", false),
        ] {
            for size in [1, 3, 100] {
                let line = RequestLine::default();
                text.as_bytes().chunks(size).for_each(|piece| line.read(piece));
                assert_eq!(line.end(), expected, "{text} in pieces of {size}");
                assert!(!line.end(), "and the next line begins anew");
            }
        }
    }
}
