//! Rules that look at the query, and candidates that are tried beside what is enforced.

use crate::client::request;
use crate::harness::{KEY, load, pair};

const RULES: &str = r#"
    [[environments]]
    allow = ["catalog"]

    [[environments.rules]]
    path = "/provider-deployments"
    query = { limit = "!<=50", status = "active|archived", after = "*" }
    query_strict = true

    [[environments.rules]]
    path = "/provider-deployments"
    query = { limit = "<=10" }
    shadow = true

    [[environments.rules]]
    path = "/agents"
    query = { limit = "<=10" }
    shadow = true
"#;

#[tokio::test]
async fn a_query_gets_as_far_as_its_rule_says_and_a_refusal_names_the_constraint() {
    let (mock, proxy) = pair(RULES).await;
    for (query, items) in [
        ("limit=2", 2),
        ("limit=50&status=active", 50),
        ("limit[]=3", 3),
        ("li%6Dit=4&status%5B0%5D=active", 4),
        (&format!("limit=5&key={KEY}"), 5),
    ] {
        let reply = proxy.get(&format!("/provider-deployments?{query}")).await;
        assert_eq!(reply.status, 200, "{query}: {reply:?}");
        if !query.contains("[]") && !query.contains("status") {
            assert_eq!(reply.items(), items, "{query}");
        }
    }
    let before = mock.received();
    for (query, status, part) in [
        ("", 403, "The parameter limit must be there."),
        ("status=active", 403, "The parameter limit must be there."),
        ("limit=51", 403, "The parameter limit must be a whole number of at most 50."),
        ("limit=5e1", 403, "The parameter limit must be a whole number of at most 50."),
        ("limit%5B%5D=51", 403, "The parameter limit must be a whole number of at most 50."),
        ("limit=5&status=deleted", 403, "The parameter status must be one of active, archived."),
        ("limit=5&order=asc", 403, "\"order\" is not"),
        ("limit=5&limit=5", 400, "the parameter limit is there more than once"),
        ("limit=5&limit[0]=5", 400, "the parameter limit is there more than once"),
        ("limit=5&li%6dit%5b%5d=5", 400, "the parameter limit is there more than once"),
        ("limit[=5", 400, "readers do not agree on"),
        (&format!("limit=5{}", "&x=1".repeat(200)), 400, "more than 200 parameters"),
    ] {
        for target in ["/provider-deployments", "/instances/ins_1/provider-deployments"] {
            let reply = proxy.get(&format!("{target}?{query}")).await;
            let code = if status == 400 { "bad_request" } else { "forbidden" };
            assert_eq!(reply.refusal(), (status, code.to_owned()), "{query}");
            let message = reply.json()["message"].as_str().expect("a message").to_owned();
            assert!(message.contains(part), "{query}: {message}");
        }
    }
    assert_eq!(mock.received(), before, "what is refused never leaves");
}

#[tokio::test]
async fn a_shadow_rule_counts_what_it_would_refuse_and_opens_nothing() {
    let (mock, proxy) = pair(RULES).await;
    let counts = async || {
        let metrics = request("GET", "/metrics", &[("host", "localhost")], "");
        let reply = crate::client::try_send(proxy.admin, metrics).await.expect("metrics");
        let text = String::from_utf8(reply.body.to_vec()).expect("text");
        let family = "metorial_proxy_shadow_refused_total{environment=\"main\",rule=\"";
        let mut lines: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix(family)).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(counts().await, ["rules[1]\"} 0", "rules[2]\"} 0"], "from the start");
    for (target, status) in [
        ("/provider-deployments?limit=10", 200),
        ("/provider-deployments?limit=11", 200),
        ("/provider-deployments?limit=51", 403),
        ("/agents?limit=11", 403),
    ] {
        assert_eq!(proxy.get(target).await.status, status, "{target}");
    }
    assert_eq!(mock.received(), 2);
    assert_eq!(counts().await, ["rules[1]\"} 1", "rules[2]\"} 0"]);
}

#[tokio::test]
async fn what_cannot_stand_is_refused_with_its_place() {
    let faults = |toml: &str| {
        let faults = load("http://127.0.0.1:1", toml).expect_err("refused");
        faults.into_iter().map(|fault| fault.path).collect::<Vec<_>>()
    };
    let rule = |keys: &str| format!("[[environments]]\n[[environments.rules]]\npath = '/own'\n{keys}\n");
    let more = |keys: &str| format!("[[environments.rules]]\npath = '/own'\n{keys}\n");
    let place = |key: &str| format!("environments[0].rules[{key}");
    assert_eq!(faults(&rule("query = { limit = '>1' }")), [place("0].query.limit")]);
    assert_eq!(faults(&(rule("") + &more("query_strict = true"))), [place("1].path")]);
    assert_eq!(faults(&(rule("shadow = true") + &more("shadow = true"))), [place("1].path")]);
    assert_eq!(faults("[[environments]]\nallow = ['all']"), ["environments[0].allow[0]"]);
}
