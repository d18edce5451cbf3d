//! Whether an answer may be kept, and for how long it is fresh (RFC 9111).
//!
//! The API sends no caching fields today, so freshness comes from configuration; where it sends them, they are obeyed.

use std::time::Duration;

use http::StatusCode;
use http::header::{CACHE_CONTROL, DATE, EXPIRES, HeaderMap, HeaderName, SET_COOKIE, VARY};

/// Request fields that are in every page key: an answer that varies by these may be kept.
const KEYED: [&str; 5] = ["accept", "metorial-version", "origin", "accept-encoding", "authorization"];

/// How long a complete answer to a list route is fresh; `None`: it is not kept.
///
/// `configured` is what the operator wants where upstream says nothing.
pub fn lifetime(status: StatusCode, headers: &HeaderMap, configured: Duration) -> Option<Duration> {
    if status != StatusCode::OK || headers.contains_key(SET_COOKIE) || varies_by_more_than_the_key(headers) {
        return None;
    }
    let mut max_age = None;
    let mut s_maxage = None;
    for directive in directives(headers, &CACHE_CONTROL) {
        let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
        let seconds = || argument.trim().trim_matches('"').parse::<u64>().ok().map(Duration::from_secs);
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "private" | "no-cache" => return None,
            // What cannot be read counts as stale (RFC 9111 §4.2.1).
            "s-maxage" => s_maxage = Some(seconds().unwrap_or_default()),
            "max-age" => max_age = Some(seconds().unwrap_or_default()),
            _ => {}
        }
    }
    let lifetime = s_maxage.or(max_age).or_else(|| expires(headers)).unwrap_or(configured);
    (!lifetime.is_zero()).then_some(lifetime)
}

/// From `Date` to `Expires`; what cannot be read, `0` above all, has expired (RFC 9111 §5.3).
fn expires(headers: &HeaderMap) -> Option<Duration> {
    let date = |name: &HeaderName| httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok();
    headers.contains_key(EXPIRES).then(|| {
        let (expires, date) = (date(&EXPIRES), date(&DATE));
        expires.zip(date).and_then(|(expires, date)| expires.duration_since(date).ok()).unwrap_or_default()
    })
}

fn varies_by_more_than_the_key(headers: &HeaderMap) -> bool {
    directives(headers, &VARY).any(|name| !KEYED.iter().any(|keyed| name.eq_ignore_ascii_case(keyed)))
}

fn directives<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    // A line that is not ASCII is taken as one unknown directive, which for Vary means: not kept.
    let lines = headers.get_all(name).iter().map(|line| line.to_str().unwrap_or("?"));
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|directive| !directive.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_decides_where_it_speaks_and_configuration_where_it_does_not() {
        let configured = Duration::from_secs(5);
        for (fields, expected) in [
            (&[] as &[(&str, &str)], Some(5)),
            (&[("cache-control", "max-age=60")], Some(60)),
            (&[("cache-control", "max-age=60, s-maxage=7")], Some(7)),
            (&[("cache-control", "public"), ("cache-control", "Max-Age=\"9\"")], Some(9)),
            (&[("cache-control", "max-age=0")], None),
            (&[("cache-control", "max-age=soon")], None),
            (&[("cache-control", "no-store")], None),
            (&[("cache-control", "max-age=60, private")], None),
            (&[("cache-control", "No-Cache")], None),
            (&[("expires", "0")], None),
            (
                &[("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("expires", "Sun, 06 Nov 1994 08:49:45 GMT")],
                Some(8),
            ),
            (&[("expires", "0"), ("cache-control", "max-age=60")], Some(60)),
            (&[("vary", "Accept, Origin")], Some(5)),
            (&[("vary", "*")], None),
            (&[("vary", "Cookie")], None),
            (&[("set-cookie", "a=b")], None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
                headers.append(name, value.parse().expect("a value"));
            }
            let lifetime = lifetime(StatusCode::OK, &headers, configured);
            assert_eq!(lifetime, expected.map(Duration::from_secs), "{fields:?}");
        }
        assert_eq!(lifetime(StatusCode::NOT_FOUND, &HeaderMap::new(), configured), None);
        assert_eq!(lifetime(StatusCode::OK, &HeaderMap::new(), Duration::ZERO), None);
    }
}
