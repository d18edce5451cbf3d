//! The API at its worst: unreachable, silent, broken, talkative. And large bodies, both ways.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use metorial_proxy::domain::key::SecretKey;
use metorial_proxy::mock::{Fault, Options, Reset};
use metorial_proxy::time::sleep;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::client::{raw, request, try_send};
use crate::harness::{KEY, Mock, OTHER_SECRET, Proxy, SECRET, eventually, pair, scripted, upstream};

/// One attempt, and not a long one.
const ONCE: &str = "upstream.retry.max_attempts = 1\nupstream.attempt_timeout = '200ms'\n";

/// Base64 of the secret, as it stands at the beginning of a text.
fn base64(text: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    text.as_bytes()
        .chunks(3)
        .flat_map(|three| {
            let [a, b, c] = [0, 1, 2].map(|at| u32::from(three.get(at).copied().unwrap_or(0)));
            let bits = a << 16 | b << 8 | c;
            [18, 12, 6, 0].map(|shift| char::from(ALPHABET[(bits >> shift & 63) as usize]))
        })
        .collect()
}

#[tokio::test]
async fn an_upstream_that_refuses_connections_is_a_502_and_the_proxy_goes_on() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let proxy = Proxy::start(&url, ONCE);
    for reply in [
        proxy.get("/providers").await,
        proxy.get("/providers/x").await,
        proxy.post("/provider-deployments", "{}").await,
    ] {
        assert_eq!(reply.refusal(), (502, "upstream_error".to_owned()));
        assert_eq!(reply.field("proxy-status"), "metorial-proxy; error=connection_refused");
        assert!(
            !String::from_utf8_lossy(&reply.body).contains("127.0.0.1"),
            "where it is, is no caller's business"
        );
    }
    assert_eq!(proxy.get("/agents").await.status, 403);
    assert!(!proxy.status().upstream.healthy);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_or_speaks_something_else_is_told_apart() {
    for (answer, error) in [
        ("SSH-2.0-OpenSSH_9.6\r\n", "http_protocol_error"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "http_protocol_error"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", "http_protocol_error"),
        (
            "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
            "http_response_content_coding",
        ),
    ] {
        let (url, _) = scripted(move |_| answer.into()).await;
        let proxy = Proxy::start(&url, ONCE);
        let reply = proxy.get("/providers/x").await;
        assert_eq!(reply.refusal(), (502, "upstream_error".to_owned()), "{answer}");
        assert_eq!(reply.field("proxy-status"), format!("metorial-proxy; error={error}"), "{answer}");
    }
    let proxy = Proxy::start("http://no-such-host.invalid", ONCE);
    assert_eq!(proxy.get("/providers").await.field("proxy-status"), "metorial-proxy; error=dns_error");
}

#[tokio::test]
async fn an_upstream_that_says_nothing_is_a_504_after_as_many_attempts_as_are_safe() {
    let (url, accepted) = scripted(|_| Vec::new()).await;
    let proxy = Proxy::start(&url, "upstream.attempt_timeout = '100ms'\nupstream.retry.max_attempts = 3");
    let reply = proxy.get("/providers/x").await;
    assert_eq!(reply.refusal(), (504, "upstream_timeout".to_owned()));
    assert_eq!(reply.field("proxy-status"), "metorial-proxy; error=http_response_timeout");
    eventually("three attempts", || accepted.load(Relaxed) == 3).await;
    assert_eq!(proxy.post("/provider-deployments", "{}").await.status, 504);
    // Nobody knows whether it was done.
    eventually("one attempt more", || accepted.load(Relaxed) == 4).await;
    let proxy = Proxy::start(&url, "server.request_timeout = '200ms'");
    assert_eq!(proxy.get("/providers").await.refusal(), (504, "upstream_timeout".to_owned()));
}

#[tokio::test]
async fn what_is_safe_is_tried_again_after_a_reset_and_what_is_not_is_not() {
    let (mock, proxy) = pair("").await;
    let reset = || Fault { reset: Some(Reset::Before), ..Fault::default() };
    mock.fault(reset());
    assert_eq!(proxy.get("/providers").await.status, 200);
    mock.fault(reset());
    assert_eq!(proxy.call("HEAD", "/providers/x", &[], "").await.status, 404);
    assert_eq!(mock.received(), 4);
    mock.fault(reset());
    let reply = proxy.post("/provider-deployments", "{}").await;
    assert_eq!(reply.refusal(), (502, "upstream_error".to_owned()));
    assert_eq!(reply.field("proxy-status"), "metorial-proxy; error=connection_terminated");
    assert_eq!(mock.received(), 5);
}

/// A server that answers so many requests on each connection and meets the next with a close, unanswered. Counts the heads it
/// has read.
async fn forgetful(answered: usize) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let heads = Arc::new(AtomicU64::new(0));
    let (count, tasks) = (heads.clone(), TaskTracker::new());
    tasks.clone().spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let count = count.clone();
            tasks.spawn(async move {
                for nth in 0..=answered {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"{}") {
                        match tcp.read_buf(&mut head).await {
                            Ok(0) | Err(_) => return,
                            Ok(_) => {}
                        }
                    }
                    count.fetch_add(1, Relaxed);
                    if nth < answered {
                        tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                            .await
                            .expect("written");
                    }
                }
            });
        }
    });
    (url, heads)
}

#[tokio::test]
async fn a_connection_that_upstream_closes_as_we_write_is_no_proof_that_nothing_was_done() {
    let (url, heads) = forgetful(1).await;
    let proxy = Proxy::start(&url, "");
    for _ in 0..5 {
        assert_eq!(proxy.get("/providers/x").await.status, 200);
    }
    // Each but the first met a close, and was sent again.
    assert_eq!(heads.load(Relaxed), 9);
    let reply = proxy.post("/provider-deployments", "{}").await;
    assert_eq!(reply.refusal(), (502, "upstream_error".to_owned()));
    assert_eq!(heads.load(Relaxed), 10, "it may have been done: nobody asks twice");
}

#[tokio::test]
async fn an_answer_that_breaks_off_in_the_middle_is_asked_for_again_where_that_is_safe() {
    let (mock, proxy) = pair("").await;
    for fault in [
        Fault { reset: Some(Reset::AfterHead), ..Fault::default() },
        Fault { truncate: Some(10), ..Fault::default() },
    ] {
        mock.fault(fault.clone());
        assert_eq!(proxy.get("/providers/x").await.status, 404);
        mock.fault(fault);
        assert_eq!(proxy.post("/provider-deployments", r#"{"name": "once"}"#).await.status, 502);
    }
    assert_eq!(mock.received(), 6);
}

#[tokio::test]
async fn an_answer_that_trickles_has_until_the_attempt_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (tasks, accepted) = (TaskTracker::new(), Arc::new(AtomicU64::new(0)));
    let count = accepted.clone();
    tasks.clone().spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            count.fetch_add(1, Relaxed);
            tasks.spawn(async move {
                tcp.peek(&mut [0]).await.expect("a request");
                tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await.ok();
                // Until the other side has had enough.
                while tcp.write_all(b"x").await.is_ok() {
                    sleep(Duration::from_millis(5)).await;
                }
            });
        }
    });
    let proxy = Proxy::start(&url, "upstream.attempt_timeout = '200ms'\nupstream.retry.max_attempts = 2");
    assert_eq!(proxy.get("/providers/x").await.refusal(), (504, "upstream_timeout".to_owned()));
    assert_eq!(accepted.load(Relaxed), 2);
}

#[tokio::test]
async fn every_attempt_is_counted_and_only_those_that_were_sent() {
    let (mock, proxy) = pair(
        "upstream.retry.max_queue_wait = '0s'\n[[environments]]\nlimit = { requests = 3, window = '1h' }\n",
    )
    .await;
    let metrics = async || {
        let fields = [("host", proxy.admin.to_string())];
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let reply = try_send(proxy.admin, request("GET", "/metrics", &fields, "".to_owned())).await;
        String::from_utf8(reply.expect("an answer").body.to_vec()).expect("text")
    };
    mock.fault(Fault { reset: Some(Reset::Before), next: 3, ..Fault::default() });
    // The third is sent, and there is no budget for a fourth.
    let reply = proxy.get("/providers/x").await;
    assert_eq!(reply.refusal(), (429, "rate_limit_exceeded".to_owned()));
    assert_eq!(mock.received(), 3);
    let text = metrics().await;
    assert!(text.contains("metorial_proxy_retries_total{reason=\"connection_lost\"} 2\n"), "{text}");
    let attempts = text.lines().filter(|line| line.starts_with("http_client_request_duration_seconds_count"));
    let attempts: u64 = attempts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
    assert_eq!(attempts, 3, "{text}");
}

#[tokio::test]
async fn retries_have_a_budget_of_their_own() {
    let (mock, proxy) = pair("upstream.retry.budget = 0.0\nupstream.retry.max_attempts = 20").await;
    mock.fault(Fault { reset: Some(Reset::Before), next: 1000, ..Fault::default() });
    for _ in 0..5 {
        assert_eq!(proxy.get("/providers/x").await.status, 502);
    }
    // One a second over ten seconds may always be tried again.
    let attempts = mock.received();
    assert!((15..=20).contains(&attempts), "{attempts} attempts for 5 requests");
}

#[tokio::test]
async fn connections_are_used_again() {
    let (url, connections) = upstream(None).await;
    let proxy = Proxy::start(&url, "");
    for _ in 0..20 {
        assert_eq!(proxy.get("/providers/x").await.status, 200);
        assert_eq!(proxy.post("/provider-deployments", "{}").await.status, 200);
    }
    assert_eq!(connections.load(Relaxed), 1);
}

#[tokio::test]
async fn an_idle_connection_that_upstream_has_closed_costs_no_request() {
    let close = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
    let (url, _) = scripted(move |_| close.into()).await;
    let proxy = Proxy::start(&url, ONCE);
    for _ in 0..10 {
        assert_eq!(proxy.post("/provider-deployments", "{}").await.status, 200);
    }
}

#[tokio::test]
async fn when_our_own_key_is_refused_nobody_is_told_to_look_at_theirs() {
    let other = SecretKey::parse(OTHER_SECRET).expect("a key");
    let mock = Mock::with(Options { key: Some(other), ..Options::default() }).await;
    let proxy = Proxy::start(mock.url(), "");
    for target in ["/providers", "/providers/x"] {
        let reply = proxy.get(target).await;
        assert_eq!(reply.refusal(), (502, "upstream_credentials".to_owned()));
        assert_eq!(reply.field("www-authenticate"), "");
        assert_eq!(reply.field("proxy-status"), "metorial-proxy; error=proxy_configuration_error");
    }
    assert!(!proxy.status().upstream.credentials_ok);
    assert_eq!(mock.received(), 2, "it would be refused again");
}

#[tokio::test]
async fn an_answer_that_gives_the_secret_away_is_withheld() {
    let (mock, proxy) = pair("").await;
    for (method, target) in [
        ("GET", "/providers"),
        ("GET", "/providers/x"),
        ("HEAD", "/providers/x"),
        ("POST", "/provider-deployments"),
    ] {
        mock.fault(Fault { echo: true, ..Fault::default() });
        let reply = proxy.call(method, target, &[], "").await;
        assert_eq!(reply.status, 502, "{method} {target}");
        assert_eq!(reply.field("proxy-status"), "metorial-proxy; error=proxy_internal_response");
        assert!(!format!("{reply:?}").contains(&SECRET[..20]), "{reply:?}");
    }
    assert_eq!(proxy.get("/providers").await.status, 200, "and is not kept");
    let percent = SECRET.replace('_', "%5f");
    let base64 = base64(&format!("Bearer {SECRET}"));
    for hidden in [SECRET.to_owned(), percent, base64] {
        for answer in [
            format!("HTTP/1.1 200 OK\r\nx-note: {hidden}\r\ncontent-length: 0\r\n\r\n"),
            format!("HTTP/1.1 302 Found\r\nlocation: /?key={hidden}\r\ncontent-length: 0\r\n\r\n"),
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\na{hidden}b", hidden.len() + 2),
        ] {
            let (url, _) = scripted(move |_| answer.clone().into()).await;
            let proxy = Proxy::start(&url, "");
            assert_eq!(
                proxy.get("/providers/x").await.refusal(),
                (502, "secret_guard".to_owned()),
                "{hidden}"
            );
            assert_eq!(proxy.get("/providers").await.refusal(), (502, "secret_guard".to_owned()), "{hidden}");
        }
    }
}

#[tokio::test]
async fn a_secret_in_the_middle_of_a_stream_cuts_it_before_its_first_byte() {
    let filler = "x".repeat(100_000);
    let (one, two) = SECRET.split_at(SECRET.len() / 2);
    let chunk = |data: &str| format!("{:x}\r\n{data}\r\n", data.len());
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = [
        head.to_owned(),
        chunk(&filler),
        chunk(&format!("before-{one}")),
        chunk(two),
        chunk("after"),
        "0\r\n\r\n".into(),
    ]
    .concat();
    let (url, _) = scripted(move |_| answer.clone().into()).await;
    let proxy = Proxy::start(&url, "");
    let ask = format!(
        "GET /providers/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\r\n"
    );
    let answer = raw(proxy.address, &ask).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("xxx"), "the head had left");
    assert!(
        !answer.contains("metorial_sk_") && !answer.contains("after"),
        "{}",
        &answer[answer.len() - 200..]
    );
    assert!(!answer.ends_with("0\r\n\r\n"), "a cut answer must not look whole");
    assert!(
        try_send(
            proxy.address,
            request("GET", "/providers/x", &[("authorization", &format!("Bearer {KEY}"))], "")
        )
        .await
        .is_err()
    );
}

#[tokio::test]
async fn large_bodies_pass_both_ways_unchanged() {
    let (_mock, proxy) = pair("").await;
    let name: String = (0..5_000_000u32).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
    let sent = json!({ "name": name }).to_string();
    let created = proxy.post("/provider-deployments", &sent).await;
    assert_eq!(created.status, 200);
    assert!(created.json()["name"] == name.as_str());
    let id = created.json()["id"].as_str().expect("an id").to_owned();
    let read = proxy.get(&format!("/provider-deployments/{id}")).await;
    assert!(read.status == 200 && read.json()["name"] == name.as_str());
    assert_eq!(read.field("content-length"), read.body.len().to_string());
}

#[tokio::test]
async fn a_large_answer_that_breaks_off_does_not_look_whole() {
    let (mock, proxy) = pair("").await;
    let created =
        proxy.post("/provider-deployments", &json!({ "name": "x".repeat(300_000) }).to_string()).await;
    let target = format!("/provider-deployments/{}", created.json()["id"].as_str().expect("an id"));
    mock.fault(Fault { truncate: Some(200_000), ..Fault::default() });
    let ask = request("GET", &target, &[("authorization", &format!("Bearer {KEY}"))], "");
    assert!(try_send(proxy.address, ask).await.is_err());
    assert_eq!(proxy.get(&target).await.status, 200);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_however_its_length_is_told() {
    let (mock, proxy) = pair("server.max_request_body = '1KiB'").await;
    let head = format!(
        "POST /provider-deployments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    );
    let declared = raw(proxy.address, &format!("{head}content-length: 1025\r\n\r\n")).await;
    assert!(declared.starts_with("HTTP/1.1 413 ") && declared.contains("payload_too_large"), "{declared}");
    assert_eq!(mock.received(), 0);
    let chunk = |size: usize| format!("{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size));
    let chunked =
        raw(proxy.address, &format!("{head}transfer-encoding: chunked\r\n\r\n{}", chunk(1025))).await;
    assert!(chunked.starts_with("HTTP/1.1 413 ") && chunked.contains("payload_too_large"), "{chunked}");
    let within =
        raw(proxy.address, &format!("{head}transfer-encoding: chunked\r\n\r\n{}", chunk(1024))).await;
    assert!(
        within.starts_with("HTTP/1.1 400 ") && within.contains("invalid_json_body"),
        "the API's own: {within}"
    );
    assert_eq!(
        proxy.post("/provider-deployments", &json!({ "name": "x".repeat(1000) }).to_string()).await.status,
        200
    );
}

#[tokio::test]
async fn a_body_that_never_comes_is_a_408() {
    let (_mock, proxy) = pair("server.body_idle_timeout = '100ms'").await;
    let head = format!(
        "POST /provider-deployments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    );
    for framing in ["content-length: 10\r\n\r\n{", "transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"] {
        let answer = raw(proxy.address, &format!("{head}connection: close\r\n{framing}")).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"code\":\"timeout\""), "{answer}");
    }
}

#[tokio::test]
async fn targets_and_fields_that_are_too_long_are_refused_with_a_reason() {
    let (mock, proxy) = pair("server.max_uri = '1KiB'\nserver.max_header_bytes = '2KiB'").await;
    let long = "x".repeat(1024);
    for target in [format!("/{long}"), format!("/providers?search={long}")] {
        assert_eq!(proxy.get(&target).await.refusal(), (414, "uri_too_long".to_owned()));
    }
    let fields = [("x-a", long.as_str()), ("x-b", long.as_str())];
    let reply = proxy.call("GET", "/providers", &fields, "").await;
    assert_eq!(reply.refusal(), (431, "headers_too_large".to_owned()));
    assert_eq!(mock.received(), 0);
    assert_eq!(proxy.call("GET", "/providers", &fields[..1], "").await.status, 200);
}

#[tokio::test]
async fn more_in_flight_than_may_be_is_a_503() {
    let mock = Mock::with(Options { latency: Duration::from_millis(1500), ..Options::default() }).await;
    let proxy = Proxy::start(mock.url(), "server.max_in_flight = 1");
    let (first, second) = tokio::join!(proxy.get("/providers/x"), async {
        eventually("the first is upstream", || mock.received() == 1).await;
        proxy.get("/providers/y").await
    });
    assert_eq!(first.status, 404);
    assert_eq!(second.refusal(), (503, "overloaded".to_owned()));
    assert_eq!(second.field("retry-after"), "1");
    assert_eq!(proxy.get("/providers/y").await.status, 404, "there is room again");
}

#[tokio::test]
async fn the_secret_does_not_leave_in_a_reason_phrase_or_a_name_and_the_version_is_ours() {
    for (answer, status) in [
        (format!("HTTP/1.1 200 {SECRET}\r\ncontent-length: 2\r\n\r\nok"), 200),
        (format!("HTTP/1.0 200 {SECRET}\r\ncontent-length: 2\r\n\r\nok"), 200),
        (format!("HTTP/1.1 200 OK\r\nx-echo: {SECRET}\r\ncontent-length: 2\r\n\r\nok"), 502),
    ] {
        let (url, _) = scripted(move |_| answer.clone().into_bytes()).await;
        let proxy = Proxy::start(&url, ONCE);
        let head = format!(
            "GET /providers/x HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\r\n"
        );
        let reply = raw(proxy.address, &head).await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}");
        assert!(!reply.contains(SECRET), "{reply}");
    }
}

#[tokio::test]
async fn a_length_beside_a_transfer_coding_does_not_cut_the_body() {
    let answer =
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n";
    let (url, _) = scripted(move |_| answer.as_bytes().to_vec()).await;
    let proxy = Proxy::start(&url, ONCE);
    let reply = proxy.get("/providers/x").await;
    // Either reading is refused, or all of it arrives: never a part as the whole.
    assert!(reply.status == 502 || reply.body == "whole", "{reply:?}");
}

#[tokio::test]
async fn a_guarded_stream_is_told_in_the_metrics() {
    let long = "x".repeat(100_000);
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{long}{SECRET}", long.len() + SECRET.len());
    let (url, _) = scripted(move |_| answer.clone().into_bytes()).await;
    let proxy = Proxy::start(&url, ONCE);
    assert!(try_send(proxy.address, crate::client::bearing(KEY, "/providers/x")).await.is_err(), "cut");
    let metrics =
        raw(proxy.admin, "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(metrics.contains("metorial_proxy_secret_guard_total 1"), "{metrics}");
}

#[tokio::test]
async fn a_429_shuts_the_gate_whatever_is_wrong_with_its_body() {
    for broken in ["content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc", "content-length: 100\r\n\r\ncut"]
    {
        let answer =
            format!("HTTP/1.1 429 Too Many Requests\r\nretry-after: 30\r\nconnection: close\r\n{broken}");
        let (url, accepted) = scripted(move |_| answer.clone().into_bytes()).await;
        let proxy = Proxy::start(&url, "");
        for _ in 0..3 {
            let reply = proxy.get("/providers/x").await;
            assert_eq!(reply.refusal(), (429, "rate_limit_exceeded".to_owned()), "{broken}");
            assert_eq!(reply.json()["violated-policies"][0], "upstream");
        }
        assert_eq!(accepted.load(Relaxed), 1, "nothing goes upstream while it is shut");
    }
}
