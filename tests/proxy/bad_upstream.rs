//! Whatever the API does to a connection: a clear answer in time, nothing kept or charged that should not be, and no
//! restart afterwards.

use std::time::Duration;

use metorial_proxy::time::timeout;

use crate::bad::Act::{Read, Reset, Serve, Trickle, Wait};
use crate::bad::{Act, BadUpstream, write};
use crate::black_hole::BlackHole;
use crate::client::{Connection, bearing, connect};
use crate::harness::{KEY, Proxy, eventually};
use crate::raw_client::RawClient;

/// One attempt and not a long one, and so few places that one which is not given back is missed.
const ONCE: &str =
    "upstream.retry.max_attempts = 1\nupstream.attempt_timeout = '200ms'\nserver.max_in_flight = 2\n";
const OK: &str = "HTTP/1.1 200 OK\r\n";

/// What it does, and the status and error that callers are told.
fn faults() -> Vec<(&'static str, Vec<Act>, u16, &'static str)> {
    let fields = |count: usize, value: &str| {
        format!("{OK}{}content-length: 0\r\n\r\n", format!("x: {value}\r\n").repeat(count))
    };
    let huge = "x".repeat(2 * 1024 * 1024);
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let alert = [21, 3, 3, 0, 2, 2, 70];
    let (lost, slow, no_http) = ("connection_terminated", "http_response_timeout", "http_protocol_error");
    let too_large = "http_response_header_section_size";
    vec![
        ("resets before it has read", vec![Reset], 502, lost),
        ("closes before it has read", vec![], 502, lost),
        ("resets after it has read", vec![Read, Reset], 502, lost),
        ("closes after it has read", vec![Read], 502, lost),
        ("resets within the head", vec![Read, write("HTTP/1.1 200 OK\r\ncont"), Reset], 502, lost),
        ("closes within the head", vec![Read, write("HTTP/1.1 200 OK\r\ncont")], 502, lost),
        (
            "resets within the body",
            vec![Read, write(format!("{OK}content-length: 9\r\n\r\nhalf")), Reset],
            502,
            lost,
        ),
        (
            "closes within the body",
            vec![Read, write(format!("{OK}content-length: 9\r\n\r\nhalf"))],
            502,
            lost,
        ),
        ("says nothing", vec![Read, Wait], 504, slow),
        ("trickles its head", vec![Read, write(OK), write("x: "), Trickle(b'x')], 504, slow),
        (
            "trickles its body",
            vec![Read, write(format!("{OK}content-length: 60000\r\n\r\n")), Trickle(b'x')],
            504,
            slow,
        ),
        (
            "goes on continuing",
            vec![Read, write("HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)), Wait],
            502,
            no_http,
        ),
        ("says who it is, and that is SSH", vec![Read, write("SSH-2.0-OpenSSH_9.6\r\n"), Wait], 502, no_http),
        ("speaks garbage", vec![Read, write([0, 1, 2, 255, b'\r', b'\n', b'\r', b'\n']), Wait], 502, no_http),
        ("speaks HTTP/2", vec![Read, write(settings), Wait], 502, no_http),
        ("speaks TLS", vec![Read, write(alert)], 502, no_http),
        (
            "switches protocols",
            vec![
                Read,
                write("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
                Wait,
            ],
            502,
            no_http,
        ),
        ("sends one huge field", vec![Read, write(fields(1, &huge)), Wait], 502, too_large),
        (
            "sends a field that never ends",
            vec![Read, write(format!("{OK}x: {huge}{huge}")), Wait],
            502,
            too_large,
        ),
        ("sends too many fields", vec![Read, write(fields(1000, "x")), Wait], 502, too_large),
        (
            "compresses unasked, and wrongly",
            vec![Read, write(format!("{OK}content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc")), Wait],
            502,
            "http_response_content_coding",
        ),
    ]
}

#[tokio::test]
async fn each_fault_is_told_in_time_once_and_nothing_of_it_stays() {
    for (fault, script, status, error) in faults() {
        let upstream =
            BadUpstream::start(move |nth| if nth < 6 { script.clone() } else { vec![Serve] }).await;
        let proxy = Proxy::start(&upstream.url, ONCE);
        let told = format!("metorial-proxy; error={error}");
        for _ in 0..3 {
            let reads = timeout(Duration::from_secs(10), proxy.get("/providers/x")).await.expect(fault);
            let writes = timeout(Duration::from_secs(10), proxy.post("/provider-deployments", "{}"))
                .await
                .expect(fault);
            for reply in [reads, writes] {
                assert_eq!((reply.status, reply.field("proxy-status")), (status, told.as_str()), "{fault}");
                assert!(
                    ["upstream_error", "upstream_timeout"].contains(&reply.refusal().1.as_str()),
                    "{fault}"
                );
            }
        }
        assert_eq!(upstream.accepted(), 6, "once for each: {fault}");
        assert!(!proxy.status().upstream.healthy, "{fault}");
        for _ in 0..2 {
            assert_eq!(proxy.get("/providers/x").await.body, "good", "no restart: {fault}");
        }
        assert_eq!(upstream.accepted(), 7, "and over one connection: {fault}");
        eventually(&format!("only that one is open: {fault}"), || upstream.open() == 1).await;
        let status = proxy.status();
        let spent = status.environments[0].limit - status.environments[0].remaining;
        // Where the connection broke before the request was written, none was charged.
        assert!((2..=8).contains(&spent) && (u64::from(spent) >= upstream.heads()), "{fault}: {spent}");
        assert_eq!(status.environments[0].queued + status.egress.queued, 0, "{fault}");
        assert!(status.upstream.healthy, "{fault}");
        assert!(proxy.metrics().await.contains("metorial_proxy_requests_in_flight 0\n"), "{fault}");
    }
}

#[tokio::test]
async fn a_get_is_sent_again_after_each_fault_that_may_pass_and_a_post_is_not() {
    for (fault, script, status, error) in
        faults().into_iter().filter(|fault| fault.3 == "connection_terminated")
    {
        let once = script.clone();
        let upstream = BadUpstream::start(move |nth| if nth == 0 { once.clone() } else { vec![Serve] }).await;
        let proxy = Proxy::start(&upstream.url, "");
        assert_eq!(proxy.get("/providers/x").await.body, "good", "{fault}");
        if !script.is_empty() && matches!(script[0], Read) {
            let upstream =
                BadUpstream::start(move |nth| if nth == 0 { script.clone() } else { vec![Serve] }).await;
            let proxy = Proxy::start(&upstream.url, "");
            let reply = proxy.post("/provider-deployments", "{}").await;
            assert_eq!((reply.status, upstream.heads()), (status, 1), "{fault} {error}");
        }
    }
}

#[tokio::test]
async fn what_came_of_an_answer_before_it_broke_off_is_sent_or_a_502() {
    for pieces in [1, 2, 9] {
        let body = "3\r\nabc\r\n".repeat(pieces);
        let answer = format!("{OK}transfer-encoding: chunked\r\n\r\n{body}");
        let upstream = BadUpstream::start(move |_| vec![Read, write(&answer)]).await;
        let proxy = Proxy::start(&upstream.url, "upstream.retry.max_attempts = 1");
        for _ in 0..20 {
            let mut client = RawClient::connect(proxy.address).await;
            let ask = format!("GET /providers/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n");
            client.send(ask.as_bytes()).await;
            let answer = client.answer(false).await.expect("a head");
            let broken = answer.status == 200 && !answer.whole && answer.body.starts_with("abc");
            assert!(broken || answer.status == 502, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn what_follows_an_answer_is_never_taken_for_the_next_one() {
    let answer = format!("{OK}content-length: 4\r\n\r\ngood{OK}content-length: 6\r\n\r\npoison");
    let upstream = BadUpstream::start(move |_| vec![Read, write(&answer), Wait]).await;
    let proxy = Proxy::start(&upstream.url, "upstream.attempt_timeout = '2s'");
    for nth in 1..=20 {
        assert_eq!(proxy.get("/providers/x").await.body, "good");
        assert_eq!(upstream.accepted(), nth, "the connection is not used again");
    }
}

#[tokio::test]
async fn an_address_that_answers_nothing_is_a_504_within_the_connect_timeout_and_costs_nothing() {
    let hole = BlackHole::at("127.0.0.1:0".parse().expect("an address")).expect("a hole");
    let toml = "upstream.connect_timeout = '100ms'\nupstream.retry.max_attempts = 2\n";
    let proxy = Proxy::start(format!("http://{}", hole.address), toml);
    for reply in [
        proxy.get("/providers").await,
        proxy.get("/providers/x").await,
        proxy.post("/provider-deployments", "{}").await,
    ] {
        assert_eq!(reply.refusal(), (504, "upstream_timeout".to_owned()));
        assert_eq!(reply.field("proxy-status"), "metorial-proxy; error=connection_timeout");
    }
    let status = proxy.status();
    assert_eq!(status.environments[0].remaining, status.environments[0].limit, "nothing was sent");
    assert!(!status.upstream.healthy);
    assert!(proxy.metrics().await.contains("error_type=\"connect\""));
}

#[tokio::test]
async fn callers_that_leave_while_the_api_is_silent_leave_nothing_behind() {
    let upstream = BadUpstream::start(|nth| if nth < 8 { vec![Read, Wait] } else { vec![Serve] }).await;
    let proxy = Proxy::start(
        &upstream.url,
        "server.max_in_flight = 8\nupstream.attempt_timeout = '1m'\nserver.request_timeout = '1m'",
    );
    let mut callers = Vec::new();
    for nth in 1..=8 {
        let mut caller = connect(proxy.address).await;
        let ask = format!("GET /providers/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut caller, ask.as_bytes()).await.expect("sent");
        eventually("it is upstream", || upstream.heads() == nth).await;
        callers.push(caller);
    }
    assert_eq!(proxy.get("/providers/x").await.refusal(), (503, "overloaded".to_owned()));
    drop(callers);
    eventually("their connections are closed", || upstream.open() == 0).await;
    assert_eq!(proxy.get("/providers/x").await.body, "good");
}

#[tokio::test]
async fn an_api_that_should_speak_http_2_and_does_not_is_told_apart_and_recovered_from() {
    let answer = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    for (script, error) in
        [(vec![Read, write(answer), Wait], "http_protocol_error"), (vec![Reset], "connection_terminated")]
    {
        let upstream = BadUpstream::start(move |_| script.clone()).await;
        let proxy = Proxy::start(&upstream.url, &format!("{ONCE}upstream.http2 = 'always'"));
        for nth in 1..=3 {
            let reply = proxy.get("/providers/x").await;
            assert_eq!(
                (reply.status, reply.field("proxy-status")),
                (502, format!("metorial-proxy; error={error}").as_str())
            );
            assert_eq!(upstream.accepted(), nth, "each time anew");
        }
        eventually("none is kept", || upstream.open() == 0).await;
    }
}

#[tokio::test]
async fn an_answer_of_no_known_length_that_goes_wrong_does_not_look_whole() {
    for body in [
        "transfer-encoding: chunked\r\n\r\nZZ\r\n",
        "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    ] {
        let answer = format!("{OK}{body}");
        let upstream = BadUpstream::start(move |_| vec![Read, write(&answer)]).await;
        let proxy = Proxy::start(&upstream.url, ONCE);
        for _ in 0..4 {
            let mut caller = Connection::http1(connect(proxy.address).await).await;
            let reply = caller.send(bearing(KEY, "/providers/x")).await;
            assert!(reply.as_ref().map_or(true, |reply| reply.status == 502), "{body}: {reply:?}");
            let page = proxy.get("/providers").await;
            assert_eq!(page.status, 502, "{body}");
        }
    }
}
