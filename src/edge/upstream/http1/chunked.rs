//! The chunked transfer coding (RFC 9112 §7.1), as it is read: strictly, since what one end takes for the end of an answer and
//! the other does not is how answers are smuggled.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue};

/// A line with the size of a chunk: sixteen digits, and what few extensions there may be.
const LINE: usize = 4 * 1024;
/// All trailer fields together; nobody gets to see them.
const TRAILERS: usize = 16 * 1024;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunked {
    /// A chunk's size is to come.
    Size,
    /// So much of a chunk is.
    Data(u64),
    /// The end of a chunk's line is.
    End,
    /// Trailer fields are, of which there may be so many bytes more.
    Trailers(usize),
}

/// What there is in what was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Some of the body.
    Data(Bytes),
    /// Nothing that is whole.
    More,
    /// Its end.
    End,
}

impl Chunked {
    /// A body from its beginning.
    pub(super) const fn new() -> Self {
        Self::Size
    }

    /// Takes what comes next out of `read`.
    ///
    /// # Errors
    /// It is not in this coding.
    pub(super) fn next(&mut self, read: &mut BytesMut) -> io::Result<Piece> {
        loop {
            *self = match *self {
                Self::Size => match line(read, LINE)? {
                    None => return Ok(Piece::More),
                    Some(line) => match size(&line)? {
                        0 => Self::Trailers(TRAILERS),
                        size => Self::Data(size),
                    },
                },
                Self::Data(0) => Self::End,
                Self::Data(_) if read.is_empty() => return Ok(Piece::More),
                Self::Data(left) => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(read.len());
                    *self = Self::Data(left - count as u64);
                    return Ok(Piece::Data(read.split_to(count).freeze()));
                }
                Self::End => match (read.first(), read.get(1)) {
                    (Some(b'\r'), Some(b'\n')) => {
                        read.advance(2);
                        Self::Size
                    }
                    (None, _) | (Some(b'\r'), None) => return Ok(Piece::More),
                    _ => return Err(broken("a chunk does not end where it should")),
                },
                Self::Trailers(left) => match line(read, left)? {
                    None => return Ok(Piece::More),
                    Some(line) if line.is_empty() => return Ok(Piece::End),
                    Some(line) if !is_field(&line) => {
                        return Err(broken("a line of its trailer is no field"));
                    }
                    Some(line) => match left.checked_sub(line.len() + 2) {
                        Some(left) => Self::Trailers(left),
                        None => return Err(broken("its trailer fields are too long")),
                    },
                },
            }
        }
    }
}

/// The next line without its end, where it is all there.
fn line(read: &mut BytesMut, most: usize) -> io::Result<Option<BytesMut>> {
    let Some(end) = memchr::memchr(b'\n', read) else {
        return if read.len() > most { Err(broken("a line of its coding is too long")) } else { Ok(None) };
    };
    if end > most {
        return Err(broken("a line of its coding is too long"));
    }
    let mut line = read.split_to(end + 1);
    line.truncate(end);
    match line.split_last() {
        Some((b'\r', rest)) if !rest.contains(&b'\r') => {}
        _ => return Err(broken("a line of its coding does not end in CR LF")),
    }
    line.truncate(end - 1);
    Ok(Some(line))
}

/// Whether a line of a trailer is a field (RFC 9110 §5): behind one that is none, others may see something else begin.
fn is_field(line: &[u8]) -> bool {
    let Some(colon) = memchr::memchr(b':', line) else { return false };
    HeaderName::from_bytes(&line[..colon]).is_ok() && HeaderValue::from_bytes(&line[colon + 1..]).is_ok()
}

/// What a line says of a chunk's size: hexadecimal digits, and extensions that nobody knows.
fn size(line: &[u8]) -> io::Result<u64> {
    let mut digits = line.iter().position(|byte| *byte == b';').map_or(line, |end| &line[..end]);
    while let [rest @ .., b' ' | b'\t'] = digits {
        digits = rest;
    }
    let hexadecimal = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    std::str::from_utf8(digits)
        .ok()
        .filter(|_| hexadecimal)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| broken("the size of a chunk is no number"))
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body that comes of these pieces, what is left behind it, and whether it ended.
    fn read(pieces: &[&[u8]]) -> Result<(String, String, bool), String> {
        let (mut coding, mut unread, mut body) = (Chunked::new(), BytesMut::new(), Vec::new());
        let mut ended = false;
        for piece in pieces {
            unread.extend_from_slice(piece);
            while !ended {
                match coding.next(&mut unread).map_err(|error| error.to_string())? {
                    Piece::Data(data) => body.extend_from_slice(&data),
                    Piece::End => ended = true,
                    Piece::More => break,
                }
            }
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((text(&body), text(&unread), ended))
    }

    #[test]
    fn a_body_is_what_its_chunks_hold_wherever_they_are_cut() {
        let whole =
            b"5\r\nhello\r\n1 ;a=\"b\";c\r\n \r\n00A\r\nworld\r\n4 u\r\n0\r\nx: y\r\nz:\r\n\r\nHTTP/1.1 200";
        let expected = ("hello world\r\n4 u".to_owned(), "HTTP/1.1 200".to_owned(), true);
        assert_eq!(read(&[whole]), Ok(expected.clone()));
        for cut in 0..=whole.len() {
            assert_eq!(read(&[&whole[..cut], &whole[cut..]]), Ok(expected.clone()), "{cut}");
        }
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(read(&bytes), Ok(expected));
    }

    #[test]
    fn what_is_short_of_the_end_is_not_the_end() {
        for short in [
            "",
            "5",
            "5\r\n",
            "5\r\nhell",
            "5\r\nhello",
            "5\r\nhello\r",
            "5\r\nhello\r\n",
            "0\r\n",
            "0\r\nx: y\r\n",
            "0\r\n\r",
        ] {
            assert!(read(&[short.as_bytes()]).is_ok_and(|(_, _, ended)| !ended), "{short:?}");
        }
    }

    #[test]
    fn what_could_be_taken_in_two_ways_is_refused() {
        for bad in [
            "\r\n",
            "x\r\n",
            "0x5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "-1\r\n",
            " 5\r\nhello\r\n",
            "5 5\r\nhello\r\n",
            "5\nhello\n",
            "5\r\r\nhello",
            "5;a\rb\r\nhello",
            "5\x0c\r\nhello\r\n",
            "5\r\nhello!\r\n",
            "5\r\nhello\n0\n\n",
            "11111111111111111\r\n",
            "0\r\n\0: y\r\n\r\n",
            "0\r\nx: \x01\r\n\r\n",
            "0\r\nx: y\r\n folded\r\n\r\n",
            "0\r\nx y: z\r\n\r\n",
            "0\r\nx\r\n\r\n",
            ";\r\n",
            "0\r\n\n",
            "0\r\nx: y\n\r\n",
        ] {
            assert!(read(&[bad.as_bytes()]).is_err(), "{bad:?}");
        }
        let extension = format!("5;{}", "x".repeat(LINE));
        assert!(read(&[extension.as_bytes()]).is_err(), "whether its line ends …");
        assert!(read(&[format!("{extension}\r\n").as_bytes()]).is_err(), "… or not");
        let trailers = format!("0\r\n{}", "x: y\r\n".repeat(TRAILERS / 6 + 1));
        assert!(read(&[trailers.as_bytes()]).is_err());
    }
}
