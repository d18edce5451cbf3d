//! Pages as they are made: from a whole answer, or from a kept page that upstream says has not changed.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64};

use aws_lc_rs::digest;
use brotli::CompressorWriter;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap,
    HeaderName, HeaderValue, LAST_MODIFIED,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::cache_control::Directives;
use crate::domain::freshness::{self, Freshness};
use crate::store::pages::{Coded, Page, Varied, lines};
use crate::time::{Timestamp, unix_now};

/// Smaller bodies gain nothing.
const COMPRESSED_FROM: usize = 860;
/// Larger ones are compressed off the worker's thread.
pub(super) const LARGE: usize = 64 * 1024;

/// Digests of the content as upstream sent it, wrong beside a coding of ours (RFC 9530 §2, RFC 9110 §8.4).
const DIGESTS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

/// What is wanted beside the page itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extras {
    pub(super) compress: bool,
    pub(super) next: bool,
}

/// A page from a whole answer to a request with these fields, sent at `sent`.
pub(super) fn page(
    mut headers: HeaderMap,
    body: &Bytes,
    sent: Timestamp,
    freshness: Freshness,
    request: &HeaderMap,
    extras: Extras,
) -> Page {
    let at = sent.before(freshness::initial_age(&headers, &freshness, unix_now()));
    let varies = varies(&headers, request);
    let validators = validators(&headers);
    // The length follows from the body; the id is that of one request, not of every hit.
    for name in [CONTENT_LENGTH, AGE, HeaderName::from_static("metorial-req-id")] {
        headers.remove(name);
    }
    let theirs = headers.remove(ETAG).filter(|etag| etag.to_str().is_ok_and(|etag| !etag.is_empty()));
    let etag = theirs.map_or_else(|| mint_etag(body), |etag| own(&etag));
    // Copied, because what came is a slice of the connection's buffer, which a small page would keep alive whole.
    headers.values_mut().for_each(|value| *value = own(value));
    let coded = if extras.compress && is_worth_it(&headers, body) { coded(body, &etag) } else { Vec::new() };
    if !coded.is_empty() {
        DIGESTS.iter().for_each(|name| drop(headers.remove(*name)));
    }
    Page {
        // A copy takes no more memory than it needs.
        headers: headers.clone(),
        body: Bytes::copy_from_slice(body),
        etag,
        validators,
        coded,
        at,
        freshness,
        varies,
        next_after: extras.next.then(|| next_after(body)).flatten(),
        retry_at: AtomicU64::new(0),
        ahead: AtomicBool::new(false),
    }
}

/// The kept page with the fields of a 304 in the place of its own (RFC 9111 §3.2), and how fresh it is now.
pub(super) fn renewed(kept: &Page, told: &HeaderMap, sent: Timestamp, freshness: Freshness) -> Page {
    let mut headers = kept.headers.clone();
    for name in told.keys() {
        // What describes the body is that of the body we have.
        if [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, AGE].contains(name)
            || name.as_str() == "metorial-req-id"
            || DIGESTS.contains(&name.as_str())
        {
            continue;
        }
        headers.remove(name);
        for value in told.get_all(name) {
            headers.append(name.clone(), own(value));
        }
    }
    let [etag, modified] = validators(told);
    let copy =
        |coded: &Coded| Coded { coding: coded.coding, body: coded.body.clone(), etag: coded.etag.clone() };
    Page {
        at: sent.before(freshness::initial_age(told, &freshness, unix_now())),
        headers: headers.clone(),
        body: kept.body.clone(),
        etag: kept.etag.clone(),
        validators: [
            etag.or_else(|| kept.validators[0].clone()),
            modified.or_else(|| kept.validators[1].clone()),
        ],
        coded: kept.coded.iter().map(copy).collect(),
        freshness,
        varies: kept.varies.clone(),
        next_after: kept.next_after.clone(),
        retry_at: AtomicU64::new(0),
        ahead: AtomicBool::new(false),
    }
}

/// The fields of `kept` as a 304 leaves them: what its freshness is judged by.
pub(super) fn merged(kept: &Page, told: &HeaderMap) -> HeaderMap {
    let mut headers = kept.headers.clone();
    for name in told.keys() {
        headers.remove(name);
        for value in told.get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    for (name, value) in [ETAG, LAST_MODIFIED].into_iter().zip(&kept.validators) {
        if let Some(value) = value {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
    headers
}

fn validators(headers: &HeaderMap) -> [Option<HeaderValue>; 2] {
    [ETAG, LAST_MODIFIED].map(|name| {
        headers.get(name).filter(|value| value.to_str().is_ok_and(|value| !value.is_empty())).map(own)
    })
}

pub(super) fn varies(headers: &HeaderMap, request: &HeaderMap) -> Box<[Varied]> {
    let names = freshness::varies(headers).unwrap_or_default().into_iter();
    names.map(|name| (name.clone(), lines(request, &name).map(|value| value.into_owned().into()))).collect()
}

/// The same value in memory of its own.
fn own(value: &HeaderValue) -> HeaderValue {
    // What was a value once is one again.
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}

/// A strong validator: 128 bits of the body's SHA-256.
fn mint_etag(body: &[u8]) -> HeaderValue {
    let digest = digest::digest(&digest::SHA256, body);
    let mut etag = String::with_capacity(34);
    etag.push('"');
    for byte in &digest.as_ref()[..16] {
        write!(etag, "{byte:02x}").ok();
    }
    etag.push('"');
    // Quotes and hexadecimal digits.
    HeaderValue::try_from(etag).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Whether a body is text that a coding makes smaller, and may be changed at all (RFC 9110 §7.7).
fn is_worth_it(headers: &HeaderMap, body: &[u8]) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let text =
        kind.starts_with("text/") || ["json", "xml", "javascript"].iter().any(|part| kind.contains(part));
    body.len() >= COMPRESSED_FROM
        && text
        && !kind.starts_with("text/event-stream")
        && !Directives::of(headers, &CACHE_CONTROL).has("no-transform")
}

/// The body in each coding, the better one first. One that gains nothing is left out.
fn coded(body: &[u8], etag: &HeaderValue) -> Vec<Coded> {
    let brotli = {
        let mut writer = CompressorWriter::new(Vec::new(), 4096, 5, 20);
        writer.write_all(body).is_ok().then(|| writer.into_inner())
    };
    let gzip = {
        let mut writer = GzEncoder::new(Vec::new(), Compression::default());
        writer.write_all(body).and_then(|()| writer.finish()).ok()
    };
    let codings = [("br", brotli), ("gzip", gzip)].into_iter();
    let coded = codings.filter_map(|(coding, bytes)| {
        let bytes = bytes.filter(|bytes| bytes.len() < body.len() * 9 / 10)?;
        // Another representation has another validator (RFC 9110 §8.8.3.3).
        let etag = etag.to_str().ok()?.strip_suffix('"')?;
        let etag = HeaderValue::try_from(format!("{etag}-{coding}\"")).ok()?;
        Some(Coded { coding, body: bytes.into(), etag })
    });
    coded.collect()
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
    pagination: Pagination,
}

#[derive(Deserialize)]
struct Pagination {
    has_more_after: bool,
}

#[derive(Deserialize)]
struct Item {
    id: String,
}

/// The id of the last item, where more follow.
fn next_after(body: &[u8]) -> Option<Box<str>> {
    let list: List<'_> = serde_json::from_slice(body).ok()?;
    let last: Item =
        serde_json::from_str(list.items.last().filter(|_| list.pagination.has_more_after)?.get()).ok()?;
    // As it will stand in a query.
    let plain = last.id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    (plain && !last.id.is_empty()).then(|| last.id.into_boxed_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_coded_where_that_gains_something_and_may_be_done() {
        let fields = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            pairs
                .iter()
                .for_each(|(name, value)| drop(headers.insert(*name, value.parse().expect("a value"))));
            headers
        };
        let long = "{\"id\": 1}".repeat(1000);
        for (headers, body, expected) in [
            (&[("content-type", "application/json")] as &[(&str, &str)], long.as_str(), true),
            (&[("content-type", "text/html; charset=utf-8")], &long, true),
            (&[("content-type", "text/event-stream")], &long, false),
            (&[("content-type", "image/png")], &long, false),
            (&[], &long, false),
            (&[("content-type", "application/json")], "{}", false),
            (&[("content-type", "application/json"), ("cache-control", "no-transform")], &long, false),
        ] {
            assert_eq!(is_worth_it(&fields(headers), body.as_bytes()), expected, "{headers:?}");
        }
        let all = coded(long.as_bytes(), &HeaderValue::from_static("\"a\""));
        let etags: Vec<_> = all.iter().map(|coded| (coded.coding, coded.etag.clone())).collect();
        assert_eq!(
            etags,
            [("br", "\"a-br\"".parse().expect("a value")), ("gzip", "\"a-gzip\"".parse().expect("a value"))]
        );
        assert!(all.iter().all(|coded| coded.body.len() < long.len() / 10));
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(2000).collect();
        assert!(coded(&noise, &HeaderValue::from_static("\"a\"")).is_empty());
    }

    #[test]
    fn the_next_page_begins_after_the_last_item_where_there_is_more() {
        let list = |more: bool, id: &str| {
            format!(
                r#"{{"items": [{{"id": "a"}}, {{"id": "{id}", "x": 1}}], "pagination": {{"has_more_after": {more}}}}}"#
            )
        };
        assert_eq!(next_after(list(true, "pro_1").as_bytes()).as_deref(), Some("pro_1"));
        assert_eq!(next_after(list(false, "pro_1").as_bytes()), None);
        assert_eq!(next_after(list(true, "a&b=c").as_bytes()), None);
        for other in
            [r#"{"items": [], "pagination": {"has_more_after": true}}"#, "[]", "", r#"{"items": [1]}"#]
        {
            assert_eq!(next_after(other.as_bytes()), None, "{other}");
        }
    }
}
