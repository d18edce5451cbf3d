//! Rate-limit fields: what we tell callers, and what upstream tells us.
//!
//! Towards callers: `RateLimit-Policy` and `RateLimit` as draft-ietf-httpapi-ratelimit-headers-11 has them. From
//! upstream: `Retry-After` (RFC 9110 §10.2.3, seconds or a date), `RateLimit-Limit`/`-Remaining`/`-Reset` (the API sends an
//! absolute reset; other servers a delta), and draft-11's `RateLimit`.

use std::fmt::Write as _;
use std::time::Duration;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use crate::domain::field;
use crate::domain::quota::Quota;

/// `RateLimit`
pub const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// `RateLimit-Policy`
pub const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// `RateLimit-Limit`
pub const RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
/// `RateLimit-Remaining`
pub const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
/// `RateLimit-Reset`
pub const RATELIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// The fields in which upstream tells its own count.
pub const UPSTREAM_FIELDS: [HeaderName; 5] =
    [RATELIMIT, RATELIMIT_POLICY, RATELIMIT_LIMIT, RATELIMIT_REMAINING, RATELIMIT_RESET];

/// Takes out what upstream tells of its own count, and reads it as [`observe`] does.
pub fn take_out(headers: &mut HeaderMap, unix_now: impl FnOnce() -> u64) -> Option<Observation> {
    let told = told(headers);
    let observation = observation(headers, &told, unix_now);
    let there = told.map(|line| line.is_some());
    for (name, _) in UPSTREAM_FIELDS.iter().zip(there).filter(|(_, there)| *there) {
        headers.remove(name);
    }
    observation
}

/// The first line of each of [`UPSTREAM_FIELDS`], found in one look at all fields.
fn told(headers: &HeaderMap) -> [Option<&HeaderValue>; 5] {
    let mut told = [None; 5];
    for (name, line) in headers {
        if let Some(at) = UPSTREAM_FIELDS.iter().position(|field| field == name) {
            told[at].get_or_insert(line);
        }
    }
    told
}

/// A reset above this is a moment, below it a delta (draft revisions and servers differ).
const EPOCH_FROM: u64 = 1_000_000_000;

/// One limit as this caller sees it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The documented limit.
    pub quota: Quota,
    /// Requests left.
    pub remaining: u32,
    /// Seconds until `remaining` grows, rounded up; 0 when nothing is spent.
    pub grows_in: u64,
}

/// `"client";q=1000;w=10, "environment";q=5000;w=600`
pub fn policy(client: Quota, environment: Option<Quota>) -> String {
    let mut out = String::with_capacity(56);
    let mut item = |name: &str, quota: Quota| {
        let separator = if out.is_empty() { "" } else { ", " };
        let window = quota.window.as_secs().max(1);
        write!(out, "{separator}\"{name}\";q={};w={window}", quota.requests).ok();
    };
    item("client", client);
    if let Some(environment) = environment {
        item("environment", environment);
    }
    out
}

/// `"environment";r=312;t=41`: the policy that is nearest to its end, as a share of its quota.
pub fn standing(client: Standing, environment: Option<Standing>) -> Option<HeaderValue> {
    let share =
        |standing: &Standing| f64::from(standing.remaining) / f64::from(standing.quota.requests.max(1));
    let (name, tightest) = match environment {
        Some(environment) if share(&client) >= share(&environment) => ("environment", environment),
        _ => ("client", client),
    };
    let (mut remaining, mut grows_in) = (itoa::Buffer::new(), itoa::Buffer::new());
    let (remaining, grows_in) = (remaining.format(tightest.remaining), grows_in.format(tightest.grows_in));
    field::of(&["\"", name, "\";r=", remaining, ";t=", grows_in])
}

/// What upstream said of its own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// What it has left.
    pub remaining: u32,
    /// Until its window turns over.
    pub reset: Duration,
}

/// Reads `RateLimit-Limit`, `-Remaining` and `-Reset`, else draft-11's `RateLimit`; `None` unless it makes sense.
pub fn observe(headers: &HeaderMap, unix_now: u64) -> Option<Observation> {
    observation(headers, &told(headers), || unix_now)
}

fn observation(
    headers: &HeaderMap,
    [draft, _, limit, remaining, reset]: &[Option<&HeaderValue>; 5],
    unix_now: impl FnOnce() -> u64,
) -> Option<Observation> {
    let Some(limit) = number(*limit) else {
        draft.as_ref()?;
        // The policy that is nearest to its end.
        let tightest = draft_items(headers).min_by_key(|(remaining, _)| *remaining)?;
        let (remaining, reset) = (u32::try_from(tightest.0).ok()?, Duration::from_secs(tightest.1?));
        return Some(Observation { remaining, reset });
    };
    let limit = u32::try_from(limit).ok()?;
    let remaining = u32::try_from(number(*remaining)?).ok()?;
    let told = number(*reset)?;
    // A moment in whole seconds, against a clock in whole seconds, may be a second off: rather too late.
    let reset = delta(told, unix_now()) + Duration::from_secs(u64::from(told > EPOCH_FROM));
    (remaining <= limit && limit > 0).then_some(Observation { remaining, reset })
}

/// How long upstream asks us to wait after a 429: `Retry-After`, else draft-11's `RateLimit`, else `RateLimit-Reset`.
///
/// `None`: it says nothing that can be read. The caller clamps it to the window.
pub fn retry_hint(headers: &HeaderMap, unix_now: u64) -> Option<Duration> {
    retry_after(headers, unix_now)
        .or_else(|| draft_reset(headers))
        .or_else(|| number(headers.get(RATELIMIT_RESET)).map(|reset| delta(reset, unix_now)))
}

/// Leaves of upstream's `Retry-After` what a caller may be told: on 503 alone, in whole seconds, `most` of them. SDKs sleep
/// it silently, whatever the status.
pub fn bound_retry_after(
    status: StatusCode,
    headers: &mut HeaderMap,
    most: u64,
    unix_now: impl FnOnce() -> u64,
) {
    if !headers.contains_key(RETRY_AFTER) {
        return;
    }
    let unavailable = status == StatusCode::SERVICE_UNAVAILABLE;
    let wait = unavailable.then(|| retry_after(headers, unix_now())).flatten();
    // A date is in whole seconds, and so is our clock, which is rounded down: the wait is rounded up.
    match wait.map(|wait| wait.as_secs()).filter(|seconds| *seconds <= most) {
        Some(seconds) => headers.insert(RETRY_AFTER, HeaderValue::from(seconds)),
        None => headers.remove(RETRY_AFTER),
    };
}

/// `Retry-After` in seconds or as a date.
fn retry_after(headers: &HeaderMap, unix_now: u64) -> Option<Duration> {
    if let Some(seconds) = number(headers.get(RETRY_AFTER)) {
        return Some(delta(seconds, unix_now));
    }
    let date = httpdate::parse_http_date(headers.get(RETRY_AFTER)?.to_str().ok()?).ok()?;
    let date = date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    Some(Duration::from_secs(date.saturating_sub(unix_now)))
}

/// The `t` of the first item of `RateLimit` that has nothing left.
fn draft_reset(headers: &HeaderMap) -> Option<Duration> {
    draft_items(headers)
        .find_map(|(remaining, reset)| (remaining == 0).then_some(reset)?)
        .map(Duration::from_secs)
}

/// `r` and `t` of each item of draft-11's `RateLimit` that has an `r`.
fn draft_items(headers: &HeaderMap) -> impl Iterator<Item = (u64, Option<u64>)> {
    let lines = headers.get_all(&RATELIMIT).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).filter_map(|item| {
        let parameter = |name: &str| {
            let mut parameters =
                item.split(';').skip(1).filter_map(|parameter| parameter.trim().split_once('='));
            parameters.find(|(found, _)| *found == name).and_then(|(_, value)| value.parse::<u64>().ok())
        };
        Some((parameter("r")?, parameter("t")))
    })
}

fn number(line: Option<&HeaderValue>) -> Option<u64> {
    let text = line?.to_str().ok()?.trim_ascii();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // More digits than fit: as long as can be said.
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn delta(reset: u64, unix_now: u64) -> Duration {
    let seconds = if reset > EPOCH_FROM { reset.saturating_sub(unix_now) } else { reset };
    Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).expect("a name");
        fields.iter().map(|(n, value)| (name(n), value.parse().expect("a value"))).collect()
    }

    #[test]
    fn the_fields_have_the_drafts_form() {
        assert_eq!(
            policy(Quota::PER_IP, Some(Quota::PRODUCTION)),
            "\"client\";q=1000;w=10, \"environment\";q=5000;w=600"
        );
        assert_eq!(policy(Quota::PER_IP, None), "\"client\";q=1000;w=10");
    }

    #[test]
    fn the_tightest_policy_is_told() {
        let client = |remaining| Standing { quota: Quota::PER_IP, remaining, grows_in: 1 };
        let environment = |remaining| Some(Standing { quota: Quota::DEVELOPMENT, remaining, grows_in: 41 });
        let told = |client, environment| {
            standing(client, environment).and_then(|value| value.to_str().map(str::to_owned).ok())
        };
        assert_eq!(told(client(999), environment(12)).as_deref(), Some("\"environment\";r=12;t=41"));
        assert_eq!(told(client(3), environment(12)).as_deref(), Some("\"client\";r=3;t=1"));
        assert_eq!(told(client(3), None).as_deref(), Some("\"client\";r=3;t=1"));
    }

    #[test]
    fn a_hint_is_read_in_every_form() {
        let now = 1_800_000_000;
        for (fields, expected) in [
            (&[("retry-after", "7")] as &[_], Some(7)),
            (&[("retry-after", " 7 ")], Some(7)),
            (&[("retry-after", "Fri, 15 Jan 2027 08:00:30 GMT")], Some(30)),
            (&[("retry-after", "Fri, 15 Jan 2021 08:00:30 GMT")], None),
            (&[("ratelimit-reset", "41")], Some(41)),
            (&[("ratelimit-reset", "1800000041")], Some(41)),
            (&[("ratelimit-reset", "1700000000")], Some(0)),
            (&[("ratelimit", "\"a\";r=3;t=9, \"b\";r=0;t=12")], Some(12)),
            (&[("retry-after", "2"), ("ratelimit-reset", "41")], Some(2)),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "-1")], None),
            (&[], None),
        ] {
            let expected = expected.map(Duration::from_secs);
            let hint =
                retry_hint(&headers(fields), now).filter(|hint| *hint > Duration::ZERO || expected.is_some());
            assert_eq!(hint, expected, "{fields:?}");
        }
        assert!(retry_hint(&headers(&[("retry-after", "99999999999999999999999")]), now).is_some());
    }

    #[test]
    fn a_wait_of_upstreams_is_told_in_seconds_on_503_and_no_longer_than_callers_may_sleep() {
        let date = "Fri, 15 Jan 2027 08:00:30 GMT";
        for (status, line, expected) in [
            (503, "60", Some("60")),
            (503, " 7 ", Some("7")),
            (503, "61", None),
            (503, "99999999999999999999999", None),
            (503, date, Some("30")),
            (503, "Fri, 15 Jan 2027 08:01:01 GMT", None),
            (503, "Fri, 15 Jan 2021 08:00:30 GMT", Some("0")),
            (503, "soon", None),
            (503, "-1", None),
            (503, "1.5", None),
            (200, "7", None),
            (404, date, None),
            (500, "7", None),
        ] {
            let mut headers = headers(&[("retry-after", line), ("etag", "x")]);
            let status = StatusCode::from_u16(status).expect("a status");
            bound_retry_after(status, &mut headers, 60, || 1_800_000_000);
            let told = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            assert_eq!(
                (told, headers.len()),
                (expected, 1 + usize::from(expected.is_some())),
                "{status} {line}"
            );
        }
        let mut twice = headers(&[("retry-after", "7"), ("retry-after", "9")]);
        bound_retry_after(StatusCode::SERVICE_UNAVAILABLE, &mut twice, 60, || 0);
        assert_eq!(twice.get_all(RETRY_AFTER).iter().collect::<Vec<_>>(), ["7"]);
    }

    #[test]
    fn upstreams_count_is_believed_only_when_it_makes_sense() {
        let read = |limit, remaining, reset| {
            let fields =
                [("ratelimit-limit", limit), ("ratelimit-remaining", remaining), ("ratelimit-reset", reset)];
            observe(&headers(&fields), 1_800_000_000)
        };
        let reset = Duration::from_secs(60);
        let later = reset + Duration::from_secs(1);
        assert_eq!(read("100", "7", "1800000060"), Some(Observation { remaining: 7, reset: later }));
        assert_eq!(read("100", "7", "60"), Some(Observation { remaining: 7, reset }));
        let draft = |value| observe(&headers(&[("ratelimit", value)]), 1_800_000_000);
        let tightest = "\"a\";r=50;t=9, \"b\";r=7;t=60";
        assert_eq!(draft(tightest), Some(Observation { remaining: 7, reset }));
        assert_eq!(draft("\"a\";r=99999999999;t=1"), None);
        assert_eq!(draft("\"a\";t=1"), None);
        for (limit, remaining) in [("0", "0"), ("5", "6"), ("x", "1"), ("5", "-1"), ("99999999999", "1")] {
            assert_eq!(read(limit, remaining, "60"), None, "{limit} {remaining}");
        }
    }
}
