use std::task::Waker;
use std::time::Duration;

use futures_util::FutureExt;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method};
use http_body_util::BodyExt;
use hyper::client::conn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, join};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;
use tokio_util::task::TaskTracker;

use super::*;
use crate::body::RequestBody;
use crate::edge::deadlines::{Deadlines, Limits};
use crate::edge::outbox::{Outbox, Socket};
use crate::time::{Instant, timeout};

/// What was made of an answer: status, fields, body, and whether the connection may serve again.
type Outcome = (u16, Vec<(String, String)>, Vec<u8>, bool);

fn request(method: Method) -> Outgoing {
    let mut request = Outgoing::new(method, PathAndQuery::from_static("/providers?limit=1"));
    request.fields = vec![(HOST, HeaderValue::from_static("api.test"))];
    request
}

/// A connection whose other end says these pieces one by one, each read before the next comes, and closes unless it `stays`.
async fn said<T>(pieces: &[&[u8]], stays: bool, ask: impl AsyncFnOnce(DuplexStream) -> T) -> T {
    let (ours, mut theirs) = duplex(1024 * 1024);
    let speak = async {
        for piece in pieces {
            theirs.write_all(piece).await.ok();
            for _ in 0..4 {
                yield_now().await;
            }
        }
        if !stays {
            theirs.shutdown().await.ok();
        }
    };
    tokio::join!(ask(ours), speak).0
}

async fn body(connection: &mut Http1<DuplexStream>, head: &mut Head) -> io::Result<Vec<u8>> {
    if let Some(whole) = connection.whole(head) {
        return Ok(whole.into());
    }
    let mut body = Vec::new();
    while let Some(data) = poll_fn(|cx| connection.poll_body(cx, &mut head.framing)).await {
        body.extend_from_slice(&data?);
    }
    Ok(body)
}

fn fields(headers: &http::HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

async fn ask(io: DuplexStream, request: &mut Outgoing) -> Result<Outcome, String> {
    let mut connection = Http1::new(io, Timestamp::now());
    let mut head = connection
        .ask(request)
        .await
        .map_err(|failed| format!("{}: {}", failed.fault.name(), failed.detail))?;
    let body = body(&mut connection, &mut head).await.map_err(|error| error.to_string())?;
    let stays = head.stays && connection.is_quiet(&mut Context::from_waker(Waker::noop()));
    Ok((head.parts.status.as_u16(), fields(&head.parts.headers), body, stays))
}

async fn answered(method: Method, pieces: &[&[u8]], stays: bool) -> Result<Outcome, String> {
    let mut request = request(method);
    said(pieces, stays, async |io| ask(io, &mut request).await).await
}

/// What hyper makes of the same.
async fn by_hyper(
    io: DuplexStream,
    mut request: Outgoing,
) -> Result<(u16, Vec<(String, String)>, Vec<u8>), String> {
    let (mut sender, connection) =
        conn::http1::handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
    let asked = async move {
        let response = sender.send_request(request.to_request()).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        let mut fields = fields(&head.headers);
        // What is said to the connection alone goes no further than ours.
        fields.retain(|(name, value)| {
            name != "connection" || !["close", "keep-alive"].contains(&&*value.to_ascii_lowercase())
        });
        Ok((head.status.as_u16(), fields, body.into()))
    };
    tokio::join!(asked, connection).0
}

/// An answer, what its body is, and whether the connection stays.
const ANSWERS: [(Method, &str, &str, bool); 14] = [
    (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "hello", true),
    (
        Method::GET,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n\r\nhello",
        "hello",
        false,
    ),
    (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "", true),
    (Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", "", true),
    (Method::HEAD, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "", true),
    (Method::GET, "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", "", true),
    (Method::DELETE, "HTTP/1.1 204 No Content\r\n\r\n", "", true),
    (
        Method::GET,
        "HTTP/1.1 200\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nx: y\r\n\r\n",
        "hello",
        true,
    ),
    (Method::GET, "HTTP/1.1 404 Not Found\r\nx: \u{e9}\r\n\r\nhello", "hello", false),
    (
        Method::GET,
        "HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\nhello",
        "hello",
        false,
    ),
    (
        Method::GET,
        "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "hello",
        true,
    ),
    (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n", "hello", false),
    (Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "", false),
    (Method::GET, "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", "", false),
];

#[tokio::test(flavor = "local")]
async fn an_answer_is_the_same_wherever_it_is_cut_and_its_connection_stays_where_it_may() {
    for (method, answer, expected, stays) in ANSWERS {
        let whole = answered(method.clone(), &[answer.as_bytes()], stays).await.expect(answer);
        assert_eq!((whole.2.as_slice(), whole.3), (expected.as_bytes(), stays), "{answer:?}");
        for cut in 1..answer.len() {
            let (first, second) = answer.as_bytes().split_at(cut);
            let outcome = answered(method.clone(), &[first, second], stays).await;
            // What comes behind an answer that its end comes with is the business of whoever asks next.
            assert_eq!(
                outcome.map(|(status, fields, body, _)| (status, fields, body)),
                Ok((whole.0, whole.1.clone(), whole.2.clone())),
                "{answer:?} at {cut}"
            );
        }
    }
}

#[tokio::test(flavor = "local")]
async fn what_is_no_answer_is_told_apart() {
    let lost = "connection_terminated: connection closed before message completed";
    let early = "HTTP/1.1 100 Continue\r\n\r\n".repeat(33);
    let fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101));
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(LONGEST_HEAD + SOME));
    for (answer, fault) in [
        ("", lost),
        ("HTTP/1.1 200 OK\r\n", lost),
        ("HTTP/1.1 100 Continue\r\n\r\n", lost),
        ("SSH-2.0-x\r\n", "http_protocol_error: invalid HTTP version"),
        ("HTTP/1.1 099 x\r\n\r\n", "http_protocol_error: invalid HTTP status-code parsed"),
        ("HTTP/1.1 200 OK\r\nx : y\r\n\r\n", "http_protocol_error: invalid header name"),
        ("HTTP/1.1 200 OK\r\nx: y\r\n z\r\n\r\n", "http_protocol_error: invalid header name"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "http_protocol_error: the answer's length is no length",
        ),
        (&early, "http_protocol_error: too many answers before the answer"),
        (&fields, "http_response_header_section_size: the answer has too many fields"),
        (&long, "http_response_header_section_size: the answer's head is too long"),
    ] {
        let outcome = answered(Method::GET, &[answer.as_bytes()], false).await;
        assert_eq!(
            outcome.map_err(|error| error.to_lowercase()),
            Err(fault.to_lowercase()),
            "{:?}",
            answer.get(..40)
        );
    }
}

#[tokio::test(flavor = "local")]
async fn a_body_is_never_taken_for_whole_that_is_not() {
    for answer in [
        "content-length: 6\r\n\r\nhello",
        "content-length: 600000\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nx\r\n",
        // More than one way to tell the length, or one that nobody knows.
        "content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        "content-length: 5, 5\r\n\r\nhello",
        "content-length: +5\r\n\r\nhello",
        "content-length:\r\n\r\nhello",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "transfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "transfer-encoding: identity\r\n\r\nhello",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{answer}");
        assert!(answered(Method::GET, &[answer.as_bytes()], false).await.is_err(), "{answer:?}");
    }
    let old = b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    assert!(answered(Method::GET, &[old], false).await.is_err());
}

#[tokio::test(flavor = "local")]
async fn a_request_goes_out_as_it_is_with_the_length_of_its_body() {
    let (ours, mut theirs) = duplex(1024);
    let mut request = request(Method::POST);
    request.body = Some(RequestBody::Held("{\"a\":1}".into()));
    let mut connection = Http1::new(ours, Timestamp::now());
    assert!(connection.ask(&mut request).now_or_never().is_none(), "no answer yet");
    let mut sent = vec![0; 1024];
    let count = theirs.read(&mut sent).await.expect("sent");
    let expected = "POST /providers?limit=1 HTTP/1.1\r\nhost: api.test\r\ncontent-length: 7\r\n\r\n{\"a\":1}";
    assert_eq!(String::from_utf8_lossy(&sent[..count]), expected);
}

#[tokio::test(flavor = "local")]
async fn an_answer_before_the_request_has_left_counts_and_its_connection_does_not_stay() {
    let (ours, mut theirs) = duplex(64);
    let mut request = request(Method::POST);
    request.body = Some(RequestBody::Held(vec![b'x'; 1000].into()));
    let answer = b"HTTP/1.1 413 x\r\ncontent-length: 3\r\n\r\nbig";
    let outcome = tokio::join!(ask(ours, &mut request), theirs.write_all(answer)).0;
    assert_eq!(outcome.map(|outcome| (outcome.0, outcome.2, outcome.3)), Ok((413, b"big".to_vec(), false)));
}

#[tokio::test(flavor = "local")]
async fn what_the_kernel_did_not_take_leaves_when_it_takes_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (ours, mut theirs) = (ours.expect("connected"), theirs.expect("accepted").0);
    SockRef::from(&ours).set_send_buffer_size(4 * 1024).expect("small");
    let mut before = 0;
    while let Ok(count) = ours.try_write(&[b'.'; 1024]) {
        before += count;
    }
    let (outbox, tasks) = (Outbox::default(), TaskTracker::new());
    tasks.spawn_local(outbox.clone().run());
    yield_now().await;
    let second = Duration::from_secs(1);
    let watch = Deadlines::default().watch(Limits { head: second, idle: second, silence: second });
    let mut connection = Http1::new(Socket::new(ours, outbox, Some(watch.clone())), Timestamp::now());
    let answer = async {
        for _ in 0..8 {
            yield_now().await;
        }
        assert_eq!(watch.sent(), 0, "there is no room for it");
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            assert!(theirs.read_buf(&mut read).await.expect("more") > 0);
        }
        theirs.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("answered");
        read.split_off(before)
    };
    let mut request = request(Method::GET);
    let expected = head::write(&request);
    let both = async { tokio::join!(connection.ask(&mut request), answer) };
    let (head, read) = timeout(Duration::from_secs(10), both).await.expect("no stall");
    assert_eq!(read, expected);
    assert!(head.expect("an answer").stays && connection.is_quiet(&mut Context::from_waker(Waker::noop())));
}

#[tokio::test(flavor = "local")]
async fn little_pieces_of_a_long_body_share_their_room_and_an_idle_connection_has_none() {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n";
    let body = [b'x'; 60_000];
    let pieces: Vec<&[u8]> = [&answer[..]].into_iter().chain(body.chunks(100)).collect();
    said(&pieces, true, async |io| {
        let mut connection = Box::new(Http1::new(io, Timestamp::now()));
        let mut head = connection.ask(&mut request(Method::GET)).await.expect("a head");
        assert_eq!(connection.whole(&mut head), None);
        let mut frames: Vec<Bytes> = Vec::new();
        while let Some(data) = poll_fn(|cx| connection.poll_body(cx, &mut head.framing)).await {
            frames.push(data.expect("more of it"));
        }
        assert!(frames.len() > 100, "{}", frames.len());
        let apart = frames.windows(2).filter(|two| two[0].as_ptr_range().end != two[1].as_ptr());
        assert!(apart.count() <= 2);
        let connection = connection.idle().expect("all is read");
        assert_eq!(connection.read.capacity(), 0);
    })
    .await;
}

#[tokio::test(flavor = "local")]
async fn where_nothing_could_leave_the_request_is_as_good_as_new() {
    let (ours, theirs) = duplex(64);
    drop(theirs);
    let mut request = request(Method::POST);
    let whole = head::write(&request);
    let failed = Http1::new(ours, Timestamp::now()).ask(&mut request).await.err();
    assert!(failed.is_some_and(|failed| failed.unsent));
    assert_eq!(head::write(&request), whole);
    let (ours, mut theirs) = duplex(16);
    let mut sent = [0; 8];
    let mut connection = Http1::new(ours, Timestamp::now());
    let failed =
        tokio::join!(connection.ask(&mut request), async move { theirs.read_exact(&mut sent).await }).0.err();
    assert!(failed.is_some_and(|failed| !failed.unsent), "some of it has");
}

#[tokio::test(flavor = "local")]
async fn behind_a_hint_too_the_request_is_as_good_as_new() {
    let (reader, mut hints) = duplex(1024);
    let (mut writer, full) = duplex(1);
    writer.write_all(b"x").await.expect("there is room for it");
    let mut request = request(Method::GET);
    let whole = head::write(&request);
    let mut connection = Http1::new(join(reader, writer), Timestamp::now());
    let mut asked = Box::pin(connection.ask(&mut request));
    hints.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await.expect("said");
    assert!(asked.as_mut().now_or_never().is_none(), "no answer yet");
    drop(full);
    assert!(asked.await.err().is_some_and(|failed| failed.unsent));
    assert_eq!(head::write(&request), whole);
}

#[tokio::test(flavor = "local")]
async fn a_connection_is_quiet_until_upstream_says_something_or_leaves() {
    for say in [&b"HTTP/1.1 408 Request Timeout\r\n\r\n"[..], b""] {
        let (ours, mut theirs) = duplex(64);
        let mut connection = Http1::new(ours, Timestamp::now());
        assert!(connection.is_quiet(&mut Context::from_waker(Waker::noop())));
        theirs.write_all(say).await.expect("said");
        drop(theirs);
        assert!(!connection.is_quiet(&mut Context::from_waker(Waker::noop())), "{say:?}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn whoever_found_it_quiet_is_woken_by_the_answer() {
    let (ours, mut theirs) = duplex(1024);
    let (mut connection, start) = (Http1::new(ours, Timestamp::now()), Instant::now());
    // A task of its own: what it does polls nobody else.
    TaskTracker::new().spawn_local(async move {
        let mut sent = [0; 16];
        theirs.read_exact(&mut sent).await.expect("a request");
        yield_now().await;
        theirs.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("said");
    });
    let ask = async {
        assert!(poll_fn(|cx| Poll::Ready(connection.is_quiet(cx))).await);
        connection.ask(&mut request(Method::GET)).await
    };
    let head = timeout(Duration::from_secs(5), ask).await.expect("in time");
    assert_eq!(head.expect("an answer").parts.status, StatusCode::NO_CONTENT);
    assert_eq!(start.elapsed(), Duration::ZERO, "woken by the time, not by the answer");
}

#[tokio::test(flavor = "local")]
async fn a_name_is_as_this_answer_says_it_whatever_the_last_one_said_there() {
    let long = format!("x-{}", "y".repeat(100));
    for names in
        [["server", "date"], ["Date", "Server"], ["date", "x-own"], [&long, "x-own"], ["x-own", &long]]
    {
        let lines: String = names.iter().map(|name| format!("{name}: z\r\n")).collect();
        let answer = format!("HTTP/1.1 204 No Content\r\n{lines}\r\n");
        let (_, fields, ..) =
            said(&[answer.as_bytes()], true, async |io| ask(io, &mut request(Method::GET)).await)
                .await
                .expect("an answer");
        let said = names.map(|name| (name.to_ascii_lowercase(), "z".to_owned()));
        assert_eq!(fields, said);
    }
}

/// Pieces of answers that may or may not make one.
fn answers() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 200 OK\r\n",
        "HTTP/1.1 204 x\r\n",
        "HTTP/1.1 304\r\n",
        "HTTP/1.1 103 x\r\n\r\nHTTP/1.1 500 x\r\n",
        "HTTP/1.1  200\n",
    ]);
    let field = prop::sample::select(vec![
        "content-length: 5\r\n",
        "content-length: 12\r\n",
        "Content-Length:0\r\n",
        "content-length: 5, 5\r\n",
        "transfer-encoding: chunked\r\n",
        "transfer-encoding: gzip\r\n",
        "connection: close\r\n",
        "Connection: Keep-Alive\r\n",
        "connection: x-hop\r\n",
        "x: y\r\n",
        "x:\t y \r\n",
        "x: \u{e9}\n",
        " folded\r\n",
        "x y: z\r\n",
    ]);
    let piece = prop::sample::select(vec![
        "hello",
        "5\r\nhello\r\n",
        "5;x\r\nhello\r\n",
        "0005\r\nhello\r\n",
        "5 \r\nhello\r\n",
        "0\r\n\r\n",
        "0\r\nx: y\r\n\r\n",
        "\r\n",
        "5\nhello\n",
        "FFFFFFFFFFFFFFFFF\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ]);
    let changed = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    let (fields, body) = (prop::collection::vec(field, 0..3), prop::collection::vec(piece, 0..4));
    (line, fields, body, changed).prop_map(|(line, fields, body, changed)| {
        let mut answer = [line, &fields.concat(), "\r\n", &body.concat()].concat().into_bytes();
        if let Some((at, byte)) = changed {
            let at = at.index(answer.len());
            answer[at] = byte;
        }
        answer
    })
}

proptest! {
    /// Stricter than hyper it may be, but what it takes for an answer is one, and the same.
    #[test]
    fn no_answer_is_taken_for_another_than_hyper_takes_it_for(
        answer in answers(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        head in prop::bool::weighted(0.1),
    ) {
        let method = if head { Method::HEAD } else { Method::GET };
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(answer.len())).collect();
        cuts.extend([0, answer.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let Ok((status, fields, body, _)) = answered(method.clone(), &pieces, false).await else { return Ok(()) };
            let theirs = said(&[&answer], false, async |io| by_hyper(io, request(method)).await).await;
            prop_assert_eq!(theirs, Ok((status, fields, body)), "{:?}", String::from_utf8_lossy(&answer));
            Ok(())
        })?;
    }
}
