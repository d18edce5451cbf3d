//! Requests of HTTP/1 that two readers could read in two ways.

use std::fmt::Write as _;

use crate::harness::{KEY, Proxy};
use crate::raw_client::RawClient;
use crate::raw_upstream::{Got, RawUpstream};

/// What may come of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum May {
    /// It is refused with one of these, and nothing behind it is read.
    Refused(&'static [u16]),
    /// It is forwarded, once, as this.
    Forwarded(&'static str, &'static str),
    /// It is answered here, and goes nowhere.
    Answered(u16),
    /// The connection ends without a word: there is nothing that an answer could be to.
    Closed,
}
use May::{Answered, Closed, Forwarded, Refused};

const BAD: &[May] = &[Refused(&[400])];
const POST: &str = "POST /provider-deployments HTTP/1.1\r\n";
const GET: &str = "GET /providers/x HTTP/1.1\r\n";

/// `<K>`: a host and a key; `<A>`: the key alone; `<S>`: a whole request behind, which must not be served where the one
/// before it was refused.
fn written(text: &str) -> Vec<u8> {
    let fields = format!("host: proxy.test\r\nauthorization: Bearer {KEY}\r\n");
    let bare = format!("authorization: Bearer {KEY}\r\n");
    let smuggled = format!("GET /providers/smuggled HTTP/1.1\r\n{fields}\r\n");
    let text = text.replace("<K>", &fields).replace("<A>", &bare).replace("<S>", &smuggled);
    // One character, one byte.
    text.chars().map(|byte| u8::try_from(u32::from(byte)).expect("Latin-1")).collect()
}

/// Name, bytes, what may come of them.
type Case = (&'static str, String, &'static [May]);

fn with(line: &str, fields: &str, body: &str) -> String {
    format!("{line}<K>{fields}\r\n{body}")
}

fn lengths() -> Vec<Case> {
    const WHOLE: &[May] = &[Refused(&[400]), Forwarded("POST /provider-deployments", "hello")];
    let post = |name, fields: &str, body: &str, may: &'static [May]| (name, with(POST, fields, body), may);
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    vec![
        post(
            "a length",
            "content-length: 5\r\n",
            "hello",
            &[Forwarded("POST /provider-deployments", "hello")],
        ),
        post(
            "chunks",
            "transfer-encoding: chunked\r\n",
            chunked,
            &[Forwarded("POST /provider-deployments", "hello")],
        ),
        post(
            "length before coding",
            "content-length: 5\r\ntransfer-encoding: chunked\r\n",
            "0\r\n\r\n<S>",
            BAD,
        ),
        post(
            "coding before length",
            "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
            "0\r\n\r\n<S>",
            BAD,
        ),
        post("coding in upper case", "TRANSFER-ENCODING: CHUNKED\r\n", chunked, WHOLE),
        post("coding behind a tab", "transfer-encoding:\tchunked\r\n", chunked, WHOLE),
        post("coding before a tab", "transfer-encoding: chunked\t\r\n", chunked, WHOLE),
        post("coding behind a vertical tab", "transfer-encoding: \x0bchunked\r\n", chunked, BAD),
        post("coding in quotes", "transfer-encoding: \"chunked\"\r\n", chunked, BAD),
        post("two codings", "transfer-encoding: identity, chunked\r\n", chunked, BAD),
        post("chunked is not last", "transfer-encoding: chunked, identity\r\n", chunked, BAD),
        post("chunked twice", "transfer-encoding: chunked, chunked\r\n", chunked, BAD),
        post("an empty element", "transfer-encoding: , chunked\r\n", chunked, BAD),
        post("a parameter", "transfer-encoding: chunked;a=b\r\n", chunked, BAD),
        post("gzip", "transfer-encoding: gzip\r\n", "hello", BAD),
        post("xchunked", "transfer-encoding: xchunked\r\ncontent-length: 5\r\n", "hello<S>", BAD),
        post("no coding", "transfer-encoding:\r\n", chunked, BAD),
        post(
            "two lines of codings",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            chunked,
            BAD,
        ),
        post("two different lines", "transfer-encoding: chunked\r\ntransfer-encoding: x\r\n", chunked, BAD),
        post("coding behind a space", "transfer-encoding : chunked\r\n", chunked, BAD),
        post("coding folded", "transfer-encoding:\r\n chunked\r\n", chunked, BAD),
        post("coding folded after", "x: y\r\n transfer-encoding: chunked\r\n", chunked, BAD),
        post("coding with NUL", "transfer-encoding: chunked\x00\r\n", chunked, BAD),
        post("coding in a name with NUL", "transfer-encoding\x00: chunked\r\n", chunked, BAD),
        (
            "coding in HTTP/1.0",
            with("POST /provider-deployments HTTP/1.0\r\n", "transfer-encoding: chunked\r\n", chunked),
            BAD,
        ),
        post("two equal lengths", "content-length: 5\r\ncontent-length: 5\r\n", "hello", BAD),
        post("two lengths", "content-length: 5\r\ncontent-length: 6\r\n", "hello<S>", BAD),
        post("two lengths in a line", "content-length: 5, 5\r\n", "hello", BAD),
        post("a positive length", "content-length: +5\r\n", "hello", BAD),
        post("a negative length", "content-length: -5\r\n", "hello", BAD),
        post("a length in hexadecimal", "content-length: 0x5\r\n", "hello", BAD),
        post("a length with a point", "content-length: 5.0\r\n", "hello", BAD),
        post("a length and a space", "content-length: 5 5\r\n", "hello", BAD),
        post("no length", "content-length:\r\n", "hello", BAD),
        post("a length with zeros", "content-length: 0005\r\n", "hello", WHOLE),
        post("a length beyond 64 bits", "content-length: 18446744073709551621\r\n", "hello", BAD),
        post(
            "a length at 64 bits",
            "content-length: 18446744073709551615\r\n",
            "hello",
            &[Refused(&[400, 413, 431])],
        ),
        post("a length beyond 128 bits", &format!("content-length: {}\r\n", "9".repeat(40)), "hello", BAD),
        post("a length behind a space", "content-length : 5\r\n", "hello", BAD),
        post("a length folded", "content-length:\r\n 5\r\n", "hello", BAD),
        post("more than may be", "content-length: 99999999999\r\n", "", &[Refused(&[413])]),
        ("a GET with a body", with(GET, "content-length: 5\r\n", "hello<S>"), BAD),
        ("a GET with chunks", with(GET, "transfer-encoding: chunked\r\n", "0\r\n\r\n<S>"), BAD),
    ]
}

fn chunks() -> Vec<Case> {
    const WHOLE: &[May] = &[Refused(&[400]), Forwarded("POST /provider-deployments", "hello")];
    let rows: &[(&'static str, &str, &'static [May])] = &[
        ("a size with zeros", "0005\r\nhello\r\n0\r\n\r\n", WHOLE),
        ("an extension", "5;a=b\r\nhello\r\n0;c\r\n\r\n", WHOLE),
        ("an extension behind a space", "5 ; a=\"b c\"\r\nhello\r\n0\r\n\r\n", WHOLE),
        ("a space behind a size", "5 \r\nhello\r\n0\r\n\r\n", BAD),
        ("a space before a size", " 5\r\nhello\r\n0\r\n\r\n", BAD),
        ("a positive size", "+5\r\nhello\r\n0\r\n\r\n", BAD),
        ("a negative size", "-5\r\nhello\r\n0\r\n\r\n", BAD),
        ("a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n", BAD),
        ("no size", "\r\nhello\r\n0\r\n\r\n", BAD),
        ("a size beyond 64 bits", "10000000000000005\r\nhello\r\n0\r\n\r\n", BAD),
        ("a size beyond any body", "7fffffffffffffff\r\nhello", BAD),
        ("the largest size of 64 bits", "ffffffffffffffff\r\nhello", BAD),
        ("a size that wraps to 5", "fffffffffffffffffffffffffffff5\r\nhello\r\n0\r\n\r\n", BAD),
        ("zeros without end", "0000000000000000000000000000000000000000005\r\nhello\r\n0\r\n\r\n", BAD),
        ("a size with underscores", "0_5\r\nhello\r\n0\r\n\r\n", BAD),
        ("a size that ends in LF", "5\nhello\r\n0\r\n\r\n", BAD),
        ("a size that ends in CR", "5\rhello\r\n0\r\n\r\n", BAD),
        ("an extension that ends in LF", "5;a\nhello\r\n0\r\n\r\n", BAD),
        ("an extension with CR", "5;a\rb\r\nhello\r\n0\r\n\r\n", BAD),
        ("an extension with NUL", "5;a\x00\r\nhello\r\n0\r\n\r\n", BAD),
        ("data without an end", "5\r\nhello0\r\n\r\n", BAD),
        ("data that ends in LF", "5\r\nhello\n0\r\n\r\n", BAD),
        ("more data than its size", "4\r\nhello\r\n0\r\n\r\n<S>", BAD),
        ("an end in LF", "5\r\nhello\r\n0\n\n<S>", BAD),
        ("an end in CRLF LF", "5\r\nhello\r\n0\r\n\n<S>", BAD),
        ("trailers", "5\r\nhello\r\n0\r\nx-a: b\r\ncontent-length: 9\r\n\r\n", WHOLE),
        ("a trailer that ends in LF", "5\r\nhello\r\n0\r\nx-a: b\n\r\n<S>", BAD),
        ("a trailer without a name", "5\r\nhello\r\n0\r\n: b\r\n\r\n<S>", &[Refused(&[400])]),
        ("a trailer with NUL", "5\r\nhello\r\n0\r\na: b\x00\r\n\r\n<S>", &[Refused(&[400])]),
    ];
    let mut cases: Vec<Case> = Vec::new();
    for (name, body, may) in rows {
        cases.push((name, with(POST, "transfer-encoding: chunked\r\n", body), may));
    }
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(20_000));
    cases.push(("a huge extension", with(POST, "transfer-encoding: chunked\r\n", &long), BAD));
    let mut many = String::from("5\r\nhello\r\n0\r\n");
    for at in 0..200 {
        write!(many, "x-{at}: {}\r\n", "y".repeat(1000)).expect("written");
    }
    cases.push(("huge trailers", with(POST, "transfer-encoding: chunked\r\n", &format!("{many}\r\n")), BAD));
    cases
}

fn heads() -> Vec<Case> {
    const FINE: &[May] = &[Forwarded("GET /providers/x", "")];
    const EITHER: &[May] = &[Refused(&[400]), Forwarded("GET /providers/x", "")];
    const LINE: &[May] = &[Refused(&[400, 505])];
    let rows: &[(&'static str, &str, &'static [May])] = &[
        ("a request", "GET /providers/x HTTP/1.1\r\n<K>\r\n", FINE),
        ("an empty line before it", "\r\nGET /providers/x HTTP/1.1\r\n<K>\r\n", EITHER),
        ("a line that ends in LF", "GET /providers/x HTTP/1.1\n<K>\r\n", BAD),
        ("a field that ends in LF", "GET /providers/x HTTP/1.1\r\nx: y\n<K>\r\n", BAD),
        ("all lines end in LF", "GET /providers/x HTTP/1.1\nhost: x\n\n<S>", BAD),
        ("a head that ends in LF", "GET /providers/x HTTP/1.1\r\n<K>\n<S>", BAD),
        ("an empty line in LF before it", "\nGET /providers/x HTTP/1.1\r\n<K>\r\n", BAD),
        ("a line that ends in CR", "GET /providers/x HTTP/1.1\r<K>\r\n", BAD),
        ("CR in a line", "GET /providers/x\r HTTP/1.1\r\n<K>\r\n", BAD),
        ("CR in a value", "GET /providers/x HTTP/1.1\r\n<K>x: a\rb: c\r\n\r\n", BAD),
        ("CR CR LF", "GET /providers/x HTTP/1.1\r\n<K>x: a\r\r\n\r\n", BAD),
        ("a fold", "GET /providers/x HTTP/1.1\r\n<K>x: a\r\n b\r\n\r\n", BAD),
        ("a fold with a tab", "GET /providers/x HTTP/1.1\r\n<K>x: a\r\n\tb\r\n\r\n", BAD),
        ("a fold before any field", "GET /providers/x HTTP/1.1\r\n x: a\r\n<K>\r\n", BAD),
        ("NUL in a value", "GET /providers/x HTTP/1.1\r\n<K>x: a\x00b\r\n\r\n", BAD),
        ("a control in a value", "GET /providers/x HTTP/1.1\r\n<K>x: a\x01b\r\n\r\n", BAD),
        ("DEL in a value", "GET /providers/x HTTP/1.1\r\n<K>x: a\x7fb\r\n\r\n", BAD),
        ("a control in a name", "GET /providers/x HTTP/1.1\r\n<K>x\x01: a\r\n\r\n", BAD),
        ("a space in a name", "GET /providers/x HTTP/1.1\r\n<K>x y: a\r\n\r\n", BAD),
        ("a space before the colon", "GET /providers/x HTTP/1.1\r\n<K>x : a\r\n\r\n", BAD),
        ("a tab before the colon", "GET /providers/x HTTP/1.1\r\n<K>x\t: a\r\n\r\n", BAD),
        ("no name", "GET /providers/x HTTP/1.1\r\n<K>: a\r\n\r\n", BAD),
        ("no colon", "GET /providers/x HTTP/1.1\r\n<K>x\r\n\r\n", BAD),
        ("a bracket in a name", "GET /providers/x HTTP/1.1\r\n<K>x[]: a\r\n\r\n", BAD),
        ("a Latin name", "GET /providers/x HTTP/1.1\r\n<K>x\u{e9}: a\r\n\r\n", BAD),
        ("a Latin value", "GET /providers/x HTTP/1.1\r\n<K>x: \u{e9}\r\n\r\n", EITHER),
        ("no host", "GET /providers/x HTTP/1.1\r\n<A>\r\n", BAD),
        ("two hosts", "GET /providers/x HTTP/1.1\r\n<K>host: proxy.test\r\n\r\n", BAD),
        ("an empty host", "GET /providers/x HTTP/1.1\r\n<A>host:\r\n\r\n", BAD),
        ("a host with a path", "GET /providers/x HTTP/1.1\r\n<A>host: proxy.test/x\r\n\r\n", BAD),
        ("a host with user information", "GET /providers/x HTTP/1.1\r\n<A>host: u@proxy.test\r\n\r\n", BAD),
        ("two hosts in a line", "GET /providers/x HTTP/1.1\r\n<A>host: a, b\r\n\r\n", BAD),
        ("a host with a space", "GET /providers/x HTTP/1.1\r\n<A>host: a b\r\n\r\n", BAD),
        ("a host with a word for a port", "GET /providers/x HTTP/1.1\r\n<A>host: a:b\r\n\r\n", BAD),
        ("a host with two ports", "GET /providers/x HTTP/1.1\r\n<A>host: a:1:2\r\n\r\n", BAD),
        ("a host with half a bracket", "GET /providers/x HTTP/1.1\r\n<A>host: [::1\r\n\r\n", BAD),
        ("an absolute target", "GET http://proxy.test/providers/x HTTP/1.1\r\n<K>\r\n", FINE),
        ("… of another host", "GET http://other.test/providers/x HTTP/1.1\r\n<K>\r\n", BAD),
        ("… of another port", "GET http://proxy.test:81/providers/x HTTP/1.1\r\n<K>\r\n", BAD),
        ("… with user information", "GET http://u@proxy.test/providers/x HTTP/1.1\r\n<K>\r\n", BAD),
        ("… without a Host", "GET http://proxy.test/providers/x HTTP/1.1\r\n<A>\r\n", BAD),
        ("… of another scheme", "GET ftp://proxy.test/providers/x HTTP/1.1\r\n<K>\r\n", BAD),
        ("… of no host", "GET http:///providers/x HTTP/1.1\r\n<K>\r\n", BAD),
        ("no slash", "GET providers/x HTTP/1.1\r\n<K>\r\n", BAD),
        ("no target", "GET HTTP/1.1\r\n<K>\r\n", BAD),
        ("an empty target", "GET  HTTP/1.1\r\n<K>\r\n", BAD),
        ("a fragment", "GET /providers/x#y HTTP/1.1\r\n<K>\r\n<S>", BAD),
        ("a space in the target", "GET /providers/x y HTTP/1.1\r\n<K>\r\n", LINE),
        ("a tab in the line", "GET\t/providers/x\tHTTP/1.1\r\n<K>\r\n", BAD),
        ("two spaces", "GET  /providers/x HTTP/1.1\r\n<K>\r\n", BAD),
        ("two spaces before the version", "GET /providers/x  HTTP/1.1\r\n<K>\r\n", LINE),
        ("a space behind the version", "GET /providers/x HTTP/1.1 \r\n<K>\r\n", LINE),
        ("a space before the method", " GET /providers/x HTTP/1.1\r\n<K>\r\n", BAD),
        ("NUL in the target", "GET /providers/\x00 HTTP/1.1\r\n<K>\r\n", BAD),
        ("a backslash", "GET \\providers HTTP/1.1\r\n<K>\r\n", BAD),
        ("a Latin target", "GET /providers/\u{e9} HTTP/1.1\r\n<K>\r\n", BAD),
        ("HTTP/0.9", "GET /providers/x\r\n<K>\r\n", LINE),
        ("HTTP/1.0", "GET /providers/x HTTP/1.0\r\n<K>\r\n", FINE),
        ("HTTP/1.2", "GET /providers/x HTTP/1.2\r\n<K>\r\n", LINE),
        ("HTTP/1.10", "GET /providers/x HTTP/1.10\r\n<K>\r\n", LINE),
        ("HTTP/2.0", "GET /providers/x HTTP/2.0\r\n<K>\r\n", LINE),
        ("HTTP/3", "GET /providers/x HTTP/3\r\n<K>\r\n", LINE),
        ("http/1.1", "GET /providers/x http/1.1\r\n<K>\r\n", LINE),
        ("HTP/1.1", "GET /providers/x HTP/1.1\r\n<K>\r\n", LINE),
        ("a preface that is none", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", LINE),
        ("TRACE", "TRACE /providers/x HTTP/1.1\r\n<K>\r\n", &[Refused(&[405])]),
        ("CONNECT", "CONNECT proxy.test:443 HTTP/1.1\r\n<K>\r\n<S>", &[Refused(&[405])]),
        ("CONNECT of a path", "CONNECT /providers/x HTTP/1.1\r\n<K>\r\n<S>", &[Refused(&[400, 405])]),
        ("OPTIONS *", "OPTIONS * HTTP/1.1\r\n<K>\r\n", BAD),
        ("GET *", "GET * HTTP/1.1\r\n<K>\r\n", BAD),
        ("a method in lower case", "get /providers/x HTTP/1.1\r\n<K>\r\n", &[Refused(&[405])]),
        ("a method that is none", "G(T /providers/x HTTP/1.1\r\n<K>\r\n", BAD),
        (
            "an upgrade",
            "GET /providers/x HTTP/1.1\r\n<K>connection: upgrade\r\nupgrade: websocket\r\n\r\n",
            FINE,
        ),
        (
            "an upgrade to HTTP/2",
            "GET /providers/x HTTP/1.1\r\n<K>connection: upgrade, http2-settings\r\nupgrade: h2c\r\n\
             http2-settings: AAMAAABkAAQAAP__\r\n\r\n",
            FINE,
        ),
        ("100-continue without a body", "GET /providers/x HTTP/1.1\r\n<K>expect: 100-continue\r\n\r\n", FINE),
        ("another expectation", "GET /providers/x HTTP/1.1\r\n<K>expect: 200-ok\r\n\r\n", &[Refused(&[417])]),
        (
            "two expectations",
            "GET /providers/x HTTP/1.1\r\n<K>expect: 100-continue, x\r\n\r\n",
            &[Refused(&[417])],
        ),
        (
            "100-continue with a body",
            "POST /provider-deployments HTTP/1.1\r\n<K>expect: 100-continue\r\ncontent-length: 5\r\n\r\nhello",
            &[Forwarded("POST /provider-deployments", "hello")],
        ),
        (
            "100-continue of what is refused",
            "POST /agents HTTP/1.1\r\n<K>expect: 100-continue\r\ncontent-length: 5\r\n\r\n",
            &[Refused(&[403])],
        ),
        ("nothing of a request", "GET /providers/x HTT", &[Refused(&[400]), Closed]),
        (
            "half a body",
            "POST /provider-deployments HTTP/1.1\r\n<K>content-length: 5\r\n\r\nhel",
            &[Refused(&[400]), Closed],
        ),
        (
            "half a chunk",
            "POST /provider-deployments HTTP/1.1\r\n<K>transfer-encoding: chunked\r\n\r\n5\r\nhel",
            &[Refused(&[400]), Closed],
        ),
        (
            "no last chunk",
            "POST /provider-deployments HTTP/1.1\r\n<K>transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            &[Refused(&[400]), Closed],
        ),
        (
            "a preflight",
            "OPTIONS /providers/x HTTP/1.1\r\n<K>origin: https://app.example\r\n\r\n",
            &[Answered(204)],
        ),
    ];
    let mut cases: Vec<Case> =
        rows.iter().map(|(name, text, may)| (*name, (*text).to_owned(), *may)).collect();
    let big = "x".repeat(200_000);
    cases.push(("a huge target", format!("GET /{big} HTTP/1.1\r\n<K>\r\n"), &[Refused(&[400, 414, 431])]));
    cases.push(("a huge value", with(GET, &format!("x: {big}\r\n"), ""), &[Refused(&[431])]));
    cases.push(("a huge name", with(GET, &format!("{big}: x\r\n"), ""), &[Refused(&[400, 431])]));
    let many: String = (0..500).map(|at| format!("x-{at}: y\r\n")).collect();
    cases.push(("500 fields", with(GET, &many, ""), &[Refused(&[431])]));
    cases
}

/// Sends `bytes` in pieces of `size`, and a probe behind them or, where they are to be `cut` off, an end; what came of it.
async fn outcome(
    proxy: &Proxy,
    upstream: &RawUpstream,
    bytes: &[u8],
    size: usize,
    cut: bool,
) -> (May, Vec<Got>) {
    let mut client = RawClient::connect(proxy.address).await;
    for piece in bytes.chunks(size) {
        if !client.send(piece).await {
            break;
        }
    }
    if cut {
        client.finish().await;
    } else {
        client.send(&written("GET /providers/probe-same HTTP/1.1\r\n<K>\r\n")).await;
    }
    let Some(answer) = client.answer(false).await else { return (Closed, upstream.got()) };
    assert!(answer.whole, "{answer:?}");
    let got = upstream.got();
    if answer.status >= 400 {
        assert!(client.is_closed().await, "something follows {answer:?}");
        const EVERY: [&[u16]; 8] = [&[400], &[403], &[405], &[413], &[414], &[417], &[431], &[505]];
        let known = EVERY.iter().find(|known| known[0] == answer.status);
        return (Refused(known.unwrap_or_else(|| panic!("{answer:?}"))), got);
    }
    // What follows is the probe's own answer, or an end.
    match client.answer(false).await {
        Some(probe) => assert_eq!(probe.body, "GET /providers/probe-same", "behind {answer:?}"),
        None => {
            assert!(answer.closes() || answer.head.starts_with("HTTP/1.0"), "no answer behind {answer:?}")
        }
    }
    let [one] = &got[..] else { return (Answered(answer.status), got) };
    assert_eq!(answer.body, "fine");
    let (target, body) = (one.target().to_owned(), String::from_utf8_lossy(&one.body).into_owned());
    (Forwarded(String::leak(target), String::leak(body)), got)
}

fn fits(may: &[May], came: May) -> bool {
    may.iter().any(|may| match (may, came) {
        (Refused(any), Refused(one)) => any.contains(&one[0]),
        (may, came) => *may == came,
    })
}

/// What every request that is forwarded looks like.
fn normal(got: &Got) {
    assert!(got.whole, "{got:?}");
    assert!(got.head.is_ascii() && got.head.contains(" HTTP/1.1\r\n"), "{got:?}");
    for name in ["host", "authorization"] {
        assert_eq!(got.fields(name).len(), 1, "{name}: {got:?}");
    }
    assert!(got.fields("content-length").len() + got.fields("transfer-encoding").len() <= 1, "{got:?}");
    for name in ["upgrade", "connection", "http2-settings", "te", "trailer", "expect", "x-a"] {
        assert!(got.fields(name).is_empty(), "{name}: {got:?}");
    }
}

async fn every(cases: Vec<Case>) {
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, "");
    let mut wrong = Vec::new();
    for (name, text, may) in cases {
        let bytes = written(&text);
        for size in [bytes.len(), 1, 7] {
            // A big one need not be cut small to be cut.
            let size = if bytes.len() > 10_000 { size.max(1000) } else { size };
            let (came, got) = outcome(&proxy, &upstream, &bytes, size, may.contains(&Closed)).await;
            if !fits(may, came) {
                wrong.push(format!("{name} in pieces of {size}: {came:?} instead of {may:?}"));
            }
            if matches!(came, Forwarded(..)) {
                normal(&got[0]);
            } else if !got.is_empty() {
                wrong.push(format!("{name} in pieces of {size}: {came:?}, yet forwarded: {got:?}"));
            }
        }
        let mut other = RawClient::connect(proxy.address).await;
        other.send(&written("GET /providers/probe-other HTTP/1.1\r\n<K>\r\n")).await;
        let answer = other.answer(false).await.unwrap_or_else(|| panic!("no answer after {name}"));
        assert_eq!(answer.body, "GET /providers/probe-other", "after {name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_length_is_told_once_and_plainly_or_the_request_is_refused() {
    every(lengths()).await;
}

#[tokio::test]
async fn a_body_in_chunks_is_forwarded_as_one_or_not_at_all() {
    every(chunks()).await;
}

#[tokio::test]
async fn a_head_that_two_readers_could_read_in_two_ways_is_refused() {
    every(heads()).await;
}

#[tokio::test]
async fn behind_whatever_is_pipelined_what_is_wrong_is_still_refused() {
    let first = |method: &str| format!("{method} /providers/probe-first HTTP/1.1\r\n<K>\r\n");
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, "");
    for (name, text, may) in lengths().into_iter().chain(chunks()).chain(heads()) {
        if !matches!(may, [Refused(_)]) || text.len() > 10_000 {
            continue;
        }
        let mut client = RawClient::connect(proxy.address).await;
        client.send(&written(&(first("GET") + &text))).await;
        let one = client.answer(false).await.unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!((one.status, one.body.as_str()), (200, "GET /providers/probe-first"), "{name}");
        let two = client.answer(false).await.unwrap_or_else(|| panic!("{name}: no second answer"));
        assert!(
            may.iter().any(|may| matches!(may, Refused(any) if any.contains(&two.status))),
            "{name}: {two:?}"
        );
        assert!(client.is_closed().await, "{name}");
        assert!(upstream.got().is_empty(), "{name}");
    }
}

#[tokio::test]
async fn many_pipelined_requests_each_get_their_own_answer() {
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, "");
    let mut client = RawClient::connect(proxy.address).await;
    let mut all = String::new();
    for at in 0..100 {
        match at % 3 {
            0 => write!(all, "GET /providers/probe-{at} HTTP/1.1\r\n<K>\r\n"),
            1 => write!(all, "POST /agents HTTP/1.1\r\n<K>content-length: 20\r\n\r\nGET / HTTP/1.1\r\n\r\n..", ),
            _ => write!(all, "PUT /x HTTP/1.1\r\n<K>transfer-encoding: chunked\r\n\r\n12\r\nGET / HTTP/1.1\r\n\r\n\r\n0\r\n\r\n"),
        }
        .expect("written");
    }
    client.send(&written(&all)).await;
    for at in 0..100 {
        let answer = client.answer(false).await.unwrap_or_else(|| panic!("no answer {at}"));
        match at % 3 {
            0 => assert_eq!(answer.body, format!("GET /providers/probe-{at}")),
            _ => assert_eq!(answer.status, 403, "{at}: {answer:?}"),
        }
    }
    assert!(upstream.got().is_empty());
}
