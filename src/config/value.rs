//! What may stand at a key: booleans, numbers, text, durations, sizes, lists and sections.
//!
//! Reading a [`Field`] never fails. It remembers what was wrong, so that one wrong value does not hide the next.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::fault::{Wrong, nearest};

/// What was found at a key.
#[derive(Debug, Default)]
pub(super) enum Field<T> {
    /// Nothing.
    #[default]
    Absent,
    /// A value of the right type.
    Set(T),
    /// Something else.
    Wrong(Wrong),
}

impl<T> Field<T> {
    /// Whether the operator wrote something.
    pub(super) fn is_written(&self) -> bool {
        !matches!(self, Self::Absent)
    }
}

/// What can be read from a value of TOML.
pub(super) trait Value: Sized {
    fn read(value: toml::Value) -> Result<Self, Wrong>;
}

impl<'de, T: Value> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        Ok(T::read(value).map_or_else(Self::Wrong, Self::Set))
    }
}

/// Only the names of a section's keys are ever serialised; see [`keys`].
impl<T> Serialize for Field<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

/// A table: the keys it may have, and the names of those it must not.
#[derive(Debug)]
pub(super) struct Section<T> {
    pub(super) keys: T,
    pub(super) unknown: Vec<(String, Wrong)>,
}

/// A table whose names are the operator's own.
#[derive(Debug)]
pub(super) struct Named<T>(pub(super) Vec<(String, Field<T>)>);

impl<T: Value> Value for Named<T> {
    fn read(value: toml::Value) -> Result<Self, Wrong> {
        match value {
            toml::Value::Table(table) => Ok(Self(
                table
                    .into_iter()
                    .map(|(name, value)| (name, T::read(value).map_or_else(Field::Wrong, Field::Set)))
                    .collect(),
            )),
            other => Err(unexpected(&other, "a table", "write names and values: { name = … }")),
        }
    }
}

impl<T: Value> Value for Vec<Field<T>> {
    fn read(value: toml::Value) -> Result<Self, Wrong> {
        match value {
            toml::Value::Array(values) => Ok(values
                .into_iter()
                .map(|value| T::read(value).map_or_else(Field::Wrong, Field::Set))
                .collect()),
            other => {
                Err(unexpected(&other, "a list", "write a list: [ … ], or [[ … ]] where each entry has keys"))
            }
        }
    }
}

impl<T: for<'de> Deserialize<'de> + Serialize + Default> Value for Section<T> {
    fn read(value: toml::Value) -> Result<Self, Wrong> {
        let names = keys::<T>();
        let example = names.first().map_or("key", String::as_str);
        let toml::Value::Table(table) = value else {
            return Err(unexpected(
                &value,
                "a table",
                &format!("write its keys, such as {{ {example} = … }}"),
            ));
        };
        let (known, unknown): (toml::Table, toml::Table) =
            table.into_iter().partition(|(name, _)| names.contains(name));
        let unknown = unknown.into_iter().map(|(name, _)| {
            let cure = match nearest(&name, names.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("remove it, or use one of: {}", names.join(", ")),
            };
            (shown(name), Wrong::new("is no known key", cure))
        });
        // Each of its fields takes any value, so this does not fail.
        let keys = T::deserialize(known).unwrap_or_default();
        Ok(Self { keys, unknown: unknown.collect() })
    }
}

/// A key as it would be written: a quoted one may hold anything.
pub(super) fn shown(name: String) -> String {
    let bare = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if bare && !name.is_empty() { name } else { format!("{name:?}") }
}

/// The names of a section's keys.
pub(super) fn keys<T: Serialize + Default>() -> Vec<String> {
    match serde_json::to_value(T::default()) {
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().map(|(name, _)| name).collect(),
        _ => Vec::new(),
    }
}

impl Value for bool {
    fn read(value: toml::Value) -> Result<Self, Wrong> {
        value
            .as_bool()
            .ok_or_else(|| unexpected(&value, "true or false", "write true or false, without quotes"))
    }
}

impl Value for String {
    fn read(value: toml::Value) -> Result<Self, Wrong> {
        match value {
            toml::Value::String(text) => Ok(text),
            other => Err(unexpected(&other, "a string", "write it in quotes")),
        }
    }
}

impl Value for f64 {
    fn read(value: toml::Value) -> Result<Self, Wrong> {
        match value {
            toml::Value::Float(number) => Ok(number),
            // Exact: no range that is checked afterwards reaches 2^53.
            toml::Value::Integer(number) => i32::try_from(number).map(Self::from).or(Ok(Self::INFINITY)),
            other => Err(unexpected(&other, "a number", "write a number without quotes, such as 0.1")),
        }
    }
}

impl Value for u64 {
    fn read(value: toml::Value) -> Result<Self, Wrong> {
        let cure = "write a whole number without quotes, such as 100";
        let number = value.as_integer().ok_or_else(|| unexpected(&value, "a whole number", cure))?;
        Self::try_from(number).map_err(|_| Wrong::new(format!("{number} is negative"), cure))
    }
}

/// A duration, written `"250ms"`, `"10s"` or `"1h 30m"`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) struct Span(pub(super) Duration);

impl Value for Span {
    fn read(value: toml::Value) -> Result<Self, Wrong> {
        const CURE: &str = "write a number with its unit in quotes, such as \"250ms\", \"10s\" or \"5m\"";
        match value {
            // `M` would be a month; nobody means that here.
            toml::Value::String(text) => humantime::parse_duration(&text)
                .ok()
                .filter(|_| !text.contains('M'))
                .map(Self)
                .ok_or_else(|| Wrong::new(format!("{text:?} is no duration"), CURE)),
            toml::Value::Integer(number) => Err(Wrong::new(
                format!("{number} has no unit"),
                format!("write the unit too, in quotes: \"{number}s\""),
            )),
            other => Err(unexpected(&other, "a duration", CURE)),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", humantime::format_duration(self.0))
    }
}

/// A number of bytes, written `"512B"`, `"8KiB"` or `"1MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) struct Size(pub(super) u64);

impl Value for Size {
    fn read(value: toml::Value) -> Result<Self, Wrong> {
        const CURE: &str = "write a number with its unit in quotes, such as \"8KiB\" or \"1MiB\"";
        match value {
            toml::Value::String(text) => text
                .parse::<bytesize::ByteSize>()
                .ok()
                .filter(|_| text.ends_with(|c: char| c.is_ascii_alphabetic()))
                .map(|size| Self(size.as_u64()))
                .ok_or_else(|| Wrong::new(format!("{text:?} is no size"), CURE)),
            toml::Value::Integer(number) => Err(Wrong::new(
                format!("{number} has no unit"),
                format!("write the unit too, in quotes: \"{number}B\""),
            )),
            other => Err(unexpected(&other, "a size", CURE)),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut size = self.0;
        let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
        let mut unit = units.next().unwrap_or_default();
        for larger in units {
            if size == 0 || !size.is_multiple_of(1024) {
                break;
            }
            (size, unit) = (size / 1024, larger);
        }
        write!(f, "\"{size}{unit}\"")
    }
}

/// A value of another type than the one expected. Says nothing of the value: it could be a secret.
fn unexpected(found: &toml::Value, expected: &str, cure: &str) -> Wrong {
    let found = match found {
        toml::Value::String(_) => "a string",
        toml::Value::Integer(_) => "a whole number",
        toml::Value::Float(_) => "a number",
        toml::Value::Boolean(_) => "true or false",
        toml::Value::Datetime(_) => "a date or time",
        toml::Value::Array(_) => "a list",
        toml::Value::Table(_) => "a table",
    };
    Wrong::new(format!("is {found} where {expected} belongs"), cure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Value>(toml: &str) -> Result<T, Wrong> {
        let table: toml::Table = format!("key = {toml}").parse().expect("TOML");
        T::read(table["key"].clone())
    }

    #[test]
    fn a_duration_has_a_unit() {
        for (text, milliseconds) in
            [("\"250ms\"", 250), ("\"10m\"", 600_000), ("\"1h 30m\"", 5_400_000), ("\"0s\"", 0)]
        {
            assert_eq!(read(text), Ok(Span(Duration::from_millis(milliseconds))), "{text}");
        }
        let bare = read::<Span>("10").expect_err("no unit");
        assert_eq!(bare, Wrong::new("10 has no unit", "write the unit too, in quotes: \"10s\""));
        for bad in ["\"\"", "\"10\"", "\"10M\"", "\"-1s\"", "\"s\"", "1.5", "[]", "\"99999999999999999999y\""]
        {
            assert!(read::<Span>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_has_a_unit() {
        for (text, bytes) in
            [("\"512B\"", 512), ("\"8KiB\"", 8192), ("\"1 MiB\"", 1 << 20), ("\"1MB\"", 1_000_000)]
        {
            assert_eq!(read(text), Ok(Size(bytes)), "{text}");
        }
        let bare = read::<Size>("1024").expect_err("no unit");
        assert_eq!(bare, Wrong::new("1024 has no unit", "write the unit too, in quotes: \"1024B\""));
        for bad in ["\"\"", "\"10\"", "\"10 furlongs\"", "\"-1B\"", "\"KiB\"", "1.5", "{}"] {
            assert!(read::<Size>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_and_sizes_are_shown_as_they_are_written() {
        for text in ["250ms", "10s", "10m"] {
            assert_eq!(
                read::<Span>(&format!("\"{text}\"")).map(|span| span.to_string()),
                Ok(format!("\"{text}\""))
            );
        }
        for text in ["0B", "512B", "8KiB", "1MiB", "1025B", "2TiB"] {
            assert_eq!(
                read::<Size>(&format!("\"{text}\"")).map(|size| size.to_string()),
                Ok(format!("\"{text}\""))
            );
        }
    }

    #[test]
    fn numbers_are_not_quoted_and_counts_are_not_negative() {
        assert_eq!(read::<u64>("100"), Ok(100));
        assert!(read::<u64>("-1").is_err() && read::<u64>("\"1\"").is_err() && read::<u64>("1.0").is_err());
        assert_eq!(read::<f64>("0.5"), Ok(0.5));
        assert_eq!(read::<f64>("1"), Ok(1.0));
        assert!(read::<f64>("\"1\"").is_err());
        assert!(read::<bool>("\"true\"").is_err());
    }
}
