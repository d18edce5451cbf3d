//! The configuration file as a JSON schema, for editors and for whoever generates one.
//!
//! Its shape is derived from the structs that the file is read into, so it knows every key and no other. What a key means
//! stands in one place only, the reference file: a key's comment there is its description here, its value an example.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::raw;
use super::secret::Secret;
use super::value::{Field, Named, Section, Size, Span};

const REFERENCE: &str = include_str!("../../config/metorial-proxy.toml");

/// The JSON schema (draft 2020-12) of the configuration file.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<raw::File>().to_value();
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".into(), "metorial-proxy".into());
    }
    describe(&mut schema, "", &notes());
    schema
}

/// What the reference says of a key.
#[derive(Default)]
struct Note {
    comment: String,
    example: Option<Value>,
}

/// Puts into each key of `schema`, which describes the place `path`, what the reference says of it.
fn describe(schema: &mut Value, path: &str, notes: &BTreeMap<String, Note>) {
    let Some(object) = schema.as_object_mut() else { return };
    // Of the structs, where a key that is absent is null.
    object.remove("default");
    if let Some(items) = object.get_mut("items") {
        describe(items, path, notes);
    }
    let Some(Value::Object(properties)) = object.get_mut("properties") else { return };
    for (name, property) in properties {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        describe(property, &path, notes);
        let (Some(property), Some(note)) = (property.as_object_mut(), notes.get(&path)) else { continue };
        if !note.comment.is_empty() {
            property.insert("description".into(), note.comment.clone().into());
        }
        property.extend(note.example.clone().map(|example| ("examples".into(), vec![example].into())));
    }
}

/// The keys of the reference by their path, those that are commented out too.
fn notes() -> BTreeMap<String, Note> {
    let mut section = String::new();
    let mut notes = BTreeMap::new();
    for line in REFERENCE.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(header) = line.strip_prefix('[') {
            let name = header.trim_start_matches('[').split(']').next().unwrap_or_default();
            section = format!("{name}.");
        } else if let Some((key, rest)) = line.split_once(" = ") {
            let plain = key.bytes().all(|byte| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte));
            if plain {
                notes.insert(format!("{section}{key}"), note(rest));
            }
        }
    }
    notes
}

/// A value and its comment.
fn note(text: &str) -> Note {
    // A `#` inside a string would have to stand behind two blanks to be taken for a comment.
    let (value, comment) = text.split_once("  #").unwrap_or((text, ""));
    let example = format!("value = {value}").parse::<toml::Table>().ok();
    let example = example.and_then(|mut table| serde_json::to_value(table.remove("value")?).ok());
    Note { comment: comment.trim().to_owned(), example }
}

macro_rules! inline {
    ($name:literal) => {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            $name.into()
        }
    };
}

impl<T: JsonSchema> JsonSchema for Field<T> {
    inline!("Field");

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: JsonSchema> JsonSchema for Section<T> {
    inline!("Section");

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: JsonSchema> JsonSchema for Named<T> {
    inline!("Named");

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let values = T::json_schema(generator);
        json_schema!({ "type": "object", "additionalProperties": values })
    }
}

impl JsonSchema for Span {
    inline!("Span");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9].*[a-z]$" })
    }
}

impl JsonSchema for Size {
    inline!("Size");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9].*[A-Za-z]$" })
    }
}

impl JsonSchema for Secret {
    inline!("Secret");

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = raw::SecretSource::json_schema(generator);
        // One source, not two.
        schema.insert("minProperties".into(), 1.into());
        schema.insert("maxProperties".into(), 1.into());
        schema
    }
}

#[cfg(test)]
mod tests;
