//! The line of a file in which a fault stands, with a mark under it.
//!
//! A file may hold a secret where none belongs, so of a line's strings only the one that the fault's message quotes is
//! shown: what a message may quote was decided where it was written. Any other is `"…"`, and comments are left out.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, redact};
use super::value::shown;

/// One line of a file, fit to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The file as it was named.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// Of the mark in the file itself: characters, from 1.
    pub column: usize,
    /// What stands in it, without values that may be secret.
    pub text: String,
    /// The bytes of `text` that the fault is about.
    pub mark: Range<usize>,
}

/// A file that was read, with the place of each key.
pub(super) struct Source<'t> {
    file: String,
    text: &'t str,
    root: Spanned<DeValue<'t>>,
}

/// Where a key path leads, as far as it goes.
struct Found<'d, 't> {
    key: Option<Range<usize>>,
    value: &'d Spanned<DeValue<'t>>,
    /// Nothing of the path is left.
    whole: bool,
}

impl<'t> Source<'t> {
    /// `None`: it is no TOML.
    pub(super) fn parse(file: &str, text: &'t str) -> Option<Self> {
        let table = DeTable::parse(text).ok()?;
        let span = table.span();
        let root = Spanned::new(span, DeValue::Table(table.into_inner()));
        Some(Self { file: file.to_owned(), text, root })
    }

    /// The line where `fault` stands: that of its key, or, where the key is missing, of the section it is missing in.
    pub(super) fn excerpt(&self, fault: &Fault) -> Option<Excerpt> {
        let found = self.find(&fault.path)?;
        let plain =
            !matches!(found.value.get_ref(), DeValue::Table(_) | DeValue::Array(_) | DeValue::Boolean(_));
        let own = Some(found.value.span()).filter(|_| plain);
        let quoted = found.whole && own.as_ref().is_some_and(|span| self.is_quoted(span, fault));
        let target = found.key.filter(|_| !quoted).unwrap_or_else(|| found.value.span());
        Some(self.line(&target, own.as_ref(), quoted))
    }

    fn find(&self, path: &str) -> Option<Found<'_, 't>> {
        let mut found = Found { key: None, value: &self.root, whole: false };
        let mut rest = path;
        loop {
            let next = match found.value.get_ref() {
                DeValue::Table(table) => table.iter().find_map(|(key, value)| {
                    let after = rest
                        .trim_start_matches('.')
                        .strip_prefix(&redact(&shown(key.get_ref().to_string())))?;
                    let ends = after.is_empty() || after.starts_with(['.', '[']);
                    ends.then(|| (Some(key.span()), value, after))
                }),
                DeValue::Array(values) => rest.strip_prefix('[').and_then(|rest| {
                    let (index, after) = rest.split_once(']')?;
                    Some((None, values.get(index.parse::<usize>().ok()?)?, after))
                }),
                _ => None,
            };
            let Some((key, value, after)) = next else { break };
            found = Found { key, value, whole: after.is_empty() };
            rest = after;
        }
        (found.value.span() != self.root.span()).then_some(found)
    }

    /// Whether the fault's message says what stands at `span`.
    fn is_quoted(&self, span: &Range<usize>, fault: &Fault) -> bool {
        let value = &self.text[span.clone()];
        let text = value.trim_matches(['"', '\'']);
        if text.len() == value.len() {
            return fault.message.split(' ').any(|word| word == value);
        }
        fault.message.contains(&format!("\"{text}\""))
    }

    /// The line in which `target` begins; of its values only `quoted` is shown, and those that are no text.
    fn line(&self, target: &Range<usize>, own: Option<&Range<usize>>, quoted: bool) -> Excerpt {
        let start = self.text[..target.start].rfind('\n').map_or(0, |at| at + 1);
        let end = self.text[target.start..].find('\n').map_or(self.text.len(), |at| target.start + at);
        let within = |span: &Range<usize>| span.start < end && span.end > start;
        let (mut keys, mut strings) = (Vec::new(), Vec::new());
        spans(&self.root, &mut keys, &mut strings);
        let is_text = |at: usize| keys.iter().chain(&strings).any(|span| span.contains(&at));
        let hashes = self.text[start..end].match_indices('#').map(|(at, _)| start + at);
        let comment = hashes.into_iter().find(|at| !is_text(*at)).unwrap_or(end);
        let end = start + self.text[start..comment].trim_end().len();

        let mut hidden: Vec<_> =
            strings.into_iter().filter(|span| within(span) && Some(span) != own).collect();
        hidden.extend(own.filter(|_| !quoted).cloned());
        let edges = hidden.iter().chain([target]).flat_map(|span| [span.start, span.end]);
        let mut cuts: Vec<usize> = edges.chain([start, end]).map(|at| at.clamp(start, end)).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let (mut text, mut mark) = (String::new(), 0..0);
        for (from, to) in cuts.iter().copied().zip(cuts.iter().copied().skip(1)) {
            if from == target.start {
                mark.start = text.len();
            }
            match hidden.iter().find(|span| span.contains(&from)) {
                // A string of several lines may have begun further up.
                Some(span) if from == span.start.max(start) => {
                    text.push_str(match self.text[from..to].starts_with(['"', '\'']) {
                        true => "\"…\"",
                        false => "…",
                    })
                }
                Some(_) => {}
                None => text.push_str(&redact(&self.text[from..to])),
            }
            if to == target.end.min(end) {
                mark.end = text.len();
            }
        }
        Excerpt {
            file: self.file.clone(),
            line: self.text[..start].matches('\n').count() + 1,
            column: self.text[start..target.start].chars().count() + 1,
            text,
            mark,
        }
    }
}

/// Where keys and strings are.
fn spans(value: &Spanned<DeValue<'_>>, keys: &mut Vec<Range<usize>>, strings: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        DeValue::String(_) => strings.push(value.span()),
        DeValue::Table(table) => table.iter().for_each(|(key, value)| {
            keys.push(key.span());
            spans(value, keys, strings);
        }),
        DeValue::Array(values) => values.iter().for_each(|value| spans(value, keys, strings)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::fault::Wrong;

    const FILE: &str = r#"# the proxy
[server]
listen = ["127.0.0.1:1", "nowhere"]  # and metorial_sk_hunter2
admin_token = "hunter2"
max_uri = 8192
drain = { settle = "1m", deadline = 'hunter2', "a # b" = 3 }   # hunter2
pin = 271828
notes = """
hunter2
""" # x
[[environments]]
name = "a"
[[environments]]
"metorial_sk_hunter2" = true
"#;

    /// The line with a second one below it, where the mark is.
    fn excerpt(path: &str, message: &str) -> Option<String> {
        let source = Source::parse("proxy.toml", FILE).expect("TOML");
        let excerpt = source.excerpt(&Fault::new(path, Wrong::new(message, "mend it")))?;
        assert!(!excerpt.text.contains("hunter2"), "{excerpt:?}");
        let before = excerpt.text[..excerpt.mark.start].chars().count();
        let marked = excerpt.text[excerpt.mark.clone()].chars().count();
        assert!(marked > 0, "{excerpt:?}");
        let (line, column) = (excerpt.line, excerpt.column);
        Some(format!("{}\n{}{} {line}:{column}", excerpt.text, " ".repeat(before), "^".repeat(marked)))
    }

    #[test]
    fn a_value_that_the_message_quotes_is_shown_and_marked() {
        let shown = [
            excerpt("server.listen[1]", "\"nowhere\" is no address"),
            excerpt("server.max_uri", "8192 has no unit"),
            excerpt("server.drain.settle", "\"1m\" is longer than deadline"),
        ];
        let expected = [
            "listen = [\"…\", \"nowhere\"]\n               ^^^^^^^^^ 3:26",
            "max_uri = 8192\n          ^^^^ 5:11",
            "drain = { settle = \"1m\", deadline = \"…\", \"a # b\" = 3 }\n                   ^^^^ 6:20",
        ];
        assert_eq!(shown.map(Option::unwrap_or_default), expected);
    }

    #[test]
    fn any_other_value_is_hidden_and_its_key_marked() {
        let shown = [
            excerpt("server.admin_token", "is written out"),
            excerpt("server.pin", "is no source of a secret"),
            excerpt("server.listen[0]", "is no address"),
            excerpt("server.notes", "is no known key"),
            excerpt("environments[1].metorial_sk_hunter2", "is no known key"),
        ];
        let expected = [
            "admin_token = \"…\"\n^^^^^^^^^^^ 4:1",
            "pin = …\n^^^ 7:1",
            "listen = [\"…\", \"…\"]\n          ^^^ 3:11",
            "notes = \"…\"\n^^^^^ 8:1",
            "\"metorial_sk_…\" = true\n^^^^^^^^^^^^^^^ 14:1",
        ];
        assert_eq!(shown.map(Option::unwrap_or_default), expected);
    }

    #[test]
    fn what_is_missing_is_told_at_its_section() {
        let missing = |path| excerpt(path, "is missing").unwrap_or_default();
        assert_eq!(missing("environments[1].name"), "[[environments]]\n^^^^^^^^^^^^^^^^ 13:1");
        assert_eq!(
            missing("server.drain.x"),
            "drain = { settle = \"…\", deadline = \"…\", \"a # b\" = 3 }\n^^^^^ 6:1"
        );
        assert_eq!(missing("server.hosts"), "[server]\n ^^^^^^ 2:2");
        assert_eq!(excerpt("METORIAL_PROXY_LISTEN", "is no address"), None, "it stands in no file");
        assert_eq!(excerpt("upstream.url", "is missing"), None);
    }
}
