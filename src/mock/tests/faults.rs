use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Duration;

use serde_json::json;

use crate::mock::tests::support::{SECRET, request, roomy};
use crate::mock::{Fault, Reset};
use crate::time;

const LIST: &str = "/provider-deployments";

fn asked() -> http::Request<http_body_util::Full<bytes::Bytes>> {
    request("GET", LIST, &[("authorization", SECRET)], "")
}

/// What happened to the socket.
fn kind(error: &hyper::Error) -> Option<ErrorKind> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}

#[tokio::test]
async fn a_status_is_answered_so_many_times_with_the_apis_error() {
    let server = roomy().await;
    let body = json!({"route": "GET /provider-deployments", "next": 2, "status": 503, "headers": {
        "retry-after": "7", "x-powered-by": null, "RateLimit-Remaining": "3",
    }});
    let accepted = server.call("POST", "/_mock/faults", &[], &body.to_string()).await;
    assert_eq!(accepted.status, 200, "{accepted:?}");
    assert_eq!(server.get("/sessions").await.status, 200);
    for _ in 0..2 {
        let reply = server.get(LIST).await;
        assert_eq!((reply.status, &reply.json()["code"]), (503, &json!("internal_server_error")));
        assert_eq!((reply.field("retry-after"), reply.field("x-powered-by")), ("7", ""));
        assert_eq!((reply.field("ratelimit-limit"), reply.field("ratelimit-remaining")), ("5000", "3"));
    }
    assert_eq!(server.get(LIST).await.status, 200);
    assert_eq!(server.handle.counted(), 4);
}

#[tokio::test]
async fn a_429_on_demand_is_the_limiters_and_not_counted() {
    let server = roomy().await;
    let headers = BTreeMap::from([("Retry-After".to_owned(), Some("2".to_owned()))]);
    server.handle.fault(Fault { status: Some(429), headers, ..Fault::default() }).expect("a fault");
    let reply = server.get(LIST).await;
    assert_eq!((reply.status, reply.field("retry-after")), (429, "2"));
    assert_eq!(reply.json()["code"], "rate_limit_exceeded");
    assert_eq!((reply.field("ratelimit-remaining"), reply.field("metorial-req-id")), ("0", ""));
    assert_eq!((server.handle.counted(), server.handle.refused()), (0, 0));
    // Refused writes do nothing.
    server.handle.fault(Fault { status: Some(500), ..Fault::default() }).expect("a fault");
    assert_eq!(server.post(LIST, "{}").await.status, 500);
    server.handle.fault(Fault { status: Some(202), ..Fault::default() }).expect("a fault");
    let reply = server.get(&format!("{LIST}?limit=100")).await;
    assert_eq!((reply.status, reply.json()["items"].as_array().map(Vec::len)), (202, Some(57)));
    for status in [204, 304] {
        server.handle.fault(Fault { status: Some(status), ..Fault::default() }).expect("a fault");
        let reply = server.get(LIST).await;
        assert_eq!((reply.status, reply.body.len(), reply.field("content-type")), (status, 0, ""));
    }
}

#[tokio::test]
async fn a_reset_connection_answers_nothing_or_half() {
    let server = roomy().await;
    let reset = |reset| Fault { reset: Some(reset), ..Fault::default() };
    for _ in 0..2 {
        server.handle.fault(reset(Reset::Before)).expect("a fault");
    }
    let error = server.send(asked()).await.expect_err("no answer");
    assert_eq!(kind(&error), Some(ErrorKind::ConnectionReset), "{error:?}");
    assert!(server.send_h2(asked()).await.is_err());
    for _ in 0..2 {
        server.handle.fault(reset(Reset::AfterHead)).expect("a fault");
    }
    let error = server.send(asked()).await.expect_err("half an answer");
    assert_eq!(kind(&error), Some(ErrorKind::UnexpectedEof), "{error:?}");
    assert!(server.send_h2(asked()).await.is_err());
    let statuses: Vec<_> = server.handle.requests().iter().map(|record| record.status).collect();
    assert_eq!(statuses, [None, None, Some(200), Some(200)]);
    // Handled all the same: what was counted stays counted, what was written is there.
    assert_eq!(server.handle.counted(), 4);
    server.handle.fault(reset(Reset::Before)).expect("a fault");
    let headers = [("authorization", SECRET), ("content-type", "application/json")];
    server.send(request("POST", LIST, &headers, r#"{"name": "Lost"}"#)).await.expect_err("no answer");
    assert_eq!(server.json(&format!("{LIST}?search=lost")).await["items"][0]["name"], "Lost");
}

#[tokio::test]
async fn a_truncated_body_declares_its_whole_length() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = roomy().await;
    let whole = server.get(LIST).await.body.len();
    server.handle.fault(Fault { truncate: Some(10), next: 2, ..Fault::default() }).expect("a fault");
    let mut tcp = tokio::net::TcpStream::connect(server.addr).await.expect("a connection");
    let text = format!("GET {LIST} HTTP/1.1\r\nhost: x\r\nauthorization: {SECRET}\r\n\r\n");
    tcp.write_all(text.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.expect("closed after what was sent");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert_eq!(body.len(), 10);
    assert!(head.contains(&format!("content-length: {whole}")), "{head}");
    assert!(server.send_h2(asked()).await.is_err());
    assert_eq!(server.get(LIST).await.body.len(), whole);
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_be_late_or_give_the_key_away() {
    let server = roomy().await;
    server.handle.fault(Fault { delay_ms: Some(30_000), echo: true, ..Fault::default() }).expect("a fault");
    let started = time::Instant::now();
    let reply = server.get(LIST).await;
    assert!(started.elapsed() >= Duration::from_secs(30));
    assert_eq!((reply.field("x-echo"), &reply.json()["echo"]), (SECRET, &json!(SECRET)));
    assert_eq!(reply.json()["items"].as_array().map(Vec::len), Some(20));
}
