//! Where the reader stops, however its bytes are cut.

use super::*;

const HEAD: usize = 4096;

/// What stops the reader of `text`, and what of it was passed on before.
fn stops(text: &str) -> (String, Option<Stop>) {
    let outcome = |size: usize| {
        let mut reader = Reader::new(HEAD);
        let mut passed = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            match reader.read(piece) {
                Ok(()) => passed.extend_from_slice(piece),
                Err((count, stop)) => {
                    passed.extend_from_slice(&piece[..count]);
                    return (passed, Some(stop), reader.heads());
                }
            }
        }
        (passed, None, reader.heads())
    };
    let (passed, stop, heads) = outcome(text.len().max(1));
    for size in [1, 2, 3, 7, 64] {
        let (more, same, read) = outcome(size);
        assert_eq!((same, read), (stop, heads), "{text:?} in pieces of {size}");
        assert!(more.starts_with(&passed), "{text:?} in pieces of {size}");
        // Of a line that is refused, what came before its end was passed on already; never the end itself.
        assert!(!more[passed.len()..].contains(&b'\n'), "{text:?} in pieces of {size}");
    }
    (String::from_utf8_lossy(&passed).into_owned(), stop)
}

#[test]
fn requests_are_followed_one_after_the_other() {
    let get = "GET /a HTTP/1.1\r\nhost: x\r\n\r\n";
    let sized = "POST /a HTTP/1.1\r\ncontent-LENGTH:\t5 \r\n\r\n#\r\n\n\r";
    let chunked = "POST /a HTTP/1.1\r\ntransfer-encoding:Chunked\r\n\r\n5 ;a=\"b\"\r\n#\r\n\n\r\r\n\
                   0000000000000001\r\n\n\r\n0;x\r\nx-trailer: #\r\n\r\n";
    for text in [get, sized, chunked] {
        let text = format!("{text}\r\n{sized}{chunked}{get}{text}");
        assert_eq!(stops(&text), (text.clone(), None));
        let fragment = "GET /a#b HTTP/1.1\r\n\r\n";
        let all = format!("{text}{fragment}{get}");
        let seen = Seen { fragment: true, ..Seen::default() };
        assert_eq!(stops(&all), (format!("{text}{fragment}"), Some(Stop::After(seen))));
    }
}

#[test]
fn a_fragment_is_seen_in_a_request_line_and_nowhere_else() {
    for (text, fragment) in [
        ("GET /providers#x HTTP/1.1\r\n\r\n", true),
        ("GET /providers?a=1# HTTP/1.1\r\n\r\n", true),
        ("\r\nGET http://x/providers#f HTTP/1.1\r\nhost: x\r\n\r\n", true),
        ("GET /providers HTTP/1.1\r\nx-note: a # b\r\n\r\n", false),
        ("GET /providers HTTP/1.1\r\n\r\n", false),
        ("", false),
    ] {
        let seen = Stop::After(Seen { fragment, ..Seen::default() });
        assert_eq!(stops(text).1, fragment.then_some(seen), "{text}");
    }
}

#[test]
fn a_length_is_told_once_and_plainly_or_seen_not_to_be() {
    let (content, transfer) = ("Content-Length: 0\r\n", "transfer-ENCODING: chunked\r\n");
    for (fields, two_lengths) in [
        (format!("{content}{transfer}"), true),
        (format!("{transfer}host: x\r\n{content}"), true),
        (format!("{content}{content}"), true),
        (format!("{transfer}{transfer}"), true),
        ("transfer-encoding: identity, chunked\r\n".to_owned(), true),
        ("transfer-encoding: xchunked\r\n".to_owned(), true),
        ("transfer-encoding:\r\n".to_owned(), true),
        ("content-length: 0, 0\r\n".to_owned(), true),
        ("content-length: 0x0\r\n".to_owned(), true),
        ("content-length: 18446744073709551616\r\n".to_owned(), true),
        ("content-length:\r\n".to_owned(), true),
        (format!("x-{content}content-type: a\r\nte: x\r\n{content}"), false),
        (format!("x: {transfer}content-length-of: 1\r\ncontent-lengt: 2\r\n"), false),
    ] {
        let seen = Stop::After(Seen { two_lengths, ..Seen::default() });
        let text = format!("POST /a HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
        assert_eq!(stops(&text), (text.clone(), two_lengths.then_some(seen)), "{fields}");
    }
}

#[test]
fn a_head_ends_before_it_has_too_many_fields() {
    let fields = |count| "x: y\r\n".repeat(count);
    let head = |count| format!("GET /a HTTP/1.1\r\n{}", fields(count));
    let (most, end) = (head(MAX_FIELDS), "\r\n");
    let two = format!("{most}{end}{most}{end}");
    assert_eq!(stops(&two), (two.clone(), None), "each head for itself");
    for more in [1, 2, 100] {
        let text = format!("{most}{end}{most}{}{end}", fields(more));
        assert_eq!(stops(&text), (format!("{most}{end}{most}"), Some(Stop::Fields)));
    }
}

#[test]
fn what_only_some_take_for_a_line_is_passed_to_nobody() {
    let good = "POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
    for bad in ["GET /a HTTP/1.1\n", "\nGET /a HTTP/1.1\r\n", "GET /a\r HTTP/1.1\r\n", "\r\r\n"] {
        assert_eq!(stops(bad), (String::new(), Some(Stop::Head)), "{bad:?}");
    }
    for bad in ["host: x\n\r\n", "a: b\rc: d\r\n", "a: b\r\r\n", "\n", "a:\n b\r\n"] {
        let first = "GET /a HTTP/1.1\r\nhost: y\r\n";
        assert_eq!(stops(&format!("{first}{bad}")), (first.to_owned(), Some(Stop::Head)), "{bad:?}");
    }
    for bad in [
        "5\n",
        "5 \r\n",
        "\r\n",
        " 5\r\n",
        "+5\r\n",
        "-1\r\n",
        "0x5\r\n",
        "5,\r\n",
        "g\r\n",
        "5\r5\r\n",
        "5;a\x01b\r\n",
        "5;a\n",
        "00000000000000005\r\n",
        "10000000000000000\r\n",
    ] {
        assert_eq!(stops(&format!("{good}{bad}")), (good.to_owned(), Some(Stop::Body)), "{bad:?}");
    }
    for bad in ["\n", "\r\r\n", "x\r\n", "0\r\n"] {
        let whole = format!("{good}1\r\na");
        assert_eq!(stops(&format!("{whole}{bad}")), (whole, Some(Stop::Body)), "{bad:?}");
    }
    let last = format!("{good}0\r\nx: y\r\n");
    assert_eq!(stops(&format!("{last}z: \n\r\n")), (last, Some(Stop::Body)));
    let long = format!("{good}5;{}\r\n", "x".repeat(CHUNK_LINE));
    assert_eq!(stops(&long).1, Some(Stop::Body));
    assert_eq!(stops(&format!("GET /{} HTTP/1.1\r\n", "x".repeat(HEAD))).1, Some(Stop::Head));
}

#[test]
fn a_head_is_plain_where_nothing_in_it_asks_for_a_closer_look() {
    for (head, plain) in [
        ("GET /a HTTP/1.1\r\nHost: x\r\nCookie: a=b\r\nContent-Type: x\r\ntraceparent: y\r\n\r\n", true),
        ("GET /a HTTP/1.1\r\n\r\n", true),
        ("GET /a HTTP/1.1\r\nHost: x\r\n", false),
        ("GET /a#b HTTP/1.1\r\n\r\n", false),
        ("GET /a HTTP/1.1\nHost: x\r\n\r\n", false),
        ("GET /a HTTP/1.1\r\nHost: x\rY: z\r\n\r\n", false),
        ("GET /a HTTP/1.1\r\nHost: x\n\r\n\r\n", false),
        ("GET /a HTTP/1.1\r\nHost: x\r\r\n\r\n", false),
        ("\r\nGET /a HTTP/1.1\r\n\r\n", false),
        ("GET /a HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\n", false),
        ("GET /a HTTP/1.1\r\nCONTENT-LENGTH: 0\r\n\r\n", false),
        ("GET /a HTTP/1.1\r\nHost: x\r\ntransfer-Encoding:x\r\n\r\n", false),
        ("\r\n\r\n", false),
        ("", false),
    ] {
        assert_eq!(is_plain_head(head.as_bytes()), plain, "{head:?}");
    }
}

proptest::proptest! {
    #[test]
    fn what_is_plain_at_a_glance_is_one_whole_head_by_lines(
        pieces in proptest::collection::vec(
            proptest::sample::select(vec![
                "\r", "\n", "\r\n", "a", ": b", "#", "content-length: 1", "Transfer-Encoding: chunked", "\r\nc", "x: y\r\n",
            ]),
            0..12,
        ),
    ) {
        let text = format!("{}\r\n\r\n", pieces.concat());
        if is_plain_head(text.as_bytes()) {
            let mut reader = Reader::new(HEAD);
            for byte in text.bytes() {
                proptest::prop_assert_eq!(reader.read(&[byte]), Ok(()), "{:?}", text);
            }
            proptest::prop_assert!(reader.is_between() && reader.heads() == 1, "{:?}", text);
        }
    }
}
