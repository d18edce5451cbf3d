//! `explain` and `schema`: what an operator is told is what a caller gets.

use std::fs;

use http::{HeaderName, HeaderValue};
use metorial_proxy::server::explain::{Caller, Explanation, Question, explain};
use serde_json::{Value, json};

use crate::client::request;
use crate::harness::{KEY, Mock, ORIGIN, Proxy, SECRET, load, scratch};
use crate::signals::command;

const RULES: &str = r#"
    [server]
    hosts = ["proxy.test"]

    [[environments]]
    allow = ["catalog", "GET /provider-deployments/{id}"]

    [[environments.rules]]
    methods = ["GET", "POST"]
    path = "/provider-deployments"
    query = { limit = "<=50" }
    ttl = "1500ms"

    [[environments.rules]]
    path = "/provider-deployments"
    query = { limit = "<=10" }
    shadow = true
"#;

fn question(method: &str, target: &str, key: Option<&str>, origin: Option<&str>) -> Question {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Question {
        method: method.into(),
        target: target.into(),
        caller: owned(key).map_or(Caller::Keyless, Caller::Key),
        origin: owned(origin),
        ..Question::default()
    }
}

#[tokio::test]
async fn what_is_explained_is_what_a_caller_gets() {
    let mock = Mock::start().await;
    // Without a cache, so that what passes is seen to pass.
    let rules = format!("{RULES}\n[cache]\nenabled = false");
    let config = load(mock.url(), &rules).expect("a configuration");
    let proxy = Proxy::start(mock.url(), &rules);
    let evil = Some("https://evil.example");
    let secret = format!("/providers?key={SECRET}");
    for (method, target, key, origin) in [
        ("GET", "/providers", Some(KEY), None),
        ("HEAD", "/providers", Some(KEY), Some(ORIGIN)),
        ("GET", "/providers", Some(KEY), evil),
        ("GET", "/providers", None, None),
        ("GET", "/providers", Some("metorial_pk_unknown"), None),
        ("GET", &secret, None, None),
        ("GET", "/agents", Some(KEY), None),
        ("GET", "/sessions", Some(KEY), None),
        ("GET", "/provider-deployments?limit=50", Some(KEY), None),
        ("GET", "/provider-deployments?limit=51", Some(KEY), None),
        ("GET", "/provider-deployments?limit=5&limit=5", Some(KEY), None),
        ("GET", "/instances/i/provider-deployments/x", Some(KEY), None),
        ("GET", "/provider-deployments?api-version=dashboard", Some(KEY), None),
        ("GET", "/a//b", Some(KEY), None),
        ("GET", "/providers?x=1;y=2", Some(KEY), None),
        ("TRACE", "/providers", Some(KEY), None),
        ("OPTIONS", "/anything", None, Some(ORIGIN)),
        ("OPTIONS", "/anything", None, evil),
    ] {
        let told = explain(&config, &question(method, target, key, origin)).expect("an explanation");
        let bearer = key.map(|key| format!("Bearer {key}"));
        let fields = [("authorization", bearer.as_deref()), ("origin", origin)];
        let fields: Vec<_> = fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let before = mock.received();
        let reply = proxy.send(request(method, target, &fields, "")).await;
        let passed = mock.received() > before;
        assert_eq!(told.decision == "allow" && told.status == 200, passed, "{method} {target}: {told:?}");
        if passed {
            continue;
        }
        assert_eq!(told.status, reply.status, "{method} {target}: {told:?}");
        if method != "HEAD" && told.decision == "refuse" {
            let body = reply.json();
            let said = |name: &str| body[name].as_str().map(str::to_owned);
            assert_eq!(
                (told.code, Some(told.reason), told.hint),
                (said("code"), said("message"), said("hint"))
            );
        }
    }
}

#[test]
fn rule_cache_limits_and_shadow_are_told() {
    let config = load("http://127.0.0.1:1", RULES).expect("a configuration");
    let ask = |method: &str, target: &str| -> Explanation {
        explain(&config, &question(method, target, Some(KEY), None)).expect("an explanation")
    };
    let told = ask("GET", "/provider-deployments?limit=50");
    assert_eq!((told.environment.as_deref(), told.rule.as_deref()), (Some("main"), Some("rules[0]")));
    assert_eq!(told.limits, ["client", "environment", "egress"]);
    assert_eq!(json!(told.cache), json!({ "list": true, "ttl": 1.5 }));
    let shadow = told.shadow.expect("a shadow");
    assert!(shadow.rule == "rules[1]" && shadow.reason.contains("at most 10"), "{shadow:?}");
    let told = ask("GET", "/provider-deployments?limit=51");
    assert_eq!((told.rule.as_deref(), told.limits), (Some("rules[0]"), vec!["client"]));
    assert_eq!(ask("POST", "/provider-deployments").cache.ttl, None);
    assert_eq!(ask("GET", "/provider-deployments/x").rule.as_deref(), Some("allow[1]"));
    let mut other = question("GET", "/providers", Some(KEY), None);
    for (name, value, status) in
        [("host", "other.test", 403), ("metorial-version", "dashboard", 403), ("x-other", "1", 200)]
    {
        other.fields = vec![(HeaderName::from_static(name), HeaderValue::from_static(value))];
        assert_eq!(explain(&config, &other).expect("an explanation").status, status, "{name}");
    }
    other.fields = [("content-length", "0"), ("transfer-encoding", "chunked")]
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .into();
    assert_eq!(explain(&config, &other).expect("an explanation").status, 400);
    assert_eq!(ask("G T", "/providers").status, 400);
    assert_eq!(ask("GET", "/a b").status, 400);
    assert_eq!(ask("GET", "/providers#x").reason, "the request target holds a fragment");
}

/// What the deciding layers said, of which `passed` let the request pass and the next one refused it.
fn layers(passed: usize) -> Value {
    let names = ["cors", "admit", "identify", "client_limit", "authenticate", "authorize"];
    let said = |at: usize| match at.cmp(&passed) {
        std::cmp::Ordering::Less => "passed",
        std::cmp::Ordering::Equal => "refused",
        std::cmp::Ordering::Greater => "not_reached",
    };
    names.iter().enumerate().map(|(at, layer)| json!({ "layer": layer, "said": said(at) })).collect()
}

#[test]
fn each_layer_that_decides_says_what_it_said() {
    let config = load("http://127.0.0.1:1", RULES).expect("a configuration");
    let ask = |question: Question| explain(&config, &question).expect("an explanation");
    let said = |told: &Explanation| serde_json::to_value(&told.layers).expect("JSON");
    let of_main =
        Question { caller: Caller::Environment("main".into()), ..question("GET", "/providers", None, None) };
    let told = ask(of_main.clone());
    assert_eq!((said(&told), told.environment.as_deref(), told.status), (layers(6), Some("main"), 200));
    let nobodys = Question { caller: Caller::Environment("other".into()), ..of_main };
    let told = ask(nobodys);
    assert_eq!((said(&told), told.status), (layers(4), 401));
    assert_eq!(said(&ask(question("GET", "/a//b", Some(KEY), None))), layers(2));
    assert_eq!(said(&ask(question("GET", "/sessions", Some(KEY), None))), layers(5));
    let mut preflight = layers(0);
    preflight[0]["said"] = json!("answered");
    assert_eq!(said(&ask(question("OPTIONS", "/providers", None, Some(ORIGIN)))), preflight);
}

#[test]
fn the_command_prints_it_for_people_and_for_machines_and_never_a_key() {
    let file = scratch(&format!("{}-explain.toml", std::process::id()));
    let text = format!(
        "[[environments]]\nname = 'main'\nsecret_key = {{ env = 'METORIAL_SECRET_KEY' }}\n\
         publishable_keys = ['{KEY}']\n"
    );
    fs::write(&file, text).expect("written");
    let config = file.to_str().expect("text");
    let run = |arguments: &[&str]| {
        let all = [&["explain", "--config", config, "--key", KEY][..], arguments].concat();
        let (code, output) = command(&all, &[("METORIAL_SECRET_KEY", SECRET)]);
        assert!(!output.contains(&SECRET[12..]) && !output.contains(KEY), "{output}");
        (code, output)
    };
    let json = |arguments: &[&str]| {
        let (code, output) = run(&[&["--json"], arguments].concat());
        assert_eq!(code, Some(0), "{output}");
        let line = output.lines().find(|line| line.starts_with('{')).expect("JSON");
        serde_json::from_str::<Value>(line).expect("JSON")
    };
    assert_eq!(
        json(&["GET", "/providers?limit=2"]),
        json!({
            "decision": "allow", "status": 200, "code": null, "environment": "main", "rule": "catalog",
            "route": "/providers", "cache": { "list": true, "ttl": 5 },
            "limits": ["client", "environment", "egress"], "reason": "catalog opens /providers.",
            "hint": null, "shadow": null, "layers": layers(6),
        })
    );
    assert_eq!(
        json(&["--origin", "https://evil.example", "GET", "/providers"]),
        json!({
            "decision": "refuse", "status": 403, "code": "forbidden", "environment": "main", "rule": null,
            "route": null, "cache": { "list": false, "ttl": null }, "limits": ["client"],
            "reason": "This origin may not use this proxy from a browser.",
            "hint": "The operator can list it in this environment's origins.", "shadow": null, "layers": layers(5),
        })
    );
    let (code, output) = run(&["GET", "/agents"]);
    assert_eq!(code, Some(0), "a refusal is no failure");
    for line in [
        "refuse: 403 forbidden",
        "reason       No rule of this proxy allows GET /agents.",
        "hint         ",
        "layers       ✓ cors  ✓ admit  ✓ identify  ✓ client_limit  ✓ authenticate  ✗ authorize",
    ] {
        assert!(output.contains(line), "{line}\n{output}");
    }
    let (code, output) = run(&["--header", "no colon", "GET", "/agents"]);
    assert_eq!(code, Some(2), "{output}");
    fs::remove_file(&file).expect("removed");
    let (code, output) = run(&["GET", "/agents"]);
    assert!(code == Some(2) && output.contains("cannot be read"), "{output}");
}

#[test]
fn the_schema_is_printed_as_json() {
    let (code, output) = command(&["schema"], &[]);
    assert_eq!(code, Some(0), "{output}");
    let json = &output[output.find('{').expect("JSON")..];
    let schema: Value = serde_json::from_str(json).expect("JSON");
    let rules = &schema["properties"]["environments"]["items"]["properties"]["rules"]["items"];
    assert_eq!(rules["properties"]["shadow"]["type"], "boolean");
    assert_eq!(rules["additionalProperties"], false);
}
