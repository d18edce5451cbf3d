//! What is wrong with a configuration: where, what, and what to do about it.

use std::fmt;

use super::excerpt::Excerpt;

/// One thing that is wrong, or worth a warning. Never holds the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key (`environments[0].rules[1].path`), the variable (`METORIAL_SECRET_KEY`) or the place in a file.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub cure: String,
    /// The line it stands in, where it stands in a file that could be read.
    pub excerpt: Option<Excerpt>,
}

impl Fault {
    pub(super) fn new(path: impl Into<String>, wrong: Wrong) -> Self {
        // A key can stand where none belongs: as a name, as a file's path.
        Self {
            path: redact(&path.into()),
            message: redact(&wrong.message),
            cure: redact(&wrong.cure),
            excerpt: None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path, self.message, self.cure)
    }
}

impl std::error::Error for Fault {}

/// What is wrong with a value and how to put it right, before it is known where the value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    message: String,
    cure: String,
}

impl Wrong {
    pub(super) fn new(message: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { message: message.into(), cure: cure.into() }
    }

    /// From a sentence of the form `what is wrong: what to do`.
    pub(super) fn from_sentence(sentence: &str) -> Self {
        let (message, cure) = sentence.rsplit_once(": ").unwrap_or((sentence, "correct it"));
        Self::new(message, cure)
    }
}

/// Cuts whatever looks like a Metorial key down to its prefix: `metorial_sk_…`.
pub(super) fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("metorial_") {
        let kind = rest[at..].bytes().skip("metorial_".len()).take(3).collect::<Vec<u8>>();
        let is_key = matches!(kind[..], [a, b, b'_'] if a.is_ascii_lowercase() && b.is_ascii_lowercase());
        let prefix = at + "metorial_".len() + if is_key { 3 } else { 0 };
        out.push_str(&rest[..prefix]);
        rest = &rest[prefix..];
        if is_key {
            let key = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            if key > 0 {
                out.push('…');
            }
            rest = &rest[key..];
        }
    }
    out + rest
}

/// The known name nearest to `name`, where one is near enough to be what was meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = |candidate: &&str| match distance(name, candidate) {
        // Two of three letters wrong is another word.
        edits if edits <= 2 && edits * 2 < candidate.len() => Some(edits),
        _ => None,
    };
    known.into_iter().filter_map(|candidate| Some((near(&candidate)?, candidate))).min().map(|(_, name)| name)
}

/// Levenshtein's edit distance, in characters, regardless of case.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_cut_down_to_its_prefix_wherever_it_stands() {
        for (text, expected) in [
            ("metorial_sk_abc_1", "metorial_sk_…"),
            (
                "cannot read /run/metorial_sk_abc/x metorial_pk_d",
                "cannot read /run/metorial_sk_…/x metorial_pk_…",
            ),
            ("a secret key (metorial_sk_…)", "a secret key (metorial_sk_…)"),
            ("metorial_proxy metorial_sk", "metorial_proxy metorial_sk"),
            ("metorial_é_ metorial_", "metorial_é_ metorial_"),
        ] {
            assert_eq!(redact(text), expected);
        }
    }

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_is_not() {
        let known = ["listen", "admin", "url", "ttl"];
        for (name, expected) in [
            ("lisen", Some("listen")),
            ("listne", Some("listen")),
            ("LISTEN", Some("listen")),
            ("uri", Some("url")),
            ("hosts", None),
            ("tsl", Some("ttl")),
            ("abl", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }
}
