//! Which fields of upstream's answers pass.

use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName,
    SET_COOKIE, TRANSFER_ENCODING,
};
use http::{Version, response};
use smallvec::SmallVec;

use crate::domain::field::{names_some, nominated};

/// Whether a response field never passes, whatever `Connection` names.
fn never_passes(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "close"
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
            | "public-key-pins"
            | "public-key-pins-report-only"
            | "proxy-status"
            // What a browser saw of us is not told to those whom upstream's edge names.
            | "nel"
            | "report-to"
            | "reporting-endpoints"
    ) || name.starts_with("access-control-")
        || name.starts_with("ratelimit") && !is_read_later(name)
}

/// Those of [`UPSTREAM_FIELDS`](crate::domain::ratelimit::UPSTREAM_FIELDS), which are read on the way back and taken out then;
/// as texts, because comparing names takes a hundredth of a pass-through's instructions.
fn is_read_later(name: &str) -> bool {
    matches!(
        name,
        "ratelimit" | "ratelimit-policy" | "ratelimit-limit" | "ratelimit-remaining" | "ratelimit-reset"
    )
}

/// Bytes of an answer's fields; few callers take as many.
const LONGEST: usize = 128 * 1024;

/// What the head of an answer tells, found in one look at all its fields.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// It has a status of HTTP's and a head of bearable size, and tells the length of its body once and plainly, or not at
    /// all: where a body ends decides what the next answer is.
    pub(super) framed_plainly: bool,
    /// Only the end of the connection tells where the body ends (RFC 9112 §6.3); HTTP/2 tells it by itself.
    pub(super) end_untold: bool,
    /// In a content coding.
    pub(super) coded: bool,
    /// It sets a cookie.
    pub(super) cookie: bool,
    /// Fields that do not pass, each once or more often.
    gone: SmallVec<[HeaderName; 4]>,
}

impl Told {
    pub(super) fn of(head: &response::Parts) -> Self {
        let mut told = Self::default();
        let (mut bytes, mut plain, mut codings, mut lengths, mut names) = (0, true, 0, 0, false);
        for (name, value) in &head.headers {
            bytes += name.as_str().len() + value.len();
            if *name == CONTENT_LENGTH {
                lengths += 1;
                plain &= !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
            } else if *name == TRANSFER_ENCODING {
                codings += 1;
                plain &= value.as_bytes().eq_ignore_ascii_case(b"chunked");
            } else if *name == CONTENT_ENCODING {
                told.coded |= value != "identity";
            } else if *name == SET_COOKIE {
                told.cookie = true;
            } else if *name == CONNECTION {
                // Whatever else it names goes, too.
                names |= names_some(value.as_bytes());
            }
            if never_passes(name.as_str()) {
                told.gone.push(name.clone());
            }
        }
        if names {
            told.gone.extend(nominated(&head.headers).filter(|name| !KEPT.contains(name)));
        }
        let old = head.version < Version::HTTP_11;
        let in_two_ways = codings + lengths > 1 || codings > 0 && old;
        told.framed_plainly = plain && !in_two_ways && head.status.as_u16() < 600 && bytes <= LONGEST;
        told.end_untold = codings + lengths == 0 && head.version < Version::HTTP_2;
        told
    }

    /// Takes out what belongs to the connection, to the upstream's host, or to our key.
    pub(super) fn clean(self, headers: &mut HeaderMap) {
        for name in self.gone {
            headers.remove(name);
        }
    }
}

/// To name these in `Connection` would be an attack, not a hop's business.
const KEPT: [HeaderName; 3] = [CONTENT_LENGTH, CONTENT_TYPE, CACHE_CONTROL];

/// Whether the body is a stream of events (server-sent events), which may begin with a silence.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().get(..EVENTS.len()));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(EVENTS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ratelimit::UPSTREAM_FIELDS;

    #[test]
    fn what_is_read_later_passes_until_then() {
        assert!(UPSTREAM_FIELDS.iter().all(|field| !never_passes(field.as_str())));
        assert!(never_passes("ratelimit-burst"));
    }

    #[test]
    fn what_belongs_to_the_connection_or_speaks_for_upstream_does_not_pass() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-hop"),
            ("connection", "x-other-hop, content-length"),
            ("x-hop", "1"),
            ("x-other-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("close", "1"),
            ("proxy-authorization", "Basic eA=="),
            ("proxy-authentication-info", "x"),
            ("set-cookie", "a=b"),
            ("ratelimit-burst", "5"),
            ("access-control-allow-origin", "*"),
            ("access-control-anything", "x"),
            ("strict-transport-security", "max-age=1"),
            ("alt-svc", "h3=\":443\""),
            ("nel", "{\"report_to\":\"edge\"}"),
            ("report-to", "{\"group\":\"edge\"}"),
            ("reporting-endpoints", "edge=\"https://edge.example\""),
            ("public-key-pins", "max-age=1"),
            ("content-length", "3"),
            ("content-type", "application/json"),
            ("metorial-req-id", "req_1"),
            ("location", "https://metorial.com/api"),
        ] {
            headers.append(name, value.parse().expect("a value"));
        }
        let (mut head, ()) = http::Response::new(()).into_parts();
        head.headers = headers;
        let told = Told::of(&head);
        let mut headers = head.headers;
        told.clean(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "content-type", "location", "metorial-req-id"]);
    }
}
