//! What a rule asks of a query.
//!
//! Names are compared decoded, and by what stands before their first bracket: the API's parser reads `limit`, `li%6Dit`,
//! `limit[]` and `limit[0]` as one parameter. Where that parameter is constrained it may come once only, or one reader
//! would check the first value and the other use the second. Numbers are digits and nothing else: the API reads them
//! leniently (`50abc`, `5e1`, ` 50`), so whatever it could read as another number is none here.

use crate::domain::target::{decode, pairs};

/// The constraints of one rule; the default asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    parameters: Vec<Parameter>,
    strict: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Parameter {
    name: String,
    required: bool,
    wanted: Wanted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Anything,
    AtMost(u64),
    OneOf(Vec<String>),
}

/// Why a query is refused. Holds no value of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The constrained parameter, or `query_strict`: what is logged.
    pub constraint: String,
    /// What the caller is told.
    pub message: String,
    /// It is not that the query asks for too much: it could be read in two ways.
    pub ambiguous: bool,
}

/// Parameters that no rule ever sees: credentials are taken out of the target, and a consumer's secret is refused.
const NEVER_THERE: [&str; 3] = ["key", "token", "consumer_session_client_secret"];

impl Query {
    /// Reads constraints as an operator wrote them: name and text (`"<=50"`, `"active|archived"`, `"*"`; a leading `!`:
    /// the parameter must be there). `strict`: no other parameter may be.
    ///
    /// # Errors
    /// Each that cannot stand, as (its name, what is wrong and the cure).
    pub fn parse<'a>(
        constraints: impl IntoIterator<Item = (&'a str, &'a str)>,
        strict: bool,
    ) -> Result<Self, Vec<(String, String)>> {
        let mut parameters = Vec::new();
        let mut errors = Vec::new();
        for (name, text) in constraints {
            match parameter(name, text) {
                Ok(parameter) => parameters.push(parameter),
                Err(sentence) => errors.push((name.to_owned(), sentence)),
            }
        }
        if errors.is_empty() { Ok(Self { parameters, strict }) } else { Err(errors) }
    }

    /// Nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty() && !self.strict
    }

    /// Checks a query, as it is forwarded.
    ///
    /// # Errors
    /// The first constraint that it breaks.
    pub fn check(&self, query: &str) -> Result<(), Broken> {
        if self.is_empty() {
            return Ok(());
        }
        let mut seen = vec![false; self.parameters.len()];
        for pair in pairs(query).filter(|pair| !pair.whole.is_empty()) {
            let name = decode(pair.name(query));
            let root = root(&name);
            let Some(at) = self.parameters.iter().position(|known| known.name.as_bytes() == root) else {
                if self.strict {
                    return Err(unlisted(&name));
                }
                continue;
            };
            let parameter = &self.parameters[at];
            if std::mem::replace(&mut seen[at], true) {
                return Err(parameter.repeated());
            }
            parameter.check(&decode(pair.value(query)))?;
        }
        let missing = self.parameters.iter().zip(seen).find(|(parameter, seen)| parameter.required && !seen);
        missing.map_or(Ok(()), |(parameter, _)| Err(parameter.broken("must be there")))
    }
}

impl Parameter {
    fn check(&self, value: &[u8]) -> Result<(), Broken> {
        match &self.wanted {
            Wanted::Anything => Ok(()),
            Wanted::AtMost(most) if whole_number(value).is_some_and(|number| number <= *most) => Ok(()),
            Wanted::AtMost(most) => Err(self.broken(&format!("must be a whole number of at most {most}"))),
            Wanted::OneOf(values) if values.iter().any(|listed| listed.as_bytes() == value) => Ok(()),
            Wanted::OneOf(values) => Err(match &values[..] {
                [one] => self.broken(&format!("must be {one:?}")),
                _ => self.broken(&format!("must be one of {}", values.join(", "))),
            }),
        }
    }

    fn broken(&self, what: &str) -> Broken {
        let message = format!("The parameter {} {what}.", self.name);
        Broken { constraint: self.name.clone(), message, ambiguous: false }
    }

    fn repeated(&self) -> Broken {
        let message = format!("the parameter {} is there more than once", self.name);
        Broken { constraint: self.name.clone(), message, ambiguous: true }
    }
}

fn unlisted(name: &[u8]) -> Broken {
    // What the caller wrote goes back to the caller alone, cut, and never into a log.
    let name: String = String::from_utf8_lossy(name).chars().take(40).collect();
    let message =
        format!("No other parameter is allowed on this route than those of its rule: {name:?} is not.");
    Broken { constraint: "query_strict".to_owned(), message, ambiguous: false }
}

fn parameter(name: &str, text: &str) -> Result<Parameter, String> {
    if name.is_empty() || name.bytes().any(|byte| !byte.is_ascii_graphic() || b"[]".contains(&byte)) {
        return Err(format!("{name:?} is no parameter: write its name without brackets and white space"));
    }
    if NEVER_THERE.contains(&name) {
        return Err(format!("{name} never reaches a rule, which could never match: remove it"));
    }
    let (required, text) = match text.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let wanted = match text.as_bytes() {
        b"" => return Err("has nothing to compare with: write \"*\" for any value".into()),
        b"*" => Wanted::Anything,
        [b'<', b'=', number @ ..] => match whole_number(number.trim_ascii()) {
            Some(most) => Wanted::AtMost(most),
            None => return Err(format!("{text:?} holds no whole number: write it as \"<=50\"")),
        },
        [b'<' | b'>' | b'=' | b'!', ..] => {
            return Err(format!(
                "{text:?} is no constraint: write \"<=50\", \"a|b\", \"*\" or a fixed value"
            ));
        }
        _ => Wanted::OneOf(text.split('|').map(str::to_owned).collect()),
    };
    if matches!(&wanted, Wanted::OneOf(values) if values.iter().any(String::is_empty)) {
        return Err(format!("{text:?} lists an empty value: remove a |"));
    }
    Ok(Parameter { name: name.to_owned(), required, wanted })
}

/// Digits and nothing else.
fn whole_number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// A decoded name up to its first bracket.
fn root(name: &[u8]) -> &[u8] {
    name.split(|byte| *byte == b'[').next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
