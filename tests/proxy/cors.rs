//! What browsers may read: preflights, listed origins, and refusals that a page can show its user.

use std::time::Duration;

use metorial_proxy::mock::{Fault, Options};

use crate::client::{raw, request};
use crate::harness::{KEY, Mock, ORIGIN, OTHER, OTHER_KEY, Proxy, eventually, pair, scripted};

const OTHER_ORIGIN: &str = "https://other.example";
const FOREIGN: &str = "https://evil.example";

/// Two environments, each with an origin of its own.
fn two() -> String {
    format!("{OTHER}\nsecret_key = {{ env = 'OTHER_SECRET_KEY' }}\norigins = ['{OTHER_ORIGIN}']")
}

#[tokio::test]
async fn a_preflight_of_any_listed_origin_is_answered_here_and_costs_nothing() {
    let (mock, proxy) = pair(&two()).await;
    for origin in [ORIGIN, OTHER_ORIGIN] {
        let fields = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization, content-type, metorial-version"),
        ];
        // Browsers send no key with it.
        let reply = proxy.send(request("OPTIONS", "/provider-deployments?limit=2", &fields, "")).await;
        assert_eq!((reply.status, reply.body.len()), (204, 0), "{reply:?}");
        assert_eq!(reply.field("access-control-allow-origin"), origin);
        assert_eq!(reply.field("access-control-allow-credentials"), "true");
        assert_eq!(reply.field("access-control-allow-methods"), "GET, HEAD, POST, PUT, PATCH, DELETE");
        let allowed = reply.field("access-control-allow-headers");
        for name in ["authorization", "content-type", "metorial-version", "x-request-id", "traceparent"] {
            assert!(allowed.split(", ").any(|listed| listed == name), "{name}: {allowed}");
        }
        assert_eq!(reply.field("access-control-max-age"), "7200");
        assert_eq!(reply.field("vary"), "Origin");
        for name in ["ratelimit", "ratelimit-policy", "cache-status"] {
            assert_eq!(reply.field(name), "", "{name}");
        }
        assert!(reply.field("x-request-id").starts_with("req_"));
    }
    assert_eq!(mock.received(), 0);
    // Not even of the client's own limit, which the next answer tells.
    let unknown = proxy.get_as("metorial_pk_unknown", "/providers").await;
    assert!(unknown.field("ratelimit").starts_with("\"client\";r=999;"), "{unknown:?}");
}

#[tokio::test]
async fn a_preflight_of_any_other_origin_is_refused_and_told_nothing() {
    let (_mock, proxy) = pair("").await;
    for origin in [Some(FOREIGN), Some("null"), Some("https://app.example.evil.example")] {
        let fields: Vec<_> = origin.map(|origin| ("origin", origin)).into_iter().collect();
        let reply = proxy.send(request("OPTIONS", "/providers", &fields, "")).await;
        assert_eq!(reply.refusal(), (403, "forbidden".to_owned()), "{origin:?}");
        assert!(!reply.headers.keys().any(|name| name.as_str().starts_with("access-control-")), "{reply:?}");
        assert_eq!(reply.field("vary"), "Origin");
    }
    let twice =
        proxy.send(request("OPTIONS", "/providers", &[("origin", ORIGIN), ("origin", FOREIGN)], "")).await;
    assert_eq!(twice.refusal(), (400, "bad_request".to_owned()));
    assert_eq!(twice.field("access-control-allow-origin"), "");
    let nobody = proxy.send(request("OPTIONS", "/providers", &[], "")).await;
    assert_eq!(nobody.status, 204, "without an origin there is nothing to refuse");
    assert!(!nobody.headers.keys().any(|name| name.as_str().starts_with("access-control-")), "{nobody:?}");
}

#[tokio::test]
async fn a_listed_origin_can_read_every_answer_refusals_included() {
    let (_mock, proxy) = pair("server.max_uri = '64B'").await;
    let key = format!("Bearer {KEY}");
    let long = format!("/{}", "x".repeat(64));
    for (target, authorization, status) in [
        ("/providers", key.as_str(), 200),
        ("/providers", key.as_str(), 200),
        ("/providers/none", key.as_str(), 404),
        ("/agents", key.as_str(), 403),
        ("/providers", "Bearer metorial_pk_unknown", 401),
        ("//", key.as_str(), 400),
        (&long, key.as_str(), 414),
    ] {
        let fields = [("origin", ORIGIN), ("authorization", authorization)];
        let reply = proxy.send(request("GET", target, &fields, "")).await;
        assert_eq!(reply.status, status, "{target}: {reply:?}");
        assert_eq!(reply.field("access-control-allow-origin"), ORIGIN, "{target}");
        assert_eq!(reply.field("access-control-allow-credentials"), "true");
        assert!(reply.field("vary").contains("Origin"));
        let exposed = reply.field("access-control-expose-headers");
        for name in
            ["ratelimit", "ratelimit-policy", "retry-after", "cache-status", "age", "etag", "x-request-id"]
        {
            assert!(exposed.split(", ").any(|listed| listed == name), "{name}: {exposed}");
        }
    }
}

#[tokio::test]
async fn an_origin_that_is_not_listed_is_refused_although_its_key_is_right() {
    let (mock, proxy) = pair("").await;
    // A page that a listed origin may read is there already.
    assert_eq!(proxy.call("GET", "/providers", &[("origin", ORIGIN)], "").await.status, 200);
    let before = mock.received();
    for origin in [FOREIGN, "null", "http://app.example", "https://app.example:8443", ""] {
        let reply = proxy.call("GET", "/providers", &[("origin", origin)], "").await;
        assert_eq!(reply.refusal(), (403, "forbidden".to_owned()), "{origin}");
        assert_eq!(reply.field("access-control-allow-origin"), "", "{origin}");
    }
    assert_eq!(mock.received(), before);
    // It authenticates browsers only: who sends none is not asked.
    assert_eq!(proxy.get("/providers").await.status, 200);
}

#[tokio::test]
async fn before_authentication_any_environments_origin_counts_and_afterwards_its_own() {
    let (_mock, proxy) = pair(&two()).await;
    let ask = async |key: &str, origin: &str| {
        let key = format!("Bearer {key}");
        let fields = [("origin", origin), ("authorization", key.as_str())];
        let reply = proxy.send(request("GET", "/providers", &fields, "")).await;
        (reply.status, reply.field("access-control-allow-origin").to_owned())
    };
    assert_eq!(ask(KEY, ORIGIN).await, (200, ORIGIN.to_owned()));
    assert_eq!(ask(OTHER_KEY, OTHER_ORIGIN).await, (200, OTHER_ORIGIN.to_owned()));
    assert_eq!(ask(KEY, OTHER_ORIGIN).await, (403, String::new()));
    assert_eq!(ask(OTHER_KEY, ORIGIN).await, (403, String::new()));
    assert_eq!(ask("metorial_pk_unknown", OTHER_ORIGIN).await, (401, OTHER_ORIGIN.to_owned()));
    assert_eq!(ask("metorial_pk_unknown", FOREIGN).await, (401, String::new()));
}

#[tokio::test]
async fn the_apis_own_cors_fields_and_cookies_never_pass() {
    let (mock, proxy) = pair("").await;
    mock.fault(metorial_proxy::mock::Fault {
        headers: [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-private-network", "true"),
            ("set-cookie", "a=b"),
            ("vary", "Accept"),
        ]
        .map(|(name, value)| (name.to_owned(), Some(value.to_owned())))
        .into(),
        ..Default::default()
    });
    let reply = proxy.call("GET", "/providers/x", &[("origin", ORIGIN)], "").await;
    let origins: Vec<_> = reply.headers.get_all("access-control-allow-origin").iter().collect();
    assert_eq!(origins, [ORIGIN]);
    for name in ["access-control-allow-private-network", "set-cookie"] {
        assert_eq!(reply.field(name), "", "{name}");
    }
    let vary: Vec<_> = reply.headers.get_all("vary").iter().collect();
    assert_eq!(vary, ["Origin", "Accept"], "the API's own is kept beside ours");
}

/// What a page of a listed origin needs to read a refusal, in an answer as it came.
#[track_caller]
fn assert_readable(answer: &str, status: u16) {
    let (head, _) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {head}");
    let head = head.to_ascii_lowercase();
    for field in [
        format!("access-control-allow-origin: {ORIGIN}"),
        "access-control-allow-credentials: true".to_owned(),
        "vary: origin".to_owned(),
        "access-control-expose-headers: ratelimit-policy, ratelimit, retry-after, ".to_owned(),
        "x-request-id: req_".to_owned(),
    ] {
        assert_eq!(head.matches(&field).count(), 1, "{status}: {field}\n{head}");
    }
}

/// A request as a browser at a listed origin would send it, with what is special about it.
fn sent(method: &str, target: &str, key: &str, more: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nhost: x\r\norigin: {ORIGIN}\r\nauthorization: Bearer {key}\r\n\
         connection: close\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn every_refusal_of_ours_can_be_read_by_a_listed_origin() {
    let small = "
        [server]
        hosts = ['x']
        max_uri = '64B'
        max_header_bytes = '1KiB'
        max_request_body = '8B'
        body_idle_timeout = '100ms'
    ";
    let (_mock, proxy) = pair(small).await;
    let long = format!("/{}", "x".repeat(64));
    let wide = format!("x-wide: {}\r\n", "x".repeat(1024));
    let json = "content-type: application/json\r\n";
    for (method, target, key, more, status) in [
        ("GET", "//", KEY, "", 400),
        ("GET", "/providers", "metorial_pk_unknown", "", 401),
        ("GET", "/providers", "metorial_sk_theirs", "", 401),
        ("GET", "/agents", KEY, "", 403),
        ("GET", "/providers", KEY, "metorial-version: dashboard\r\n", 403),
        ("TRACE", "/providers", KEY, "", 405),
        ("POST", "/provider-deployments", KEY, &format!("{json}content-length: 4\r\n"), 408),
        ("POST", "/provider-deployments", KEY, &format!("{json}content-length: 9\r\n"), 413),
        ("GET", &long, KEY, "", 414),
        ("GET", "/providers", KEY, &wide, 431),
    ] {
        assert_readable(&raw(proxy.address, &sent(method, target, key, more)).await, status);
    }
    let elsewhere = sent("GET", "/providers", KEY, "").replace("host: x", "host: y");
    assert_readable(&raw(proxy.address, &elsewhere).await, 403);
}

#[tokio::test]
async fn every_limit_and_failure_can_be_read_by_a_listed_origin() {
    let get = sent("GET", "/providers/x", KEY, "");
    for (toml, status, fault) in [
        ("clients.limit = { requests = 1, window = '1h' }", 429, None),
        ("[[environments]]\nlimit = { requests = 1, window = '1h' }", 429, None),
        ("upstream.egress_limit = { requests = 1, window = '1h' }", 429, None),
        ("", 429, Some(Fault { status: Some(429), next: 9, ..Fault::default() })),
        ("", 502, Some(Fault { status: Some(401), ..Fault::default() })),
        ("", 502, Some(Fault { echo: true, ..Fault::default() })),
        ("", 500, Some(Fault { status: Some(500), ..Fault::default() })),
    ] {
        let patience = "upstream.retry.max_queue_wait = '0s'\nupstream.retry.max_attempts = 1\n";
        let (mock, proxy) = pair(&format!("{patience}{toml}")).await;
        match fault {
            Some(fault) => mock.fault(fault),
            None => drop(raw(proxy.address, &get).await),
        }
        assert_readable(&raw(proxy.address, &get).await, status);
    }
    let (silent, _) = scripted(|_| Vec::new()).await;
    let (broken, _) = scripted(|_| b"SSH-2.0\r\n".to_vec()).await;
    for (upstream, status) in [(silent, 504), (broken, 502), ("http://127.0.0.1:1".to_owned(), 502)] {
        let once = "upstream.attempt_timeout = '100ms'\nupstream.retry.max_attempts = 1";
        assert_readable(&raw(Proxy::start(upstream, once).address, &get).await, status);
    }
    let mock = Mock::with(Options { latency: Duration::from_millis(1500), ..Options::default() }).await;
    let proxy = Proxy::start(mock.url(), "server.max_in_flight = 1");
    let (_, full) = tokio::join!(raw(proxy.address, &get), async {
        eventually("the first is upstream", || mock.received() == 1).await;
        raw(proxy.address, &get).await
    });
    assert_readable(&full, 503);
}
