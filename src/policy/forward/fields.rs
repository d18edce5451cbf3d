//! Which fields of upstream's answers pass.

use http::header::{
    ALT_SVC, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Version, response};

use crate::rejection::PROXY_STATUS;

/// Response fields that never pass, beside `Access-Control-*` and what `Connection` names.
const DROPPED: [HeaderName; 16] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-authentication-info"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    SET_COOKIE,
    HeaderName::from_static("set-cookie2"),
    // These speak for the upstream's host, and would bind ours.
    ALT_SVC,
    STRICT_TRANSPORT_SECURITY,
    HeaderName::from_static("clear-site-data"),
    PROXY_STATUS,
];

/// Bytes of an answer's fields; few callers take as many.
const LONGEST: usize = 128 * 1024;

/// Whether the answer has a status of HTTP's and a head of bearable size, and tells the length of its body once and plainly, or not at all: where a
/// body ends decides what the next answer is.
pub(super) fn is_framed_plainly(head: &response::Parts) -> bool {
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    let coded = match (codings.next(), codings.next()) {
        (None, _) => false,
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => true,
        (Some(_), _) => return false,
    };
    let told = match (lengths.next(), lengths.next()) {
        (None, _) => false,
        (Some(length), None) if length.as_bytes().iter().all(u8::is_ascii_digit) => true,
        (Some(_), _) => return false,
    };
    let old = head.version < Version::HTTP_11;
    let bytes: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    head.status.as_u16() < 600 && !(coded && (told || old)) && bytes <= LONGEST
}

/// Whether only the end of the connection tells where the body ends (RFC 9112 §6.3); HTTP/2 tells it by itself.
pub(super) fn is_end_untold(head: &response::Parts) -> bool {
    let told = [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| head.headers.contains_key(name));
    !told && head.version < Version::HTTP_2
}

/// Whether the body is a stream of events (server-sent events), which may begin with a silence.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().get(..EVENTS.len()));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(EVENTS))
}

/// Takes out what belongs to the connection, to the upstream's host, or to our key.
pub(super) fn clean(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        // Naming these would be an attack, not a hop's business (RFC 9110 §7.6.1).
        .filter(|name| ![CONTENT_LENGTH, CONTENT_TYPE, http::header::CACHE_CONTROL].contains(name))
        .collect();
    for name in named.iter().chain(&DROPPED) {
        headers.remove(name);
    }
    let foreign: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    for name in foreign {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_connection_or_speaks_for_upstream_does_not_pass() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-hop"),
            ("connection", "x-other-hop, content-length"),
            ("x-hop", "1"),
            ("x-other-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic eA=="),
            ("proxy-authentication-info", "x"),
            ("set-cookie", "a=b"),
            ("access-control-allow-origin", "*"),
            ("access-control-anything", "x"),
            ("strict-transport-security", "max-age=1"),
            ("alt-svc", "h3=\":443\""),
            ("content-length", "3"),
            ("content-type", "application/json"),
            ("metorial-req-id", "req_1"),
            ("location", "https://metorial.com/api"),
        ] {
            headers.append(name, value.parse().expect("a value"));
        }
        clean(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "content-type", "location", "metorial-req-id"]);
    }
}
