//! `allow` and `[[environments.rules]]`: what callers may do.

use std::time::Duration;

use http::Method;

use super::choice;
use crate::config::fault::Wrong;
use crate::config::raw;
use crate::config::reader::{DAY, Reader};
use crate::config::value::{Field, Named, Section, shown};
use crate::domain::access::{self, AccessTable, Profile, Query, Rule};
use crate::domain::operation;

/// What is said of an environment's callers.
#[derive(Clone, Copy)]
pub(super) struct Callers {
    pub(super) trusted: bool,
    pub(super) keyless: bool,
}

/// Methods that a rule can open.
const OPENED: [(&str, Method); 5] = [
    ("GET", Method::GET),
    ("POST", Method::POST),
    ("PUT", Method::PUT),
    ("PATCH", Method::PATCH),
    ("DELETE", Method::DELETE),
];

const PROFILES: [(&str, Profile); 3] =
    [("catalog", Profile::Catalog), ("read", Profile::Read), ("all", Profile::All)];

pub(super) fn compile(
    at: &mut Reader<'_, '_>,
    allow: raw::List<String>,
    rules: raw::List<Section<raw::Rule>>,
    callers: Callers,
) -> Option<AccessTable> {
    let entries = at.optional("allow", allow).unwrap_or_else(|| vec![Field::Set("catalog".into())]);
    let (mut profiles, mut opened) = (Vec::new(), Vec::new());
    for (index, entry) in entries.into_iter().enumerate() {
        let label = format!("allow[{index}]");
        match at.checked(&label, entry, |text| allowed(&text, &label)) {
            Some(Allowed::Profile(profile)) => {
                check_profile(at, &label, profile, callers);
                profiles.push(profile);
            }
            Some(Allowed::Rule(rule)) => opened.push(rule),
            None => {}
        }
    }
    let rules = at.optional("rules", rules).unwrap_or_default();
    for (index, raw) in rules.into_iter().enumerate() {
        let label = format!("rules[{index}]");
        if let Some(raw) = at.table(&label, raw) {
            opened.extend(rule(at.at(&label), raw, label.clone()));
        }
    }
    let table = AccessTable::compile(&profiles, &opened)
        .map_err(|wrong| {
            for (label, sentence) in wrong {
                // What is wrong with a rule shows in its path; an entry of allow is one string.
                let key = if label.starts_with("rules") { format!("{label}.path") } else { label };
                at.refuse(&key, Wrong::from_sentence(&sentence));
            }
        })
        .ok()?;
    for rule in opened.iter().filter(|rule| rule.shadow) {
        if let Some(method) = rule.methods.iter().find(|method| !table.opens(method, &rule.path)) {
            let message =
                format!("tries {method} {}, which nothing opens: it never sees a request", rule.path);
            at.warn(
                &format!("{}.shadow", rule.label),
                Wrong::new(message, "open the route, or remove the rule"),
            );
        }
    }
    Some(table)
}

enum Allowed {
    Profile(Profile),
    Rule(Rule),
}

fn allowed(text: &str, label: &str) -> Result<Allowed, Wrong> {
    let Some((word, path)) = text.trim().split_once(char::is_whitespace) else {
        let profile = choice(text.trim(), &PROFILES);
        return profile.map(Allowed::Profile).map_err(|wrong| match text.contains('/') {
            true => Wrong::new(format!("{text:?} names no method"), "write it as \"GET /path\""),
            false => wrong,
        });
    };
    Ok(Allowed::Rule(Rule {
        label: label.to_owned(),
        methods: vec![method(word)?],
        path: path.trim().to_owned(),
        ..Rule::default()
    }))
}

fn check_profile(at: &mut Reader<'_, '_>, label: &str, profile: Profile, callers: Callers) {
    let Callers { trusted, keyless } = callers;
    match profile {
        Profile::Read if !trusted => at.warn(
            label,
            Wrong::new(
                "\"read\" exposes private data of the whole instance to anyone who holds the browser key",
                "list the routes that callers need instead, if that is not what you want",
            ),
        ),
        Profile::All if !trusted && !keyless => at.refuse(
            label,
            Wrong::new(
                "\"all\" lets anyone who holds the browser key read and change the whole instance",
                "list the routes that callers need, or say i_trust_these_callers = true in the configuration file",
            ),
        ),
        _ => {}
    }
}

fn rule(mut at: Reader<'_, '_>, raw: raw::Rule, label: String) -> Option<Rule> {
    let path =
        at.required("path", raw.path, "write the route's path, such as \"/provider-deployments/{id}\"");
    let empty = matches!(&raw.methods, Field::Set(methods) if methods.is_empty());
    if empty {
        at.refuse(
            "methods",
            Wrong::new("is empty: the rule opens nothing", "write at least one, such as [\"GET\"]"),
        );
    }
    let mut methods =
        at.list("methods", raw.methods, |text| method(&text)).unwrap_or_else(|| vec![Method::GET]);
    methods.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    methods.dedup();
    let list = at.value("list", raw.list, false);
    let ttl = match raw.ttl {
        Field::Absent => None,
        ttl => Some(at.duration("ttl", ttl, Duration::ZERO, Duration::ZERO..=DAY)),
    };
    let invalidates = at.list("invalidates", raw.invalidates, collection).unwrap_or_default();
    let returns_secret = at.value("returns_secret", raw.returns_secret, false);
    let strict = at.value("query_strict", raw.query_strict, false);
    let query = query(&mut at, raw.query, strict);
    let shadow = at.value("shadow", raw.shadow, false);
    let path = path?;
    let reads = methods.contains(&Method::GET);
    for (key, written) in [("list", list), ("ttl", ttl.is_some())] {
        if written && !reads {
            let cure = "add GET to methods, or remove it";
            at.refuse(key, Wrong::new("is of no use: only what GET answers with is kept", cure));
        }
    }
    if ttl.is_some() && reads && !list && !access::is_list(&path) {
        let message = format!("is of no use: {path} is no list, and of nothing else pages are kept");
        at.refuse(
            "ttl",
            Wrong::new(message, "write list = true too if its answers are pages of one, or remove it"),
        );
    }
    let harmless = query.is_empty()
        && (returns_secret || !methods.iter().any(|method| access::answers_with_secret(method, &path)));
    if shadow && harmless {
        let message = "asks for nothing: it would refuse nothing";
        at.warn("shadow", Wrong::new(message, "write the constraints to be tried as query or query_strict"));
    }
    Some(Rule { label, methods, path, list, ttl, invalidates, returns_secret, query, shadow })
}

fn query(at: &mut Reader<'_, '_>, field: Field<Named<String>>, strict: bool) -> Query {
    let Named(entries) = at.optional("query", field).unwrap_or(Named(Vec::new()));
    let mut at = at.at("query");
    let texts: Vec<(String, String)> = entries
        .into_iter()
        .filter_map(|(name, entry)| at.optional(&shown(name.clone()), entry).map(|text| (name, text)))
        .collect();
    let constraints = texts.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    Query::parse(constraints, strict).unwrap_or_else(|wrong| {
        for (name, sentence) in wrong {
            at.refuse(&shown(name), Wrong::from_sentence(&sentence));
        }
        Query::default()
    })
}

fn method(text: &str) -> Result<Method, Wrong> {
    match OPENED.iter().find(|(name, _)| *name == text) {
        Some((_, method)) => Ok(method.clone()),
        None if text == "HEAD" => Err(Wrong::new("HEAD is part of GET", "write GET")),
        None => {
            let upper = text.to_ascii_uppercase();
            let known = OPENED.iter().any(|(name, _)| *name == upper);
            let cure =
                if known { format!("write {upper}") } else { "write GET, POST, PUT, PATCH or DELETE".into() };
            Err(Wrong::new(format!("{text:?} is no method that can be opened"), cure))
        }
    }
}

/// The name of a collection: a path of one segment.
fn collection(text: String) -> Result<String, Wrong> {
    let name = operation::collection(&text);
    let plain = |segment: &str| {
        !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b))
    };
    match text.strip_prefix('/') {
        Some(segment) if plain(segment) => Ok(text),
        Some(_) if name.strip_prefix('/').is_some_and(plain) => {
            Err(Wrong::new(format!("{text:?} lies inside a collection"), format!("write {name:?}")))
        }
        _ => Err(Wrong::new(
            format!("{text:?} is no collection"),
            "write a path of one segment, such as \"/sessions\"",
        )),
    }
}
