//! A query as the API's parser (`qs`) reads it: brackets, repeated names, and filters over items.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// One `name[sub]=value`, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parameter {
    name: String,
    /// What stands between the first brackets; an index or nothing there makes an array.
    sub: Option<String>,
    value: String,
}

/// A whole query.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<Parameter>);

/// Parameters that steer the page or the call, and filter nothing.
const RESERVED: [&str; 11] = [
    "limit",
    "after",
    "before",
    "cursor",
    "order",
    "key",
    "token",
    "api-version",
    "consumer_session_client_secret",
    "_m",
    "_c",
];

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        Self(text.split('&').filter(|pair| !pair.is_empty()).map(parameter).collect())
    }

    /// The first value of a plain parameter.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|p| p.name == name && p.sub.is_none()).map(|p| p.value.as_str())
    }

    /// As an object, for bodies sent as a form: an array where a name has brackets or is repeated.
    pub(crate) fn into_object(self) -> Map<String, Value> {
        let mut groups: BTreeMap<String, (bool, Vec<Value>)> = BTreeMap::new();
        for parameter in self.0 {
            let (array, values) = groups.entry(parameter.name).or_default();
            *array |= parameter.sub.is_some();
            values.push(Value::String(parameter.value));
        }
        let single = |(array, mut values): (bool, Vec<Value>)| match values.pop() {
            Some(value) if !array && values.is_empty() => value,
            Some(value) => {
                values.push(value);
                Value::Array(values)
            }
            None => Value::Null,
        };
        groups.into_iter().map(|(name, group)| (name, single(group))).collect()
    }

    /// Whether `item` passes every filter. A filter on a field that the item lacks passes.
    pub(crate) fn matches(&self, item: &Map<String, Value>) -> bool {
        self.0
            .iter()
            .filter(|p| !RESERVED.contains(&p.name.as_str()))
            .all(|p| self.passes(&p.name, p.sub.as_deref(), &p.value, item))
    }

    fn passes(&self, name: &str, sub: Option<&str>, value: &str, item: &Map<String, Value>) -> bool {
        if name == "search" {
            let sought = value.to_lowercase();
            return ["name", "description"].iter().any(|field| {
                item.get(*field).and_then(Value::as_str).is_some_and(|t| t.to_lowercase().contains(&sought))
            });
        }
        let field = match item.get(name) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(flag)) => flag.to_string(),
            Some(Value::Number(number)) => number.to_string(),
            _ => return true,
        };
        match sub {
            // Dates of one form (RFC 3339, UTC) sort as text.
            Some("gt") => field.as_str() > value,
            Some("lt") => field.as_str() < value,
            // One of the array's values suffices.
            _ => self.0.iter().any(|p| p.name == name && p.value.eq_ignore_ascii_case(&field)),
        }
    }
}

fn parameter(pair: &str) -> Parameter {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    let (name, value) = (decode(name), decode(value));
    match name.split_once('[') {
        Some((head, rest)) if !head.is_empty() => {
            let sub = rest.split_once(']').map_or(rest, |(sub, _)| sub).to_owned();
            Parameter { name: head.to_owned(), sub: Some(sub), value }
        }
        _ => Parameter { name, sub: None, value },
    }
}

/// Percent-decoded, `+` as a space; what is no escape stays as it is.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let escape = escape.and_then(|pair| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
        });
        match escape {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arrays_come_in_every_form_that_the_sdks_send() {
        let item =
            json!({"status": "active", "is_default": false, "name": "GitHub 2", "created_at": "2026-02-01"});
        let item = item.as_object().expect("an object");
        for (query, passes) in [
            ("", true),
            ("status=active", true),
            ("status=archived", false),
            ("status=archived&status=active", true),
            ("status%5B0%5D=archived&status%5B1%5D=active", true),
            ("status[]=archived", false),
            ("search=hub", true),
            ("search=git+hub", false),
            ("is_default=False", true),
            ("created_at[gt]=2026-01-01&created_at[lt]=2026-03-01", true),
            ("created_at[gt]=2026-03-01", false),
            ("unheard_of=1&limit=3&order=desc", true),
        ] {
            assert_eq!(Query::parse(query).matches(item), passes, "{query}");
        }
    }

    #[test]
    fn what_is_no_escape_stays() {
        for (text, decoded) in [("a%20b+c", "a b c"), ("100%", "100%"), ("%zz%4", "%zz%4"), ("%C3%A9", "é")]
        {
            assert_eq!(decode(text), decoded);
        }
    }

    #[test]
    fn a_form_becomes_an_object() {
        let object = Query::parse("name=a+b&tags[0]=x&tags[1]=y&one[]=z").into_object();
        assert_eq!(Value::Object(object), json!({"name": "a b", "tags": ["x", "y"], "one": ["z"]}));
    }
}
