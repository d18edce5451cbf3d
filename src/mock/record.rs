//! What was received: the last requests and their counts, without anybody's key.

use std::collections::VecDeque;

use http::header::{AUTHORIZATION, COOKIE, HeaderName};
use http::{HeaderMap, Method, Uri};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::mock::query::decode;

/// One request that the stand-in received. Every key is cut to `…` and its last four characters.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Record {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub target: String,
    /// Its header fields in the order they came, names in lower case. As JSON: an object of name to value, or to an
    /// array of values where a name is repeated.
    #[serde(serialize_with = "as_object")]
    pub headers: Vec<(String, String)>,
    /// The status that was answered; none yet, or none at all where the connection was cut.
    pub status: Option<u16>,
}

fn as_object<S: Serializer>(headers: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (at, (name, value)) in headers.iter().enumerate() {
        if headers[..at].iter().any(|(earlier, _)| earlier == name) {
            continue;
        }
        let all: Vec<&String> = headers.iter().filter(|(other, _)| other == name).map(|(_, v)| v).collect();
        match all.as_slice() {
            [_] => map.serialize_entry(name, value)?,
            _ => map.serialize_entry(name, &all)?,
        }
    }
    map.end()
}

/// How many requests there were, and which.
#[derive(Debug, Clone, Default, Serialize, PartialEq, Eq)]
pub(crate) struct Received {
    /// All requests.
    pub(crate) received: u64,
    /// Those that the limit per key let pass and counted.
    pub(crate) counted: u64,
    /// Those that either limit refused with 429.
    pub(crate) refused: u64,
    /// The last of them, oldest first.
    pub(crate) requests: Vec<Record>,
}

/// The last requests, so many and so large at most.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) received: u64,
    pub(crate) counted: u64,
    pub(crate) refused: u64,
    requests: VecDeque<Record>,
    bytes: usize,
    /// The number of the ring's first request, since the process began.
    first: u64,
}

/// Requests kept at most, and their bytes.
const MAX_REQUESTS: usize = 10_000;
const MAX_BYTES: usize = 32 << 20;

impl Recorder {
    /// Keeps a request; the number it got is for [`Self::answered`].
    pub(crate) fn receive(&mut self, method: &Method, target: &Uri, headers: &HeaderMap) -> u64 {
        self.received += 1;
        let target = target.path_and_query().map_or("/", |target| target.as_str());
        let record = Record {
            method: method.to_string(),
            target: cut_target(target),
            headers: headers
                .iter()
                .map(|(name, value)| (name.to_string(), cut_value(name, value.as_bytes())))
                .collect(),
            status: None,
        };
        self.bytes += size(&record);
        self.requests.push_back(record);
        while self.requests.len() > MAX_REQUESTS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.requests.pop_front() else { break };
            self.bytes -= size(&oldest);
            self.first += 1;
        }
        (self.first + self.requests.len() as u64).saturating_sub(1)
    }

    /// Notes what a request was answered.
    pub(crate) fn answered(&mut self, number: u64, status: u16) {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(record) = at.and_then(|at| self.requests.get_mut(at)) {
            record.status = Some(status);
        }
    }

    pub(crate) fn report(&self) -> Received {
        Received {
            received: self.received,
            counted: self.counted,
            refused: self.refused,
            requests: self.requests.iter().cloned().collect(),
        }
    }

    /// Forgets all; a request still in flight finds no place to note its status.
    pub(crate) fn reset(&mut self) {
        *self = Self { first: self.first + self.requests.len() as u64, ..Self::default() };
    }
}

fn size(record: &Record) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
    record.method.len() + record.target.len() + headers + 128
}

fn cut_value(name: &HeaderName, value: &[u8]) -> String {
    let value = String::from_utf8_lossy(value);
    if *name == AUTHORIZATION {
        // Whatever stands there may be a credential; the scheme isn't.
        return match value.split_once(' ') {
            Some((scheme, credential)) => format!("{scheme} {}", cut(credential)),
            None => cut(&value),
        };
    }
    if *name == COOKIE || name.as_str().ends_with("client-secret") {
        return cut(&value);
    }
    cut_keys(&value)
}

fn cut_target(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return cut_keys(target) };
    let pairs = query.split('&').map(|pair| {
        let Some((name, value)) = pair.split_once('=') else { return cut_keys(pair) };
        let decoded = decode(value);
        let credential = matches!(decode(name).as_str(), "key" | "token" | "consumer_session_client_secret");
        if credential {
            format!("{name}={}", cut(&decoded))
        } else if value != decoded && cut_keys(&decoded) != decoded {
            format!("{name}={}", cut_keys(&decoded))
        } else {
            cut_keys(pair)
        }
    });
    format!("{}?{}", cut_keys(path), pairs.collect::<Vec<_>>().join("&"))
}

/// `…` and the last four characters, or fewer where that would be more than half.
fn cut(secret: &str) -> String {
    let length = secret.chars().count();
    let kept = length.saturating_sub(4.min(length / 2));
    std::iter::once('…').chain(secret.chars().skip(kept)).collect()
}

/// Cuts each `metorial_xx_…` in a text.
fn cut_keys(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("metorial_") {
        let key = &rest[at..];
        let end = key.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').unwrap_or(key.len());
        out.push_str(&rest[..at]);
        let is_key = key.as_bytes()[..end].get(11) == Some(&b'_');
        if is_key {
            out.push_str(&cut(&key[..end]))
        } else {
            out.push_str(&key[..end])
        }
        rest = &key[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_key_is_cut_wherever_it_stands() {
        for (target, cut) in [
            ("/a?limit=2", "/a?limit=2"),
            ("/a?key=metorial_sk_secret1234&limit=2", "/a?key=…1234&limit=2"),
            ("/a?token=anything-at-all", "/a?token=…-all"),
            ("/a?to%6Ben=metorial%5Fsk%5Fsecret1234", "/a?to%6Ben=…1234"),
            ("/a?search=metorial%5Fsk%5Fsecret1234", "/a?search=…1234"),
            ("/a?search=x%20y", "/a?search=x%20y"),
            ("/a/metorial_pk_public9999/b?metorial_sk_secret1234", "/a/…9999/b?…1234"),
            ("/a?key=abc", "/a?key=…c"),
            ("/metorial_oss", "/metorial_oss"),
        ] {
            assert_eq!(cut_target(target), cut, "{target}");
        }
        for (name, value, cut) in [
            ("authorization", "Bearer metorial_sk_secret1234", "Bearer …1234"),
            ("authorization", "Basic bWV0b3JpYWw", "Basic …pYWw"),
            ("authorization", "naked-credential", "…tial"),
            ("cookie", "metorial_oss_session_secret=abcdefgh", "…efgh"),
            ("x-note", "a metorial_sk_secret1234, b", "a …1234, b"),
            ("accept", "*/*", "*/*"),
        ] {
            let shown = cut_value(&HeaderName::from_static(name), value.as_bytes());
            assert_eq!(shown, cut, "{name}: {value}");
            assert!(!shown.contains("secret12"), "{shown}");
        }
    }

    #[test]
    fn the_ring_keeps_the_last_and_finds_each_answer() {
        let mut recorder = Recorder::default();
        let mut headers = HeaderMap::new();
        headers.append("accept", http::HeaderValue::from_static("a"));
        headers.append("accept", http::HeaderValue::from_static("b"));
        headers.append("host", http::HeaderValue::from_static("h"));
        let mut last = 0;
        for number in 0..MAX_REQUESTS + 3 {
            let uri: Uri = format!("/{number}").parse().expect("a target");
            last = recorder.receive(&Method::GET, &uri, &headers);
            recorder.answered(last, 200);
        }
        recorder.answered(0, 500);
        recorder.answered(last, 404);
        let report = recorder.report();
        assert_eq!((report.received, report.requests.len()), (10_003, MAX_REQUESTS));
        assert_eq!((report.requests[0].target.as_str(), report.requests[0].status), ("/3", Some(200)));
        let json = serde_json::to_value(&report.requests[MAX_REQUESTS - 1]).expect("JSON");
        let expected = json!({
            "method": "GET", "target": "/10002", "status": 404, "headers": {"accept": ["a", "b"], "host": "h"},
        });
        assert_eq!(json, expected);
        recorder.reset();
        assert_eq!(recorder.report(), Received::default());
        recorder.answered(last, 200);
        assert_eq!(recorder.receive(&Method::GET, &Uri::from_static("/"), &headers), last + 1);
    }
}
