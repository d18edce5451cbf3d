//! Answers of an API that breaks the rules of HTTP/1.1: a part of one never passes as the whole, and is never kept.

use http::Response;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::harness::{KEY, Proxy};
use crate::raw_client::{Answer, RawClient};
use crate::raw_upstream::{RawUpstream, Script, Then, answer};

/// What a caller may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum May {
    /// This, whole.
    Whole(u16, &'static str),
    /// A refusal of ours: the API's fault.
    Failed,
    /// An answer that is seen to be broken, or none.
    Broken,
}
use May::{Broken, Failed, Whole};

/// Name, method, what the API writes and does then, and what may come of it.
type Case = (&'static str, &'static str, String, Then, &'static [May]);

fn cases() -> Vec<Case> {
    const OK: &str = "HTTP/1.1 200 OK\r\n";
    const FAILED: &[May] = &[Failed];
    const FINE: &[May] = &[Whole(200, "fine")];
    const EITHER: &[May] = &[Failed, Whole(200, "fine")];
    const CUT: &[May] = &[Failed, Broken];
    let get = |name, text: String, then, may| (name, "GET", text, then, may);
    let kept = |name, fields: &str, may: &'static [May]| get(name, format!("{OK}{fields}"), Then::Keep, may);
    let shut = |name, fields: &str, may: &'static [May]| get(name, format!("{OK}{fields}"), Then::Close, may);
    let long = "x".repeat(200_000);
    vec![
        kept("a length", "content-length: 4\r\n\r\nfine", FINE),
        kept("chunks", "transfer-encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n", FINE),
        shut("an end", "\r\nfine", FINE),
        get("HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nfine".into(), Then::Close, FINE),
        get(
            "HTTP/1.0 with a length",
            "HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\nfine".into(),
            Then::Close,
            FINE,
        ),
        get(
            "HTTP/1.0 with chunks",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n".into(),
            Then::Close,
            FAILED,
        ),
        // Lengths.
        kept(
            "length and chunks",
            "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n",
            FAILED,
        ),
        kept(
            "chunks and length",
            "transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n4\r\nfine\r\n0\r\n\r\n",
            FAILED,
        ),
        kept("two lengths", "content-length: 4\r\ncontent-length: 5\r\n\r\nfine", FAILED),
        kept("the same length twice", "content-length: 4\r\ncontent-length: 4\r\n\r\nfine", EITHER),
        kept("two lengths in a line", "content-length: 4, 5\r\n\r\nfine", FAILED),
        kept("a positive length", "content-length: +4\r\n\r\nfine", FAILED),
        kept("a negative length", "content-length: -4\r\n\r\nfine", FAILED),
        kept("a length in hexadecimal", "content-length: 0x4\r\n\r\nfine", FAILED),
        kept("a length that is none", "content-length: four\r\n\r\nfine", FAILED),
        kept("no length", "content-length:\r\n\r\nfine", FAILED),
        kept("a length beyond 64 bits", "content-length: 18446744073709551620\r\n\r\nfine", FAILED),
        kept("a length behind a space", "content-length : 4\r\n\r\nfine", FAILED),
        shut("gzip", "transfer-encoding: gzip\r\n\r\nfine", FAILED),
        shut("gzip, chunked", "transfer-encoding: gzip, chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n", FAILED),
        shut("chunked, identity", "transfer-encoding: chunked, identity\r\n\r\nfine", FAILED),
        shut(
            "chunked twice",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n",
            FAILED,
        ),
        shut("xchunked", "transfer-encoding: xchunked\r\n\r\nfine", FAILED),
        kept("a content coding", "content-encoding: gzip\r\ncontent-length: 4\r\n\r\nfine", FAILED),
        kept("an unknown content coding", "content-encoding: x\r\ncontent-length: 4\r\n\r\nfine", FAILED),
        // Cut off.
        shut("less than its length", "content-length: 9\r\n\r\nfine", FAILED),
        shut("nothing of its length", "content-length: 9\r\n\r\n", FAILED),
        shut("much less than its length", &format!("content-length: 300000\r\n\r\n{long}"), CUT),
        shut("no last chunk", "transfer-encoding: chunked\r\n\r\n4\r\nfine\r\n", CUT),
        shut("half a chunk", "transfer-encoding: chunked\r\n\r\n9\r\nfine", CUT),
        shut("no end of the last chunk", "transfer-encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n", CUT),
        shut("no chunk", "transfer-encoding: chunked\r\n\r\n", FAILED),
        shut("half a head", "content-le", FAILED),
        get("no answer", String::new(), Then::Close, FAILED),
        // Chunks.
        kept("a size that is none", "transfer-encoding: chunked\r\n\r\nx\r\nfine\r\n0\r\n\r\n", FAILED),
        kept("a negative size", "transfer-encoding: chunked\r\n\r\n-4\r\nfine\r\n0\r\n\r\n", FAILED),
        kept(
            "a size beyond 64 bits",
            "transfer-encoding: chunked\r\n\r\n10000000000000004\r\nfine\r\n0\r\n\r\n",
            FAILED,
        ),
        kept("data without an end", "transfer-encoding: chunked\r\n\r\n4\r\nfine0\r\n\r\n", CUT),
        kept("lines in LF", "transfer-encoding: chunked\r\n\r\n4\nfine\n0\n\n", FAILED),
        kept("trailers", "transfer-encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\nset-cookie: a=b\r\n\r\n", FINE),
        kept(
            "events that begin with a silence",
            "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n",
            FINE,
        ),
        // Bodies where none may be, and more than there should be.
        ("HEAD with a body", "HEAD", answer("fine"), Then::Keep, &[Whole(200, "")]),
        get(
            "204 with a body",
            "HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\nfine".into(),
            Then::Keep,
            &[Failed, Whole(204, "")],
        ),
        get(
            "204 with chunks",
            "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n".into(),
            Then::Keep,
            &[Failed, Whole(204, "")],
        ),
        get(
            "304 with a body",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\nfine".into(),
            Then::Keep,
            &[Failed, Whole(304, "")],
        ),
        kept("bytes behind", "content-length: 4\r\n\r\nfine!!!", FINE),
        kept("an answer behind", &format!("content-length: 4\r\n\r\nfine{}", answer("evil")), FINE),
        kept(
            "an answer behind chunks",
            &format!("transfer-encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n{}", answer("evil")),
            FINE,
        ),
        // Before the answer.
        get("100", format!("HTTP/1.1 100 Continue\r\n\r\n{}", answer("fine")), Then::Keep, FINE),
        get(
            "103",
            format!("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n{}", answer("fine")),
            Then::Keep,
            FINE,
        ),
        get(
            "100 very often, and then an answer",
            "HTTP/1.1 100 Continue\r\n\r\n".repeat(33) + &answer("fine"),
            Then::Keep,
            FAILED,
        ),
        get("100 without end", "HTTP/1.1 100 Continue\r\n\r\n".repeat(50), Then::Repeat, FAILED),
        get(
            "103 without end",
            "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(50),
            Then::Repeat,
            FAILED,
        ),
        get(
            "101",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nevil".into(),
            Then::Keep,
            FAILED,
        ),
        // Heads.
        get("no HTTP", "SSH-2.0-OpenSSH_9.0\r\n\r\n".into(), Then::Close, FAILED),
        get("HTTP/0.9", "fine".into(), Then::Close, FAILED),
        get("HTTP/2.0", "HTTP/2.0 200 OK\r\ncontent-length: 4\r\n\r\nfine".into(), Then::Close, FAILED),
        get("HTTP/1.2", "HTTP/1.2 200 OK\r\ncontent-length: 4\r\n\r\nfine".into(), Then::Close, FAILED),
        get("no status", "HTTP/1.1 OK\r\ncontent-length: 4\r\n\r\nfine".into(), Then::Close, FAILED),
        get("two digits", "HTTP/1.1 20 OK\r\ncontent-length: 4\r\n\r\nfine".into(), Then::Close, FAILED),
        get("four digits", "HTTP/1.1 2000 OK\r\ncontent-length: 4\r\n\r\nfine".into(), Then::Close, FAILED),
        get("status 000", "HTTP/1.1 000 OK\r\ncontent-length: 4\r\n\r\nfine".into(), Then::Close, FAILED),
        get("status 600", "HTTP/1.1 600 OK\r\ncontent-length: 4\r\n\r\nfine".into(), Then::Close, FAILED),
        get("status 999", "HTTP/1.1 999 OK\r\ncontent-length: 4\r\n\r\nfine".into(), Then::Close, FAILED),
        get("no reason", "HTTP/1.1 200\r\ncontent-length: 4\r\n\r\nfine".into(), Then::Close, EITHER),
        get(
            "a reason with markup",
            "HTTP/1.1 200 <b>\r\ncontent-length: 4\r\n\r\nfine".into(),
            Then::Close,
            EITHER,
        ),
        kept("NUL in a value", "x-a: b\0c\r\ncontent-length: 4\r\n\r\nfine", FAILED),
        kept("CR in a value", "x-a: b\rset-cookie: c=d\r\ncontent-length: 4\r\n\r\nfine", FAILED),
        kept("LF in a value", "x-a: b\nset-cookie: c=d\r\ncontent-length: 4\r\n\r\nfine", EITHER),
        kept("cookies", "set-cookie: a=b\r\nset-cookie2: a=b\r\ncontent-length: 4\r\n\r\nfine", FINE),
        kept("a fold", "x-a: b\r\n c\r\ncontent-length: 4\r\n\r\nfine", EITHER),
        kept("a space before the colon", "x-a : b\r\ncontent-length: 4\r\n\r\nfine", FAILED),
        kept("no name", ": b\r\ncontent-length: 4\r\n\r\nfine", FAILED),
        kept("no colon", "x-a\r\ncontent-length: 4\r\n\r\nfine", FAILED),
        kept(
            "a huge field",
            &format!("x-a: {}\r\ncontent-length: 4\r\n\r\nfine", "y".repeat(1_000_000)),
            FAILED,
        ),
        kept("1000 fields", &format!("{}content-length: 4\r\n\r\nfine", "x-a: y\r\n".repeat(1000)), FAILED),
        get("fields without end", "HTTP/1.1 200 OK\r\nx: ".to_owned() + &long, Then::Repeat, FAILED),
    ]
}

async fn ask(client: &mut RawClient, method: &str, target: &str) -> Option<Answer> {
    let request =
        format!("{method} {target} HTTP/1.1\r\nhost: proxy.test\r\nauthorization: Bearer {KEY}\r\n\r\n");
    client.send(request.as_bytes()).await;
    client.answer(method == "HEAD").await
}

async fn probe(client: &mut RawClient, name: &str) {
    let answer =
        ask(client, "GET", "/providers/probe").await.unwrap_or_else(|| panic!("no answer after {name}"));
    assert_eq!((answer.status, answer.body.as_str()), (200, "GET /providers/probe"), "after {name}");
}

fn came(answer: &Answer, name: &str) -> May {
    for field in ["set-cookie", "x-a: b", "link", "upgrade", "trailer", "alt-svc"] {
        let passed = answer.head.to_ascii_lowercase().contains(&format!("\r\n{field}"));
        assert!(!passed || field == "x-a: b", "{field} of {name}: {answer:?}");
    }
    assert!(!answer.body.contains("evil"), "{name}: {answer:?}");
    match (answer.status, answer.whole) {
        (502, true) => Failed,
        (_, false) => Broken,
        (status, true) => Whole(status, String::leak(answer.body.clone())),
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_answer_is_never_passed_on_as_right() {
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, "upstream.retry.max_attempts = 1");
    let mut wrong = Vec::new();
    for (at, (name, method, bytes, then, may)) in cases().into_iter().enumerate() {
        // A list page could be kept, one item never is.
        for target in ["/providers/x".to_owned(), format!("/providers?limit={}", at + 1)] {
            upstream.says(Script { bytes: bytes.clone().into_bytes(), then });
            let mut client = RawClient::connect(proxy.address).await;
            let answer = ask(&mut client, method, &target).await;
            let came = answer.as_ref().map_or(Broken, |answer| came(answer, name));
            if !may.contains(&came) {
                wrong.push(format!("{name} for {target}: {came:?} instead of {may:?}"));
            }
            if answer.is_some_and(|answer| answer.whole && !answer.closes()) {
                probe(&mut client, name).await;
            }
            probe(&mut RawClient::connect(proxy.address).await, name).await;
            // Where only the end of the connection told the end of the answer, it may be a part, too.
            let told = bytes.contains("content-length") || bytes.contains("transfer-encoding");
            if !matches!(came, Whole(200, _)) || !told {
                upstream.says(Script::keep(answer_again()));
                let mut client = RawClient::connect(proxy.address).await;
                let again =
                    ask(&mut client, "GET", &target).await.unwrap_or_else(|| panic!("none after {name}"));
                assert_eq!(
                    (again.status, again.body.as_str()),
                    (200, "again"),
                    "{name} was kept for {target}"
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn answer_again() -> String {
    answer("again")
}

/// An API that speaks HTTP/2 and says before each answer so often that it is still at it.
async fn hinting(times: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tasks.spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.expect("HTTP/2");
                while let Some(Ok((request, mut answer))) = connection.accept().await {
                    let times = if request.uri().path().ends_with("probe") { 1 } else { times };
                    for _ in 0..times {
                        let hint = Response::builder().status(103).body(()).expect("a head");
                        answer.send_informational(hint).expect("sent");
                    }
                    let mut body = answer.send_response(Response::new(()), false).expect("sent");
                    body.send_data("fine".into(), true).expect("sent");
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn answers_before_the_answer_are_few_over_http_2_too() {
    let always = "upstream.http2 = 'always'\nupstream.retry.max_attempts = 1";
    for (times, status) in [(32, 200), (33, 502), (5000, 502)] {
        let proxy = Proxy::start(hinting(times).await, always);
        for _ in 0..3 {
            let reply = proxy.get("/providers/x").await;
            assert_eq!(reply.status, status, "{times}");
            if status == 502 {
                assert_eq!(reply.field("proxy-status"), "metorial-proxy; error=http_protocol_error");
            }
            assert_eq!(proxy.get("/providers/probe").await.body, "fine", "{times}");
        }
    }
}
