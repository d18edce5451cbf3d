//! An entry as bytes: what is inside a sealed value. Integers are big-endian, texts and bodies are preceded by their length.
//!
//! The bytes come out of a seal, so they were made by a replica; they are read all the same as if they had not been.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::{Coded, Entry, Page};
use crate::domain::freshness::Freshness;
use crate::time::Timestamp;

const PAGE: u8 = 0;
const VARIES: u8 = 1;
/// Codings by their number.
const CODINGS: [&str; 2] = ["br", "gzip"];
/// More fields than any answer has that gets this far.
const MAX_FIELDS: u32 = 1000;

/// The bytes of an entry; `made` is when a page was made, in the server's milliseconds.
pub(super) fn encode(entry: &Entry, made: i64) -> Vec<u8> {
    let mut out = Vec::new();
    match entry {
        Entry::Varies(names) => {
            out.put_u8(VARIES);
            put_count(&mut out, names.len());
            names.iter().for_each(|name| put(&mut out, name.as_str().as_bytes()));
        }
        Entry::Page(page) => {
            out.reserve(page.size());
            out.put_u8(PAGE);
            out.put_i64(made);
            put_freshness(&mut out, &page.freshness);
            put(&mut out, page.etag.as_bytes());
            for validator in &page.validators {
                put_option(&mut out, validator.as_ref().map(HeaderValue::as_bytes));
            }
            put_count(&mut out, page.headers.len());
            for (name, value) in &page.headers {
                put(&mut out, name.as_str().as_bytes());
                put(&mut out, value.as_bytes());
            }
            put_count(&mut out, page.varies.len());
            for (name, value) in &page.varies {
                put(&mut out, name.as_str().as_bytes());
                put_option(&mut out, value.as_deref());
            }
            put_option(&mut out, page.next_after.as_deref().map(str::as_bytes));
            let coded = || page.coded.iter().filter_map(|coded| Some((number(coded.coding)?, coded)));
            put_count(&mut out, coded().count());
            for (number, coded) in coded() {
                out.put_u8(number);
                put(&mut out, coded.etag.as_bytes());
                put(&mut out, &coded.body);
            }
            put(&mut out, &page.body);
        }
    }
    out
}

/// The entry; `moment` turns the server's milliseconds into a time of ours. `None`: it is none.
pub(super) fn decode(bytes: Bytes, moment: impl Fn(i64) -> Timestamp) -> Option<Entry> {
    let mut rest = Reader(bytes);
    let entry = match rest.u8()? {
        VARIES => Entry::Varies(rest.list(Reader::name)?.into()),
        PAGE => {
            let at = moment(rest.0.try_get_i64().ok()?);
            let freshness = rest.freshness()?;
            let etag = rest.value()?;
            let validators = [rest.option(Reader::value)?, rest.option(Reader::value)?];
            let mut headers = HeaderMap::new();
            for (name, value) in rest.list(|rest| Some((rest.name()?, rest.value()?)))? {
                headers.append(name, value);
            }
            let varies = rest.list(|rest| {
                Some((rest.name()?, rest.option(|rest| Some(Box::from(&rest.bytes()?[..])))?))
            })?;
            let next_after = rest.option(|rest| String::from_utf8(rest.bytes()?.to_vec()).ok())?;
            let coded = rest.list(|rest| {
                let coding = *CODINGS.get(usize::from(rest.u8()?))?;
                Some(Coded { coding, etag: rest.value()?, body: rest.bytes()? })
            })?;
            let page = Page {
                headers,
                body: rest.bytes()?,
                etag,
                validators,
                coded,
                at,
                freshness,
                varies: varies.into(),
                next_after: next_after.map(String::into_boxed_str),
                retry_at: AtomicU64::new(0),
                ahead: AtomicBool::new(false),
            };
            Entry::Page(Arc::new(page))
        }
        _ => return None,
    };
    rest.0.is_empty().then_some(entry)
}

fn number(coding: &str) -> Option<u8> {
    CODINGS.iter().position(|known| *known == coding).and_then(|at| u8::try_from(at).ok())
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.put_slice(bytes);
}

fn put_option(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    out.put_u8(u8::from(bytes.is_some()));
    if let Some(bytes) = bytes {
        put(out, bytes);
    }
}

fn put_freshness(out: &mut Vec<u8>, freshness: &Freshness) {
    let Freshness { lifetime, configured, no_cache, must_revalidate, while_revalidating, if_error } =
        freshness;
    put_duration(out, *lifetime);
    [configured, no_cache, must_revalidate].into_iter().for_each(|flag| out.put_u8(u8::from(*flag)));
    for duration in [while_revalidating, if_error] {
        out.put_u8(u8::from(duration.is_some()));
        if let Some(duration) = duration {
            put_duration(out, *duration);
        }
    }
}

fn put_duration(out: &mut Vec<u8>, duration: Duration) {
    out.put_u64(duration.as_secs());
    out.put_u32(duration.subsec_nanos());
}

/// What is left to read.
struct Reader(Bytes);

impl Reader {
    fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.0.try_get_u32().ok()?).ok()?;
        (length <= self.0.len()).then(|| self.0.split_to(length))
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.flag()? {
            true => read(self).map(Some),
            false => Some(None),
        }
    }

    fn list<T>(&mut self, read: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.0.try_get_u32().ok().filter(|count| *count <= MAX_FIELDS)?;
        (0..count).map(|_| read(self)).collect()
    }

    fn name(&mut self) -> Option<HeaderName> {
        HeaderName::from_bytes(&self.bytes()?).ok()
    }

    /// In memory of its own: a field outlives the page it came with.
    fn value(&mut self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(&self.bytes()?).ok()
    }

    fn duration(&mut self) -> Option<Duration> {
        let (seconds, nanos) = (self.0.try_get_u64().ok()?, self.0.try_get_u32().ok()?);
        (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
    }

    fn freshness(&mut self) -> Option<Freshness> {
        Some(Freshness {
            lifetime: self.duration()?,
            configured: self.flag()?,
            no_cache: self.flag()?,
            must_revalidate: self.flag()?,
            while_revalidating: self.option(Self::duration)?,
            if_error: self.option(Self::duration)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let value = HeaderValue::from_static;
        let mut headers = HeaderMap::new();
        headers.append("content-type", value("application/json"));
        headers.append("link", value("<a>"));
        headers.append("link", HeaderValue::from_bytes(b"\xff").expect("opaque"));
        Page {
            headers,
            body: "[1]".into(),
            etag: value("\"1\""),
            validators: [Some(value("\"theirs\"")), None],
            coded: vec![Coded { coding: "gzip", body: "gz".into(), etag: value("\"1-gzip\"") }],
            at: Timestamp(1),
            freshness: Freshness {
                lifetime: Duration::new(5, 7),
                configured: true,
                if_error: Some(Duration::from_secs(600)),
                ..Freshness::default()
            },
            varies: [
                (HeaderName::from_static("accept-language"), Some(Box::from(&b"de"[..]))),
                (HeaderName::from_static("x-absent"), None),
            ]
            .into(),
            next_after: Some("pro_1".into()),
            retry_at: AtomicU64::new(0),
            ahead: AtomicBool::new(false),
        }
    }

    fn read(bytes: &[u8]) -> Option<Entry> {
        decode(Bytes::copy_from_slice(bytes), |made| Timestamp(made.unsigned_abs()))
    }

    #[test]
    fn a_page_comes_back_as_it_was() {
        let page = page();
        let Some(Entry::Page(back)) = read(&encode(&Entry::Page(Arc::new(page)), 42)) else {
            panic!("no page")
        };
        let page = self::page();
        assert_eq!(back.at, Timestamp(42));
        let text = |page: &Page| {
            format!("{:?}", Page { at: Timestamp(0), headers: page.headers.clone(), ..self::page() })
        };
        assert_eq!(text(&back), text(&page));
        assert_eq!((&back.body, &back.etag, &back.freshness), (&page.body, &page.etag, &page.freshness));
        assert_eq!(
            (&back.validators, &back.varies, &back.next_after),
            (&page.validators, &page.varies, &page.next_after)
        );
        assert_eq!(format!("{:?}", back.coded), format!("{:?}", page.coded));
    }

    #[test]
    fn what_pages_vary_by_comes_back_too() {
        let names = [HeaderName::from_static("accept-language"), HeaderName::from_static("cookie")];
        let Some(Entry::Varies(back)) = read(&encode(&Entry::Varies(names.clone().into()), 0)) else {
            panic!("no names")
        };
        assert_eq!(*back, names);
    }

    #[test]
    fn bytes_that_are_no_entry_are_none() {
        let whole = encode(&Entry::Page(Arc::new(page())), 42);
        for at in 0..whole.len() {
            assert!(read(&whole[..at]).is_none(), "cut at {at}");
        }
        assert!(read(&[&whole[..], b"x"].concat()).is_none());
        for bytes in [&b""[..], b"\x02", b"\x01\xff\xff\xff\xff", b"\x01\0\0\0\x01\xff\xff\xff\xff"] {
            assert!(read(bytes).is_none(), "{bytes:?}");
        }
    }
}
