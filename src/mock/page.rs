//! What a list is asked for: limit, order, and where in it.

use serde_json::{Value, json};

use crate::mock::error::{ApiError, violation};
use crate::mock::query::Query;

/// Where a page begins or ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cursor {
    After(String),
    Before(String),
}

/// A page as a caller asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageRequest {
    /// Items, 1 to 100.
    pub(crate) limit: usize,
    pub(crate) descending: bool,
    pub(crate) cursor: Option<Cursor>,
}

impl PageRequest {
    /// Reads `limit`, `order` and the first of `after`, `before`, `cursor` that isn't empty.
    pub(crate) fn read(query: &Query) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let limit = limit(query.get("limit"), &mut errors);
        let descending = match query.get("order") {
            None | Some("asc") => false,
            Some("desc") => true,
            Some(other) => {
                errors.push(violation(
                    "invalid_enum",
                    format!("Invalid input, expected one of asc, desc, received {other}"),
                    "order",
                    json!({"expected": ["asc", "desc"], "received": other}),
                ));
                false
            }
        };
        if !errors.is_empty() {
            return Err(ApiError::invalid("query", errors));
        }
        let given = |name| query.get(name).filter(|value| !value.is_empty());
        let cursor = match (given("after"), given("before"), given("cursor")) {
            (Some(id), _, _) => Some(Cursor::After(id.to_owned())),
            (None, Some(id), _) => Some(Cursor::Before(id.to_owned())),
            (None, None, Some(text)) => {
                Some(decode(text).ok_or_else(|| ApiError::bad_request("Invalid cursor", None))?)
            }
            (None, None, None) => None,
        };
        Ok(Self { limit, descending, cursor })
    }
}

fn limit(text: Option<&str>, errors: &mut Vec<Value>) -> usize {
    let Some(text) = text else { return 20 };
    let (code, message, more) = match leading_number(text) {
        Some(number) if (1.0..=100.0).contains(&number) => {
            return (1..=100)
                .rev()
                .find(|whole| f64::from(*whole) <= number)
                .map_or(1, |whole| whole as usize);
        }
        Some(number) if number < 1.0 => {
            ("min_value", "Value must be at least 1".to_owned(), json!({"min": 1, "received": number}))
        }
        Some(number) => {
            ("max_value", "Value must be at most 100".to_owned(), json!({"max": 100, "received": number}))
        }
        None => (
            "invalid_type",
            "Invalid input, expected number, received string".to_owned(),
            json!({"expected": "number", "received": "string"}),
        ),
    };
    errors.push(violation(code, message, "limit", more));
    20
}

/// JavaScript's `parseFloat`: the longest numeric beginning counts.
fn leading_number(text: &str) -> Option<f64> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c)).unwrap_or(text.len());
    (1..=end).rev().find_map(|end| text.get(..end)?.parse().ok())
}

const ALPHABET: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// Longer cursors hold no id.
const MAX_CURSOR: usize = 400;

/// `cur_` and the base62 of `["after"|"before","<id>"]`, read as one big-endian number.
fn decode(text: &str) -> Option<Cursor> {
    let digits = text.strip_prefix("cur_")?;
    if digits.is_empty() || digits.len() > MAX_CURSOR {
        return None;
    }
    let mut bytes: Vec<u8> = Vec::new();
    for digit in digits.bytes() {
        let mut carry = ALPHABET.iter().position(|letter| *letter == digit)?;
        for byte in bytes.iter_mut().rev() {
            let value = usize::from(*byte) * 62 + carry;
            *byte = u8::try_from(value & 0xff).ok()?;
            carry = value >> 8;
        }
        if carry > 0 {
            bytes.insert(0, u8::try_from(carry).ok()?);
        }
    }
    let (kind, id): (String, String) = serde_json::from_slice(&bytes).ok()?;
    match kind.as_str() {
        "after" => Some(Cursor::After(id)),
        "before" => Some(Cursor::Before(id)),
        _ => None,
    }
}

/// The inverse of [`decode`]: clients make their own cursors, the API never returns one.
#[cfg(test)]
pub(crate) fn encode(kind: &str, id: &str) -> String {
    let mut number = serde_json::to_vec(&(kind, id)).expect("two strings");
    let mut digits = Vec::new();
    while !number.is_empty() {
        let mut rest = 0;
        for byte in &mut number {
            let value = rest * 256 + usize::from(*byte);
            *byte = u8::try_from(value / 62).expect("a byte");
            rest = value % 62;
        }
        digits.push(ALPHABET[rest]);
        number.drain(..number.iter().take_while(|byte| **byte == 0).count());
    }
    digits.reverse();
    format!("cur_{}", String::from_utf8(digits).expect("ASCII"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<(usize, bool, Option<Cursor>), u16> {
        PageRequest::read(&Query::parse(query))
            .map(|page| (page.limit, page.descending, page.cursor))
            .map_err(|error| error.status())
    }

    #[test]
    fn pages_are_asked_for_in_the_apis_words() {
        let after = |id: &str| Some(Cursor::After(id.into()));
        let before = |id: &str| Some(Cursor::Before(id.into()));
        let cursor = format!("cursor={}", encode("before", "pde_x"));
        for (query, expected) in [
            ("", Ok((20, false, None))),
            ("limit=100&order=desc", Ok((100, true, None))),
            ("limit=1&order=asc", Ok((1, false, None))),
            ("limit=7abc", Ok((7, false, None))),
            ("limit=2.9", Ok((2, false, None))),
            ("limit=0", Err(400)),
            ("limit=101", Err(400)),
            ("limit=-5", Err(400)),
            ("limit=abc", Err(400)),
            ("limit=", Err(400)),
            ("order=up", Err(400)),
            ("after=a&before=b&cursor=nonsense", Ok((20, false, after("a")))),
            ("before=b", Ok((20, false, before("b")))),
            ("after=", Ok((20, false, None))),
            (cursor.as_str(), Ok((20, false, before("pde_x")))),
            ("cursor=cur_", Err(400)),
            ("cursor=cur_abc", Err(400)),
            ("cursor=abc", Err(400)),
        ] {
            assert_eq!(read(query), expected, "{query}");
        }
    }
}
