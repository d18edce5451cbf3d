//! Whether an answer may be kept, for how long it is fresh, and what may be done with it afterwards (RFC 9111).
//!
//! The API sends no caching fields today, so freshness comes from configuration; where it sends them, they are obeyed:
//! `CDN-Cache-Control` before `Cache-Control` (RFC 9213), `Expires` where neither tells.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use http::header::{AGE, CACHE_CONTROL, DATE, EXPIRES, HeaderMap, HeaderName, HeaderValue, SET_COOKIE, VARY};

use crate::domain::cache_control::{Directives, delta_seconds};

/// `CDN-Cache-Control` (RFC 9213)
const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// Request fields that go upstream with the same value whoever asks, or never: no answer varies by them.
const CONSTANT: [&str; 4] = ["accept-encoding", "authorization", "host", "origin"];

/// What may be done with a kept answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freshness {
    /// It is fresh for so long.
    pub lifetime: Duration,
    /// The lifetime is the operator's: upstream said nothing, so it may be stretched.
    pub configured: bool,
    /// Upstream is to be asked each time (`no-cache`).
    pub no_cache: bool,
    /// It is never to be served stale (`must-revalidate`, `proxy-revalidate`, `s-maxage`).
    pub must_revalidate: bool,
    /// How long it may be served stale while it is asked for anew, where upstream says (RFC 5861).
    pub while_revalidating: Option<Duration>,
    /// How long it may be served stale in the place of an error, where upstream says.
    pub if_error: Option<Duration>,
}

impl Freshness {
    /// Of a complete answer to a list route; `None`: it is not kept.
    ///
    /// `configured` is what the operator wants where upstream says nothing; `unix_now` stands in for a `Date`.
    pub fn of(status: StatusCode, headers: &HeaderMap, configured: Duration, unix_now: u64) -> Option<Self> {
        if status != StatusCode::OK || headers.contains_key(SET_COOKIE) || varies(headers).is_none() {
            return None;
        }
        let (directives, targeted) = directives(headers);
        let expires = if targeted { None } else { expires(headers, unix_now) };
        if is_kept_from_others(&directives) {
            return None;
        }
        let shared = directives.seconds("s-maxage");
        let explicit = shared.or_else(|| directives.seconds("max-age")).or(expires);
        let freshness = Self {
            lifetime: explicit.unwrap_or(configured),
            configured: explicit.is_none(),
            no_cache: directives.has("no-cache"),
            must_revalidate: shared.is_some()
                || directives.has("must-revalidate")
                || directives.has("proxy-revalidate"),
            while_revalidating: directives.seconds("stale-while-revalidate"),
            if_error: directives.seconds("stale-if-error"),
        };
        // Without a lifetime and without a question to ask upstream it is of no use.
        let askable =
            headers.contains_key(http::header::ETAG) || headers.contains_key(http::header::LAST_MODIFIED);
        let usable = !freshness.lifetime.is_zero() && !freshness.no_cache;
        (usable || askable).then_some(freshness)
    }
}

/// What upstream says of caching, and whether it says so to caches like this one, which is all that counts then (RFC 9213 §2.2).
fn directives(headers: &HeaderMap) -> (Directives, bool) {
    let targeted = Directives::targeted(headers, &CDN_CACHE_CONTROL);
    match targeted.is_empty() {
        true => (Directives::of(headers, &CACHE_CONTROL), false),
        false => (targeted, true),
    }
}

/// Whether an answer to a request with a credential may be kept for others (RFC 9111 §3.5).
pub fn is_shared(headers: &HeaderMap) -> bool {
    let (directives, _) = directives(headers);
    ["public", "must-revalidate", "s-maxage"].iter().any(|name| directives.has(name))
}

/// Whether others who ask for the same at the same time may have an answer that is not kept: only what may be kept is theirs
/// (RFC 9111 §4).
pub fn may_pass_to_others(headers: &HeaderMap) -> bool {
    !is_kept_from_others(&directives(headers).0) && varies(headers).is_some()
}

/// Whoever understands the status, as we do that of every answer that gets here, needs not heed `no-store` beside
/// `must-understand` (RFC 9111 §5.2.2.3).
fn is_kept_from_others(directives: &Directives) -> bool {
    let unkept = directives.has("no-store") && !directives.has("must-understand");
    unkept || directives.has("private")
}

/// Request fields that an answer varies by, beside those that are the same whoever asks. `None`: by more than can be told.
pub fn varies(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    let mut names = Vec::new();
    for line in headers.get_all(VARY) {
        for name in line.to_str().ok()?.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            // `*`, and what is no name at all.
            let name = HeaderName::try_from(name).ok().filter(|name| name.as_str() != "*")?;
            if !CONSTANT.contains(&name.as_str()) && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    Some(names)
}

/// How old an answer was when it was made for us to ask: what `Age` says and, where upstream decides on its lifetime, what its
/// `Date` shows (RFC 9111 §4.2.3).
pub fn initial_age(headers: &HeaderMap, freshness: &Freshness, unix_now: u64) -> Duration {
    // Of a list the first member counts (§5.1).
    let first = headers.get(AGE).and_then(|age| age.to_str().ok()?.split(',').next());
    let told = first.and_then(|age| delta_seconds(age.trim())).unwrap_or(0);
    let apparent = match freshness.configured {
        // Our clock against upstream's must not make every page old.
        true => 0,
        false => date(headers, &DATE).map_or(0, |date| unix_now.saturating_sub(seconds(date))),
    };
    Duration::from_secs(told.max(apparent))
}

/// From `Date` to `Expires`; what cannot be read, `0` above all, has expired (RFC 9111 §5.3).
fn expires(headers: &HeaderMap, unix_now: u64) -> Option<Duration> {
    let mut lines = headers.get_all(EXPIRES).iter();
    let line = lines.next()?;
    let at = http_date(line).filter(|_| lines.next().is_none());
    let from = date(headers, &DATE).map_or(unix_now, seconds);
    Some(Duration::from_secs(at.map_or(0, |at| seconds(at).saturating_sub(from))))
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    http_date(headers.get(name)?)
}

fn http_date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

fn seconds(date: SystemTime) -> u64 {
    date.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    fn of(fields: &[(&str, &str)], configured: u64) -> Option<Freshness> {
        Freshness::of(StatusCode::OK, &headers(fields), Duration::from_secs(configured), NOW)
    }

    #[test]
    fn an_answer_to_a_credential_is_shared_where_what_counts_for_us_says_so() {
        for (fields, shared) in [
            (&[] as &[_], false),
            (&[("cache-control", "max-age=60")], false),
            (&[("cache-control", "public")], true),
            (&[("cache-control", "public"), ("cdn-cache-control", "max-age=60")], false),
            (&[("cache-control", "private"), ("cdn-cache-control", "s-maxage=60")], true),
        ] {
            assert_eq!(is_shared(&headers(fields)), shared, "{fields:?}");
        }
    }

    #[test]
    fn upstream_decides_where_it_speaks_and_configuration_where_it_does_not() {
        for (fields, expected) in [
            (&[] as &[(&str, &str)], Some(5)),
            (&[("cache-control", "max-age=60")], Some(60)),
            (&[("cache-control", "max-age=60, s-maxage=7")], Some(7)),
            (&[("cache-control", "public"), ("cache-control", "Max-Age=\"9\"")], Some(9)),
            (&[("cache-control", "max-age=0")], None),
            (&[("cache-control", "max-age=0"), ("etag", "\"1\"")], Some(0)),
            (&[("cache-control", "max-age=soon")], None),
            (&[("cache-control", "no-store")], None),
            (&[("cache-control", "no-store, must-understand, max-age=9")], Some(9)),
            (&[("cache-control", "max-age=60, private")], None),
            (&[("cache-control", "No-Cache")], None),
            (&[("cache-control", "no-cache"), ("last-modified", "x")], Some(5)),
            (&[("expires", "0")], None),
            (&[("expires", "Sun, 06 Nov 1994 08:49:45 GMT")], Some(8)),
            (
                &[("date", "Sun, 06 Nov 1994 08:49:40 GMT"), ("expires", "Sun, 06 Nov 1994 08:49:45 GMT")],
                Some(5),
            ),
            (&[("expires", "0"), ("cache-control", "max-age=60")], Some(60)),
            (&[("cdn-cache-control", "max-age=7"), ("cache-control", "no-store")], Some(7)),
            (&[("cdn-cache-control", "no-store"), ("cache-control", "max-age=7")], None),
            (&[("vary", "Accept, Origin")], Some(5)),
            (&[("vary", "*")], None),
            (&[("vary", "a, *")], None),
            (&[("vary", "Cookie")], Some(5)),
            (&[("set-cookie", "a=b")], None),
        ] {
            let lifetime = of(fields, 5).map(|freshness| freshness.lifetime);
            assert_eq!(lifetime, expected.map(Duration::from_secs), "{fields:?}");
        }
        assert_eq!(
            Freshness::of(StatusCode::NOT_FOUND, &HeaderMap::new(), Duration::from_secs(5), NOW),
            None
        );
        assert_eq!(of(&[], 0), None, "upstream alone decides, and says nothing");
        assert_eq!(
            of(&[("cache-control", "max-age=7")], 0).map(|freshness| freshness.configured),
            Some(false)
        );
    }

    #[test]
    fn what_may_be_served_stale_is_upstreams_to_say() {
        let plain = of(&[], 5).expect("kept");
        assert!(plain.configured && !plain.must_revalidate && !plain.no_cache);
        for directive in ["must-revalidate", "proxy-revalidate", "s-maxage=7"] {
            let freshness = of(&[("cache-control", directive)], 5).expect("kept");
            assert!(freshness.must_revalidate, "{directive}");
        }
        let told = of(&[("cache-control", "max-age=1, stale-while-revalidate=7, stale-if-error=9")], 5)
            .expect("kept");
        let secs = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!((told.while_revalidating, told.if_error), (secs(7), secs(9)));
    }

    #[test]
    fn an_answer_varies_by_what_goes_upstream_and_may_differ() {
        let names = |fields: &[(&str, &str)]| {
            varies(&headers(fields))
                .map(|names| names.iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>())
        };
        let some = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&[]), some(&[]));
        assert_eq!(names(&[("vary", "Origin, accept-encoding")]), some(&[]));
        assert_eq!(names(&[("vary", "Foo,, Accept"), ("vary", "foo, Bar")]), some(&["accept", "bar", "foo"]));
        assert_eq!(names(&[("vary", "Foo"), ("vary", "*")]), None);
        assert_eq!(names(&[("vary", "a b")]), None);
    }

    #[test]
    fn an_answer_is_as_old_as_age_or_date_says() {
        let age = |fields: &[(&str, &str)], configured| {
            let freshness = Freshness { configured, ..Freshness::default() };
            initial_age(&headers(fields), &freshness, NOW).as_secs()
        };
        let date = ("date", "Sun, 06 Nov 1994 08:49:30 GMT");
        assert_eq!(age(&[], false), 0);
        assert_eq!(age(&[("age", "9")], true), 9);
        assert_eq!(age(&[("age", "9, 11")], true), 9);
        assert_eq!(age(&[("age", "-9")], true), 0);
        assert_eq!(age(&[date], false), 7);
        assert_eq!(age(&[date], true), 0);
        assert_eq!(age(&[date, ("age", "9")], false), 9);
    }
}
