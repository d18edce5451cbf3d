//! What one caller wants of a page, and the answer made for it.

use http::header::{
    ACCEPT_ENCODING, AGE, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, LAST_MODIFIED, VARY,
};
use http::{Method, Response, StatusCode};

use super::usable::Wishes;
use crate::body::ResponseBody;
use crate::domain::field;
use crate::exchange::{Exchange, Permitted};
use crate::store::pages::{Coded, Page};
use crate::time::Timestamp;

/// Fields that are added to a page's here.
const OWN: usize = 4;

/// One caller.
pub(super) struct Asked {
    pub(super) head: bool,
    if_none_match: Vec<HeaderValue>,
    if_modified_since: Option<HeaderValue>,
    codings: Codings,
    /// What its `Cache-Control` says, where that is honoured.
    pub(super) wishes: Wishes,
}

impl Asked {
    pub(super) fn of(exchange: &Exchange<Permitted>, honoured: bool) -> Self {
        let headers = exchange.request.headers();
        Self {
            head: *exchange.stage.permit.method() == Method::HEAD,
            if_none_match: headers.get_all(IF_NONE_MATCH).iter().cloned().collect(),
            if_modified_since: headers.get(IF_MODIFIED_SINCE).cloned(),
            codings: if headers.contains_key(ACCEPT_ENCODING) {
                Codings::of(headers)
            } else {
                Codings::default()
            },
            wishes: if honoured { Wishes::of(headers) } else { Wishes::default() },
        }
    }

    /// The page, or that it has not changed. Its age is told where it has one.
    ///
    /// The answer's fields go where those of the request, `fields`, were.
    pub(super) fn answer(
        &self,
        page: &Page,
        kept: bool,
        now: Timestamp,
        fields: HeaderMap,
    ) -> Response<ResponseBody> {
        let coded = self.codings.best(&page.coded);
        let (bytes, etag) = coded.map_or((&page.body, &page.etag), |coded| (&coded.body, &coded.etag));
        let unchanged = self.has(page, etag);
        let body =
            if unchanged || self.head { ResponseBody::empty() } else { ResponseBody::full(bytes.clone()) };
        let mut response = Response::new(body);
        *response.headers_mut() = field::room(fields, page.headers.len() + OWN);
        let headers = response.headers_mut();
        for (name, value) in &page.headers {
            headers.append(name, value.clone());
        }
        headers.insert(ETAG, etag.clone());
        if !page.coded.is_empty() {
            headers.append(VARY, HeaderValue::from_static("accept-encoding"));
        }
        if let Some(coded) = coded {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coded.coding));
        }
        let age = page.age(now).as_secs();
        // An answer that upstream took from a cache of its own has an age although we have only just got it.
        if (kept || age > 0)
            && let Some(age) = field::of(&[itoa::Buffer::new().format(age)])
        {
            headers.insert(AGE, age);
        }
        if unchanged {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else if self.head {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        }
        response
    }

    /// Whether the caller has the page already (RFC 9110 §13.2.2: the date counts only where no validator is named).
    fn has(&self, page: &Page, etag: &HeaderValue) -> bool {
        if !self.if_none_match.is_empty() {
            return self.if_none_match.iter().any(|line| names(line.as_bytes(), etag.as_bytes()));
        }
        let date = |value: &HeaderValue| httpdate::parse_http_date(value.to_str().ok()?).ok();
        let since = self.if_modified_since.as_ref().and_then(date);
        since
            .zip(page.headers.get(LAST_MODIFIED).and_then(date))
            .is_some_and(|(since, modified)| modified <= since)
    }
}

/// Whether an `If-None-Match` line names `etag` (weak comparison, RFC 9110 §13.1.2).
fn names(line: &[u8], etag: &[u8]) -> bool {
    if line.trim_ascii() == b"*" {
        return true;
    }
    let opaque = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag).to_vec();
    let etag = opaque(etag);
    let mut quoted = false;
    // A comma within quotes is part of a tag.
    let tags = line.split(|byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    });
    tags.map(<[u8]>::trim_ascii).any(|tag| !tag.is_empty() && opaque(tag) == etag)
}

/// How much a caller wants each content coding, in thousandths; 0: not at all (RFC 9110 §12.5.3).
#[derive(Debug, Default)]
struct Codings {
    gzip: u16,
    br: u16,
    identity: u16,
}

impl Codings {
    fn of(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
        // The first mention of each counts.
        let [mut gzip, mut x_gzip, mut br, mut any, mut identity] = [None; 5];
        for item in lines.flat_map(|line| line.split(',')) {
            let (coding, weight) = item.split_once(';').map_or((item, 1000), |(coding, weight)| {
                let weight = weight.trim().trim_start_matches(['q', 'Q']).strip_prefix('=');
                let weight = weight.and_then(|weight| weight.trim().parse::<f32>().ok());
                (coding, (weight.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u16)
            });
            let coding = coding.trim();
            let known: [(&str, &mut Option<u16>); 5] = [
                ("gzip", &mut gzip),
                ("x-gzip", &mut x_gzip),
                ("br", &mut br),
                ("*", &mut any),
                ("identity", &mut identity),
            ];
            let named = known.into_iter().find(|(name, _)| coding.eq_ignore_ascii_case(name));
            if let Some((_, slot)) = named {
                slot.get_or_insert(weight);
            }
        }
        // An answer as it is needs no mention, and is wanted least then.
        Self {
            gzip: gzip.or(x_gzip).or(any).unwrap_or(0),
            br: br.or(any).unwrap_or(0),
            identity: identity.unwrap_or(0),
        }
    }

    fn weight(&self, coding: &str) -> u16 {
        match coding {
            "br" => self.br,
            "gzip" => self.gzip,
            _ => 0,
        }
    }

    /// The one that is wanted most, of those equally wanted the first; `None`: the body as it is.
    fn best<'c>(&self, coded: &'c [Coded]) -> Option<&'c Coded> {
        let wanted = coded.iter().rev().max_by_key(|coded| self.weight(coded.coding))?;
        let weight = self.weight(wanted.coding);
        (weight > 0 && weight >= self.identity).then_some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderName;

    use super::*;
    use crate::domain::freshness::Freshness;
    use crate::policy::cache::made::{Extras, page};

    #[test]
    fn nothing_of_the_request_is_in_the_answer_that_takes_its_room() {
        let fields = |names: &[&str]| {
            let mut fields = HeaderMap::new();
            for name in names {
                let name: HeaderName = name.parse().expect("a name");
                fields.append(name, HeaderValue::from_static("value"));
            }
            fields
        };
        let asked = Asked {
            head: false,
            if_none_match: Vec::new(),
            if_modified_since: None,
            codings: Codings::default(),
            wishes: Wishes::default(),
        };
        let (kept, none) = (fields(&["x-kept", "x-twice", "x-twice"]), HeaderMap::new());
        let extras = Extras { compress: false, next: false };
        let now = Timestamp::now();
        let page = page(kept, &Bytes::from_static(b"[]"), now, Freshness::default(), &none, extras);
        for fields in [fields(&[]), fields(&["x-asked", "x-twice", "age"])] {
            let answer = asked.answer(&page, false, now, fields);
            let mut names: Vec<&str> = answer.headers().iter().map(|(name, _)| name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, ["etag", "x-kept", "x-twice", "x-twice"]);
        }
    }

    #[test]
    fn if_none_match_is_compared_weakly() {
        for (line, expected) in [
            ("\"a\"", true),
            ("W/\"a\"", true),
            ("\"b\", \"a\"", true),
            ("*", true),
            ("\"b\"", false),
            ("a", false),
            ("", false),
            ("\"b, *, \"", false),
            ("\"b\", *", false),
        ] {
            assert_eq!(names(line.as_bytes(), b"\"a\""), expected, "{line}");
            assert_eq!(names(line.as_bytes(), b"W/\"a\""), expected, "{line}");
        }
    }

    #[test]
    fn codings_are_those_that_the_caller_takes() {
        for (lines, expected) in [
            (&[] as &[&str], None),
            (&["gzip, deflate, br"], Some("br")),
            (&["gzip, br;q=0.1"], Some("gzip")),
            (&["gzip;q=0.5", "BR;q=0"], Some("gzip")),
            (&["*"], Some("br")),
            (&["*;q=0, br;q=0.1"], Some("br")),
            (&["br;q=0, *"], Some("gzip")),
            (&["gzip;q=0, br;q=0, *"], None),
            (&["gzip; Q=0"], None),
            (&["identity"], None),
            (&["identity, gzip;q=0.1"], None),
            (&["identity;q=0.5, gzip"], Some("gzip")),
            (&["gzip;q=0.000"], None),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(ACCEPT_ENCODING, line.parse().expect("a value"));
            }
            let coded = ["br", "gzip"].map(|coding| Coded {
                coding,
                body: Bytes::new(),
                etag: HeaderValue::from_static("\"1\""),
            });
            let best = Codings::of(&headers).best(&coded).map(|coded| coded.coding);
            assert_eq!(best, expected, "{lines:?}");
        }
    }
}
