//! Fields as members of a JSON object.

use std::error::Error;
use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::span::Record;

/// Names that the head of a line has taken.
const TAKEN: [&str; 3] = ["timestamp", "level", "target"];

/// Writes `,"name":value` for each field it visits.
pub(super) struct Members<'w, W> {
    out: &'w mut W,
    result: fmt::Result,
}

impl<'w, W: Write> Members<'w, W> {
    pub(super) fn new(out: &'w mut W) -> Self {
        Self { out, result: Ok(()) }
    }

    /// Whether all of it could be written.
    pub(super) fn finish(self) -> fmt::Result {
        self.result
    }

    fn member(&mut self, field: &Field, value: impl FnOnce(&mut W) -> fmt::Result) {
        // The `log` bridge describes its events with fields of its own.
        if self.result.is_ok() && !field.name().starts_with("log.") {
            self.result = self.name(field.name()).and_then(|()| value(self.out));
        }
    }

    fn name(&mut self, name: &str) -> fmt::Result {
        self.out.write_str(",\"")?;
        Escaped(self.out).write_str(name.strip_prefix("r#").unwrap_or(name))?;
        self.out.write_str(if TAKEN.contains(&name) { "_\":" } else { "\":" })
    }
}

impl<W: Write> Visit for Members<'_, W> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.member(field, |out| {
            out.write_char('"')?;
            write!(Escaped(out), "{value:?}")?;
            out.write_char('"')
        });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |out| quoted(out, value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |out| write!(out, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |out| write!(out, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |out| write!(out, "{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no word for what is no finite number.
        self.member(
            field,
            |out| if value.is_finite() { write!(out, "{value}") } else { out.write_str("null") },
        );
    }

    /// An error and what caused it, in one text.
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.member(field, |out| {
            out.write_char('"')?;
            write!(Escaped(out), "{value}")?;
            for cause in std::iter::successors(value.source(), |&error| error.source()) {
                write!(Escaped(out), ": {cause}")?;
            }
            out.write_char('"')
        });
    }
}

/// `text` as a JSON string.
pub(super) fn quoted(out: &mut impl Write, text: &str) -> fmt::Result {
    out.write_char('"')?;
    Escaped(out).write_str(text)?;
    out.write_char('"')
}

/// Passes text on as the inside of a JSON string (RFC 8259 section 7); what needs no escape goes in one piece.
struct Escaped<'w, W>(&'w mut W);

impl<W: Write> Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.bytes().position(|byte| byte < 0x20 || matches!(byte, b'"' | b'\\' | 0x7f))
        {
            let (plain, from) = rest.split_at(at);
            self.0.write_str(plain)?;
            // One byte is a whole character here: none of these occurs inside a longer one.
            let (special, after) = from.split_at(1);
            match special {
                "\"" => self.0.write_str("\\\"")?,
                "\\" => self.0.write_str("\\\\")?,
                "\n" => self.0.write_str("\\n")?,
                "\t" => self.0.write_str("\\t")?,
                "\r" => self.0.write_str("\\r")?,
                other => other.bytes().try_for_each(|byte| write!(self.0, "\\u{byte:04x}"))?,
            }
            rest = after;
        }
        self.0.write_str(rest)
    }
}

/// Looks for the names of fields in members already written.
pub(super) struct Mentions<'t> {
    text: &'t str,
    found: bool,
}

impl<'t> Mentions<'t> {
    /// Whether `text` may hold one of `fields`: never a wrong no.
    pub(super) fn any(text: &'t str, fields: &Record<'_>) -> bool {
        let mut mentions = Self { text, found: false };
        fields.record(&mut mentions);
        mentions.found
    }
}

impl Visit for Mentions<'_> {
    fn record_debug(&mut self, field: &Field, _: &dyn fmt::Debug) {
        self.found |= self.text.contains(field.name());
    }
}
