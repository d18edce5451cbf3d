//! `[[environments]]` and their rules: what is refused, and what holds.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::domain::key::KeyDigest;

/// The one fault of an environment with `keys`: where, and all that is said.
#[track_caller]
fn refused(keys: &str, path: &str, part: &str) {
    let faults = errors(&minimal(keys));
    let fault = fault_at(&faults, path);
    assert!(fault.contains(part), "{keys}: {fault}");
    assert_eq!(faults.len(), 1, "{keys}:\n{}", show(&faults));
}

#[track_caller]
fn environment(keys: &str) -> Arc<Environment> {
    ok(&minimal(keys)).config.environments[0].clone()
}

/// Two environments, `a` and `b`, that differ in key and secret unless said otherwise.
fn two(a: &str, b: &str) -> String {
    let one = |name: &str, secret: &str, keys: &str| {
        let secret = if keys.contains("secret_key") {
            String::new()
        } else {
            format!("secret_key = {{ env = {secret:?} }}")
        };
        let callers = match keys.contains("publishable_keys") || keys.contains("keyless") {
            true => String::new(),
            false => format!("publishable_keys = [\"metorial_pk_{name}\"]"),
        };
        let name = if keys.contains("name =") { String::new() } else { format!("name = {name:?}") };
        format!("[[environments]]\n{name}\n{secret}\n{callers}\n{keys}\n")
    };
    one("a", "SECRET", a) + &one("b", "OTHER_SECRET", b)
}

#[track_caller]
fn two_refused(a: &str, b: &str, path: &str, part: &str) {
    let faults = errors(&two(a, b));
    let fault = fault_at(&faults, path);
    assert!(fault.contains(part), "{fault}");
    assert_eq!(faults.len(), 1, "{}", show(&faults));
}

#[test]
fn there_is_at_least_one_environment_and_each_is_a_table() {
    for (file, path, part) in [
        ("", "environments", "is missing"),
        ("environments = []", "environments", "is empty"),
        ("[environments]\nname = \"a\"", "environments", "[[ … ]]"),
        ("environments = [1]", "environments[0]", "a table belongs"),
    ] {
        let faults = errors(file);
        assert!(fault_at(&faults, path).contains(part), "{}", show(&faults));
        assert_eq!(faults.len(), 1, "{}", show(&faults));
    }
    let faults = errors("[[environments]]");
    for key in ["name", "secret_key", "publishable_keys"] {
        fault_at(&faults, &format!("environments[0].{key}"));
    }
    assert_eq!(faults.len(), 3, "{}", show(&faults));
}

#[test]
fn a_name_is_plain_and_its_own() {
    for name in ["", "a b", "é", &"x".repeat(65)] {
        let faults = errors(&two(&format!("name = {name:?}"), ""));
        assert!(fault_at(&faults, "environments[0].name").contains("is no name"));
    }
    two_refused("", "name = \"a\"", "environments[1].name", "the name of environments[0] too");
}

#[test]
fn the_limit_is_the_kinds_unless_it_is_given() {
    let limit = |keys: &str| {
        let limit = environment(keys).limit;
        (limit.requests, limit.window.as_secs())
    };
    assert_eq!(limit(""), (5000, 600));
    assert_eq!(limit("limit = { requests = 7, window = \"3s\" }"), (7, 3));
    let ok = ok(&two("", "kind = \"development\""));
    assert!(ok.config.environments.iter().all(|environment| environment.limit.requests == 100));
    refused("limit = { requests = 7 }", "environments[0].limit.window", "is missing");
    refused("limit = 7", "environments[0].limit", "a table belongs");
    let faults = errors(&two("kind = \"prodution\"", ""));
    assert!(fault_at(&faults, "environments[0].kind").contains("did you mean \"production\"?"));
}

#[test]
fn a_secret_key_comes_from_a_file_or_a_variable_and_is_never_repeated() {
    let (good, empty, publishable) =
        (TempFile::new("metorial_sk_x\n"), TempFile::new("\n"), TempFile::new("metorial_pk_hunter2"));
    let (binary, long) = (TempFile::new([0xff]), TempFile::new("x".repeat(100_000)));
    let file = |file: &TempFile| format!("{{ file = {:?} }}", file.name());
    for (source, path, part) in [
        ("\"metorial_sk_hunter2\"".to_owned(), "", "never stands in the configuration"),
        ("\"hunter2\"".to_owned(), "", "never stands in the configuration"),
        ("7".to_owned(), "", "no source"),
        ("{}".to_owned(), "", "no source"),
        (format!("{{ env = \"SECRET\", file = {:?} }}", good.name()), "", "two sources"),
        ("{ value = \"hunter2\", env = \"SECRET\" }".to_owned(), ".value", "no known key"),
        ("{ env = \"NOT_SET\" }".to_owned(), ".env", "NOT_SET is not set"),
        ("{ env = \"EMPTY\" }".to_owned(), ".env", "EMPTY is empty"),
        ("{ file = \"/nonexistent/metorial_sk_hunter2\" }".to_owned(), ".file", "cannot be read"),
        (file(&empty), ".file", "is empty"),
        (file(&binary), ".file", "not UTF-8"),
        (file(&long), ".file", "longer than"),
        (file(&publishable), "", "is a publishable key"),
    ] {
        let faults =
            load_text(&two(&format!("secret_key = {source}"), ""), &[("EMPTY", " ")]).expect_err(&source);
        let fault = fault_at(&faults, &format!("environments[0].secret_key{path}"));
        assert!(fault.contains(part) && !fault.contains("hunter2"), "{source}: {fault}");
        assert_eq!(faults.len(), 1, "{source}: {}", show(&faults));
    }
    let loaded = ok(&two(&format!("secret_key = {}", file(&good)), ""));
    assert_eq!(loaded.config.environments[0].secret_key.expose(), "metorial_sk_x");
    assert!(!format!("{:?}", loaded.config).contains("metorial_sk_x"));
}

#[test]
fn a_publishable_key_belongs_to_one_environment() {
    refused("publishable_keys = []", "environments[0].publishable_keys", "nobody could use");
    refused(
        "publishable_keys = [\"pk_1\"]",
        "environments[0].publishable_keys[0]",
        "does not begin with metorial_pk_",
    );
    refused(
        "publishable_keys = [\"metorial_pk_a\", \"metorial_sk_hunter2\"]",
        "environments[0].publishable_keys[1]",
        "is a secret key",
    );
    refused("publishable_keys = [\"sha256:12\"]", "environments[0].publishable_keys[0]", "no digest");
    refused(
        "publishable_keys = [\"metorial_pk_a\", \"metorial_pk_a\"]",
        "environments[0].publishable_keys[1]",
        "listed twice",
    );
    // printf metorial_pk_demo | sha256sum
    let digest = "sha256:2249011665eb2ffdb00387691601b5cf63f0441064d2e71457073c28590e1ab6";
    two_refused(
        "publishable_keys = [\"metorial_pk_demo\"]",
        &format!("publishable_keys = [{digest:?}]"),
        "environments[1].publishable_keys[0]",
        "listed in environments[0] too",
    );
    assert_eq!(
        environment(&format!("publishable_keys = [{digest:?}]")).publishable_keys,
        [KeyDigest::of(b"metorial_pk_demo")]
    );
}

#[test]
fn keyless_is_for_loopback_and_for_one_environment() {
    let environment = |listen: &str| format!("keyless = true\n[server]\nlisten = [{listen}]\n");
    for open in ["\"0.0.0.0:1\"", "\"127.0.0.1:1\", \"10.0.0.1:1\"", "\"[::]:1\""] {
        refused(&environment(open), "environments[0].keyless", "anyone who reaches");
    }
    let loaded = ok(&minimal(&environment("\"127.0.0.2:1\", \"[::1]:1\", \"[::ffff:127.0.0.1]:2\"")));
    assert!(loaded.config.environments[0].keyless);
    assert_eq!(loaded.config.server.hosts, ["localhost", "127.0.0.1", "[::1]"]);
    let named = ok(&minimal("keyless = true\n[server]\nhosts = [\"sidecar.local\"]"));
    assert_eq!(named.config.server.hosts, ["sidecar.local"]);
    two_refused("keyless = true", "keyless = true", "environments[1].keyless", "true in environments[0] too");
}

#[test]
fn origins_and_versions_are_checked() {
    refused(
        "origins = [\"https://a.example\", \"https://b.example/\"]",
        "environments[0].origins[1]",
        "without a path",
    );
    refused("origins = [\"*\"]", "environments[0].origins[0]", "list each origin");
    refused("versions = []", "environments[0].versions", "every request would be refused");
    refused("versions = [\"\", \"a b\"]", "environments[0].versions[1]", "no API version");
    refused("versions = [\"x\", \"x\"]", "environments[0].versions[1]", "listed twice");
    let environment = environment("origins = [\"https://a.example\"]\nversions = [\"magnetar\"]");
    assert!(environment.origins.allows(b"https://a.example"));
    assert!(environment.versions.allows(Some(b"2026-01-01")) && !environment.versions.allows(None));
}

#[test]
fn an_environment_is_in_the_budget_of_whoever_shares_its_secret() {
    let budgets = |a: &str, b: &str| {
        let environments = ok(&two(a, b)).config.environments;
        [environments[0].budget.clone(), environments[1].budget.clone()]
    };
    const SAME: &str = "secret_key = { env = \"SECRET\" }\n";
    let [a, b] = budgets("", "");
    assert!(a.starts_with("secret:") && b.starts_with("secret:") && a != b);
    let [a, b] = budgets(SAME, SAME);
    assert!(a.starts_with("secret:") && a == b);
    assert_eq!(budgets("budget = \"acme\"", "budget = \"acme\""), ["acme", "acme"]);
    assert_eq!(budgets(SAME, &format!("{SAME}budget = \"acme\"")), ["acme", "acme"]);

    refused("budget = \"secret:00000000\"", "environments[0].budget", "no name");
    let (acme, other) = (format!("{SAME}budget = \"acme\""), format!("{SAME}budget = \"other\""));
    two_refused(
        &acme,
        &other,
        "environments[1].budget",
        "another than that of \"a\", which has the same secret key",
    );
    let part = "another than that of \"a\", which draws from the same budget; give \"a\" and \"b\" the same kind or limit";
    two_refused(SAME, &format!("{SAME}kind = \"production\""), "environments[1].kind", part);
    let limit = "budget = \"acme\"\nlimit = { requests = 7, window = \"3s\" }";
    two_refused("budget = \"acme\"", limit, "environments[1].limit", part);
    // Even where a secret could not be read.
    let unread = "budget = \"acme\"\nsecret_key = { env = \"NOT_SET\" }";
    fault_at(&errors(&two(unread, limit)), "environments[1].limit");
}

#[test]
fn a_key_that_takes_the_place_of_another_is_counted_with_both_and_the_budget_keeps_its_name() {
    const KEYS: [&str; 3] = ["SECRET", "OTHER_SECRET", "THIRD_SECRET"];
    let keys = |key: usize, next: Option<usize>| {
        let next = next.map(|next| format!("next_secret_key = {{ env = {:?} }}\n", KEYS[next]));
        format!("secret_key = {{ env = {:?} }}\n{}", KEYS[key], next.unwrap_or_default())
    };
    let budgets = |a: &str, b: &str| {
        let environments = ok(&two(a, b)).config.environments;
        [environments[0].budget.clone(), environments[1].budget.clone()]
    };
    let of = |key: usize| budgets(&keys(key, None), &keys((key + 1) % 3, None))[0].clone();
    let [old, new, third] = [of(0), of(1), of(2)];
    assert!(old != new && new != third);
    for (a, b, name) in [
        // Two rotate one after the other.
        ((0, None), (0, None), &old),
        ((0, Some(1)), (0, None), &old),
        ((0, None), (0, Some(1)), &old),
        ((0, Some(1)), (0, Some(1)), &old),
        ((1, None), (0, Some(1)), &new),
        ((0, Some(1)), (1, None), &new),
        ((1, None), (1, None), &new),
        // One moves to the key of the other, both to a third, and one lags behind.
        ((2, Some(1)), (1, None), &new),
        ((0, Some(2)), (1, Some(2)), &old),
        ((0, Some(1)), (1, Some(2)), &old),
    ] {
        let (a, b) = (keys(a.0, a.1), keys(b.0, b.1));
        assert_eq!(budgets(&a, &b), [name.as_str(), name.as_str()], "{a}{b}");
    }
    assert_eq!(budgets(&keys(0, Some(1)), &keys(2, None)), [old.clone(), third], "nothing in common");
    let acme = format!("{}budget = \"acme\"", keys(1, None));
    assert_eq!(budgets(&keys(0, Some(1)), &acme), ["acme", "acme"]);

    let other = format!("{}budget = \"other\"", keys(0, Some(1)));
    let part =
        "another than that of \"a\", which is counted with it by way of a next_secret_key; name the same";
    two_refused(&acme, &other, "environments[1].budget", part);
    let production = format!("{}kind = \"production\"", keys(0, Some(1)));
    two_refused(&keys(1, None), &production, "environments[1].kind", "which draws from the same budget");
    let part = "is the key that \"a\" is leaving, in the end for this secret_key; remove one next_secret_key";
    two_refused(&keys(0, Some(1)), &keys(1, Some(0)), "environments[1].next_secret_key", part);
    // By way of a third, which draws from the same budget as well.
    let third = "[[environments]]\nname = \"c\"\npublishable_keys = [\"metorial_pk_c\"]\n";
    let three = |a: &str, b: &str, c: &str| format!("{}{third}{c}", two(a, b));
    let circle = errors(&three(&keys(0, Some(1)), &keys(1, Some(2)), &keys(2, Some(0))));
    fault_at(&circle, "environments[2].next_secret_key");
    assert_eq!(circle.len(), 1, "{}", show(&circle));
    let joined = ok(&three(&keys(0, None), &keys(1, None), &keys(0, Some(1)))).config.environments;
    assert!(joined.iter().all(|environment| environment.budget == old));
}

#[test]
fn profiles_open_what_they_say_and_the_wide_ones_say_so() {
    let opened = |keys: &str| environment(keys).access.opened().len();
    assert_eq!(opened(""), opened("allow = [\"catalog\"]"));
    assert!(opened("allow = [\"read\"]") > opened(""));
    assert_eq!(opened("allow = []"), 0);
    let warnings = |keys: &str| ok(&minimal(keys)).warnings;
    assert!(
        fault_at(&warnings("allow = [\"catalog\", \"read\"]"), "environments[0].allow[1]")
            .contains("exposes private data")
    );
    assert_eq!(show(&warnings("allow = [\"read\"]\ni_trust_these_callers = true")), "");

    refused("allow = [\"all\"]", "environments[0].allow[0]", "i_trust_these_callers = true");
    assert!(opened("allow = [\"all\"]\ni_trust_these_callers = true") > opened("allow = [\"read\"]"));
    assert!(opened("allow = [\"all\"]\nkeyless = true") > opened("allow = [\"read\"]"));
}

#[test]
fn an_entry_of_allow_is_a_profile_or_a_route() {
    for (entry, part) in [
        ("catalogue", "did you mean \"catalog\"?"),
        ("everything", "\"catalog\" or \"read\" or \"all\""),
        ("/sessions", "write it as \"GET /path\""),
        ("get /sessions", "write GET"),
        ("HEAD /sessions", "write GET"),
        ("OPTIONS /sessions", "no method that can be opened"),
        ("GET sessions", "no path template; it begins with /"),
        ("GET /sessions?limit=1", "no query"),
        ("GET /dashboard/x", "can never match"),
        ("GET /sessions/{id}", "answers with a secret"),
        ("", "is not known here"),
    ] {
        refused(&format!("allow = [{entry:?}]"), "environments[0].allow[0]", part);
    }
    refused("allow = [\"GET /own/{a}\", \"GET /own/{b}\"]", "environments[0].allow[1]", "keep one of them");
    let access = &environment("allow = [\" GET  /own/{a} \"]").access;
    assert_eq!(
        access.decide(&Method::GET, "/own/1", "").map(|route| route.rule.clone()),
        Ok("allow[0]".into())
    );
}

#[test]
fn a_rule_is_checked_key_by_key() {
    let rule = |keys: &str| format!("[[environments.rules]]\n{keys}");
    for (keys, path, part) in [
        ("", "path", "is missing"),
        ("path = \"own\"", "path", "no path template; it begins with /"),
        ("path = \"/own\"\nmethods = []", "methods", "opens nothing"),
        ("path = \"/own\"\nmethods = [\"FETCH\"]", "methods[0]", "no method"),
        ("path = \"/own\"\nlist = true\nttl = \"2d\"", "ttl", "out of range"),
        (
            "path = \"/own\"\nttl = \"30s\"",
            "ttl",
            "/own is no list, and of nothing else pages are kept; write list",
        ),
        ("path = \"/providers/{id}\"\nttl = \"30s\"", "ttl", "is no list"),
        ("path = \"/providers\"\nmethods = [\"POST\"]\nttl = \"30s\"", "ttl", "add GET to methods"),
        ("path = \"/own\"\nmethods = [\"POST\"]\nlist = true", "list", "add GET to methods"),
        ("path = \"/own\"\ninvalidates = [\"own\"]", "invalidates[0]", "no collection"),
        ("path = \"/own\"\ninvalidates = [\"/own/{id}\"]", "invalidates[0]", "write \"/own\""),
        ("path = \"/sessions\"", "path", "returns_secret = true"),
        ("path = \"/sessions/ses_1\"", "path", "returns_secret = true"),
        ("path = \"/consumer/x\"", "path", "can never match"),
        ("path = \"/own\"\nquery = 50", "query", "a table belongs"),
        ("path = \"/own\"\nquery = { limit = 50 }", "query.limit", "a string belongs"),
        ("path = \"/own\"\nquery = { limit = \"<50\" }", "query.limit", "is no constraint"),
        ("path = \"/own\"\nquery = { \"a[]\" = \"1\" }", "query.\"a[]\"", "without brackets"),
        ("path = \"/own\"\nquery = { key = \"*\" }", "query.key", "could never match"),
    ] {
        refused(&rule(keys), &format!("environments[0].rules[0].{path}"), part);
    }
    refused("rules = [1]", "environments[0].rules[0]", "a table belongs");

    let environment = environment(&rule(
        "path = \"/own\"\nmethods = [\"POST\", \"GET\", \"GET\"]\nlist = true\nttl = \"30s\"\ninvalidates = [\"/other\"]\nreturns_secret = true",
    ));
    for method in [Method::GET, Method::POST] {
        let route = environment.access.decide(&method, "/own", "").expect("opened");
        assert_eq!((route.rule.as_str(), route.ttl), ("rules[0]", Some(Duration::from_secs(30))));
        assert_eq!(route.invalidates, ["/other"]);
        assert!(route.returns_secret && route.list == (method == Method::GET));
    }
    let constrained = "path = \"/own\"\nquery = { limit = \"!<=50\" }\nquery_strict = true";
    let access = &self::environment(&rule(constrained)).access;
    assert!(access.decide(&Method::GET, "/own", "limit=50").is_ok());
    assert!(access.decide(&Method::GET, "/own", "").is_err());
    assert!(access.decide(&Method::GET, "/own", "limit=50&x").is_err());
    // GET is what a rule opens unless it says otherwise.
    let access = &self::environment(&rule("path = \"/own\"\nlist = true\nttl = \"0s\"")).access;
    assert!(access.decide(&Method::GET, "/own", "").is_ok_and(|route| route.ttl == Some(Duration::ZERO)));
    assert!(access.decide(&Method::POST, "/own", "").is_err());
    // A list of the built-in table is one without being called so.
    let access = &self::environment(&rule("path = \"/provider-deployments\"\nttl = \"1m\"")).access;
    assert!(access.decide(&Method::GET, "/provider-deployments", "").is_ok_and(|route| route.list));
}

#[test]
fn a_shadow_rule_stands_beside_an_enforced_one_and_is_warned_of_where_it_asks_for_nothing() {
    let rule = |keys: &str| format!("[[environments.rules]]\npath = \"/own\"\n{keys}\n");
    let shadow = rule("query = { limit = \"<=10\" }\nshadow = true");
    let loaded = ok(&minimal(&(rule("") + &shadow)));
    assert_eq!(show(&loaded.warnings), "");
    let access = &loaded.config.environments[0].access;
    assert!(access.decide(&Method::GET, "/own", "limit=11").is_ok());
    assert!(
        access.shadow(&Method::GET, "/own", "limit=11").is_some_and(|refusal| refusal.rule == "rules[1]")
    );
    let idle = ok(&minimal(&(rule("") + &rule("shadow = true")))).warnings;
    assert!(fault_at(&idle, "environments[0].rules[1].shadow").contains("would refuse nothing"));
    let blind = ok(&minimal(&rule("query_strict = true\nshadow = true"))).warnings;
    assert!(fault_at(&blind, "environments[0].rules[0].shadow").contains("never sees a request"));
    refused(&(rule("") + &rule("")), "environments[0].rules[1].path", "already opens GET /own");
    let sessions = |keys: &str| format!("[[environments.rules]]\npath = \"/sessions\"\n{keys} = true\n");
    let both = sessions("returns_secret") + &sessions("shadow");
    assert_eq!(show(&ok(&minimal(&both)).warnings), "", "it would refuse what answers with a secret");
}

#[test]
fn the_next_secret_key_is_another_than_the_first() {
    let next = environment("next_secret_key = { env = \"OTHER_SECRET\" }").next_secret_key.clone();
    assert_eq!(next.as_ref().map(|key| key.expose()), Some("metorial_sk_two"));
    assert!(environment("").next_secret_key.is_none());
    for (source, path, part) in [
        ("{ env = \"SECRET\" }", "", "is the same key as secret_key"),
        ("{ env = \"NOT_SET\" }", ".env", "NOT_SET is not set"),
        ("\"metorial_sk_hunter2\"", "", "never stands in the configuration"),
        ("{}", "", "no source"),
    ] {
        let key = format!("environments[0].next_secret_key{path}");
        refused(&format!("next_secret_key = {source}"), &key, part);
    }
}
