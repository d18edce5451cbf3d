//! List pages: kept, shared, renewed, dropped by writes, and served stale where that is better than nothing.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use futures_util::future::join_all;
use metorial_proxy::domain::quota::Quota;
use metorial_proxy::mock::{Fault, Options, Reset};
use metorial_proxy::time::sleep;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::task::TaskTracker;

use crate::client::{Connection, bearing, connect, request};
use crate::harness::{KEY, Mock, OTHER, OTHER_KEY, Proxy, eventually, pair, scripted};

const MISS: &str = "metorial-proxy; fwd=uri-miss";
const STORED: &str = "metorial-proxy; fwd=uri-miss; stored";

fn with(fields: &[(&str, &str)]) -> BTreeMap<String, Option<String>> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect()
}

/// Waits until what was stored for a millisecond is stale.
async fn stale() {
    sleep(Duration::from_millis(10)).await;
}

#[tokio::test]
async fn a_page_is_fetched_once_and_then_served_with_its_age_and_validator() {
    let (mock, proxy) = pair("").await;
    let target = "/provider-deployments?limit=2";
    let miss = proxy.get(target).await;
    assert_eq!((miss.status, miss.items(), miss.field("cache-status")), (200, 2, STORED));
    let hit = proxy.get(target).await;
    assert_eq!((hit.status, &hit.body), (200, &miss.body));
    let status = hit.field("cache-status");
    let ttl: u64 = status.strip_prefix("metorial-proxy; hit; ttl=").expect(status).parse().expect("seconds");
    assert!((1..=600).contains(&ttl), "{status}");
    assert!(hit.field("age").parse::<u64>().is_ok(), "{hit:?}");
    assert_eq!(hit.field("content-type"), "application/json");
    assert!(hit.field("etag").starts_with('"') && hit.field("etag") == miss.field("etag"), "{hit:?}");
    assert_ne!(hit.field("x-request-id"), miss.field("x-request-id"), "each answer has an id of its own");
    assert_eq!(mock.received(), 1);
}

#[tokio::test]
async fn a_caller_that_has_the_page_gets_a_304_and_one_that_asks_for_the_head_its_head() {
    let (mock, proxy) = pair("").await;
    let target = "/provider-deployments?limit=3";
    // HEAD fills the cache, too: what may be asked for without its body may be asked for with it.
    let head = proxy.call("HEAD", target, &[], "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    let page = proxy.get(target).await;
    assert_eq!(head.field("content-length"), page.body.len().to_string());
    let etag = page.field("etag").to_owned();
    for (sent, status) in [
        (etag.clone(), 304),
        (format!("W/{etag}"), 304),
        (format!("\"other\", {etag}"), 304),
        ("*".into(), 304),
        ("\"other\"".into(), 200),
    ] {
        let reply = proxy.call("GET", target, &[("if-none-match", &sent)], "").await;
        assert_eq!(reply.status, status, "{sent}");
        assert_eq!(reply.body.is_empty(), status == 304);
        assert_eq!(reply.field("etag"), etag);
    }
    assert_eq!((mock.received(), mock.last().method.as_str()), (1, "GET"));
}

#[tokio::test]
async fn the_order_of_different_parameters_does_not_matter_and_everything_else_does() {
    let (mock, proxy) = pair("").await;
    let is_hit = async |target: &str, fields: &[(&str, &str)]| {
        let reply = proxy.call("GET", target, fields, "").await;
        reply.field("cache-status").starts_with("metorial-proxy; hit")
    };
    assert!(!is_hit("/providers?limit=2&order=desc", &[]).await);
    assert!(is_hit("/providers?order=desc&limit=2", &[]).await);
    assert!(is_hit(&format!("/providers?order=desc&token={KEY}&limit=2"), &[]).await);
    for (target, fields) in [
        ("/providers?order=asc&limit=2", &[] as &[_]),
        ("/providers?limit=2&order=desc&order=asc", &[]),
        ("/providers?limit=2&order=de%73c", &[]),
        ("/providers?limit=2", &[]),
        ("/provider-groups?limit=2&order=desc", &[]),
        ("/instances/ins_1/providers?limit=2&order=desc", &[]),
        ("/providers?limit=2&order=desc", &[("metorial-version", "magnetar")]),
        ("/providers?limit=2&order=desc", &[("accept", "text/html")]),
    ] {
        assert!(!is_hit(target, fields).await, "{target} {fields:?}");
        assert!(is_hit(target, fields).await, "{target} {fields:?}");
    }
    assert_eq!(mock.received(), 9);
}

#[tokio::test]
async fn forwarded_fields_are_part_of_what_a_page_is_known_by() {
    let (mock, proxy) = pair("upstream.forward_headers = ['x-tenant']").await;
    for tenant in ["a", "b", "a", "b"] {
        assert_eq!(proxy.call("GET", "/providers", &[("x-tenant", tenant)], "").await.status, 200);
    }
    assert_eq!(mock.received(), 2);
}

#[tokio::test]
async fn environments_never_share_a_page() {
    let (mock, proxy) = pair(&format!("{OTHER}\nsecret_key = {{ env = 'OTHER_SECRET_KEY' }}")).await;
    for key in [KEY, OTHER_KEY] {
        assert_eq!(proxy.get_as(key, "/providers").await.field("cache-status"), STORED);
        assert!(proxy.get_as(key, "/providers").await.field("cache-status").contains("hit"));
    }
    let seen: Vec<_> = mock.handle.requests().into_iter().flat_map(|record| record.headers).collect();
    for key in ["Bearer …SECR", "Bearer …OTHR"] {
        assert!(seen.contains(&("authorization".to_owned(), key.to_owned())), "{key}");
    }
    assert_eq!(mock.received(), 2);
}

#[tokio::test]
async fn a_thousand_callers_at_once_cost_one_request() {
    let limit = Quota::PRODUCTION;
    let mock = Mock::with(Options { limit, latency: Duration::from_millis(500), ..Options::default() }).await;
    let proxy = Proxy::start(mock.url(), "");
    let asked = TaskTracker::new();
    let mut callers = Vec::new();
    // Over few sockets, which are scarcer than requests.
    for _ in 0..20 {
        let connection = Connection::http2(connect(proxy.address).await).await;
        for _ in 0..50 {
            let mut stream = connection.stream();
            callers.push(asked.spawn(async move { stream.send(bearing(KEY, "/providers")).await }));
        }
    }
    let mut led = 0;
    for caller in callers {
        let reply = caller.await.expect("no panic").expect("an answer");
        assert_eq!((reply.status, reply.items()), (200, 20));
        led += usize::from(reply.field("cache-status") == STORED);
    }
    assert_eq!((mock.received(), led), (1, 1), "one led, the others joined or came later");
}

#[tokio::test]
async fn a_leader_that_leaves_hurts_nobody() {
    let (mock, proxy) = pair("").await;
    mock.fault(Fault { delay_ms: Some(300), ..Fault::default() });
    let mut leader = connect(proxy.address).await;
    let text = format!("GET /providers HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n");
    leader.write_all(text.as_bytes()).await.expect("sent");
    eventually("the leader's request is upstream", || mock.received() == 1).await;
    drop(leader);
    let follower = proxy.get("/providers").await;
    assert_eq!((follower.status, follower.items()), (200, 20));
    assert_eq!(mock.received(), 1);
}

#[tokio::test]
async fn a_write_shows_in_the_list_at_once_and_a_refused_one_changes_nothing() {
    let (mock, proxy) = pair("").await;
    let list = "/provider-deployments?search=fresh";
    assert_eq!(proxy.get(list).await.items(), 0);
    assert_eq!(proxy.get("/providers").await.status, 200);
    assert_eq!(proxy.post("/provider-deployments", "{").await.status, 400, "the API refuses it");
    assert!(proxy.get(list).await.field("cache-status").contains("hit"));
    assert_eq!(proxy.post("/provider-deployments", r#"{"name": "Fresh"}"#).await.status, 200);
    let after = proxy.get(list).await;
    assert_eq!((after.items(), after.field("cache-status")), (1, STORED));
    assert!(proxy.get("/providers").await.field("cache-status").contains("hit"), "of another collection");
    // Whether a write that failed halfway was done, nobody knows.
    mock.fault(Fault { route: "POST /provider-deployments".into(), status: Some(500), ..Fault::default() });
    assert_eq!(proxy.post("/provider-deployments", "{}").await.status, 500);
    assert_eq!(proxy.get(list).await.field("cache-status"), STORED);
    mock.fault(Fault {
        route: "POST /provider-deployments".into(),
        reset: Some(Reset::Before),
        ..Fault::default()
    });
    assert_eq!(proxy.post("/provider-deployments", "{}").await.status, 502);
    assert_eq!(proxy.get(list).await.field("cache-status"), STORED);
}

#[tokio::test]
async fn a_write_that_overtakes_a_fill_is_not_hidden_by_it() {
    let (mock, proxy) = pair("").await;
    let list = "/provider-deployments?search=overtaking";
    // The answer is made before it is delayed: it does not know of the write.
    mock.fault(Fault { route: "GET /provider-deployments".into(), delay_ms: Some(300), ..Fault::default() });
    let (old, written) = tokio::join!(proxy.get(list), async {
        eventually("the list is under way", || mock.received() == 1).await;
        proxy.post("/provider-deployments", r#"{"name": "Overtaking"}"#).await
    });
    assert_eq!((old.items(), written.status), (0, 200));
    assert_eq!(proxy.get(list).await.items(), 1);
}

/// Over two workers on the real clock: writers that look for their own write at once, and readers that keep fills under way.
#[tokio::test]
async fn nobody_ever_misses_its_own_write() {
    let limit = Quota { requests: 100_000, window: Duration::from_secs(600) };
    let (quota, latency) = (limit, Duration::from_millis(3));
    let mock =
        Mock::with(Options { limit, egress_limit: quota, latency, items: 5, ..Options::default() }).await;
    let toml = "server.workers = 2\nupstream.egress_limit = { requests = 100000, window = '600s' }\n\
                clients.limit = { requests = 1000000, window = '10s' }\n\
                [[environments]]\nlimit = { requests = 100000, window = '600s' }\n";
    let proxy = Proxy::start(mock.url(), toml);
    let list = "/provider-deployments?limit=100&order=desc";
    let writer = async |nth: u32| {
        for round in 0..10 {
            let name = format!("written by {nth} in round {round}");
            let written = proxy.post("/provider-deployments", &format!("{{\"name\": \"{name}\"}}")).await;
            assert_eq!(written.status, 200);
            let seen = proxy.get(list).await;
            assert!(
                String::from_utf8_lossy(&seen.body).contains(&name),
                "{name}: {}",
                seen.field("cache-status")
            );
        }
    };
    let reader = async |_| {
        for _ in 0..60 {
            assert_eq!(proxy.get(list).await.status, 200);
        }
    };
    tokio::join!(join_all((0..6).map(writer)), join_all((0..4).map(reader)));
    assert!(mock.received() < 6 * 10 + 6 * 10 + 4 * 60, "some were hits, or joined a fill");
}

#[tokio::test]
async fn a_rule_can_name_further_collections_that_a_write_invalidates() {
    let rules = r#"
        [[environments]]
        [[environments.rules]]
        methods = ["POST"]
        path = "/provider-deployments"
        invalidates = ["/providers"]
    "#;
    let rules = rules.replace("[[environments]]\n", "[[environments]]\nallow = ['catalog']\n");
    let (_mock, proxy) = pair(&rules).await;
    proxy.get("/providers").await;
    assert_eq!(proxy.post("/provider-deployments", "{}").await.status, 200);
    assert_eq!(proxy.get("/providers").await.field("cache-status"), STORED);
}

#[tokio::test]
async fn what_may_not_be_shared_is_passed_on_and_not_kept() {
    let (mock, proxy) = pair("cache.max_page = '2KiB'").await;
    for fields in [
        with(&[("set-cookie", "a=b")]),
        with(&[("cache-control", "no-store")]),
        with(&[("cache-control", "private, max-age=60")]),
        with(&[("cache-control", "max-age=0")]),
        with(&[("vary", "Cookie, *")]),
    ] {
        mock.fault(Fault { headers: fields.clone(), ..Fault::default() });
        let reply = proxy.get("/providers?limit=1").await;
        assert_eq!((reply.status, reply.field("cache-status")), (200, MISS), "{fields:?}");
        assert_eq!((reply.items(), reply.field("set-cookie")), (1, ""));
    }
    // The next one is asked for again, and kept.
    assert_eq!(proxy.get("/providers?limit=1").await.field("cache-status"), STORED);
    for _ in 0..2 {
        let large = proxy.get("/providers?limit=50").await;
        assert_eq!((large.status, large.items(), large.field("cache-status")), (200, 50, MISS));
        assert!(large.body.len() > 2048);
        let missing = proxy.get("/providers?limit=0").await;
        assert_eq!((missing.status, missing.field("cache-status")), (400, MISS));
    }
    assert_eq!(mock.received(), 10);
}

#[tokio::test]
async fn a_page_of_unknown_length_that_grows_too_large_streams_on_and_is_not_kept() {
    let chunk = "x".repeat(1500);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = format!("5dc\r\n{chunk}\r\n5dc\r\n{chunk}\r\n0\r\n\r\n");
    let (url, accepted) = scripted(move |_| format!("{head}{body}").into_bytes()).await;
    // Without idle connections each request is one.
    let proxy = Proxy::start(&url, "cache.max_page = '2KiB'\nupstream.idle_connections = 0");
    for asked in 1..=2 {
        let reply = proxy.get("/providers").await;
        assert_eq!((reply.status, reply.body.len(), reply.field("cache-status")), (200, 3000, MISS));
        assert_eq!(accepted.load(std::sync::atomic::Ordering::Relaxed), asked);
    }
}

#[tokio::test]
async fn routes_that_answer_with_a_secret_or_with_one_item_are_not_kept() {
    let rules = r#"
        [[environments]]
        [[environments.rules]]
        path = "/sessions"
        returns_secret = true
        [[environments.rules]]
        path = "/own/list"
        list = true
    "#;
    let (mock, proxy) = pair(rules).await;
    for _ in 0..2 {
        let reply = proxy.get("/sessions").await;
        assert_eq!((reply.status, reply.field("cache-status")), (200, "metorial-proxy; fwd=bypass"));
        assert_eq!(proxy.get("/server-capabilities").await.field("cache-status"), "");
    }
    assert_eq!(mock.received(), 4);
    // A route that the table doesn't know is a list where a rule says so.
    let (url, accepted) = scripted(|_| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]".to_vec()).await;
    let proxy = Proxy::start(&url, rules);
    for _ in 0..2 {
        assert_eq!(proxy.get("/own/list").await.status, 200);
    }
    assert_eq!(accepted.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_page_that_breaks_off_is_a_502_and_never_kept() {
    let (mock, proxy) = pair("upstream.retry.max_attempts = 1").await;
    for fault in [
        Fault { truncate: Some(10), ..Fault::default() },
        Fault { reset: Some(Reset::AfterHead), ..Fault::default() },
    ] {
        mock.fault(fault);
        assert_eq!(proxy.get("/providers").await.refusal(), (502, "upstream_error".to_owned()));
    }
    let reply = proxy.get("/providers").await;
    assert_eq!((reply.items(), reply.field("cache-status")), (20, STORED));
}

#[tokio::test]
async fn a_stale_page_is_better_than_an_upstream_that_fails() {
    let toml = "cache.ttl = '1ms'\ncache.stale_while_revalidate = '0s'\nupstream.retry.max_attempts = 1\nupstream.attempt_timeout = '200ms'";
    let (mock, proxy) = pair(toml).await;
    let page = proxy.get("/providers").await;
    for (fault, status) in [
        (Fault { status: Some(503), ..Fault::default() }, "fwd-status=503; "),
        (Fault { reset: Some(Reset::Before), ..Fault::default() }, ""),
        (Fault { truncate: Some(10), ..Fault::default() }, ""),
        (Fault { delay_ms: Some(60_000), ..Fault::default() }, ""),
    ] {
        stale().await;
        mock.fault(fault);
        let reply = proxy.get("/providers").await;
        assert_eq!((reply.status, &reply.body), (200, &page.body));
        assert_eq!(reply.field("cache-status"), format!("metorial-proxy; fwd=stale; {status}detail=error"));
        let failed = reply.field("proxy-status").strip_prefix("metorial-proxy; ").expect("it tells why");
        assert_eq!(failed == "received-status=503", !status.is_empty(), "{failed}");
        assert_eq!(failed.starts_with("error="), status.is_empty(), "{failed}");
        assert_ne!(reply.field("age"), "");
    }
    let address = mock.address;
    drop(mock);
    eventually("nobody listens any more", || std::net::TcpStream::connect(address).is_err()).await;
    stale().await;
    let reply = proxy.get("/providers").await;
    assert_eq!((reply.status, &reply.body), (200, &page.body), "nobody listens there any more");
    assert_eq!(proxy.get("/provider-groups").await.status, 502, "what was never kept is lost");
}

#[tokio::test]
async fn a_page_that_is_too_old_and_an_error_of_the_callers_own_are_told_as_they_are() {
    let (mock, proxy) =
        pair("cache.ttl = '1ms'\ncache.stale_if_error = '0s'\ncache.stale_while_revalidate = '0s'").await;
    assert_eq!(proxy.get("/providers").await.status, 200);
    stale().await;
    mock.fault(Fault { status: Some(503), ..Fault::default() });
    assert_eq!(proxy.get("/providers").await.status, 503);
    let (mock, proxy) = pair("cache.ttl = '1ms'\ncache.stale_while_revalidate = '0s'").await;
    assert_eq!(proxy.get("/providers").await.status, 200);
    stale().await;
    mock.fault(Fault { status: Some(404), ..Fault::default() });
    assert_eq!(proxy.get("/providers").await.status, 404);
}

#[tokio::test]
async fn when_the_budget_is_spent_known_pages_are_served_stale() {
    let toml = r#"
        cache.ttl = "1ms"
        [[environments]]
        limit = { requests = 1, window = "1h" }
    "#;
    let (mock, proxy) = pair(toml).await;
    let page = proxy.get("/providers").await;
    assert_eq!(page.status, 200);
    stale().await;
    let reply = proxy.get("/providers").await;
    assert_eq!((reply.status, &reply.body), (200, &page.body));
    let status = reply.field("cache-status");
    assert!(
        status.starts_with("metorial-proxy; hit; ttl=-") && status.ends_with("; detail=budget"),
        "{status}"
    );
    assert_eq!(proxy.get("/provider-groups").await.status, 429, "an unknown page is refused");
    assert_eq!(mock.received(), 1);
}

#[tokio::test]
async fn a_stale_page_is_served_at_once_while_one_request_fetches_it_anew() {
    let (mock, proxy) = pair("cache.ttl = '1ms'").await;
    let page = proxy.get("/providers").await;
    stale().await;
    mock.fault(Fault { delay_ms: Some(300), ..Fault::default() });
    let before = mock.received();
    for _ in 0..20 {
        let reply = proxy.get("/providers").await;
        assert_eq!((reply.status, &reply.body), (200, &page.body));
        let status = reply.field("cache-status");
        assert!(
            status.starts_with("metorial-proxy; hit; ttl=-") && status.ends_with("detail=revalidating"),
            "{status}"
        );
    }
    eventually("it is fetched anew", || mock.received() > before).await;
    assert_eq!(mock.received(), before + 1, "once, and nobody waited");
    // It fails, and is not tried again at once.
    stale().await;
    eventually("the first is over", || mock.handle.requests().iter().all(|record| record.status.is_some()))
        .await;
    let before = mock.received();
    mock.fault(Fault { status: Some(503), next: 100, ..Fault::default() });
    for _ in 0..20 {
        assert_eq!(proxy.get("/providers").await.status, 200);
        stale().await;
    }
    assert!((before + 1..=before + 2).contains(&mock.received()), "{}", mock.received() - before);
}

#[tokio::test]
async fn what_upstream_says_of_its_answers_is_obeyed() {
    let (mock, proxy) = pair("cache.ttl = '10m'").await;
    let reset = |fields: &[(&str, &str)]| {
        mock.handle.clear_faults();
        mock.fault(Fault { headers: with(fields), next: 100, ..Fault::default() });
    };
    // Fresh for as long as it says, whatever we would have.
    reset(&[("cache-control", "max-age=3600, must-revalidate"), ("age", "100")]);
    assert_eq!(proxy.get("/providers?limit=1").await.field("age"), "100");
    let hit = proxy.get("/providers?limit=1").await;
    assert!(
        hit.field("cache-status").starts_with("metorial-proxy; hit; ttl=34")
            || hit.field("cache-status").starts_with("metorial-proxy; hit; ttl=3500"),
        "{hit:?}"
    );
    reset(&[("cdn-cache-control", "max-age=60"), ("cache-control", "no-store")]);
    assert_eq!(proxy.get("/providers?limit=2").await.field("cache-status"), STORED);
    // Asked about each time where it wants that and can be asked.
    reset(&[("cache-control", "no-cache"), ("etag", "\"v1\"")]);
    let first = proxy.get("/providers?limit=3").await;
    assert_eq!(first.field("etag"), "\"v1\"");
    let asked =
        || mock.last().headers.iter().any(|(name, value)| name == "if-none-match" && value == "\"v1\"");
    mock.handle.clear_faults();
    mock.fault(Fault {
        status: Some(304),
        headers: with(&[("etag", "\"v1\""), ("x-new", "1")]),
        ..Fault::default()
    });
    let validated = proxy.get("/providers?limit=3").await;
    assert!(asked(), "{:?}", mock.last());
    assert_eq!((validated.status, &validated.body), (200, &first.body));
    assert_eq!(validated.field("cache-status"), "metorial-proxy; fwd=stale; fwd-status=304; stored");
    assert_eq!(validated.field("x-new"), "1");
}

#[tokio::test]
async fn pages_that_vary_by_a_field_of_the_request_are_kept_apart() {
    let (mock, proxy) = pair("").await;
    mock.fault(Fault { headers: with(&[("vary", "X-Tone, Origin")]), next: 100, ..Fault::default() });
    let ask = async |tone: Option<&str>| {
        let fields: Vec<(&str, &str)> = tone.map(|tone| ("x-tone", tone)).into_iter().collect();
        let reply = proxy.call("GET", "/providers", &fields, "").await;
        reply.field("cache-status").contains("; hit")
    };
    for tone in [None, Some("high"), Some("low")] {
        assert!(!ask(tone).await, "{tone:?}");
    }
    for tone in [None, Some("high"), Some("low")] {
        assert!(ask(tone).await, "{tone:?}");
    }
    assert_eq!(mock.received(), 3);
    let (one, other) = tokio::join!(
        proxy.call("GET", "/provider-groups", &[("x-tone", "high")], ""),
        proxy.call("GET", "/provider-groups", &[("x-tone", "low")], "")
    );
    assert_eq!((one.status, other.status, mock.received()), (200, 200, 5), "nobody gets another's");
}

#[tokio::test]
async fn with_no_time_of_our_own_upstream_alone_decides() {
    let (mock, proxy) = pair("cache.ttl = '0s'").await;
    for _ in 0..2 {
        assert_eq!(proxy.get("/providers").await.field("cache-status"), MISS);
    }
    let last_modified = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
    mock.fault(Fault { headers: with(&[("cache-control", "max-age=0"), last_modified]), ..Fault::default() });
    assert_eq!(proxy.get("/providers").await.field("cache-status"), STORED);
    mock.fault(Fault {
        status: Some(304),
        headers: with(&[("cache-control", "max-age=60")]),
        ..Fault::default()
    });
    let reply = proxy.get("/providers").await;
    assert_eq!((reply.status, reply.items()), (200, 20));
    let asked = mock.last().headers;
    assert!(asked.contains(&("if-modified-since".to_owned(), last_modified.1.to_owned())), "{asked:?}");
    assert!(proxy.get("/providers").await.field("cache-status").contains("; hit"));
    let since = [("if-modified-since", last_modified.1)];
    assert_eq!(proxy.call("GET", "/providers", &since, "").await.status, 304);
    // Nothing stale where upstream does not say so, not even in the place of an error.
    let toml = "cache.ttl = '0s'\nupstream.retry.max_attempts = 1";
    let (mock, proxy) = pair(toml).await;
    mock.fault(Fault { headers: with(&[("cache-control", "max-age=1"), ("age", "0")]), ..Fault::default() });
    assert_eq!(proxy.get("/providers").await.field("cache-status"), STORED);
    eventually_stale(&proxy, "/providers").await;
    mock.fault(Fault { status: Some(503), ..Fault::default() });
    assert_eq!(proxy.get("/providers").await.status, 503);
}

/// Waits until a page that is fresh for a second is no hit any more; costs one request.
async fn eventually_stale(proxy: &Proxy, target: &str) {
    while proxy.get(target).await.field("cache-status").contains("; hit") {
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn callers_directives_count_only_where_the_operator_wants_that() {
    let wish = [("cache-control", "max-age=0")];
    for (honoured, hits) in [(false, true), (true, false)] {
        let (mock, proxy) = pair(&format!("cache.honor_client_directives = {honoured}")).await;
        proxy.get("/providers").await;
        stale().await;
        let reply = proxy.call("GET", "/providers", &[("cache-control", "no-cache")], "").await;
        let told = reply.field("cache-status");
        let asked = told.starts_with("metorial-proxy; fwd=request");
        assert_eq!((told.contains("; hit"), asked), (hits, !hits), "{told}: it was fresh");
        mock.fault(Fault { route: "GET /providers".into(), status: Some(503), ..Fault::default() });
        let failed = proxy.call("GET", "/providers", &[("cache-control", "no-cache")], "").await;
        assert_eq!(failed.status, if honoured { 503 } else { 200 }, "no page in its place");
        let only = [("cache-control", "only-if-cached")];
        assert_eq!(proxy.call("GET", "/providers", &only, "").await.status, 200);
        let unknown = proxy.call("GET", "/provider-groups", &only, "").await;
        let (status, told) = match honoured {
            true => (504, "metorial-proxy; detail=only-if-cached"),
            false => (200, "metorial-proxy; fwd=uri-miss; stored"),
        };
        assert_eq!((unknown.status, unknown.field("cache-status")), (status, told));
        if !honoured {
            assert!(proxy.call("GET", "/providers", &wish, "").await.field("cache-status").contains("; hit"));
        }
        let unkept = [("cache-control", "no-store")];
        proxy.call("GET", "/provider-listings", &unkept, "").await;
        let again = proxy.get("/provider-listings").await;
        assert_eq!(again.field("cache-status").contains("; hit"), hits);
    }
}

#[tokio::test]
async fn pages_are_compressed_once_for_callers_that_ask() {
    let (mock, proxy) = pair("").await;
    let target = "/providers?limit=50";
    // Of the body as upstream sent it.
    mock.fault(Fault { headers: with(&[("content-digest", "sha-256=:AA==:")]), ..Fault::default() });
    let plain = proxy.get(target).await;
    let vary: Vec<_> = plain.headers.get_all("vary").iter().collect();
    assert_eq!(plain.field("content-encoding"), "");
    assert_eq!(vary, ["Origin", "accept-encoding"]);
    for (asked, coding) in
        [("gzip, deflate, br", "br"), ("gzip", "gzip"), ("br;q=0, gzip;q=0.1", "gzip"), ("identity", "")]
    {
        let fields = [("accept-encoding", asked)];
        let coded = proxy.call("GET", target, &fields, "").await;
        assert_eq!(coded.field("content-encoding"), coding, "{asked}");
        assert_eq!(coded.field("content-length"), coded.body.len().to_string());
        if coding.is_empty() {
            assert_eq!(coded.body, plain.body);
            continue;
        }
        assert_eq!(decoded(coding, &coded.body), plain.body.to_vec());
        assert!(coded.body.len() < plain.body.len() / 3);
        assert_eq!(coded.field("content-digest"), "");
        assert_ne!(coded.field("etag"), plain.field("etag"), "another representation, another validator");
        let known = [fields[0], ("if-none-match", coded.field("etag"))];
        assert_eq!(proxy.call("GET", target, &known, "").await.status, 304);
        assert_eq!(proxy.call("GET", target, &known[1..], "").await.status, 200);
        let head = proxy.call("HEAD", target, &fields, "").await;
        assert_eq!(head.field("content-length"), coded.body.len().to_string());
    }
    assert_eq!(mock.received(), 1);
    let (_mock, proxy) = pair("cache.compress = false").await;
    let reply = proxy.call("GET", target, &[("accept-encoding", "gzip, br")], "").await;
    assert_eq!((reply.field("content-encoding"), reply.body.len()), ("", plain.body.len()));
}

fn decoded(coding: &str, body: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match coding {
        "br" => brotli::Decompressor::new(body, 4096).read_to_end(&mut plain),
        _ => flate2::read::GzDecoder::new(body).read_to_end(&mut plain),
    }
    .expect("decoded");
    plain
}

#[tokio::test]
async fn for_a_caller_that_is_paging_the_next_page_is_there_before_it_asks() {
    let run = async |settings: &str, pages: usize, ahead: bool| {
        let mock = Mock::with(Options { limit: Quota::PRODUCTION, items: 57, ..Options::default() }).await;
        let proxy = Proxy::start(mock.url(), settings);
        let (mut after, mut hits, mut asked) = (None, 0, 0);
        while asked < pages {
            let target = match &after {
                Some(after) => format!("/providers?limit=5&after={after}"),
                None => "/providers?limit=5".to_owned(),
            };
            let page = proxy.get(&target).await;
            asked += 1;
            hits += usize::from(page.field("cache-status").contains("; hit"));
            let json = page.json();
            if json["pagination"]["has_more_after"] == false {
                break;
            }
            after = json["items"].as_array().expect("items").last().expect("one")["id"]
                .as_str()
                .map(str::to_owned);
            if ahead && asked > 1 {
                // A reader takes its time.
                eventually("the next page is under way", || mock.received() as usize > asked).await;
                eventually("and there", || {
                    mock.handle.requests().iter().all(|record| record.status.is_some())
                })
                .await;
            }
        }
        (hits, asked, mock.received())
    };
    let on = "cache.prefetch = { enabled = true, above = 0.6 }";
    let (hits, asked, received) = run(on, 100, true).await;
    assert_eq!((asked, received), (12, 12), "each page is fetched once, and none beyond the last");
    assert_eq!(hits, 10, "all but the first two");
    assert_eq!(run("", 100, false).await, (0, 12, 12), "off by default");
    let low = format!("{on}\n[[environments]]\nlimit = {{ requests = 10, window = '1h' }}\n");
    let (hits, _, received) = run(&low, 6, false).await;
    // Of ten, six must be left: after the fourth request nothing is fetched ahead any more.
    assert!(hits <= 2 && received <= 6, "never when the budget is low: {hits} {received}");
}

#[tokio::test]
async fn with_the_cache_off_every_request_goes_upstream_and_says_so() {
    let (mock, proxy) = pair("cache.enabled = false").await;
    for _ in 0..2 {
        let reply = proxy.get("/providers").await;
        assert_eq!((reply.status, reply.field("cache-status")), (200, "metorial-proxy; fwd=bypass"));
        assert_eq!((reply.field("age"), reply.field("etag")), ("", ""));
    }
    assert_eq!(mock.received(), 2);
}

#[tokio::test]
async fn every_line_of_a_field_that_goes_upstream_is_in_the_key() {
    let (mock, proxy) = pair("").await;
    let authorization = format!("Bearer {KEY}");
    let one = [("authorization", authorization.as_str()), ("accept", "application/json")];
    let two = [one[0], one[1], ("accept", "text/evil")];
    let nominated = [one[0], one[1], ("connection", "accept")];
    for (fields, received) in
        [(&two as &[_], 1), (&one, 2), (&nominated, 3), (&one, 3), (&two, 3), (&nominated, 3)]
    {
        assert_eq!(proxy.send(request("GET", "/providers", fields, "")).await.status, 200);
        assert_eq!(mock.received(), received, "{fields:?}");
    }
}

#[tokio::test]
async fn a_stale_page_takes_the_place_of_one_that_is_late() {
    let settings = "cache.ttl = '1ms'\ncache.stale_while_revalidate = '0s'\nserver.request_timeout = '400ms'\nupstream.attempt_timeout = '200ms'";
    let (mock, proxy) = pair(settings).await;
    let first = proxy.get("/providers").await;
    assert_eq!(first.status, 200);
    mock.fault(Fault { next: 10, delay_ms: Some(5000), ..Fault::default() });
    let late = proxy.get("/providers").await;
    assert_eq!((late.status, &late.body), (200, &first.body));
    assert_eq!(late.field("cache-status"), "metorial-proxy; fwd=stale; detail=error");
}

#[tokio::test]
async fn a_write_that_was_never_sent_drops_nothing() {
    let (mock, proxy) = pair("cache.ttl = '60s'").await;
    assert_eq!(proxy.get("/provider-deployments").await.status, 200);
    for _ in 0..3 {
        let mut tcp = connect(proxy.address).await;
        let head = format!(
            "POST /provider-deployments HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n\
             content-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
        );
        tcp.write_all(head.as_bytes()).await.expect("written");
        drop(tcp);
    }
    eventually("forgotten", || proxy.status().environments[0].queued == 0).await;
    let list = proxy.get("/provider-deployments").await;
    assert!(list.field("cache-status").starts_with("metorial-proxy; hit"), "{}", list.field("cache-status"));
    assert_eq!(mock.received(), 1);
}

#[tokio::test]
async fn a_page_that_upstream_has_since_replaced_by_what_cannot_be_kept_is_served_no_more() {
    let (mock, proxy) = pair("cache.ttl = '1ms'").await;
    let no_store = [("cache-control", "no-store")];
    for fault in [
        Fault { headers: with(&no_store), ..Fault::default() },
        Fault { headers: with(&[("set-cookie", "a=b")]), ..Fault::default() },
        Fault { status: Some(404), ..Fault::default() },
        Fault { status: Some(403), ..Fault::default() },
    ] {
        let described = format!("{fault:?}");
        let before = mock.received();
        assert_eq!(proxy.get("/providers").await.status, 200);
        stale().await;
        mock.fault(fault);
        let kept = proxy.get("/providers").await;
        assert!(kept.field("cache-status").ends_with("detail=revalidating"), "{described}: {kept:?}");
        eventually("it was fetched anew", || mock.received() == before + 2).await;
        eventually("and the answer is here", || {
            mock.handle.requests().iter().all(|record| record.status.is_some())
        })
        .await;
        stale().await;
        // Nothing is there to be served in the place of an error.
        mock.fault(Fault { status: Some(500), ..Fault::default() });
        let reply = proxy.get("/providers").await;
        assert_eq!((reply.status, reply.field("cache-status")), (500, MISS), "{described}");
    }
}

#[tokio::test]
async fn an_event_stream_is_passed_on_as_it_comes() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    // It never ends.
    let (url, _) = scripted(move |_| format!("{head}9\r\ndata: 1\n\n\r\n").into_bytes()).await;
    let proxy = Proxy::start(&url, "");
    let mut tcp = connect(proxy.address).await;
    let asked = format!("GET /providers HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n\r\n");
    tcp.write_all(asked.as_bytes()).await.expect("written");
    let mut read = Vec::new();
    while !read.windows(7).any(|bytes| bytes == b"data: 1") {
        assert_ne!(tcp.read_buf(&mut read).await.expect("read"), 0, "{}", String::from_utf8_lossy(&read));
    }
    assert!(String::from_utf8_lossy(&read).contains(MISS));
}

#[tokio::test]
async fn a_next_page_that_cannot_be_kept_is_fetched_ahead_once() {
    let mock = Mock::with(Options { limit: Quota::PRODUCTION, items: 57, ..Options::default() }).await;
    let proxy = Proxy::start(mock.url(), "cache.prefetch = { enabled = true, above = 0.1 }");
    let first = proxy.get("/providers?limit=5").await.json();
    let after = first["items"][4]["id"].as_str().expect("an id").to_owned();
    let target = format!("/providers?limit=5&after={after}");
    mock.fault(Fault { headers: with(&[("cache-control", "max-age=60")]), ..Fault::default() });
    mock.fault(Fault { next: 100, headers: with(&[("cache-control", "no-store")]), ..Fault::default() });
    for _ in 0..20 {
        assert_eq!(proxy.get(&target).await.status, 200);
        stale().await;
    }
    assert_eq!(mock.received(), 3);
}

#[tokio::test]
async fn an_answer_that_is_no_page_is_shared_with_those_alone_whom_it_is_for() {
    let (mock, proxy) = pair("upstream.retry.max_attempts = 1").await;
    for (number, (status, name, value, requests)) in [
        (403, "x-any", "thing", 1),
        (404, "vary", "Accept", 1),
        // Others' fields may be another thing to upstream, whatever the cache tells them apart by.
        (403, "vary", "User-Agent", 2),
        (404, "vary", "*", 2),
        (404, "cache-control", "private", 2),
        (404, "cache-control", "no-store", 2),
        (400, "x-any", "thing", 2),
        (431, "x-any", "thing", 2),
        // A trouble of upstream's is not made greater.
        (503, "cache-control", "no-store", 1),
    ]
    .into_iter()
    .enumerate()
    {
        let before = mock.received();
        let headers = with(&[(name, value)]);
        // Long enough for the second to come on a busy machine, too.
        mock.fault(Fault {
            next: 2,
            status: Some(status),
            delay_ms: Some(1000),
            headers,
            ..Fault::default()
        });
        let target = format!("/providers?limit={}", number + 1);
        let ask = async |agent| proxy.call("GET", &target, &[("user-agent", agent)], "").await;
        let (one, two) = tokio::join!(ask("one"), async {
            eventually("the first is on its way", || mock.received() > before).await;
            ask("two").await
        });
        assert_eq!((one.status, two.status), (status, status));
        assert_eq!(mock.received() - before, requests, "{status} {name}: {value}");
        // What was not asked for is not left to the next.
        if requests == 1 {
            ask("three").await;
        }
    }
}

#[tokio::test]
async fn what_upstream_finds_wrong_with_one_request_ends_no_page() {
    for status in [400, 413, 414, 431] {
        let settings =
            "cache.ttl = '1ms'\ncache.stale_while_revalidate = '10m'\ncache.stale_if_error = '10m'";
        let (mock, proxy) = pair(settings).await;
        assert_eq!(proxy.get("/providers").await.status, 200);
        stale().await;
        mock.fault(Fault { next: 1, status: Some(status), ..Fault::default() });
        assert_eq!(proxy.get("/providers").await.status, 200);
        eventually("it is fetched anew", || mock.received() == 2).await;
        let again = proxy.get("/providers").await;
        assert!(again.field("cache-status").starts_with("metorial-proxy; hit"), "{status}: {again:?}");
    }
}
