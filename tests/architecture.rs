//! The house rules that a compiler doesn't know: imports point downward, policies don't know each other, files stay
//! small and stand where a reader looks for them.
//!
//! ```text
//! domain ← { config, time, body, rejection, exchange, store, telemetry } ← policy ← pipeline ← edge ← server ← main, commands
//! ```
//! `mock`, the stand-in API, stands beside them and knows the domain alone. Test code may import what it likes.

#[path = "support/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use source::{Import, ModulePath, Source};

/// From the bottom up. A room may use those below it, and those beside it in [`SIDEWAYS`].
const TIERS: [&[&str]; 7] = [
    &["domain"],
    &["config", "time", "body", "rejection", "exchange", "store", "telemetry"],
    &["policy"],
    &["pipeline"],
    &["edge"],
    &["server"],
    &["main", "lib", "commands"],
];
/// Tiers whose rooms may use each other (without going in circles, see [`circle`]).
const SIDEWAYS: [usize; 2] = [1, 6];
/// Rooms with less freedom than their tier.
const NARROWER: [(&str, &[&str]); 3] =
    [("time", &[]), ("body", &["domain", "time"]), ("mock", &["domain", "time", "body"])];

const LONGEST_FILE: usize = 500;
const LONGEST_MEDIAN: usize = 150;

fn known(room: &str) -> bool {
    room == "mock" || TIERS.iter().any(|tier| tier.contains(&room))
}

/// The rooms that `room` may use beside itself.
fn allowed(room: &str) -> Vec<&'static str> {
    if let Some((_, narrow)) = NARROWER.iter().find(|(name, _)| *name == room) {
        return narrow.to_vec();
    }
    let Some(tier) = TIERS.iter().position(|tier| tier.contains(&room)) else { return Vec::new() };
    let mut rooms = TIERS[..tier].concat();
    if SIDEWAYS.contains(&tier) {
        rooms.extend(TIERS[tier]);
    }
    if tier + 1 == TIERS.len() {
        rooms.push("mock");
    }
    rooms
}

fn room_of(file: &str) -> &str {
    let inside = file.trim_start_matches("src/");
    inside.split(['/', '.']).next().unwrap_or(inside)
}

/// Every broken rule among these `(path, text)` pairs, one line each.
fn violations(files: &[(String, String)]) -> Vec<String> {
    let sources: Vec<Source> = files.iter().map(|(file, text)| Source::new(file, text)).collect();
    let modules: BTreeSet<ModulePath> = sources.iter().map(|source| source.module.clone()).collect();
    let for_tests: Vec<ModulePath> = sources.iter().flat_map(Source::test_modules).collect();
    let mut found = Vec::new();
    let mut lengths = Vec::new();
    let mut rooms: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for source in &sources {
        let file = &source.file;
        if file.ends_with("/mod.rs") {
            found.push(format!("{file}: modules are sibling files here: x.rs and x/, no x/mod.rs"));
        }
        if for_tests.iter().any(|module| source.module.starts_with(module)) {
            continue;
        }
        let room = room_of(file);
        if !known(room) {
            found.push(format!(
                "{file}: `{room}` is no room of the house (see TIERS in tests/architecture.rs)"
            ));
            continue;
        }
        if source.lines > LONGEST_FILE {
            found.push(format!("{file}: {} lines without its tests, over {LONGEST_FILE}", source.lines));
        }
        lengths.push(source.lines);
        for import in source.imports(&modules) {
            found.extend(judge(source, room, &import, &modules));
            if let Some(other) = import.path.first().filter(|other| *other != room) {
                rooms.entry(room).or_default().insert(other.clone());
            }
        }
    }
    found.extend(circle(&rooms));
    lengths.sort_unstable();
    if let Some(median) = lengths.get(lengths.len() / 2).filter(|median| **median > LONGEST_MEDIAN) {
        found.push(format!("the median file has {median} lines, over {LONGEST_MEDIAN}"));
    }
    found
}

/// What is wrong with one import, if anything.
fn judge(source: &Source, room: &str, import: &Import, modules: &BTreeSet<ModulePath>) -> Option<String> {
    let place = format!("{}:{}", source.file, import.line);
    let path = format!("crate::{}", import.path.join("::"));
    let other = import.path.first().map_or("", String::as_str);
    if room == "main" || room == "lib" {
        return None;
    }
    if !known(other) {
        return Some(format!("{place}: {path} names no room of the house"));
    }
    if other != room && !allowed(room).contains(&other) {
        return Some(format!("{place}: {room} may not use {other} ({path}): imports point downward"));
    }
    if room == "policy" && other == "policy" {
        let part = import.path.get(1).map_or("*", String::as_str);
        let own = source.module.get(1).map(String::as_str);
        let layer = part == "*" || modules.contains(&import.path[..2]);
        if layer && own != Some(part) {
            return Some(format!(
                "{place}: a policy never imports another ({path}): share by exchange or domain"
            ));
        }
    }
    None
}

/// A circle among rooms of one tier, if there is one.
fn circle(rooms: &BTreeMap<&str, BTreeSet<String>>) -> Option<String> {
    let mut left = rooms.clone();
    left.retain(|room, _| TIERS[1].contains(room));
    loop {
        // What uses no room that is left, or is used by none, is in no circle.
        let names: BTreeSet<String> = left.keys().map(|room| (*room).to_owned()).collect();
        let used: BTreeSet<String> = left.values().flatten().cloned().collect();
        let before = left.len();
        left.retain(|room, uses| used.contains(*room) && !uses.is_disjoint(&names));
        if left.is_empty() {
            return None;
        }
        if left.len() == before {
            let rooms: Vec<&str> = left.into_keys().collect();
            return Some(format!("these rooms use each other in a circle: {}", rooms.join(", ")));
        }
    }
}

fn read(directory: &Path, files: &mut Vec<(String, String)>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            read(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push((path.display().to_string().replace('\\', "/"), fs::read_to_string(&path)?));
        }
    }
    files.sort();
    Ok(())
}

#[test]
fn the_house_is_in_order() {
    let mut files = Vec::new();
    read(Path::new("src"), &mut files).unwrap();
    assert!(files.len() > 5, "tests run in the package's root");
    let found = violations(&files);
    assert!(found.is_empty(), "{} broken rules:\n{}", found.len(), found.join("\n"));
}

fn check(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<_> = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    violations(&files)
}

#[test]
fn downward_imports_pass() {
    let found = check(&[
        ("src/lib.rs", "pub mod domain;\npub mod policy;"),
        ("src/main.rs", "use metorial_proxy::server;\nmod commands;"),
        ("src/commands.rs", "use crate::{mock, server::Server};"),
        ("src/body.rs", "use crate::domain::secret_guard::Scan;\nuse crate::time::Instant;"),
        ("src/config.rs", "use crate::domain::quota::Quota;\nuse crate::time::Instant;"),
        ("src/edge/listener.rs", "use super::tls;\nuse crate::{pipeline, policy::cache::Page, time};"),
        ("src/edge/tls.rs", "fn f() -> impl Sized + use<> { self::g() }"),
        ("src/policy.rs", "pub mod cache;"),
        (
            "src/policy/cache.rs",
            "use crate::policy::cache::key::Key;\nuse super::Shared;\nuse tower::{Layer, policy};",
        ),
        ("src/policy/cache/key.rs", "pub(in crate::policy) struct Key;\nuse super::Page;"),
        (
            "src/mock/lists.rs",
            "use crate::domain::operation;\nuse crate::mock::store::{self, Items as Store};",
        ),
    ]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn upward_imports_are_caught_however_they_are_written() {
    for (file, text, line) in [
        ("src/domain/key.rs", "use crate::time::Instant;", 1),
        ("src/time.rs", "\nuse crate::domain::quota::Quota;", 2),
        ("src/body.rs", "use crate::telemetry;", 1),
        ("src/store/memory.rs", "use crate::policy::cache::Page;", 1),
        ("src/policy/cache.rs", "use crate::{\n  domain::key,\n  edge::{tls, upstream as up},\n};", 3),
        ("src/policy/cache.rs", "fn f() {\n  let c = crate::edge::tls::new();\n}", 2),
        ("src/policy/cache.rs", "mod inner {\n  use super::super::super::server::Server;\n}", 2),
        ("src/policy/cache.rs", "const S: &str = r#\"\"//\"#; use super::super::edge;", 1),
        ("src/pipeline.rs", "fn f(c: char) -> bool { c == '\"' || crate::edge::is(c) }", 1),
        ("src/edge/admin.rs", "use crate::server::Status;", 1),
        ("src/edge/admin.rs", "use crate::mock;", 1),
        ("src/server.rs", "use crate::commands::run;", 1),
        ("src/mock.rs", "use crate::config::Config;", 1),
    ] {
        let found = check(&[(file, text)]);
        assert!(!found.is_empty(), "{file}: {text}");
        assert!(found[0].starts_with(&format!("{file}:{line}: ")), "{found:?}");
    }
}

#[test]
fn comments_strings_and_tests_are_no_imports() {
    let found = check(&[
        (
            "src/time.rs",
            "//! [`crate::server`]\n/* /* crate::edge */ crate::edge */\nconst S: &str = \"crate::edge::x\";",
        ),
        ("src/domain/key.rs", "#[cfg(test)]\n#[allow(x)]\nmod tests {\n    use crate::server::Server;\n}"),
        (
            "src/domain/quota.rs",
            "#[cfg(test)]\nuse crate::server;\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\npub(crate) mod kit;",
        ),
        ("src/domain/quota/tests.rs", "use crate::edge;"),
        ("src/domain/quota/kit.rs", "use crate::edge;"),
    ]);
    assert!(found.is_empty(), "{found:#?}");
    // What follows the tests counts again.
    let found = check(&[("src/domain/key.rs", "#[cfg(test)]\nfn f(a: [u8; 2]) { {} }\nuse crate::edge;")]);
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn a_policy_that_knows_another_is_caught() {
    let cache = ("src/policy/cache.rs", "pub struct Page;");
    for text in [
        "use crate::policy::cache::Page;",
        "use super::cache;",
        "use super::*;",
        "use crate::policy::{self, Shared};",
        "fn f() { super::cache::get() }",
    ] {
        let found = check(&[cache, ("src/policy/retry.rs", text)]);
        assert!(found.len() == 1 && found[0].contains("a policy never imports another"), "{text}: {found:?}");
    }
    // Nor does the room itself hand one's types to another.
    let found = check(&[cache, ("src/policy.rs", "pub mod cache;\npub use cache::Page;")]);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn circles_among_neighbours_are_caught() {
    let found = check(&[
        ("src/store.rs", "use crate::telemetry::Metrics;"),
        ("src/telemetry.rs", "use crate::config::Log;"),
        ("src/config.rs", "use crate::store::Url;"),
        ("src/rejection.rs", "use crate::config::Config;"),
    ]);
    assert_eq!(found, ["these rooms use each other in a circle: config, store, telemetry"]);
}

#[test]
fn strangers_mod_rs_and_long_files_are_caught() {
    let long = "//\n".repeat(501);
    let with_tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}", "//\n".repeat(10), "//\n".repeat(900));
    assert!(check(&[("src/time.rs", &with_tests)]).is_empty());
    assert_eq!(
        check(&[("src/time.rs", &long)]),
        ["src/time.rs: 501 lines without its tests, over 500", "the median file has 501 lines, over 150"]
    );
    assert_eq!(
        check(&[("src/util/strings.rs", ""), ("src/policy/mod.rs", "")]),
        [
            "src/util/strings.rs: `util` is no room of the house (see TIERS in tests/architecture.rs)",
            "src/policy/mod.rs: modules are sibling files here: x.rs and x/, no x/mod.rs"
        ]
    );
    assert_eq!(
        check(&[("src/time.rs", "use crate::Shared;")]),
        ["src/time.rs:1: crate::Shared names no room of the house"]
    );
}
