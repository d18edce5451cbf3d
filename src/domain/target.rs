//! The one reading of a request target.
//!
//! The decision is taken on exactly the bytes that are forwarded, so whatever two readers could read differently is
//! refused here: encoded slashes, dots, NULs and plain characters, `//`, backslashes, dot segments, broken escapes. The
//! caller's credential (`?token=`, `?key=`) is taken out before anything is logged, cached or forwarded.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use http::uri::PathAndQuery;

/// More parameters than this are refused.
pub const MAX_PARAMETERS: usize = 200;

/// A path and query that reads one way only, without the caller's credential and without the base path.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    path_and_query: PathAndQuery,
}

/// What a target held beside itself.
#[derive(Default)]
pub struct Extracted {
    /// `?token=`, decoded. Wins over `key`, as the API has it.
    pub token: Option<Vec<u8>>,
    /// `?key=`, decoded.
    pub key: Option<Vec<u8>>,
    /// `?api-version=`, decoded; stays in the target.
    pub api_version: Option<Vec<u8>>,
    /// A consumer secret was there.
    pub consumer_secret: bool,
}

/// Why a target is refused, as a sentence for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguous {
    /// Not `/path`.
    #[error("the request target must be a path")]
    NotAPath,
    /// A byte that RFC 3986 does not allow unescaped.
    #[error("the request target holds a character that must be percent-encoded")]
    BadByte,
    /// `%` without two hexadecimal digits.
    #[error("the request target holds a broken percent-encoding")]
    BadEscape,
    /// `%2F`, `%2E`, `%00`, `%41` …
    #[error("the path percent-encodes a character that another reader would decode")]
    EncodedPathByte,
    /// `//`
    #[error("the path holds an empty segment")]
    EmptySegment,
    /// `.` or `..`
    #[error("the path holds a dot segment")]
    DotSegment,
    /// Two values where one is expected.
    #[error("the query names {0} more than once, or as a list")]
    Repeated(&'static str),
    /// `[key]=`, `key]=` or `?key=`, which a lenient parser reads as `key=`, or a control character, where some stop.
    #[error("the query holds a parameter whose name readers do not agree on")]
    BadName,
    /// `a=1;b=2`, which is one parameter to some readers and two to others.
    #[error("the query holds a semicolon that is not percent-encoded")]
    Semicolon,
    /// Beyond [`MAX_PARAMETERS`].
    #[error("the query holds more than 200 parameters")]
    TooManyParameters,
    /// Not below the base path.
    #[error("the path is outside this proxy's base path")]
    OutsideBasePath,
}

impl Target {
    /// Reads `target` (a path with an optional query), below `base_path` (empty, or `/a/b`).
    ///
    /// # Errors
    /// Where it could be read in two ways.
    pub fn parse(target: &PathAndQuery, base_path: &str) -> Result<(Self, Extracted), Ambiguous> {
        // Of a query alone the library makes a path to the root.
        if !target.as_str().starts_with('/') {
            return Err(Ambiguous::NotAPath);
        }
        let path = strip_base(target.path(), base_path)?;
        check_path(path)?;
        let mut extracted = Extracted::default();
        let query = match target.query() {
            Some(query) => extract(query, &mut extracted)?,
            None => None,
        };
        let unchanged = base_path.is_empty()
            && matches!((&query, target.query()), (Some(Cow::Borrowed(_)), _) | (None, None));
        let path_and_query = if unchanged {
            target.clone()
        } else {
            let whole = match query {
                Some(query) => format!("{path}?{query}"),
                None => path.to_owned(),
            };
            PathAndQuery::try_from(whole).map_err(|_| Ambiguous::BadByte)?
        };
        Ok((Self { path_and_query }, extracted))
    }

    /// The path, as it is forwarded.
    pub fn path(&self) -> &str {
        self.path_and_query.path()
    }

    /// The query, as it is forwarded; empty where there is none.
    pub fn query(&self) -> &str {
        self.path_and_query.query().unwrap_or("")
    }

    /// Path and query in the form a request line takes.
    pub fn path_and_query(&self) -> &PathAndQuery {
        &self.path_and_query
    }
}

impl fmt::Debug for Target {
    /// The path only: query values are never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.path())
    }
}

fn strip_base<'a>(path: &'a str, base_path: &str) -> Result<&'a str, Ambiguous> {
    let rest = path.strip_prefix(base_path).ok_or(Ambiguous::OutsideBasePath)?;
    match rest.as_bytes().first() {
        None => Ok("/"),
        Some(b'/') => Ok(rest),
        Some(_) => Err(Ambiguous::OutsideBasePath),
    }
}

/// Bytes that may stand in a path as they are (RFC 3986 §3.3), and those of a query (§3.4). A table, because every byte of
/// every target is looked at: a third of what comparing costs.
const IN_PATH: [bool; 256] = allowed(b"-._~!$&'()*+,=:@/");
const IN_QUERY: [bool; 256] = allowed(b"-._~!$&'()*+,=:@/?[]");
/// Bytes of a query whose names mean what they look like: nothing to decode, no brackets.
const PLAIN: [bool; 256] = allowed(b"-._~!$&'()*,=:@/");

const fn allowed(punctuation: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128u8 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < punctuation.len() {
        table[punctuation[at] as usize] = true;
        at += 1;
    }
    table
}

fn check_path(path: &str) -> Result<(), Ambiguous> {
    let bytes = path.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                let decoded = escape(bytes, at).ok_or(Ambiguous::BadEscape)?;
                // Unreserved characters have no reason to be encoded; slashes, dots, backslashes and NULs have a bad one.
                if decoded.is_ascii_alphanumeric()
                    || decoded.is_ascii_control()
                    || b"-._~/\\%;?#".contains(&decoded)
                {
                    return Err(Ambiguous::EncodedPathByte);
                }
                at += 3;
                continue;
            }
            b'/' => match &bytes[at + 1..] {
                [b'/', ..] => return Err(Ambiguous::EmptySegment),
                [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..] => {
                    return Err(Ambiguous::DotSegment);
                }
                _ => {}
            },
            byte if IN_PATH[usize::from(byte)] => {}
            _ => return Err(Ambiguous::BadByte),
        }
        at += 1;
    }
    // An overlong `%C0%AF` is a slash to a careless decoder and nothing to a careful one.
    if path.contains('%') && std::str::from_utf8(&decode(path)).is_err() {
        return Err(Ambiguous::EncodedPathByte);
    }
    Ok(())
}

/// Checks the query and takes the credential out. `None`: nothing is left.
fn extract<'q>(query: &'q str, extracted: &mut Extracted) -> Result<Option<Cow<'q, str>>, Ambiguous> {
    let plain = query.bytes().all(|byte| PLAIN[usize::from(byte)]);
    if !plain {
        check_query(query)?;
    }
    let mut taken: Vec<Range<usize>> = Vec::new();
    for (count, pair) in pairs(query).enumerate() {
        if count == MAX_PARAMETERS {
            return Err(Ambiguous::TooManyParameters);
        }
        let name = if plain { Cow::Borrowed(pair.name(query).as_bytes()) } else { decode(pair.name(query)) };
        let root = if plain { &name } else { check_name(&name)? };
        let (slot, what, take) = match root {
            b"token" => (&mut extracted.token, "token", true),
            b"key" => (&mut extracted.key, "key", true),
            b"api-version" => (&mut extracted.api_version, "api-version", false),
            b"consumer_session_client_secret" => {
                extracted.consumer_secret = true;
                continue;
            }
            _ => continue,
        };
        if slot.is_some() || name.len() != root.len() {
            return Err(Ambiguous::Repeated(what));
        }
        *slot = Some(decode(pair.value(query)).into_owned());
        if take {
            taken.push(pair.whole);
        }
    }
    if taken.is_empty() {
        return Ok(Some(Cow::Borrowed(query)));
    }
    let kept: Vec<&str> = pairs(query)
        .filter(|pair| !taken.contains(&pair.whole))
        .map(|pair| &query[pair.whole.clone()])
        .collect();
    Ok(if kept.is_empty() { None } else { Some(Cow::Owned(kept.join("&"))) })
}

fn check_query(query: &str) -> Result<(), Ambiguous> {
    for (at, byte) in query.bytes().enumerate() {
        match byte {
            b'%' if escape(query.as_bytes(), at).is_none() => return Err(Ambiguous::BadEscape),
            b'%' => {}
            b';' => return Err(Ambiguous::Semicolon),
            byte if IN_QUERY[usize::from(byte)] => {}
            _ => return Err(Ambiguous::BadByte),
        }
    }
    Ok(())
}

/// What a decoded name has before its brackets, which match: `limit`, `status[]`, `created_at[gt]`.
fn check_name(name: &[u8]) -> Result<&[u8], Ambiguous> {
    let bracket = |bytes: &[u8]| bytes.iter().position(|byte| b"[]".contains(byte));
    let (root, mut brackets) = name.split_at(bracket(name).unwrap_or(name.len()));
    let begins_with_a_bracket = root.is_empty() && !brackets.is_empty();
    if begins_with_a_bracket || root.first() == Some(&b'?') || name.iter().any(u8::is_ascii_control) {
        return Err(Ambiguous::BadName);
    }
    while let Some(inside) = brackets.strip_prefix(b"[") {
        match bracket(inside) {
            Some(end) if inside[end] == b']' => brackets = &inside[end + 1..],
            Some(_) | None => return Err(Ambiguous::BadName),
        }
    }
    if brackets.is_empty() { Ok(root) } else { Err(Ambiguous::BadName) }
}

/// One `name=value` of a query, as ranges of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The pair without its separators.
    pub whole: Range<usize>,
    equals: Option<usize>,
}

impl Pair {
    /// The name, as written.
    pub fn name<'q>(&self, query: &'q str) -> &'q str {
        &query[self.whole.start..self.equals.unwrap_or(self.whole.end)]
    }

    /// The value, as written; empty without `=`.
    pub fn value<'q>(&self, query: &'q str) -> &'q str {
        self.equals.map_or("", |equals| &query[equals + 1..self.whole.end])
    }
}

/// The pairs of a query, in order, as written: nothing dropped, nothing decoded.
pub fn pairs(query: &str) -> impl Iterator<Item = Pair> {
    let bytes = query.as_bytes();
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let start = next?;
        let (mut end, mut equals) = (start, None);
        while end < bytes.len() && bytes[end] != b'&' {
            if bytes[end] == b'=' && equals.is_none() {
                equals = Some(end);
            }
            end += 1;
        }
        next = (end < bytes.len()).then_some(end + 1);
        Some(Pair { whole: start..end, equals })
    })
}

/// A name or value as `application/x-www-form-urlencoded` reads it.
pub fn decode(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], escape(bytes, at)) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    Cow::Owned(out)
}

/// The byte that `%XX` at `at` stands for.
fn escape(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    if bytes.get(at) != Some(&b'%') {
        return None;
    }
    u8::try_from(digit(bytes.get(at + 1))? * 16 + digit(bytes.get(at + 2))?).ok()
}

#[cfg(test)]
mod tests;
