use super::*;
use crate::config::tests::{errors, every_key, minimal, ok, shipped};

/// As much of a validator as this schema needs; a keyword it does not know is a failure.
fn valid(schema: &Value, value: &Value) -> bool {
    let Some(schema) = schema.as_object() else { return schema == &Value::Bool(true) };
    schema.iter().all(|(keyword, wanted)| match keyword.as_str() {
        "$schema" | "title" | "description" | "examples" | "format" => true,
        "type" => match wanted.as_str().expect("one type") {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            other => panic!("type {other}"),
        },
        "minimum" => value.as_f64().is_none_or(|number| Some(number) >= wanted.as_f64()),
        "const" => wanted == value,
        "enum" => wanted.as_array().expect("a list").contains(value),
        "pattern" => value.as_str().is_none_or(|text| {
            let ends = text.starts_with(|c: char| c.is_ascii_digit())
                && text.ends_with(|c: char| c.is_ascii_alphabetic());
            assert!(wanted.as_str().is_some_and(|pattern| pattern.starts_with("^[0-9].*[")), "{wanted}");
            ends
        }),
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| valid(wanted, item))),
        "required" => value.as_object().is_none_or(|object| {
            let names = wanted.as_array().expect("a list");
            names.iter().all(|name| object.contains_key(name.as_str().expect("a name")))
        }),
        "minProperties" => {
            value.as_object().is_none_or(|object| object.len() as u64 >= wanted.as_u64().expect("a number"))
        }
        "maxProperties" => {
            value.as_object().is_none_or(|object| object.len() as u64 <= wanted.as_u64().expect("a number"))
        }
        "properties" => value.as_object().is_none_or(|object| {
            object.iter().all(|(name, value)| wanted.get(name).is_none_or(|schema| valid(schema, value)))
        }),
        "additionalProperties" => value.as_object().is_none_or(|object| {
            let known = schema.get("properties").and_then(Value::as_object);
            let others =
                object.iter().filter(|(name, _)| !known.is_some_and(|known| known.contains_key(*name)));
            others.into_iter().all(|(_, value)| wanted != &Value::Bool(false) && valid(wanted, value))
        }),
        other => panic!("keyword {other}"),
    })
}

fn json(toml: &str) -> Value {
    serde_json::to_value(toml.parse::<toml::Table>().expect(toml)).expect("JSON")
}

/// The reference with what is commented out there.
fn whole_reference() -> String {
    let key = |line: &str| {
        let name = line.split_once(" = ").map_or("", |(name, _)| name);
        line.starts_with("[[")
            || (!name.is_empty() && !name.contains(|c: char| !c.is_ascii_lowercase() && c != '_'))
    };
    let lines =
        REFERENCE.lines().map(|line| line.strip_prefix("# ").filter(|rest| key(rest)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_files_are_valid_and_the_reference_with_every_key_is_too() {
    let schema = schema();
    for name in ["metorial-proxy.toml", "gateway.toml", "sidecar.toml", "sessions.toml"] {
        assert!(valid(&schema, &json(&shipped(name))), "{name}");
    }
    let whole = whole_reference();
    assert!(whole.contains("\nshadow = "), "{whole}");
    assert!(valid(&schema, &json(&whole)));
}

#[test]
fn every_key_is_known_with_its_type_and_no_other_is() {
    let schema = schema();
    for (section, key, file) in every_key() {
        let with = |name: &str, value: &str| {
            json(&file.replace(&format!("{key} = VALUE"), &format!("{name} = {value}")))
        };
        // No key takes a list of lists.
        assert!(!valid(&schema, &with(&key, "[[nan]]")), "{section}{key} takes anything");
        assert!(!valid(&schema, &with(&format!("{key}x"), "true")), "{section}{key}x is taken");
    }
}

#[test]
fn every_key_is_described_by_its_comment_in_the_reference() {
    let notes = notes();
    let note = |path: &str| notes.get(path).map(|note| (note.comment.as_str(), note.example.clone()));
    assert_eq!(
        note("environments.rules.path"),
        Some(("required; {name} stands for one segment", Some("/provider-deployments".into())))
    );
    assert_eq!(note("server.workers"), Some(("threads; 0: one per core", Some(0.into()))));
    let shown = schema();
    let limit = &shown["properties"]["server"]["properties"]["max_in_flight"];
    assert_eq!(limit["description"], "requests at once; with a body three quarters of them");
    assert_eq!(limit["examples"], serde_json::json!([4096]));
    let text = shown.to_string();
    assert!(!text.contains("\"default\":null"), "{text}");
}

#[test]
fn the_words_a_key_takes_are_the_words_it_is_read_by() {
    let schema = schema();
    let environment = &schema["properties"]["environments"]["items"]["properties"];
    for (words, file) in [
        (&environment["kind"], "kind = WORD"),
        (&environment["algorithm"], "algorithm = WORD"),
        (
            &schema["properties"]["server"]["properties"]["client_ip_header"],
            "[server]\nclient_ip_header = WORD",
        ),
        (&schema["properties"]["upstream"]["properties"]["http2"], "[upstream]\nhttp2 = WORD"),
        (
            &environment["rules"]["items"]["properties"]["methods"]["items"],
            "[[environments.rules]]\npath = \"/own\"\nmethods = [WORD]",
        ),
    ] {
        // The minimal file has a kind already.
        let written = |word: &str| match file.strip_prefix("kind = ") {
            Some(_) => minimal("").replace("kind = \"production\"", &file.replace("WORD", word)),
            None => minimal(&file.replace("WORD", word)),
        };
        for word in words["enum"].as_array().expect("words") {
            ok(&written(&word.to_string()));
        }
        let other = written("\"another\"");
        let faults = errors(&other);
        assert_eq!(faults.len(), 1, "{other}");
        let listed = words["enum"].as_array().expect("words").iter().filter_map(Value::as_str);
        let told = faults[0].to_string();
        listed.for_each(|word| assert!(told.contains(word), "{told} tells of no {word}"));
    }
}
