//! Fields: values that are made for every answer, where they go, and what a connection names as its own.

use std::io::Write as _;

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};

/// More than any value is long that is made here.
const LONGEST: usize = 128;
/// Fields that a request had room for, beyond which that is not kept: an idle connection would hold it.
const LARGE: usize = 48;
/// Fields that the layers outside give each answer: its limits, its request id, and what browsers may read.
const ADDED: usize = 8;

/// The value that these parts make up; `None` where they can be none, or are longer than 128 bytes.
///
/// Put together on the stack and copied once, without the machinery of `format!`.
pub fn of(parts: &[&str]) -> Option<HeaderValue> {
    let mut bytes = [0; LONGEST];
    let mut rest = &mut bytes[..];
    for part in parts {
        rest.write_all(part.as_bytes()).ok()?;
    }
    let length = LONGEST - rest.len();
    HeaderValue::from_bytes(&bytes[..length]).ok()
}

/// No fields yet, but room for `count` of an answer, in that of a request's, which nobody needs any more.
///
/// The library reads the next request of a connection into what the last answer's fields were in, so this is the one room a
/// connection has, and large enough from its second request on; without it there would be four allocations for each request.
pub fn room(mut fields: HeaderMap, count: usize) -> HeaderMap {
    // What has more lines than one keeps them in a list of its own, which may have grown as large as it likes.
    if fields.capacity() > LARGE || fields.keys_len() < fields.len() {
        fields = HeaderMap::new();
    }
    fields.clear();
    fields.reserve(count + ADDED);
    fields
}

/// Whether a line of `Connection` may name any; what it says in most answers names none.
pub fn names_some(line: &[u8]) -> bool {
    !["keep-alive", "close"].iter().any(|option| line.eq_ignore_ascii_case(option.as_bytes()))
}

/// The fields that `Connection` names: they are for one hop only (RFC 9110 §7.6.1). What is no name there names nothing.
pub fn nominated(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let lines = headers.get_all(CONNECTION).iter().map(HeaderValue::as_bytes);
    lines
        .flat_map(|line| line.split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_names_its_own_fields_also_beside_what_is_no_name() {
        let mut headers = HeaderMap::new();
        for line in [&b"close, X-Hop"[..], b"", b"a b,\xff, x-other-hop ,"] {
            headers.append(CONNECTION, HeaderValue::from_bytes(line).expect("a value"));
        }
        let named: Vec<HeaderName> = nominated(&headers).collect();
        assert_eq!(named, ["close", "x-hop", "x-other-hop"]);
    }

    #[test]
    fn room_is_empty_and_that_of_many_fields_or_lines_is_not_kept() {
        let fields = |names: &[String]| {
            let mut fields = HeaderMap::new();
            for name in names {
                fields.append(name.parse::<HeaderName>().expect("a name"), HeaderValue::from_static("value"));
            }
            fields
        };
        let numbered =
            |count: usize| -> Vec<String> { (0..count).map(|number| format!("x-{number}")).collect() };
        let new = room(HeaderMap::new(), 4).capacity();
        assert!((4 + ADDED..LARGE).contains(&new), "{new}");
        for (names, kept) in
            [(numbered(30), true), (numbered(100), false), (vec!["x-one".into(); 100], false)]
        {
            let (fields, first) = (fields(&names), names.first());
            let before = fields.capacity();
            let room = room(fields, 4);
            assert!(room.is_empty(), "{room:?}");
            assert_eq!(room.capacity(), if kept { before } else { new }, "{} {first:?}", names.len());
        }
    }

    #[test]
    fn a_value_is_its_parts_and_none_is_cut_off() {
        let value = |parts: &[&str]| of(parts).map(|value| value.to_str().map(str::to_owned).ok());
        assert_eq!(value(&["a=", "1", ";b"]), Some(Some("a=1;b".into())));
        assert_eq!(value(&[]), Some(Some(String::new())));
        let long = "x".repeat(LONGEST);
        assert_eq!(value(&[&long]), Some(Some(long.clone())));
        assert_eq!(value(&[&long, "x"]), None);
        assert_eq!(value(&["a\n"]), None);
    }
}
