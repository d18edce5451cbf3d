//! Callers who take their time: each phase has an end that trickling does not push back, and nobody else waits for them.

use std::time::Duration;

use metorial_proxy::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::bad::{Act, BadUpstream, write};
use crate::h2_client::{DATA, END_HEADERS, END_STREAM, H2Client, HEADERS, PING, WINDOW_UPDATE, block, frame};
use crate::harness::{KEY, Proxy, eventually};
use crate::raw_client::RawClient;
use crate::raw_upstream::{RawUpstream, Script, Then};

const OK: &str = "HTTP/1.1 200 OK\r\n";
/// Between two pieces of what is trickled.
const PAUSE: Duration = Duration::from_millis(20);
/// So many pieces are never taken within a deadline.
const MANY: usize = 1000;

const SHORT: &str =
    "server.header_read_timeout = '1s'\nserver.request_timeout = '1s'\nserver.body_idle_timeout = '1s'";

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: proxy.test\r\nauthorization: Bearer {KEY}\r\n\r\n")
}

/// Others are served meanwhile. The deadlines that are short here are theirs, too: on a busy machine an answer may be late (504), and
/// nothing else.
async fn probe(proxy: &Proxy) {
    let mut status = 504;
    for _ in 0..5 {
        if status == 504 {
            let mut client = RawClient::connect(proxy.address).await;
            client.send(get("/providers/probe").as_bytes()).await;
            status = client.answer(false).await.expect("an answer").status;
        }
    }
    assert_eq!(status, 200);
}

/// Sends `first`, then `piece` over and over; whether the other side has had enough before the end.
async fn is_cut(client: &mut RawClient, first: &str, piece: &str) -> bool {
    if !client.send(first.as_bytes()).await {
        return true;
    }
    if piece.is_empty() {
        // What comes before the end is an answer to what came before.
        client.answer(false).await;
        return client.is_closed().await;
    }
    for _ in 0..MANY {
        sleep(PAUSE).await;
        if !client.send(piece.as_bytes()).await {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn a_head_has_a_deadline_wherever_on_a_connection_it_stands() {
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, SHORT);
    let whole = get("/providers/probe");
    let trickled = async |first: &str, piece: &str| {
        let mut client = RawClient::connect(proxy.address).await;
        assert!(is_cut(&mut client, first, piece).await, "{first:?} {piece:?}");
    };
    let begun = format!("{whole}GET /providers/x HTTP/1.1\r\nx-a: ");
    tokio::join!(
        trickled("", "G"),
        trickled("", "\r\n"),
        trickled("GET /", "x"),
        trickled("GET / HTTP/1.1\r\n", "x: y\r\n"),
        trickled("GET / HTTP/1.1\r\nx: ", "y"),
        trickled("PRI * HTTP/2.0\r\n\r\nS", ""),
        trickled(&begun, "y"),
        trickled(&begun, ""),
        probe(&proxy),
    );
    assert!(upstream.got().is_empty());
}

#[tokio::test]
async fn a_head_in_frames_has_a_deadline_beside_streams_that_are_served() {
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, "server.header_read_timeout = '100ms'");
    let mut client = H2Client::connect(proxy.address, &[]).await;
    let bearer = format!("Bearer {KEY}");
    let fields: [(&[u8], &[u8]); 5] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"proxy.test"),
        (b":path", b"/provider-deployments"),
        (b"authorization", bearer.as_bytes()),
    ];
    let (served, begun) = (client.open(), client.open());
    client.send(&frame(HEADERS, END_HEADERS, served, &block(&fields))).await;
    client.send(&frame(DATA, 0, served, &[b'x'; 100])).await;
    client.send(&frame(HEADERS, END_STREAM, begun, b"")).await;
    assert!(client.is_ended().await, "nothing more of a head comes");
}

#[tokio::test]
async fn a_proxy_header_has_a_deadline() {
    let upstream = RawUpstream::start().await;
    let trusted = "server.proxy_protocol = true\nserver.trusted_proxies = ['127.0.0.1']";
    let proxy = Proxy::start(&upstream.url, &format!("{SHORT}\n{trusted}"));
    for (first, piece) in [("", ""), ("PROXY TCP4 1", "0")] {
        let mut client = RawClient::connect(proxy.address).await;
        assert!(is_cut(&mut client, first, piece).await, "{first:?} {piece:?}");
    }
}

#[tokio::test]
async fn a_body_has_a_deadline_however_it_is_framed() {
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, SHORT);
    let post = |fields: &str| {
        format!(
            "POST /provider-deployments HTTP/1.1\r\nhost: proxy.test\r\nauthorization: Bearer {KEY}\r\n{fields}\r\n"
        )
    };
    let trickled = async |fields: &str, piece: &str| {
        let mut client = RawClient::connect(proxy.address).await;
        client.send(post(fields).as_bytes()).await;
        for _ in 0..MANY {
            if !client.send(piece.as_bytes()).await {
                break;
            }
            tokio::select! {
                () = sleep(PAUSE) => {}
                answer = client.answer(false) => {
                    let answer = answer.expect("an answer");
                    assert_eq!((answer.status, answer.closes()), (408, true), "{fields} {answer:?}");
                    return;
                }
            }
        }
        panic!("{fields}: it was taken");
    };
    tokio::join!(
        trickled("content-length: 5000\r\n", "x"),
        trickled("content-length: 500000\r\n", "x"),
        trickled("transfer-encoding: chunked\r\n", "1\r\nx\r\n"),
        probe(&proxy),
    );
    assert!(upstream.got().iter().all(|got| !got.whole));
}

#[tokio::test]
async fn a_slow_and_steady_upload_is_taken() {
    let upstream = RawUpstream::start().await;
    let proxy =
        Proxy::start(&upstream.url, "server.header_read_timeout = '1s'\nserver.body_idle_timeout = '1s'");
    let mut client = RawClient::connect(proxy.address).await;
    let head = format!(
        "POST /provider-deployments HTTP/1.1\r\nhost: proxy.test\r\nauthorization: Bearer {KEY}\r\n\
         content-length: 51200\r\n\r\n"
    );
    client.send(head.as_bytes()).await;
    // For longer than either of the timeouts.
    for _ in 0..50 {
        sleep(Duration::from_millis(50)).await;
        assert!(client.send(&[b'x'; 1024]).await);
    }
    assert_eq!(client.answer(false).await.expect("an answer").status, 200);
    assert_eq!(upstream.got()[0].body.len(), 51200);
}

#[tokio::test]
async fn what_http2_was_sent_is_taken_in_peace_also_where_nothing_more_is_asked_for() {
    const LENGTH: usize = 300_000;
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, "server.idle_timeout = '100ms'");
    let head = format!("{OK}content-length: {LENGTH}\r\n\r\n");
    upstream.says(Script::keep([head.as_bytes(), &[b'x'; LENGTH]].concat()));
    let more = |by: u32| frame(WINDOW_UPDATE, 0, 0, &by.to_be_bytes());
    let mut client = H2Client::connect(proxy.address, &[0, 4, 0, 0x10, 0, 0]).await;
    client.send(&more(1 << 20)).await;
    let bearer = format!("Bearer {KEY}");
    let fields: [(&[u8], &[u8]); 5] = [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"proxy.test"),
        (b":path", b"/providers/x"),
        (b"authorization", bearer.as_bytes()),
    ];
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields))).await;
    let mut taken = 0;
    // For longer than the proxy takes for what is idle, and for a goodbye.
    while let Some(came) = client.frame().await {
        match came.kind {
            DATA => {
                taken += came.payload.len();
                sleep(Duration::from_millis(120)).await;
                client.send(&more(u32::try_from(came.payload.len()).expect("a frame"))).await;
            }
            PING if came.flags == 0 => drop(client.send(&frame(PING, 1, 0, &came.payload)).await),
            _ => {}
        }
    }
    assert_eq!(taken, LENGTH, "and then it was told goodbye");
}

#[tokio::test]
async fn who_takes_nothing_of_an_answer_without_end_loses_its_place() {
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, &format!("{SHORT}\nserver.max_in_flight = 1"));
    let mut bytes = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    bytes.resize(100_000, b'x');
    upstream.says(Script { bytes, then: Then::Repeat });
    let mut client = RawClient::connect(proxy.address).await;
    client.send(get("/providers/x").as_bytes()).await;
    let mut statuses = Vec::new();
    while statuses.len() < MANY && !(statuses.contains(&503) && statuses.last() == Some(&200)) {
        let mut other = RawClient::connect(proxy.address).await;
        other.send(get("/providers/probe").as_bytes()).await;
        statuses.push(other.answer(false).await.expect("an answer").status);
        sleep(PAUSE).await;
    }
    assert!(statuses.contains(&503), "it had the only place: {statuses:?}");
    assert_eq!(statuses.last(), Some(&200), "and lost it: {statuses:?}");
}

#[tokio::test]
async fn who_closes_its_side_behind_a_request_is_answered() {
    let said = CancellationToken::new();
    let until = said.clone();
    let upstream = BadUpstream::start(move |_| {
        let answer = format!("{OK}content-length: 4\r\n\r\nfine");
        vec![Act::Read, Act::Until(until.clone()), write(answer)]
    })
    .await;
    let proxy = Proxy::start(&upstream.url, "server.header_read_timeout = '100ms'");
    let mut client = RawClient::connect(proxy.address).await;
    client.send(get("/providers/x").as_bytes()).await;
    client.finish().await;
    eventually("it is upstream", || upstream.heads() == 1).await;
    // What looks whether anybody leaves has looked: it ends those that are too slow.
    let mut slow = RawClient::connect(proxy.address).await;
    slow.send(b"GET /providers/x HTTP/1.1\r\n").await;
    assert!(slow.is_closed().await);
    said.cancel();
    let answer = client.answer(false).await.expect("an answer");
    assert_eq!((answer.status, answer.body.as_str(), answer.closes()), (200, "fine", true));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn whoever_closes_its_side_is_not_answered_for_long() {
    let upstream = BadUpstream::start(|_| vec![Act::Read, Act::Wait]).await;
    let long = "upstream.attempt_timeout = '1m'\nserver.request_timeout = '1m'";
    let proxy = Proxy::start(&upstream.url, long);
    let mut client = RawClient::connect(proxy.address).await;
    client.send(get("/providers/x").as_bytes()).await;
    client.finish().await;
    eventually("it is upstream", || upstream.heads() == 1).await;
    assert!(client.is_closed().await, "it may be gone");
    eventually("what was done for it is over", || upstream.open() == 0).await;
}
