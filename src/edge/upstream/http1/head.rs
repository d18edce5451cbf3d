//! Heads as they go out and come in (RFC 9112).

use std::cell::RefCell;
use std::mem::{MaybeUninit, take};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Response, StatusCode, Version, response};
use httparse::{ParserConfig, Status};

use super::chunked::Chunked;
use crate::body::RequestBody;
use crate::domain::field;
use crate::policy::forward::Outgoing;
use crate::rejection::UpstreamFault;

/// Fields of one answer; more is more than any API says.
const MOST_FIELDS: usize = 100;
/// Room for a request as most are; one that is longer gets more.
const USUAL: usize = 1024;

/// A longer name is read each time.
const LONGEST_SPELT: usize = 64;

thread_local! {
    /// Names as they were spelt in the last answer, place by place. Those of one upstream are alike: a name that is where it was
    /// need not be read again. To read them took a fifth of the instructions that a head takes.
    static SPELT: RefCell<Vec<(Box<[u8]>, HeaderName)>> = const { RefCell::new(Vec::new()) };
}

/// How an answer's body is told from what comes behind it (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes of it are still to come.
    Length(u64),
    /// In chunks.
    Chunked(Chunked),
    /// The connection's end is its end.
    Close,
    /// In more than one way, or in none that we know: nothing is read of it.
    Unclear,
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    /// Status, version and fields.
    pub parts: response::Parts,
    /// Of its body.
    pub framing: Framing,
    /// Another request may follow over the connection.
    pub stays: bool,
    /// What was read behind it.
    pub(in crate::edge::upstream) rest: Bytes,
}

/// Why there is no head, and what it is called in the log.
pub(super) type Fault = (UpstreamFault, String);

/// The request as it goes out, with its body where that is at hand.
pub(super) fn write(request: &Outgoing) -> Vec<u8> {
    let body = match &request.body {
        Some(RequestBody::Held(bytes)) => Some(bytes),
        Some(RequestBody::Empty | RequestBody::Streaming(_)) | None => None,
    };
    let mut out = Vec::with_capacity(USUAL + body.map_or(0, Bytes::len));
    for part in [request.method.as_str(), " ", request.target.as_str(), " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in &request.fields {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    if let Some(body) = body
        && !request.fields.iter().any(|(name, _)| *name == CONTENT_LENGTH)
    {
        for part in ["content-length: ", itoa::Buffer::new().format(body.len()), "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.map_or(&[], |body| body));
    out
}

/// Takes the head of the answer to `request` out of what was read; `None` where it is not all there.
///
/// # Errors
/// What was read is no head, or one with too many fields.
pub(super) fn parse(read: &mut BytesMut, request: &mut Outgoing) -> Result<Option<Head>, Fault> {
    // Empty lines in front say nothing, as often as they are looked at.
    while let Some(length) =
        [&b"\r\n"[..], b"\n"].iter().find(|end| read.starts_with(end)).map(|end| end.len())
    {
        read.advance(length);
    }
    // Values are parts of what was read, and it stays for as long as they do.
    let all = take(read).freeze();
    let mut room = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut answer = httparse::Response::new(&mut []);
    let parser = ParserConfig::default();
    let length = match parser.parse_response_with_uninit_headers(&mut answer, &all, &mut room) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => {
            *read = BytesMut::from(all);
            return Ok(None);
        }
        Err(httparse::Error::TooManyHeaders) => {
            return Err((UpstreamFault::HeadTooLarge, "the answer has too many fields".to_owned()));
        }
        Err(error) => return Err(malformed(&error.to_string())),
    };
    let (mut parts, ()) = Response::new(()).into_parts();
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok());
    parts.status = status.ok_or_else(|| malformed("invalid HTTP status-code parsed"))?;
    parts.version = if answer.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    parts.headers = field::room(take(&mut request.room), answer.headers.len());
    let old = parts.version < Version::HTTP_11;
    let mut told = Told { old, stays: !old, ..Told::default() };
    for field in answer.headers.iter() {
        // Said to us alone, in most answers: whoever gets it would only have to find it and take it out.
        if field.name.eq_ignore_ascii_case(CONNECTION.as_str()) && !field::names_some(field.value) {
            told.connection(field.value);
            continue;
        }
        let name = name(parts.headers.len(), field.name.as_bytes());
        let value = match field.value {
            // Most answers say so: it needs no share of what was read.
            b"application/json" => Ok(HeaderValue::from_static("application/json")),
            value => HeaderValue::from_maybe_shared(all.slice_ref(value)),
        };
        let (Some(name), Ok(value)) = (name, value) else {
            return Err(malformed("invalid HTTP header parsed"));
        };
        told.by(&name, &value)?;
        parts.headers.append(name, value);
    }
    let framing = told.framing(parts.status, &request.method);
    let stays = told.stays && framing != Framing::Close && !told.says_too_much(parts.status);
    Ok(Some(Head { parts, framing, stays, rest: all.slice(length..) }))
}

/// The name that is `spelt` so, in this place among those of an answer.
fn name(place: usize, spelt: &[u8]) -> Option<HeaderName> {
    SPELT.with_borrow_mut(|before| {
        if let Some((same, name)) = before.get(place)
            && **same == *spelt
        {
            return Some(name.clone());
        }
        let name = HeaderName::from_bytes(spelt).ok()?;
        if spelt.len() <= LONGEST_SPELT {
            let known = (spelt.into(), name.clone());
            match before.get_mut(place) {
                Some(other) => *other = known,
                // The first of an upstream's answers fills it from the front.
                None => before.push(known),
            }
        }
        Some(name)
    })
}

/// What fields tell of the connection and of the body's length.
#[derive(Default)]
struct Told {
    /// It is of HTTP/1.0, which has neither transfer codings nor, as we speak it, connections that stay.
    old: bool,
    stays: bool,
    length: Option<u64>,
    chunked: bool,
    unclear: bool,
}

impl Told {
    fn connection(&mut self, value: &[u8]) {
        let mut options = value.split(|byte| *byte == b',');
        self.stays &= !options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
    }

    fn by(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), Fault> {
        if *name == CONNECTION {
            self.connection(value.as_bytes());
        } else if *name == CONTENT_LENGTH {
            let digits = value.as_bytes();
            if self.length.is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                self.unclear = true;
                return Ok(());
            }
            let length = value.to_str().ok().and_then(|digits| digits.parse().ok());
            self.length = Some(length.ok_or_else(|| malformed("the answer's length is no length"))?);
        } else if *name == TRANSFER_ENCODING {
            self.unclear |= self.old || self.chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked");
            self.chunked = true;
        }
        Ok(())
    }

    /// After this, who knows what comes: of a body where there can be none, or by another protocol.
    fn says_too_much(&self, status: StatusCode) -> bool {
        let has_body = self.chunked || self.length.is_some_and(|length| length > 0);
        self.unclear
            || status == StatusCode::NO_CONTENT && has_body
            || status == StatusCode::SWITCHING_PROTOCOLS
    }

    fn framing(&self, status: StatusCode, method: &Method) -> Framing {
        let bodyless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
        match (self.length, self.chunked) {
            _ if bodyless || *method == Method::HEAD || status.is_informational() => Framing::Length(0),
            _ if self.unclear => Framing::Unclear,
            (Some(_), true) => Framing::Unclear,
            (Some(length), false) => Framing::Length(length),
            (None, true) => Framing::Chunked(Chunked::new()),
            (None, false) => Framing::Close,
        }
    }
}

fn malformed(what: &str) -> Fault {
    (UpstreamFault::HttpProtocol, what.to_owned())
}
