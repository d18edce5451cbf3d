//! Requests of HTTP/2 that RFC 9113 calls malformed, or that would be two of HTTP/1.1.

use crate::h2_client::{
    CONTINUATION, Came, DATA, END_HEADERS, END_STREAM, H2Client, HEADERS, PADDED, block, frame,
};
use crate::harness::{KEY, Proxy};
use crate::raw_upstream::RawUpstream;

/// What may come of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum May {
    /// The stream is reset, or the connection ended.
    Reset,
    /// It is refused with this.
    Refused(u16),
    /// It is forwarded, once, as this.
    Forwarded(&'static str, &'static str),
}
use May::{Forwarded, Refused, Reset};

/// Frames of one stream, behind its head.
type Frames = Vec<Vec<u8>>;
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A request: `method`, and these fields instead of or behind those that it has; one without a value is left out.
fn fields(method: &str, path: &str, changes: &[(&str, &str)]) -> Fields {
    let bearer = format!("Bearer {KEY}");
    let usual = [
        (":method", method),
        (":scheme", "http"),
        (":authority", "proxy.test"),
        (":path", path),
        ("authorization", bearer.as_str()),
    ];
    // One character, one byte.
    let bytes =
        |text: &str| text.chars().map(|byte| u8::try_from(u32::from(byte)).expect("Latin-1")).collect();
    let change = |name: &str| changes.iter().find(|(changed, _)| *changed == name);
    let mut all: Vec<(&str, &str)> = Vec::new();
    for (name, value) in usual {
        match change(name) {
            Some((_, "-")) => {}
            Some((_, other)) => all.push((name, other)),
            None => all.push((name, value)),
        }
    }
    all.extend(changes.iter().filter(|(name, _)| usual.iter().all(|(usual, _)| usual != name)));
    // A `+` before a name: once more, where it stands.
    all.iter().map(|(name, value)| (bytes(name.trim_start_matches('+')), bytes(value))).collect()
}

fn encode(fields: &Fields) -> Vec<u8> {
    let fields: Vec<(&[u8], &[u8])> =
        fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
    block(&fields)
}

const BAD: &[May] = &[Reset, Refused(400)];
const MALFORMED: &[May] = &[Reset];

fn heads() -> Vec<(&'static str, Fields, &'static [May])> {
    const FINE: &[May] = &[Forwarded("GET /providers/x", "")];
    let changed = |changes: &[(&str, &str)]| fields("GET", "/providers/x", changes);
    let path = |path: &str| fields("GET", path, &[]);
    vec![
        ("a request", changed(&[]), FINE),
        ("no method", changed(&[(":method", "-")]), MALFORMED),
        ("no scheme", changed(&[(":scheme", "-")]), MALFORMED),
        ("no path", changed(&[(":path", "-")]), BAD),
        ("no authority", changed(&[(":authority", "-")]), BAD),
        ("a host instead of an authority", changed(&[(":authority", "-"), ("host", "proxy.test")]), FINE),
        ("two methods", changed(&[("+:method", "GET")]), MALFORMED),
        ("two paths", changed(&[("+:path", "/agents")]), MALFORMED),
        ("two schemes", changed(&[("+:scheme", "http")]), MALFORMED),
        ("two authorities", changed(&[("+:authority", "proxy.test")]), MALFORMED),
        ("a late method", changed(&[(":method", "-"), ("x-a", "b"), ("+:method", "GET")]), MALFORMED),
        ("a late path", changed(&[(":path", "-"), ("x-a", "b"), ("+:path", "/providers/x")]), MALFORMED),
        ("an unknown pseudo-field", changed(&[(":x", "y")]), MALFORMED),
        ("a status", changed(&[(":status", "200")]), MALFORMED),
        ("a protocol", changed(&[(":protocol", "websocket")]), MALFORMED),
        ("an empty method", changed(&[(":method", "")]), BAD),
        ("a method with a space", changed(&[(":method", "GET /x HTTP/1.1")]), MALFORMED),
        ("a method with a line", changed(&[(":method", "GET / HTTP/1.1\r\nx: y\r\n\r\nGET")]), MALFORMED),
        ("CONNECT", changed(&[(":method", "CONNECT")]), &[Reset, Refused(405)]),
        (
            "CONNECT as it should be",
            changed(&[(":method", "CONNECT"), (":scheme", "-"), (":path", "-"), (":authority", "x:443")]),
            &[Reset, Refused(405)],
        ),
        ("TRACE", changed(&[(":method", "TRACE")]), &[Refused(405)]),
        ("an empty path", path(""), BAD),
        ("a path without a slash", path("providers/x"), BAD),
        ("an absolute path", path("http://proxy.test/providers/x"), BAD),
        ("an asterisk", path("*"), BAD),
        ("a question mark alone", path("?a=b"), BAD),
        // The library cuts fragments off unseen.
        ("a fragment alone", path("#a"), &[Reset, Refused(400), Refused(403)]),
        ("a fragment", path("/providers/x#y"), &[Reset, Refused(400), Forwarded("GET /providers/x", "")]),
        ("a space in the path", path("/providers/x y"), BAD),
        ("a request in the path", path("/providers/x HTTP/1.1\r\nhost: y\r\n\r\nGET /agents"), BAD),
        ("a line in the path", path("/providers/x\r\nx: y"), BAD),
        ("LF in the path", path("/providers/x\n"), BAD),
        ("NUL in the path", path("/providers/\x00"), BAD),
        ("a tab in the path", path("/providers/x\ty"), BAD),
        ("a Latin path", path("/providers/\u{e9}"), BAD),
        ("two slashes", path("//providers/x"), BAD),
        ("dots", path("/providers/../agents"), BAD),
        ("another scheme", changed(&[(":scheme", "ftp")]), BAD),
        ("a URL for a scheme", changed(&[(":scheme", "http://x/?")]), BAD),
        ("an empty scheme", changed(&[(":scheme", "")]), BAD),
        ("a scheme with a line", changed(&[(":scheme", "http\r\nx: y")]), BAD),
        ("an empty authority", changed(&[(":authority", "")]), BAD),
        ("an authority with user information", changed(&[(":authority", "u@proxy.test")]), BAD),
        ("an authority with a path", changed(&[(":authority", "proxy.test/x")]), BAD),
        ("an authority with a line", changed(&[(":authority", "proxy.test\r\nx: y")]), BAD),
        ("an authority with a word for a port", changed(&[(":authority", "proxy.test:x")]), BAD),
        ("another host", changed(&[("host", "other.test")]), BAD),
        ("the same host", changed(&[("host", "proxy.test")]), FINE),
        ("two hosts", changed(&[("host", "proxy.test"), ("host", "proxy.test")]), BAD),
        ("a name in upper case", changed(&[("X-A", "b")]), MALFORMED),
        ("a name with a space", changed(&[("x a", "b")]), MALFORMED),
        ("a name with a colon", changed(&[("x:a", "b")]), MALFORMED),
        ("a name with a line", changed(&[("x: y\r\nz", "b")]), MALFORMED),
        ("a name with NUL", changed(&[("x\x00", "b")]), MALFORMED),
        ("a Latin name", changed(&[("x\u{e9}", "b")]), MALFORMED),
        ("an empty name", changed(&[("", "b")]), MALFORMED),
        ("a value with a line", changed(&[("x-a", "b\r\nx: y")]), MALFORMED),
        (
            "a value with a request",
            changed(&[("accept", "b\r\n\r\nGET /agents HTTP/1.1\r\nhost: x")]),
            MALFORMED,
        ),
        ("a value with LF", changed(&[("x-a", "b\nc")]), MALFORMED),
        ("a value with CR", changed(&[("x-a", "b\rc")]), MALFORMED),
        ("a value with NUL", changed(&[("x-a", "b\x00c")]), MALFORMED),
        ("a value behind a space", changed(&[("x-a", " b")]), BAD),
        ("a value before a tab", changed(&[("x-a", "b\t")]), BAD),
        ("connection", changed(&[("connection", "close")]), MALFORMED),
        ("connection: keep-alive", changed(&[("connection", "keep-alive")]), MALFORMED),
        ("keep-alive", changed(&[("keep-alive", "timeout=5")]), MALFORMED),
        ("proxy-connection", changed(&[("proxy-connection", "keep-alive")]), MALFORMED),
        ("upgrade", changed(&[("upgrade", "h2c")]), MALFORMED),
        ("transfer-encoding", changed(&[("transfer-encoding", "chunked")]), MALFORMED),
        ("te: trailers", changed(&[("te", "trailers")]), FINE),
        ("another te", changed(&[("te", "gzip")]), MALFORMED),
        ("te: trailers and another", changed(&[("te", "trailers, gzip")]), MALFORMED),
        ("a length without a body", changed(&[("content-length", "5")]), BAD),
        ("a length of nothing", changed(&[("content-length", "0")]), FINE),
        ("a length that is none", changed(&[("content-length", "x")]), BAD),
        ("a positive length", changed(&[("content-length", "+0")]), BAD),
        ("two lengths", changed(&[("content-length", "0"), ("content-length", "1")]), BAD),
        ("two lengths in a line", changed(&[("content-length", "0, 0")]), BAD),
        ("the same length twice", changed(&[("content-length", "0"), ("content-length", "0")]), BAD),
        ("another expectation", changed(&[("expect", "x")]), &[Reset, Refused(417)]),
        ("two cookies", changed(&[("cookie", "a=b"), ("cookie", "c=d")]), FINE),
    ]
}

/// Each is a head that opens a POST, and what follows it.
fn bodies() -> Vec<(&'static str, Fields, Frames, &'static [May])> {
    const FINE: &[May] = &[Forwarded("POST /provider-deployments", "hello")];
    let post = |changes: &[(&str, &str)]| fields("POST", "/provider-deployments", changes);
    let data = |flags: u8, text: &str| frame(DATA, flags, 0, text.as_bytes());
    let trailers =
        |flags: u8, fields: &[(&[u8], &[u8])]| frame(HEADERS, flags | END_HEADERS, 0, &block(fields));
    let five = &[("content-length", "5")];
    vec![
        ("a body", post(&[]), vec![data(END_STREAM, "hello")], FINE),
        ("a body in pieces", post(five), vec![data(0, "he"), data(0, ""), data(END_STREAM, "llo")], FINE),
        ("padding", post(five), vec![frame(DATA, PADDED | END_STREAM, 0, b"\x02hello\0\0")], FINE),
        ("too much padding", post(five), vec![frame(DATA, PADDED | END_STREAM, 0, b"\x09hello")], BAD),
        ("less than its length", post(five), vec![data(END_STREAM, "hell")], BAD),
        ("more than its length", post(five), vec![data(0, "hello"), data(END_STREAM, "!")], BAD),
        ("more than no length", post(&[("content-length", "0")]), vec![data(END_STREAM, "hello")], BAD),
        ("nothing of its length", post(five), vec![data(END_STREAM, "")], BAD),
        (
            "less, and trailers",
            post(five),
            vec![data(0, "hell"), trailers(END_STREAM, &[(b"x-a", b"b")])],
            BAD,
        ),
        ("trailers", post(five), vec![data(0, "hello"), trailers(END_STREAM, &[(b"x-a", b"b")])], FINE),
        ("trailers that go on", post(five), vec![data(0, "hello"), trailers(0, &[(b"x-a", b"b")])], BAD),
        (
            "pseudo-trailers",
            post(five),
            vec![data(0, "hello"), trailers(END_STREAM, &[(b":path", b"/x")])],
            BAD,
        ),
        (
            "trailers in upper case",
            post(five),
            vec![data(0, "hello"), trailers(END_STREAM, &[(b"X-A", b"b")])],
            BAD,
        ),
        (
            "trailers with a line",
            post(five),
            vec![data(0, "hello"), trailers(END_STREAM, &[(b"x", b"\r\n")])],
            BAD,
        ),
        (
            "trailers of the connection",
            post(five),
            vec![data(0, "hello"), trailers(END_STREAM, &[(b"transfer-encoding", b"chunked")])],
            &[Reset, Refused(400), Forwarded("POST /provider-deployments", "hello")],
        ),
        (
            "a request in the body",
            post(&[]),
            vec![data(END_STREAM, "0\r\n\r\nGET / HTTP/1.1\r\n\r\n")],
            &[Forwarded("POST /provider-deployments", "0\r\n\r\nGET / HTTP/1.1\r\n\r\n")],
        ),
        (
            "transfer-encoding",
            post(&[("transfer-encoding", "chunked")]),
            vec![data(END_STREAM, "0\r\n\r\n")],
            BAD,
        ),
        ("data in between the head", post(&[]), vec![frame(CONTINUATION, END_HEADERS, 0, b"")], BAD),
    ]
}

async fn came(client: &mut H2Client, upstream: &RawUpstream, stream: u32) -> (May, bool) {
    let (came, alive) = match client.outcome(stream).await {
        Came::Answer { status, whole: true, .. } if status >= 400 => (Refused(status), true),
        Came::Answer { status: 200, body, whole: true } => {
            assert_eq!(body, "fine");
            let got = upstream.got();
            let [one] = &got[..] else { panic!("not one: {got:?}") };
            assert!(
                one.whole && one.fields("host").len() == 1 && one.fields("authorization").len() == 1,
                "{one:?}"
            );
            assert!(one.fields("x-a").is_empty() && one.fields("te").is_empty(), "{one:?}");
            let body = String::from_utf8_lossy(&one.body).into_owned();
            return (Forwarded(String::leak(one.target().to_owned()), String::leak(body)), true);
        }
        Came::Reset(_) => (Reset, true),
        Came::Ended(_) => (Reset, false),
        other => panic!("{other:?}"),
    };
    // What was cut off may have begun; nothing of it may look whole.
    assert!(upstream.got().iter().all(|got| !got.whole), "{came:?}, yet forwarded");
    (came, alive)
}

async fn probe(client: &mut H2Client, name: &str) {
    let stream = client.open();
    let head = encode(&fields("GET", &format!("/providers/probe-{stream}"), &[]));
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)).await;
    let body = format!("GET /providers/probe-{stream}");
    assert_eq!(client.outcome(stream).await, Came::Answer { status: 200, body, whole: true }, "after {name}");
}

#[tokio::test]
async fn a_malformed_request_is_refused_and_no_other_of_its_connection() {
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, "");
    let mut wrong = Vec::new();
    let heads = heads().into_iter().map(|(name, fields, may)| (name, fields, None, may));
    let bodies = bodies().into_iter().map(|(name, fields, frames, may)| (name, fields, Some(frames), may));
    for (name, fields, frames, may) in heads.chain(bodies) {
        let mut client = H2Client::connect(proxy.address, &[]).await;
        let stream = client.open();
        let flags = if frames.is_some() { END_HEADERS } else { END_HEADERS | END_STREAM };
        client.send(&frame(HEADERS, flags, stream, &encode(&fields))).await;
        for mut frame in frames.into_iter().flatten() {
            frame[5..9].copy_from_slice(&stream.to_be_bytes());
            client.send(&frame).await;
        }
        let (came, alive) = came(&mut client, &upstream, stream).await;
        if !may.contains(&came) {
            wrong.push(format!("{name}: {came:?} instead of {may:?}"));
        }
        if alive {
            probe(&mut client, name).await;
        }
        probe(&mut H2Client::connect(proxy.address, &[]).await, name).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
