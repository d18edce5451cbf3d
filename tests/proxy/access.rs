//! Who may do what: keys, rules, hosts and targets, and what of a request reaches the API.

use serde_json::json;

use crate::client::{raw, request};
use crate::harness::{KEY, ORIGIN, OTHER_KEY, Proxy, SECRET, pair};

#[tokio::test]
async fn a_known_key_is_taken_from_the_header_or_the_query_and_goes_no_further() {
    let (mock, proxy) = pair("").await;
    let bearer = format!("Bearer {KEY}");
    for (target, authorization) in [
        ("/providers?limit=1".to_owned(), Some(bearer.as_str())),
        (format!("/providers?limit=2&token={KEY}"), None),
        (format!("/providers?key={KEY}&limit=3"), None),
        (format!("/providers?token={KEY}&limit=4&key=metorial_pk_unknown"), None),
        (format!("/providers?limit=5&k%65y={KEY}"), None),
    ] {
        let fields: Vec<_> = authorization.map(|value| ("authorization", value)).into_iter().collect();
        let reply = proxy.send(request("GET", &target, &fields, "")).await;
        assert_eq!(reply.status, 200, "{target}: {reply:?}");
        let seen = mock.last();
        assert!(
            seen.target.starts_with("/providers?limit=") && !seen.target.contains('…'),
            "{}",
            seen.target
        );
        assert!(seen.headers.contains(&("authorization".into(), "Bearer …SECR".into())), "{seen:?}");
    }
    assert_eq!(mock.received(), 5);
}

#[tokio::test]
async fn without_a_known_key_there_is_a_401_that_says_what_is_wrong() {
    let (mock, proxy) = pair("").await;
    for (target, authorization, part) in [
        ("/providers", None, "No publishable key was sent"),
        ("/providers", Some("Bearer metorial_pk_unknown"), "not known"),
        ("/providers?token=metorial_pk_unknown", None, "not known"),
        ("/providers?key=hello", None, "no publishable key"),
        ("/providers", Some("Basic dXNlcjpwYXNz"), "not of the form"),
        ("/providers", Some(KEY), "not of the form"),
        ("/providers", Some("Bearer "), "not of the form"),
    ] {
        let fields: Vec<_> = authorization.map(|value| ("authorization", value)).into_iter().collect();
        let reply = proxy.send(request("GET", target, &fields, "")).await;
        assert_eq!(reply.refusal(), (401, "unauthorized".to_owned()), "{target} {authorization:?}");
        assert_eq!(reply.field("www-authenticate"), "Bearer");
        let message = reply.json()["message"].as_str().expect("a message").to_owned();
        assert!(message.contains(part), "{target} {authorization:?}: {message}");
    }
    assert_eq!(mock.received(), 0);
}

#[tokio::test]
async fn a_secret_key_of_a_caller_is_refused_wherever_it_stands_even_where_no_key_is_needed() {
    let keyless = "[[environments]]\nkeyless = true";
    for toml in ["", keyless] {
        let (mock, proxy) = pair(toml).await;
        let (theirs, ours) = ("metorial_sk_0123456789abcdef", SECRET);
        let bearer = format!("Bearer {theirs}");
        for (target, authorization) in [
            ("/providers".to_owned(), Some(bearer.as_str())),
            (format!("/providers?token={theirs}"), None),
            (format!("/providers?key={theirs}"), None),
            (format!("/providers?key={ours}"), None),
            ("/providers?key=metorial_uk_0123456789abcdef".to_owned(), None),
        ] {
            let mut fields = vec![("host", "localhost")];
            fields.extend(authorization.map(|value| ("authorization", value)));
            let reply = proxy.send(request("GET", &target, &fields, "")).await;
            assert_eq!(reply.refusal(), (401, "unauthorized".to_owned()), "{target}");
            let body = String::from_utf8_lossy(&reply.body).into_owned();
            assert!(body.contains("Revoke it"), "{body}");
            assert!(!body.contains(theirs) && !body.contains(ours), "{body}");
        }
        assert_eq!(mock.received(), 0);
    }
}

#[tokio::test]
async fn a_sidecar_serves_callers_without_a_key_but_no_other_host_than_its_own() {
    let (mock, proxy) = pair("[[environments]]\nkeyless = true\nallow = ['all']").await;
    for (host, authorization) in [
        ("localhost", None),
        ("localhost:8080", None),
        ("127.0.0.1", Some("Bearer whatever")),
        ("[::1]:1234", Some("Basic dXNlcjpwYXNz")),
        ("LOCALHOST", Some("Bearer metorial_pk_unknown")),
    ] {
        let mut fields = vec![("host", host)];
        fields.extend(authorization.map(|value| ("authorization", value)));
        let reply = proxy.send(request("GET", "/agents", &fields, "")).await;
        assert_eq!(reply.status, 200, "{host} {authorization:?}: {reply:?}");
    }
    // A page whose name was bound to 127.0.0.1 reaches the sidecar, but cannot forge its Host.
    for host in ["rebound.example", "localhost.rebound.example", "10.0.0.1"] {
        let reply = proxy.send(request("GET", "/agents", &[("host", host)], "")).await;
        assert_eq!(reply.refusal(), (403, "forbidden".to_owned()), "{host}");
    }
    assert_eq!(mock.received(), 1, "the rest are hits");
    // One whose own name is another may not have its reader's browser ask either.
    for (site, status) in [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)] {
        let fields = [("host", "localhost"), ("sec-fetch-site", site)];
        assert_eq!(proxy.send(request("GET", "/agents", &fields, "")).await.status, status, "{site}");
    }
    let post = [("host", "localhost"), ("origin", "https://evil.example"), ("content-type", "text/plain")];
    assert_eq!(proxy.send(request("POST", "/provider-deployments", &post, "{}")).await.status, 403);
    assert_eq!(mock.received(), 1);
}

#[tokio::test]
async fn only_listed_hosts_are_served() {
    let (_mock, proxy) = pair("server.hosts = ['api.example.com']").await;
    let key = format!("Bearer {KEY}");
    let ask = async |host: &str| {
        proxy.send(request("GET", "/providers", &[("host", host), ("authorization", &key)], "")).await
    };
    assert_eq!(ask("api.example.com:8443").await.status, 200);
    let refused = ask("other.example.com").await;
    assert_eq!(refused.refusal(), (403, "forbidden".to_owned()));
    assert!(refused.json()["hint"].as_str().expect("a hint").contains("server.hosts"));
}

#[tokio::test]
async fn callers_get_exactly_what_is_listed_and_a_403_names_the_rule_that_would_open_the_route() {
    let rules = r#"
        [[environments]]
        allow = ["catalog", "GET /magic-mcp-servers/{id}"]
        [[environments.rules]]
        methods = ["GET", "POST"]
        path = "/sessions"
        returns_secret = true
    "#;
    let (mock, proxy) = pair(rules).await;
    for (method, target) in [
        ("GET", "/providers"),
        ("HEAD", "/providers"),
        ("GET", "/providers/prv_1"),
        ("GET", "/provider-listings?search=x"),
        ("GET", "/magic-mcp-servers/mms_1"),
        ("GET", "/sessions"),
        ("POST", "/sessions"),
        ("GET", "/instances/ins_whatever/providers"),
    ] {
        let reply = proxy.call(method, target, &[], "").await;
        assert!(reply.status == 200 || reply.status == 404, "{method} {target}: {reply:?}");
        assert_eq!(reply.field("proxy-status"), "", "{method} {target} is upstream's own answer");
    }
    let before = mock.received();
    for (method, target, hint) in [
        ("GET", "/instance", "\"GET /instance\""),
        ("GET", "/token", "\"GET /token\""),
        ("GET", "/agents", "\"GET /agents\""),
        ("DELETE", "/provider-deployments/pde_1", "\"DELETE /provider-deployments/{providerDeploymentId}\""),
        ("POST", "/provider-deployments", "\"POST /provider-deployments\""),
        ("GET", "/instances/ins_whatever/agents", "\"GET /agents\""),
        ("GET", "/magic-mcp-servers", "\"GET /magic-mcp-servers\""),
        ("GET", "/callback-destinations", "returns_secret = true"),
        ("GET", "/no/such/route", "not in the built-in route table"),
    ] {
        let reply = proxy.call(method, target, &[], "").await;
        assert_eq!(reply.refusal(), (403, "forbidden".to_owned()), "{method} {target}");
        let body = reply.json();
        let said = body["hint"].as_str().unwrap_or("none");
        assert!(said.contains(hint), "{method} {target}: {said}");
    }
    for target in ["/dashboard/organizations", "/consumer/x", "/instances/ins_1/dashboard/x", "/dashboard"] {
        assert_eq!(proxy.get(target).await.refusal(), (403, "forbidden".to_owned()), "{target}");
    }
    assert_eq!(mock.received(), before, "what is refused never leaves");
}

#[tokio::test]
async fn the_profiles_read_and_all_open_what_returns_no_secret() {
    let (_mock, proxy) = pair("[[environments]]\nallow = ['read']").await;
    assert_eq!(proxy.get("/agents").await.status, 200);
    assert_eq!(proxy.get("/callback-destinations").await.status, 403);
    assert_eq!(proxy.post("/provider-deployments", "{}").await.status, 403);
    let (_mock, proxy) = pair("[[environments]]\nallow = ['all']\ni_trust_these_callers = true").await;
    assert_eq!(proxy.post("/provider-deployments", "{}").await.status, 200);
    assert_eq!(proxy.get("/callback-destinations").await.status, 403);
    assert_eq!(proxy.post("/callback-destinations", "{}").await.status, 403);
}

#[tokio::test]
async fn other_methods_get_a_405_with_the_ones_that_are_served() {
    let (mock, proxy) = pair("").await;
    for method in ["TRACE", "CONNECT", "PROPFIND", "get"] {
        let text = format!(
            "{method} {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\r\n",
            if method == "CONNECT" { "x:443" } else { "/providers" }
        );
        let answer = raw(proxy.address, &text).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
        assert!(answer.contains("allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"), "{answer}");
    }
    assert_eq!(mock.received(), 0);
}

#[tokio::test]
async fn head_is_answered_as_get_without_the_body() {
    let (mock, proxy) = pair("").await;
    let target = "/providers/does-not-exist";
    let (get, head) = (proxy.get(target).await, proxy.call("HEAD", target, &[], "").await);
    assert_eq!((get.status, head.status), (404, 404));
    assert!(!get.body.is_empty() && head.body.is_empty());
    assert_eq!(get.field("content-length"), head.field("content-length"));
    assert_eq!(mock.last().method, "HEAD");
    let refused = proxy.call("HEAD", "/agents", &[], "").await;
    assert_eq!((refused.status, refused.body.len()), (403, 0));
}

#[tokio::test]
async fn only_accepted_versions_are_asked_for() {
    let (mock, proxy) = pair("").await;
    for (target, version, expected) in [
        ("/providers", Some("2026-01-01-magnetar"), 200),
        ("/providers", Some("2025-01-01-pulsar"), 200),
        ("/providers?api-version=magnetar", None, 200),
        ("/providers", Some("mt_2025_01_01_dashboard"), 403),
        ("/providers?api-version=2026-04-01-consumer", None, 403),
        ("/providers?api-version=dashboard", Some("magnetar"), 403),
    ] {
        let fields: Vec<_> = version.map(|value| ("metorial-version", value)).into_iter().collect();
        assert_eq!(proxy.call("GET", target, &fields, "").await.status, expected, "{target} {version:?}");
    }
    assert_eq!(mock.received(), 3);
    let consumer = [("metorial-consumer-session-client-secret", "x")];
    assert_eq!(proxy.call("GET", "/providers", &consumer, "").await.status, 403);
    assert_eq!(proxy.get("/providers?consumer_session_client_secret=x").await.status, 403);
}

#[tokio::test]
async fn what_two_readers_could_read_differently_is_refused() {
    let (mock, proxy) = pair("").await;
    let key = format!("authorization: Bearer {KEY}");
    let get =
        |target: &str| format!("GET {target} HTTP/1.1\r\nhost: x\r\n{key}\r\nconnection: close\r\n\r\n");
    let field = |field: &str| {
        format!("GET /providers HTTP/1.1\r\nhost: x\r\n{key}\r\n{field}\r\nconnection: close\r\n\r\n")
    };
    for text in [
        get("//providers"),
        get("/providers//x"),
        get("/providers/../agents"),
        get("/providers/./x"),
        get("/providers%2fx"),
        get("/%70roviders"),
        get("/providers/%2e%2e/agents"),
        get("/providers/%00"),
        get("/providers/%zz"),
        get("/providers/a\\b"),
        get(&format!("/providers?token={KEY}&token={KEY}")),
        get(&format!("/providers?key[]={KEY}")),
        get("/providers?api-version=magnetar&api-version=pulsar"),
        get("/providers?a=%"),
        get("/providers?x=1;key=2"),
        get("/providers??limit=1"),
        get("/providers?limit%00=1"),
        get("/providers#x"),
        get("/providers?limit=1#x"),
        get("http://x/providers#x"),
        get("http://user@x/providers"),
        get("*"),
        get("http://other.example/providers"),
        get("ftp://x/providers"),
        field("host: x"),
        format!("GET /providers HTTP/1.1\r\nhost: user@x\r\n{key}\r\nconnection: close\r\n\r\n"),
        field(&key),
        field("metorial-version: magnetar\r\nmetorial-version: magnetar"),
        field(&format!("origin: {ORIGIN}\r\norigin: {ORIGIN}")),
        field("content-length: 2\r\n\r\nhi"),
        format!("GET /providers HTTP/1.1\r\n{key}\r\nconnection: close\r\n\r\n"),
    ] {
        let answer = raw(proxy.address, &text).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{text}{answer}");
        assert!(answer.contains("\"code\":\"bad_request\""), "{text}{answer}");
    }
    for (first, second) in [
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: 4"),
    ] {
        let text = format!(
            "POST /providers HTTP/1.1\r\n{key}\r\nhost: x\r\n{first}\r\n{second}\r\nconnection: close\r\n\r\n\
             2\r\n{{}}\r\n0\r\n\r\n"
        );
        let answer = raw(proxy.address, &text).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("two ways"), "{text}{answer}");
    }
    for smuggled in [
        field("content-length: 2\r\ncontent-length: 3\r\n\r\nhi"),
        field("content-length : 2\r\n\r\nhi"),
        "POST /providers HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ntransfer-encoding: xchunked\r\n\r\nhi"
            .into(),
    ] {
        let answer = raw(proxy.address, &smuggled).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{smuggled}{answer}");
    }
    assert_eq!(mock.received(), 0);
}

#[tokio::test]
async fn a_rule_with_a_parameter_reaches_no_secret_that_the_table_does_not_name() {
    let (mock, proxy) = pair("[[environments]]\nallow = ['GET /{a}', 'GET /{a}/{b}']").await;
    for target in ["/event-destinations", "/instances/ins_1/api-keys", "/organization/api-keys"] {
        assert_eq!(proxy.get(target).await.refusal(), (403, "forbidden".to_owned()), "{target}");
    }
    assert_eq!(mock.received(), 0);
}

#[tokio::test]
async fn the_base_path_is_removed_first_and_nothing_outside_it_is_served() {
    let (mock, proxy) = pair("server.base_path = '/api/metorial'").await;
    assert_eq!(proxy.get("/api/metorial/providers?limit=1").await.status, 200);
    assert_eq!(mock.last().target, "/providers?limit=1");
    let (before, plainly) =
        ("Put this proxy's base path before the path.", "Send the request in one unambiguous form.");
    for (outside, hint) in [
        ("/providers", before),
        ("/api/metorialx/providers", before),
        ("/api", before),
        ("/api/metorial/../providers", plainly),
    ] {
        let reply = proxy.get(outside).await;
        assert_eq!(reply.refusal(), (400, "bad_request".to_owned()), "{outside}");
        assert_eq!(reply.json()["hint"], hint, "{outside}");
    }
    assert_eq!(proxy.get("/api/metorial/agents").await.status, 403);
    assert_eq!(mock.received(), 1);
    // The API's own is put in front.
    let proxy = Proxy::start(format!("{}/instances/ins_1", mock.url()), "");
    assert_eq!(proxy.get("/providers?limit=2").await.status, 200);
    assert_eq!(mock.last().target, "/instances/ins_1/providers?limit=2");
}

#[tokio::test]
async fn nothing_of_a_request_reaches_the_api_but_the_secret_and_the_listed_fields() {
    let (mock, proxy) = pair("upstream.forward_headers = ['x-tenant']").await;
    let kept = [
        ("accept", "application/json"),
        ("metorial-version", "magnetar"),
        ("user-agent", "metorial-js"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=b"),
        ("x-request-id", "my-id-1"),
        ("x-tenant", "t1"),
    ];
    let dropped = [
        ("baggage", "c=d"),
        ("cookie", "a=b"),
        ("x-forwarded-for", "10.1.2.3"),
        ("forwarded", "for=10.1.2.3"),
        ("x-real-ip", "10.1.2.3"),
        ("metorial-connecting-ip", "10.1.2.3"),
        ("cf-connecting-ip", "10.1.2.3"),
        ("x-forwarded-host", "x"),
        ("x-host", "x"),
        ("x-http-method-override", "DELETE"),
        ("metorial-instance-id", "ins_1"),
        ("metorial-organization-id", "org_1"),
        ("proxy-authorization", "Basic x"),
        ("accept-encoding", "gzip, br"),
        ("if-none-match", "\"x\""),
        ("range", "bytes=0-1"),
        ("connection", "x-named"),
        ("x-named", "1"),
        ("te", "trailers"),
        ("expect", "100-continue"),
        ("referer", "https://app.example/private"),
        ("x-anything", "1"),
    ];
    let fields = [&kept[..], &dropped[..]].concat();
    let reply = proxy.call("POST", "/provider-deployments", &fields, "").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let mut seen = mock.last().headers;
    seen.sort();
    let of_ours = [
        ("accept-encoding", "identity"),
        ("authorization", "Bearer …SECR"),
        ("content-length", "0"),
        ("host", &mock.address.to_string()),
    ];
    let mut expected: Vec<(String, String)> =
        kept.iter().chain(&of_ours).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    expected.sort();
    // An empty body may be told or left out.
    seen.retain(|(name, _)| name != "content-length");
    expected.retain(|(name, _)| name != "content-length");
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn every_refusal_has_one_shape() {
    let (_mock, proxy) = pair("").await;
    let reply = proxy.call("GET", "/agents", &[("x-request-id", "my-id-2")], "").await;
    assert_eq!(reply.field("content-type"), "application/problem+json");
    assert_eq!(reply.field("proxy-status"), "metorial-proxy; error=http_request_denied");
    assert_eq!(reply.field("x-request-id"), "my-id-2");
    let message = "No rule of this proxy allows GET /agents.";
    let expected = json!({
        "type": "about:blank", "title": "Forbidden", "status": 403, "detail": message,
        "__typename": "error", "ok": false, "code": "forbidden", "message": message,
        "hint": "The operator can open it with the rule \"GET /agents\" in this environment's allow.",
        "request_id": "my-id-2",
    });
    assert_eq!(reply.json(), expected);
    let unknown = proxy.get_as(OTHER_KEY, "/providers").await;
    assert_eq!(unknown.json()["request_id"], unknown.field("x-request-id"));
}
