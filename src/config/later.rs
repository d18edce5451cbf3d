//! Keys that are part of the interface and not of this version yet.

use super::fault::Wrong;
use super::reader::Reader;

/// Each key, and the one value (as TOML) that says what happens anyway, where there is one. A version that brings a key
/// deletes its row here and adds it to `raw`.
const LATER: &[(&str, Option<&str>)] = &[("telemetry.otlp", None)];

/// Takes these keys out of `file`, and refuses those that want something else than what happens anyway.
pub(super) fn take(at: &mut Reader<'_, '_>, file: &mut toml::Table) {
    for (key, allowed) in LATER {
        take_key(at, file, key, *allowed);
    }
}

fn take_key(at: &mut Reader<'_, '_>, table: &mut toml::Table, key: &str, allowed: Option<&str>) {
    let Some((section, rest)) = key.split_once('.') else {
        if let Some(value) = table.remove(key)
            && !allowed.is_some_and(|allowed| says(&value, allowed))
        {
            // The value stays out of it: a store's URL may hold a password.
            let cure = allowed
                .map_or("remove it".into(), |allowed| format!("remove it, or write {key} = {allowed}"));
            at.refuse(key, Wrong::new("is not available in this version", cure));
        }
        return;
    };
    match table.get_mut(section) {
        Some(toml::Value::Table(table)) => take_key(&mut at.at(section), table, rest, allowed),
        Some(toml::Value::Array(tables)) => {
            let tables = tables
                .iter_mut()
                .enumerate()
                .filter_map(|(index, table)| Some((index, table.as_table_mut()?)));
            tables.for_each(|(index, table)| take_key(&mut at.entry(section, index), table, rest, allowed));
        }
        // Not there, or of a wrong type, which is refused when the section is read.
        _ => {}
    }
}

/// Each key that may be written all the same, and what it may say.
pub(super) fn written() -> impl Iterator<Item = (&'static str, toml::Value)> {
    LATER.iter().filter_map(|(key, allowed)| Some((*key, value((*allowed)?)?)))
}

fn value(text: &str) -> Option<toml::Value> {
    format!("value = {text}").parse::<toml::Table>().ok()?.remove("value")
}

fn says(value: &toml::Value, allowed: &str) -> bool {
    match (value, self::value(allowed)) {
        // What a thing that is off would do is of no account.
        (toml::Value::Table(value), Some(toml::Value::Table(allowed))) => {
            allowed.iter().all(|(key, allowed)| value.get(key) == Some(allowed))
        }
        (toml::Value::Float(value), Some(toml::Value::Integer(allowed))) => *value == allowed as f64,
        (value, allowed) => Some(value) == allowed.as_ref(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{errors, fault_at, minimal, ok};

    #[test]
    fn each_key_is_refused_by_name_unless_it_says_what_happens_anyway() {
        for (key, allowed) in LATER {
            let write = |value: &str| {
                let (section, name) = key.rsplit_once('.').expect("a section");
                let (header, path) = match section {
                    "environments" => (String::new(), format!("environments[0].{name}")),
                    "environments.rules" => (
                        "[[environments.rules]]\npath = \"/own-route\"\n".into(),
                        format!("environments[0].rules[0].{name}"),
                    ),
                    _ => (format!("[{section}]\n"), (*key).to_owned()),
                };
                (minimal(&format!("{header}{name} = {value}")), path)
            };
            let (file, path) = write("\"something else\"");
            let fault = fault_at(&errors(&file), &path);
            assert!(fault.contains("not available in this version"), "{fault}");
            assert!(!fault.contains("something else"), "{fault}");
            if let Some(allowed) = allowed {
                ok(&write(allowed).0);
            }
        }
    }
}
