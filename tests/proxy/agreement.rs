//! One parser: whatever the proxy lets pass, the API decides in the same way on what it received.
//!
//! Requests are generated, honest and hostile, and sent as bytes. For each that arrives, the API's side evaluates the
//! policy once more, with a reader of its own that is as lenient as any that may stand there: it decodes twice, follows
//! dots and backslashes, cuts at semicolons and NULs, takes brackets for arrays and numbers by their beginning. Each
//! reading has to come to what the rules allow, and they all have to come to the same route.

use std::cell::Cell;

use metorial_proxy::domain::quota::Quota;
use metorial_proxy::mock::{Options, Record};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use crate::client::raw;
use crate::harness::{KEY, Mock, ORIGIN, Proxy};

const RULES: &str = r#"
    cache.enabled = false
    clients.limit = { requests = 1000000, window = "1s" }
    upstream.egress_limit = { requests = 1000000, window = "1s" }

    [[environments]]
    limit = { requests = 1000000, window = "1s" }
    allow = ["GET /providers", "GET /providers/{id}", "DELETE /provider-deployments/{id}"]
    versions = ["", "2026-01-01-magnetar"]

    [[environments.rules]]
    methods = ["GET", "POST"]
    path = "/provider-deployments"
    query = { limit = "<=50", status = "active|archived" }
"#;

/// The same rules, told once more for the API's side.
fn route(method: &str, path: &str) -> Option<&'static str> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let segments = match &segments[..] {
        ["instances", _, rest @ ..] if !rest.is_empty() && rest != [""] => rest,
        all => all,
    };
    match (method, segments) {
        ("GET" | "HEAD", ["providers"]) => Some("providers"),
        ("GET" | "HEAD", ["providers", id]) if !id.is_empty() => Some("one provider"),
        ("DELETE", ["provider-deployments", id]) if !id.is_empty() => Some("one deployment"),
        ("GET" | "HEAD" | "POST", ["provider-deployments"]) => Some("deployments"),
        _ => None,
    }
}

const PASSED_ON: [&str; 11] = [
    "accept",
    "accept-encoding",
    "authorization",
    "content-length",
    "content-type",
    "host",
    "metorial-version",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-request-id",
];
/// An empty field names none.
const VERSIONS: [&str; 5] = ["", "2026-01-01-magnetar", "magnetar", "2026-01-01", "mt_2026_01_01_magnetar"];

/// What the API's side makes of a request that reached it.
fn judge(seen: &Record, api: &str) -> Result<(), String> {
    let (path, query) = seen.target.split_once('?').unwrap_or((&seen.target, ""));
    let routes: Vec<_> = readings(path).iter().map(|path| route(&seen.method, path)).collect();
    let Some(route) = routes[0] else { return Err("no rule opens it".into()) };
    if routes.iter().any(|other| *other != Some(route)) {
        return Err(format!("it is {routes:?}, as it is read"));
    }
    for separators in [&['&'][..], &['&', ';']] {
        parameters(route, query, separators)?;
    }
    let fields = |name: &str| seen.headers.iter().filter(|(other, _)| other == name).collect::<Vec<_>>();
    if let Some((name, _)) = seen.headers.iter().find(|(name, _)| !PASSED_ON.contains(&name.as_str())) {
        return Err(format!("{name} passed"));
    }
    match (&fields("authorization")[..], &fields("host")[..], &fields("metorial-version")[..]) {
        ([(_, key)], [(_, host)], []) if key == "Bearer …SECR" && host == api => Ok(()),
        ([(_, key)], [(_, host)], [(_, version)])
            if key == "Bearer …SECR" && host == api && VERSIONS.contains(&version.as_str()) =>
        {
            Ok(())
        }
        other => Err(format!("{other:?}")),
    }
}

/// A path as it may be read.
fn readings(path: &str) -> Vec<String> {
    let (once, slashes) = (decode(path), |path: &str| path.replace('\\', "/"));
    let (twice, cut) =
        (decode(&once), |path: &str| path.split([';', '\0', '#', '?']).next().unwrap_or("").to_owned());
    let mut all = vec![path.to_owned(), once.clone(), twice.clone()];
    for path in [path.to_owned(), once, twice] {
        all.extend([slashes(&path), cut(&path), resolved(&slashes(&path)), resolved(&cut(&path))]);
    }
    all
}

/// Without dot segments and empty ones.
fn resolved(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    format!("/{}", segments.join("/"))
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => (bytes.push(byte), rest = &after[2..]).0,
            None => (bytes.push(*first), rest = after).0,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Checks every parameter in the most lenient reading of its name.
fn parameters(route: &str, query: &str, separators: &[char]) -> Result<(), String> {
    let mut seen = Vec::new();
    for pair in query.split(separators) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |text: &str| decode(&text.replace('+', " "));
        let (name, value) = (plain(name), plain(value));
        let root =
            name.trim_start_matches(['[', '?']).split(['[', ']', '\0']).next().unwrap_or("").to_owned();
        match root.as_str() {
            "key" | "token" | "consumer_session_client_secret" => return Err(format!("{root} passed")),
            "api-version" if !VERSIONS.contains(&value.as_str()) => return Err("another version".into()),
            "limit"
                if route == "deployments" && !leading_number(&value).is_some_and(|number| number <= 50.0) =>
            {
                return Err(format!("a limit of {value:?}"));
            }
            "status" if route == "deployments" && !["active", "archived"].contains(&value.as_str()) => {
                return Err(format!("a status of {value:?}"));
            }
            _ => {}
        }
        let constrained = route == "deployments" && ["limit", "status"].contains(&root.as_str());
        if constrained && seen.contains(&root) {
            return Err(format!("{root} twice"));
        }
        seen.push(root);
    }
    Ok(())
}

/// The number that a text begins with, as JavaScript's `parseFloat` takes it.
fn leading_number(text: &str) -> Option<f64> {
    let text = text.trim();
    let ends = (1..=text.len()).rev().filter(|end| text.is_char_boundary(*end));
    ends.filter_map(|end| text[..end].parse().ok()).next()
}

fn path() -> impl Strategy<Value = String> {
    let good = select(vec![
        "/providers",
        "/providers/prv_1",
        "/providers/a:b",
        "/provider-deployments",
        "/provider-deployments/pde_1",
        "/instances/ins_1/providers",
        "/instances/ins_1/provider-deployments",
    ]);
    let bad = select(vec![
        "/sessions",
        "/agents",
        "/instance",
        "/",
        "/dashboard/instances/i/providers",
        "/consumer/x",
        "/instances/i/sessions",
        "/providers/",
        "/Providers",
        "/instances/i/instances/i/providers",
    ]);
    let part = select(vec![
        "/",
        "//",
        "/.",
        "/..",
        "/../sessions",
        "..",
        ".",
        "%2f",
        "%2F..%2Fsessions",
        "%2e%2e",
        "%5c",
        "\\",
        ";",
        ";x",
        "%3b",
        "%00",
        "%",
        "%zz",
        "%73",
        "%25",
        "%252e",
        "%20",
        "%C3%A9",
        "#x",
        "?limit=51",
        "@",
        "x",
        "[",
        "é",
        "*",
        "%C0%AF",
        "%0d%0a",
    ]);
    let mutated = (good.clone(), part, any::<prop::sample::Index>()).prop_map(|(path, part, at)| {
        let at = at.index(path.len() + 1);
        format!("{}{part}{}", &path[..at], &path[at..])
    });
    prop_oneof![4 => good.prop_map(str::to_owned), 1 => bad.prop_map(str::to_owned), 4 => mutated]
}

fn query() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        5 => select(vec!["limit", "status", "after", "order"]),
        2 => select(vec!["li%6Dit", "limit[]", "limit%5B0%5D", "limit[0]", "status[]", "api-version", "search"]),
        1 => select(vec![
            "[limit]", "?limit", "limit[", "limit]", "limit%00", "%256cimit", "+limit", "Limit", "[]", "", "key",
            "token", "k%65y", "key[]", "[token]", "consumer_session_client_secret", "limit[]x",
        ]),
    ];
    let value = prop_oneof![
        5 => select(vec!["5", "50", "active", "magnetar", "%35"]),
        1 => select(vec![
            "51", "500", "5e1", "5e9", "+5", "%2B500", "-1", "0x99", "50.9", "50abc", "Infinity", "", "%", "5;limit=500",
            "5%26limit=500", "deleted", "active|archived", "dashboard", "2026-01-01", KEY, "metorial_sk_x", "5#", "%00",
        ]),
    ];
    let pair = (name, value).prop_map(|(name, value)| format!("{name}={value}"));
    let separator = prop_oneof![12 => Just("&"), 1 => Just("&&"), 1 => Just(";"), 1 => Just("?")];
    (prop::collection::vec(pair, 0..4), separator).prop_map(|(pairs, separator)| match pairs.is_empty() {
        true => String::new(),
        false => format!("?{}", pairs.join(separator)),
    })
}

fn fields() -> impl Strategy<Value = Vec<String>> {
    let field = prop_oneof![
        3 => select(vec![
            "accept: application/json", "metorial-version: magnetar", "user-agent: x", "x-request-id: a", "te: trailers",
            "content-type: application/json", "traceparent: 00-x", "cookie: metorial_oss_session_secret=x",
            "x-forwarded-for: 10.0.0.1", "forwarded: for=10.0.0.1", "metorial-connecting-ip: 10.0.0.1",
            "cf-connecting-ip: 10.0.0.1", "x-real-ip: 10.0.0.1", "x-host: api.metorial.com", "metorial-instance-id: ins_2",
            "metorial-organization-id: org_2", "x-http-method-override: DELETE", "x-method-override: DELETE",
            "x-original-url: /sessions", "x-rewrite-url: /sessions", "connection: metorial-version, x-request-id",
            "connection: host", "proxy-authorization: Basic x", "range: bytes=0-1", "expect: x", "if-none-match: \"x\"",
        ]).prop_map(str::to_owned),
        1 => select(vec![
            "metorial-version: dashboard", "metorial-version: ", "metorial-consumer-session-client-secret: x", "host: y",
            "host: x@y", "authorization: Bearer metorial_sk_x", "content-length: 0", "origin: https://evil.example", "no colon", " folded: x", "x y: z",
        ]).prop_map(str::to_owned),
        1 => Just(format!("origin: {ORIGIN}")),
    ];
    prop::collection::vec(field, 0..4)
}

fn requests() -> impl Strategy<Value = String> {
    let method = prop_oneof![
        6 => Just("GET"),
        3 => select(vec!["HEAD", "POST", "DELETE"]),
        1 => select(vec!["PUT", "PATCH", "TRACE", "get", "G", "GET/"]),
    ];
    let form = prop_oneof![8 => Just(""), 1 => select(vec!["http://x", "http://y", "http://u@x", "//x", "https://X"])];
    (method, form, path(), query(), fields()).prop_map(|(method, form, path, query, fields)| {
        let mut text = format!("{method} {form}{path}{query} HTTP/1.1\r\nhost: x\r\n");
        text.push_str(&format!("authorization: Bearer {KEY}\r\nconnection: close\r\n"));
        fields.iter().for_each(|field| text.push_str(&format!("{field}\r\n")));
        text + "\r\n"
    })
}

#[test]
fn what_passes_is_read_by_the_api_as_it_was_decided_on() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ample = Quota { requests: 1_000_000, window: std::time::Duration::from_secs(600) };
    let options = Options { limit: ample, egress_limit: ample, ..Options::default() };
    let (mock, proxy) = runtime.block_on(async {
        let mock = Mock::with(options).await;
        let proxy = Proxy::start(mock.url(), RULES);
        (mock, proxy)
    });
    let api = mock.address.to_string();
    let (passed, refused) = (Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(Config { cases: 1500, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&requests(), |text| {
        let before = mock.received();
        let answer = runtime.block_on(raw(proxy.address, &text));
        let answered = answer.starts_with("HTTP/1.1 ") || answer.is_empty();
        prop_assert!(answered && !answer.starts_with("HTTP/1.1 5"), "{}", answer);
        if mock.received() == before {
            refused.set(refused.get() + 1);
            return Ok(());
        }
        passed.set(passed.get() + 1);
        let seen = mock.last();
        prop_assert_eq!(judge(&seen, &api), Ok(()), "{} {}", seen.method, seen.target);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(passed.get() > 150 && refused.get() > 150, "{passed:?} passed, {refused:?} were refused");
}

#[test]
fn the_apis_side_tells_a_disagreement_when_it_sees_one() {
    let seen = |method: &str, target: &str, field: Option<(&str, &str)>| {
        let own = [("host", "api"), ("authorization", "Bearer …SECR")];
        let fields = own.into_iter().chain(field).map(|(name, value)| (name.to_owned(), value.to_owned()));
        Record { method: method.into(), target: target.into(), headers: fields.collect(), status: None }
    };
    for (method, target) in [
        ("GET", "/providers?limit=500"),
        ("POST", "/provider-deployments?limit=50"),
        ("GET", "/providers/a%20b"),
    ] {
        assert_eq!(judge(&seen(method, target, None), "api"), Ok(()), "{target}");
    }
    for target in [
        "/sessions",
        "/providers/..",
        "/providers/%2e%2e",
        "/providers%2fx",
        "/providers/x%252fy",
        "/providers/a;b/c",
        "//providers",
        "/providers/a\\b",
        "/providers/a%00b/c",
        "/provider-deployments?limit=51",
        "/provider-deployments?limit[]=5e9",
        "/provider-deployments?%5Blimit]=99",
        "/provider-deployments?x=1;limit=51",
        "/provider-deployments?limit=1&limit[0]=2",
        "/providers?key=x",
        "/providers?[token]=x",
        "/providers?api-version=dashboard",
    ] {
        assert!(judge(&seen("GET", target, None), "api").is_err(), "{target}");
    }
    assert!(judge(&seen("DELETE", "/providers", None), "api").is_err());
    for field in [("cookie", "a"), ("metorial-version", "dashboard"), ("authorization", "x"), ("host", "x")] {
        assert!(judge(&seen("GET", "/providers", Some(field)), "api").is_err(), "{field:?}");
    }
}
