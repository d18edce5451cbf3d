//! `Cache-Control` and its kin, read as lists of directives (RFC 9111 §5.2, RFC 9213).
//!
//! Names are compared without regard to case. An argument is a token or a quoted string, whichever a directive asks for: both
//! are understood (§5.2). Of a directive that stands twice with different arguments the stricter counts (§4.2.1).

use std::time::Duration;

use http::header::{HeaderMap, HeaderName};

/// Longer than this is no different (RFC 9111 §1.2.2).
const LONGEST: u64 = 1 << 31;

/// Directives of one field, over all its lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directives(Vec<(String, Option<String>)>);

impl Directives {
    /// Reads all lines of the field `name`.
    pub fn of(headers: &HeaderMap, name: &HeaderName) -> Self {
        let lines = headers.get_all(name).iter();
        // A line that is not ASCII says nothing that could be trusted but what can be read of it.
        let lines = lines.map(|line| String::from_utf8_lossy(line.as_bytes()).into_owned());
        Self(lines.flat_map(|line| parse(&line)).collect())
    }

    /// Reads a field for caches like us (RFC 9213 §2.1), a dictionary: one that is none, or whose lifetimes are no numbers, is
    /// as if it were not there.
    pub fn targeted(headers: &HeaderMap, name: &HeaderName) -> Self {
        let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
        let mut members = lines.flat_map(|line| line.split(',')).map(str::trim);
        let well_formed = |member: &str| {
            let (key, value) =
                member.split_once('=').map_or((member, None), |(key, value)| (key, Some(value)));
            let first = key.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'*');
            let rest =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte);
            let numeric = ["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"].contains(&key);
            let number = value.is_some_and(|value| delta_seconds(value).is_some());
            first && key.bytes().all(rest) && (!numeric || number) && value != Some("")
        };
        match members.all(well_formed) {
            true => Self::of(headers, name),
            false => Self::default(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a directive is there, with or without an argument.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(found, _)| found == name)
    }

    /// The seconds of a directive. What cannot be read is zero: it counts as stale (RFC 9111 §4.2.1).
    pub fn seconds(&self, name: &str) -> Option<Duration> {
        let arguments = self.0.iter().filter(|(found, _)| found == name).map(|(_, argument)| argument);
        let seconds = arguments.map(|argument| argument.as_deref().and_then(delta_seconds).unwrap_or(0));
        seconds.min().map(Duration::from_secs)
    }
}

/// A number of seconds: digits alone; more than fit are as long as can be.
pub fn delta_seconds(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().map_or(LONGEST, |seconds: u64| seconds.min(LONGEST)))
}

fn parse(line: &str) -> Vec<(String, Option<String>)> {
    let mut directives = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return directives;
        }
        let end = rest.find([',', '=']).unwrap_or(rest.len());
        let name = rest[..end].trim().to_ascii_lowercase();
        rest = &rest[end..];
        let argument = rest.strip_prefix('=').map(|after| {
            let (argument, after) = argument(after);
            rest = after;
            argument
        });
        if !name.is_empty() {
            directives.push((name, argument));
        }
        // Whatever follows an argument up to the comma is no part of anything.
        rest = rest.find(',').map_or("", |comma| &rest[comma..]);
    }
}

/// A token or a quoted string, and what follows it. White space around `=` makes it no argument that could be read.
fn argument(text: &str) -> (String, &str) {
    if let Some(quoted) = text.strip_prefix('"') {
        let mut argument = String::new();
        let mut characters = quoted.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => return (argument, &quoted[at + 1..]),
                '\\' => argument.extend(characters.next().map(|(_, escaped)| escaped)),
                other => argument.push(other),
            }
        }
        return (argument, "");
    }
    let end = text.find(',').unwrap_or(text.len());
    (text[..end].trim_end().to_owned(), &text[end..])
}

#[cfg(test)]
mod tests {
    use http::header::CACHE_CONTROL;
    use proptest::prelude::*;

    use super::*;

    fn read(lines: &[&str]) -> Directives {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, line.parse().expect("a value"));
        }
        Directives::of(&headers, &CACHE_CONTROL)
    }

    #[test]
    fn arguments_are_read_in_either_form_and_only_as_arguments() {
        for (lines, expected) in [
            (&["max-age=7"] as &[&str], Some(7)),
            (&["public", "MAX-AGE=\"7\", x"], Some(7)),
            (&[",, max-age=7 ,"], Some(7)),
            (&["a=\"max-age=1, no-store\", max-age=7"], Some(7)),
            (&["a=\"\\\"max-age=1\", max-age=7"], Some(7)),
            (&["max-age=7, max-age=9"], Some(7)),
            (&["max-age=9", "max-age=7"], Some(7)),
            (&["max-age=99999999999999999999999"], Some(1 << 31)),
            (&["max-age"], Some(0)),
            (&["max-age="], Some(0)),
            (&["max-age=-7"], Some(0)),
            (&["max-age=7.5"], Some(0)),
            (&["max-age='7'"], Some(0)),
            (&["max-age= 7"], Some(0)),
            (&["max-age=soon"], Some(0)),
            (&["xmax-age=7, max-agex=7"], None),
            (&[""], None),
        ] {
            assert_eq!(read(lines).seconds("max-age"), expected.map(Duration::from_secs), "{lines:?}");
        }
        assert!(!read(&["a=\"no-store\""]).has("no-store"));
        assert!(read(&["private=\"x-field\""]).has("private"));
    }

    #[test]
    fn a_targeted_field_that_is_no_dictionary_is_not_there() {
        for (line, expected) in [
            ("max-age=7, public", Some(7)),
            ("max-age=7, x=y", Some(7)),
            ("max-age=\"7\"", None),
            ("max-age = 7", None),
            ("Max-Age=7", None),
            ("max-age=7, &&&", None),
            ("max-age=7.5", None),
            ("max-age=-7", None),
            ("max-age", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, line.parse().expect("a value"));
            let read = Directives::targeted(&headers, &CACHE_CONTROL);
            assert_eq!(read.seconds("max-age"), expected.map(Duration::from_secs), "{line}");
        }
    }

    proptest! {
        /// Any line is read to its end.
        #[test]
        fn no_line_is_too_strange(line in "[ -~]{0,40}") {
            parse(&line);
        }
    }
}
