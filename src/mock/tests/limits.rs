use std::time::Duration;

use serde_json::json;

use crate::domain::key::SecretKey;
use crate::domain::quota::Quota;
use crate::mock::tests::support::{PUBLISHABLE, SECRET, request, start};
use crate::mock::{Algorithm, Options};
use crate::time;

fn of(requests: u32, seconds: u64) -> Quota {
    Quota { requests, window: Duration::from_secs(seconds) }
}

#[tokio::test]
async fn the_apis_429_says_when_but_not_retry_after() {
    let server = start(Options { limit: of(2, 600), ..Options::default() }).await;
    let first = server.get("/sessions").await;
    assert_eq!((first.field("ratelimit-limit"), first.field("ratelimit-remaining")), ("2", "1"));
    // 404 and 400 count, too.
    assert_eq!(server.get("/unheard-of").await.field("ratelimit-remaining"), "0");
    let headers = [("authorization", SECRET), ("origin", "https://app.test")];
    let reply = server.call("GET", "/sessions", &headers, "").await;
    assert_eq!(reply.status, 429);
    insta::assert_json_snapshot!(reply.json());
    let mut names: Vec<_> = reply.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "content-length",
        "content-type",
        "date",
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
    ];
    assert_eq!(names, expected);
    let reset: u64 = reply.field("ratelimit-reset").parse().expect("seconds");
    let wait = reset.checked_sub(time::unix_now()).expect("a date to come");
    assert!((590..=600).contains(&wait), "{wait}");
    // Neither preflights nor failed authentication, and another key is another organisation.
    assert_eq!(server.call("OPTIONS", "/sessions", &headers, "").await.status, 204);
    assert_eq!(server.call("GET", "/sessions", &[], "").await.status, 401);
    assert_eq!(server.call("GET", "/providers", &[("authorization", PUBLISHABLE)], "").await.status, 200);
    let counts = (server.handle.received(), server.handle.counted(), server.handle.refused());
    assert_eq!(counts, (6, 3, 1));
}

#[tokio::test]
async fn with_one_key_its_organisation_is_limited_as_a_whole() {
    let key = SecretKey::parse("metorial_sk_0123456789").ok();
    let server = start(Options { limit: of(1, 600), key, ..Options::default() }).await;
    assert_eq!(server.call("GET", "/providers", &[("authorization", PUBLISHABLE)], "").await.status, 200);
    assert_eq!(server.get("/providers").await.status, 429);
}

#[tokio::test]
async fn the_edge_refuses_before_the_api_hears_of_it() {
    let server = start(Options { egress_limit: of(2, 600), ..Options::default() }).await;
    assert_eq!(server.call("GET", "/sessions", &[], "").await.status, 401);
    assert_eq!(server.get("/sessions").await.status, 200);
    let reply = server.get("/sessions").await;
    assert_eq!((reply.status, reply.field("content-type")), (429, "text/html; charset=UTF-8"));
    assert!(reply.body.starts_with(b"<!DOCTYPE html>"));
    for absent in ["ratelimit-limit", "ratelimit-reset", "retry-after", "metorial-req-id", "x-powered-by"] {
        assert_eq!(reply.field(absent), "");
    }
    assert_eq!(server.call("OPTIONS", "/sessions", &[], "").await.status, 429);
    assert_eq!((server.handle.counted(), server.handle.refused()), (1, 2));
    // The control isn't limited.
    assert_eq!(server.call("GET", "/_mock/requests", &[], "").await.json()["refused"], json!(2));
}

#[tokio::test(start_paused = true)]
async fn each_algorithm_lets_pass_again_in_its_own_time() {
    for (algorithm, wait, passes) in [
        (Algorithm::Trailing, 599, false),
        (Algorithm::Trailing, 601, true),
        (Algorithm::Lazy, 599, false),
        (Algorithm::Lazy, 601, true),
        (Algorithm::Aligned, 601, true),
        (Algorithm::Bucket, 299, false),
        (Algorithm::Bucket, 301, true),
    ] {
        let server = start(Options { limit: of(2, 600), algorithm, ..Options::default() }).await;
        if algorithm == Algorithm::Aligned {
            // Two requests are within one window only if it has just begun.
            let into = time::Timestamp::now().0 % of(2, 600).window.as_nanos() as u64;
            tokio::time::advance(of(2, 600).window - Duration::from_nanos(into)).await;
        }
        for status in [200, 200, 429] {
            assert_eq!(server.get("/sessions").await.status, status, "{algorithm:?}");
        }
        tokio::time::advance(Duration::from_secs(wait)).await;
        let status = server.get("/sessions").await.status;
        assert_eq!(status, if passes { 200 } else { 429 }, "{algorithm:?} after {wait} s");
    }
}

#[tokio::test(start_paused = true)]
async fn answers_take_their_time_and_a_stop_waits_for_them() {
    let latency = Duration::from_secs(20);
    let server = start(Options { latency, ..Options::default() }).await;
    let started = time::Instant::now();
    server.call("GET", "/_mock/faults", &[], "").await;
    assert!(started.elapsed() < Duration::from_secs(1));
    let stop = async {
        time::sleep(Duration::from_secs(5)).await;
        server.stop.cancel();
    };
    let sent = server.send(request("GET", "/sessions", &[("authorization", SECRET)], ""));
    let (reply, ()) = tokio::join!(sent, stop);
    assert_eq!(reply.expect("an answer").status, 200);
    assert!(started.elapsed() >= latency);
    server.tasks.close();
    server.tasks.wait().await;
    assert!(tokio::net::TcpStream::connect(server.addr).await.is_err());
}
