//! What holds for any input: one function for each parser that reads what a stranger wrote. The fuzzers feed them what they come
//! up with, `tests/corpora.rs` what they have come up with before.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::Method;
use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use ipnet::IpNet;
use metorial_proxy::config::{Sources, load};
use metorial_proxy::domain::cache_control::Directives;
use metorial_proxy::domain::client_ip::{X_FORWARDED_FOR, client_ip as find};
use metorial_proxy::domain::page_key::{PageKey, Parts, canonical};
use metorial_proxy::domain::quota::Quota;
use metorial_proxy::domain::ratelimit::{RATELIMIT, Standing, observe, retry_hint, standing};
use metorial_proxy::domain::secret_guard::SecretGuard;
use metorial_proxy::domain::target::Target;
use metorial_proxy::edge::proxy_protocol::{Parsed, parse};
use metorial_proxy::edge::upstream::http1::Http1;
use metorial_proxy::edge::wire::http1::{Reader, Stop};
use metorial_proxy::edge::wire::http2::Counts;
use metorial_proxy::policy::forward::Outgoing;
use metorial_proxy::time::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Takes the first byte off.
fn byte(data: &mut &[u8]) -> u8 {
    let Some((first, rest)) = data.split_first() else { return 0 };
    *data = rest;
    *first
}

/// Cuts into pieces, small ones mostly; where follows from the first two bytes of the input.
struct Cuts(u64);

impl Cuts {
    fn of(data: &mut &[u8]) -> Self {
        Self(u64::from(byte(data)) << 8 | u64::from(byte(data)))
    }

    /// Takes the next piece off.
    fn next<'a>(&mut self, rest: &mut &'a [u8]) -> Option<&'a [u8]> {
        if rest.is_empty() {
            return None;
        }
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let size = [1, 2, 3, 5, 8, 20, 300, 5000][(self.0 >> 33) as usize % 8].min(rest.len());
        let (piece, left) = rest.split_at(size);
        *rest = left;
        Some(piece)
    }
}

/// `%XX` undone once, by a reader that knows no better.
fn decoded(text: &[u8]) -> Vec<u8> {
    let hex =
        |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16)).map(|digit| digit as u8);
    let (mut out, mut at) = (Vec::new(), 0);
    while at < text.len() {
        match (text[at], hex(text.get(at + 1)), hex(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// A target that is accepted has one reading, and no credential in it.
pub fn target(mut data: &[u8]) {
    let base = ["", "/api", "/a/b"][usize::from(byte(&mut data)) % 3];
    let Ok(sent) = PathAndQuery::try_from(data) else { return };
    let Ok((target, _)) = Target::parse(&sent, base) else { return };
    let again = target.path_and_query();
    let (twice, extracted) = Target::parse(again, "").expect("what is forwarded is accepted as it stands");
    assert!(twice == target, "and is read as it was");
    assert!(extracted.token.is_none() && extracted.key.is_none(), "a credential is forwarded");
    let path = target.path().as_bytes();
    let plain = decoded(path);
    assert!(path.starts_with(b"/"));
    assert!(!plain.iter().any(|byte| matches!(byte, 0..0x20 | 0x7f | b'\\')), "{plain:?}");
    let segments =
        |path: &[u8]| path.split(|byte| *byte == b'/').skip(1).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (raw, plain) = (segments(path), segments(&plain));
    assert_eq!(raw.len(), plain.len(), "a slash was hidden");
    assert!(!plain.iter().any(|segment| segment == b"." || segment == b".."), "a dot segment was hidden");
    assert!(plain.len() == 1 || !plain[..plain.len() - 1].iter().any(Vec::is_empty), "an empty segment");
    for pair in target.query().as_bytes().split(|byte| *byte == b'&') {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        let name = decoded(name);
        assert!(name != b"key" && name != b"token", "a credential is forwarded");
        assert!(!pair.contains(&b';'));
    }
}

/// Nobody but a trusted proxy says who calls, and what stands left of the first stranger says nothing.
pub fn client_ip(mut data: &[u8]) {
    let header = if byte(&mut data).is_multiple_of(2) { X_FORWARDED_FOR } else { FORWARDED };
    let trusted: Vec<IpNet> =
        ["10.0.0.0/8", "fd00::/8"].iter().map(|net| net.parse().expect("a network")).collect();
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let (proxy, stranger) = (ip("10.0.0.1"), ip("198.51.100.7"));
    let lines: Vec<HeaderValue> =
        data.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok()).collect();
    let fields = |before: &[&str], after: &[&str]| {
        let mut fields = HeaderMap::new();
        let form = |hop: &&str| match header == FORWARDED {
            true => HeaderValue::try_from(format!("for=\"{hop}\"")),
            false => HeaderValue::try_from(*hop),
        };
        let hops = |hops: &[&str]| hops.iter().map(|hop| form(hop).expect("a value")).collect::<Vec<_>>();
        for line in hops(before).into_iter().chain(lines.iter().cloned()).chain(hops(after)) {
            fields.append(header.clone(), line);
        }
        fields
    };
    let caller = |peer, fields: &HeaderMap| find(peer, fields, &header, &trusted).ip();
    assert_eq!(caller(stranger, &fields(&[], &[])), stranger);
    let told = caller(proxy, &fields(&[], &[]));
    assert_eq!(told, told.to_canonical());
    // One more trusted hop changes nothing, unless nothing could be read: then it is the last that is known.
    let after = caller(proxy, &fields(&[], &["10.9.9.9"]));
    assert!(after == told || told == proxy && after == ip("10.9.9.9"), "{after} after {told}");
    assert_eq!(caller(proxy, &fields(&[], &["203.0.113.77"])), ip("203.0.113.77"));
    if !trusted.iter().any(|network| network.contains(&told)) {
        assert_eq!(caller(proxy, &fields(&["192.0.2.1"], &[])), told, "the left says nothing");
    }
}

/// A header ends where it says, whatever follows, and no beginning of it is one.
pub fn proxy_header(data: &[u8]) {
    match parse(data) {
        Parsed::Whole { source, length } => {
            assert!(length <= data.len());
            assert!(source.is_none_or(|source| source == source.to_canonical()));
            for end in length..=data.len() {
                assert_eq!(parse(&data[..end]), Parsed::Whole { source, length }, "by {end}");
            }
            for end in 0..length {
                assert_eq!(parse(&data[..end]), Parsed::Partial, "by {end}");
            }
        }
        Parsed::Invalid => {
            assert_eq!(parse(&[data, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"].concat()), Parsed::Invalid)
        }
        Parsed::Partial => {
            for end in 0..data.len() {
                assert_eq!(parse(&data[..end]), Parsed::Partial, "by {end}");
            }
        }
    }
}

/// Where the requests of a connection stop being any does not depend on how they are cut.
pub fn requests(mut data: &[u8]) {
    const LONGEST: usize = 300;
    let mut cuts = Cuts::of(&mut data);
    let (mut whole, mut cut) = (Reader::new(LONGEST), Reader::new(LONGEST));
    let stop = whole.read(data).err();
    let (mut rest, mut cut_at) = (data, None);
    while let Some(piece) = cuts.next(&mut rest)
        && cut_at.is_none()
    {
        let before = data.len() - rest.len() - piece.len();
        cut_at = cut.read(piece).err().map(|(passed, stop)| (before + passed, stop));
        assert!(cut_at.is_none_or(|(at, _)| (before..=before + piece.len()).contains(&at)));
    }
    // One line is kept, and none is longer than the longest.
    assert!(format!("{cut:?}").len() < 500 + 5 * 1024);
    assert_eq!(stop.map(|(_, stop)| stop), cut_at.map(|(_, stop)| stop));
    match (stop, cut_at) {
        (Some((passed, Stop::After(_))), Some((at, _))) => {
            assert_eq!(passed, at, "the head ends in one place")
        }
        // Of a line that is none, what came before its end was seen has been passed on.
        (Some((passed, _)), Some((at, _))) => assert!(passed <= at),
        _ => {}
    }
    assert_eq!((whole.heads(), whole.is_in_head()), (cut.heads(), cut.is_in_head()));
}

/// Frames as they come and go, and whether they cost more than may be spent or hold trailers that are none: the rules
/// once more, as simply as can be.
#[derive(Default)]
struct Exchange {
    frames: Vec<(bool, Vec<u8>)>,
    heads: u64,
    in_head: bool,
    ends: bool,
    /// Trailers of no known making: they may be any.
    unknown: bool,
}

fn exchange(mut data: &[u8]) -> Exchange {
    let mut exchange = Exchange::default();
    let (mut left, mut newest) = (256, 0);
    while !data.is_empty() && !exchange.ends && !exchange.unknown {
        let (op, flags, stream) = (byte(&mut data), byte(&mut data), byte(&mut data));
        let kind = [0, 1, 1, 3, 9, 0, 1, op][usize::from(op >> 1) % 8];
        let (goes_out, length) = (op & 1 == 1, usize::from(byte(&mut data)));
        let (mut payload, mut pseudo) = (Vec::new(), Some(false));
        if kind == 1 {
            while payload.len() < length {
                let pick = byte(&mut data);
                let name = ["x-a", ":path", "te", "x-trailer", ":x", "a:"][usize::from(pick) % 6];
                payload.extend([[0, 0x40, 0x10][usize::from(pick) / 6 % 3], name.len() as u8]);
                payload.extend(name.bytes().chain([1, pick]));
                pseudo = pseudo.map(|pseudo| pseudo || name.starts_with(':'));
            }
            if flags & 0x80 != 0 {
                payload.push(byte(&mut data));
                pseudo = None;
            }
        } else {
            payload.resize(length, op);
        }
        let size = payload.len() as u32;
        exchange
            .frames
            .push((goes_out, [&size.to_be_bytes()[1..], &[kind, flags, 0, 0, 0, stream], &payload].concat()));
        let (end, whole, padded) = (flags & 1 != 0, flags & 4 != 0, flags & 8 != 0);
        if goes_out {
            match kind {
                // What is gained by answers is saved beyond what there is to begin with.
                0 | 1 => left = (left + 4 + size / 1024).min(4096),
                // Only what has the length of a reason tells one.
                3 if size == 4 && op != 0 => {
                    exchange.ends = left < 4;
                    left = left.saturating_sub(4);
                }
                _ => {}
            }
            continue;
        }
        let opens = kind == 1 && stream > newest;
        let cost = match kind {
            0 if !padded && (end || size > 16) => 0,
            1 if opens => 0,
            3 => 4,
            _ => 1,
        };
        exchange.ends = cost > left;
        left = left.saturating_sub(cost);
        if opens {
            newest = stream;
        } else if kind == 1 {
            if padded || flags & 0x20 != 0 || !whole || pseudo == Some(true) {
                exchange.ends = true;
            } else {
                exchange.unknown = pseudo.is_none();
            }
        }
        if matches!(kind, 1 | 9) {
            exchange.in_head = !whole;
            exchange.heads += u64::from(whole);
        }
    }
    exchange
}

/// However frames are cut, each is counted once, and as what it is; and little of them is kept.
pub fn frames(mut data: &[u8]) {
    // What may be spent grows with time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut cuts = Cuts::of(&mut data);
        let (mut whole, mut cut) = (Counts::new(), Counts::new());
        let (mut ended, mut ended_cut) = (false, false);
        let made = byte(&mut data).is_multiple_of(2);
        let exchange = match made {
            true => exchange(data),
            false => Exchange { frames: vec![(false, data.to_vec())], unknown: true, ..Exchange::default() },
        };
        for (goes_out, frame) in &exchange.frames {
            let step = |counts: &mut Counts, bytes: &[u8]| match goes_out {
                true => counts.written(bytes).is_err(),
                false => counts.read(bytes).is_err(),
            };
            ended |= step(&mut whole, frame);
            let mut rest = &frame[..];
            while let Some(piece) = cuts.next(&mut rest)
                && !ended_cut
            {
                ended_cut = step(&mut cut, piece);
            }
            assert_eq!(ended, ended_cut);
            assert!(ended || whole.patience() == cut.patience());
        }
        if !ended {
            assert_eq!((whole.heads(), whole.is_in_head()), (cut.heads(), cut.is_in_head()));
        }
        if !exchange.unknown {
            assert_eq!(ended, exchange.ends);
            assert!(ended || (whole.heads(), whole.is_in_head()) == (exchange.heads, exchange.in_head));
        }
        // A frame may say that it is longer than all that comes here.
        for _ in 0..(100_000 / data.len().max(1)).min(if made { 0 } else { 1000 }) {
            if ended_cut {
                break;
            }
            ended_cut = cut.read(data).is_err();
        }
        assert!(format!("{cut:?}").len() < 64 * 1024 + 5 * (16 * 1024 + data.len()));
    });
}

/// Whatever upstream tells of its limits is read or not, and what we tell is read as it was meant.
pub fn ratelimit(mut data: &[u8]) {
    let now = 1_700_000_000 + u64::from(byte(&mut data));
    let mut fields = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(20) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            fields.append(name, value);
        }
    }
    let (seen, hint) = (observe(&fields, now), retry_hint(&fields, now));
    for name in [http::header::CACHE_CONTROL, HeaderName::from_static("cdn-cache-control")] {
        for directives in [Directives::of(&fields, &name), Directives::targeted(&fields, &name)] {
            let _ages =
                ["max-age", "s-maxage", "stale-if-error"].map(|directive| directives.seconds(directive));
        }
    }
    let (remaining, wait) = (seen.map_or(0, |seen| seen.remaining), hint.map_or(0, |hint| hint.as_secs()));
    let told =
        standing(Standing { quota: Quota::PRODUCTION, remaining, grows_in: wait }, None).expect("told");
    let told = HeaderMap::from_iter([(RATELIMIT, told)]);
    let read = observe(&told, now).expect("it is read");
    assert_eq!((read.remaining, read.reset.as_secs()), (remaining, wait));
}

/// Two queries have one page only where they have the same parameters, and those of one name in one order.
pub fn page_key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (one, other) = text.split_once('\n').unwrap_or((text, ""));
    let key = |query| PageKey::of(&Parts { environment: "e", generation: 1, path: "/x", query, fields: &[] });
    let pairs =
        |query: &str| query.split('&').filter(|pair| !pair.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let sorted = |query: &str| {
        let mut pairs = pairs(query);
        pairs.sort();
        pairs
    };
    for query in [one, other] {
        let canonical = canonical(query);
        assert_eq!(sorted(&canonical), sorted(query), "nothing is lost or made up");
        assert_eq!(self::canonical(&canonical), canonical);
        let by_root = |query: &str| {
            let mut groups: BTreeMap<Vec<u8>, Vec<String>> = BTreeMap::new();
            for pair in pairs(query) {
                // In a query a plus is a space.
                let name = pair.split('=').next().unwrap_or_default().replace('+', " ");
                let name = decoded(name.as_bytes());
                let root = name.split(|byte| *byte == b'[').next().unwrap_or_default().to_vec();
                groups.entry(root).or_default().push(pair);
            }
            groups
        };
        assert_eq!(by_root(&canonical), by_root(query), "one list keeps its order");
    }
    if key(one) == key(other) {
        assert_eq!(sorted(one), sorted(other));
    }
}

const SECRET: &str = "metorial_sk_Zq81LmXw3v5TtRk0";

/// A configuration is taken or refused with reasons, and no reason tells a secret.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (file, variables) = text.split_once('\0').unwrap_or((text, ""));
    // What is said may quote what was written.
    if text.contains(SECRET) {
        return;
    }
    let mut env: BTreeMap<OsString, OsString> = [("METORIAL_SECRET_KEY".into(), SECRET.into())].into();
    for line in variables.lines() {
        if let Some((name, value)) = line.split_once('=')
            && !name.contains("FILE")
            && !name.contains("CONFIG")
        {
            env.insert(format!("METORIAL_{name}").into(), value.into());
        }
    }
    let path = std::env::temp_dir().join(format!(
        "metorial-proxy-any-{}-{:?}.toml",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&path, file).expect("written");
    for sources in [Sources { file: Some(&path), env: &env }, Sources { file: None, env: &env }] {
        let said = match load(&sources) {
            Ok(loaded) => format!(
                "{:?}{}",
                loaded.config,
                loaded.warnings.iter().map(ToString::to_string).collect::<String>()
            ),
            Err(faults) => {
                assert!(!faults.is_empty());
                faults.iter().map(ToString::to_string).collect()
            }
        };
        assert!(!said.contains(SECRET), "{said}");
    }
    std::fs::remove_file(&path).expect("removed");
}

/// Base64 of `text`, bit by bit.
fn base64(text: &[u8], last: [char; 2]) -> String {
    let bits: Vec<u8> = text.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let alphabet: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(last).collect();
    bits.chunks(6)
        .map(|six| alphabet[six.iter().chain(&[0; 6]).take(6).fold(0, |n, bit| n << 1 | usize::from(*bit))])
        .collect()
}

/// The forms of a secret, each as the characters that hold nothing but it.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let mut forms = vec![secret.as_bytes().to_vec()];
    for last in [['+', '/'], ['-', '_']] {
        for before in 0..3 {
            let text = [&vec![0; before][..], secret.as_bytes()].concat();
            let encoded = base64(&text, last).into_bytes();
            forms.push(encoded[(before * 8).div_ceil(6)..text.len() * 8 / 6].to_vec());
        }
    }
    forms
}

/// Where a form that begins at `at` ends, `%XX` standing for what it means.
fn matched(text: &[u8], at: usize, form: &[u8]) -> Option<usize> {
    let mut end = at;
    for byte in form {
        match text.get(end..) {
            Some([b'%', high, low, ..]) if decoded(&[b'%', *high, *low]) == [*byte] => end += 3,
            Some([plain, ..]) if plain == byte => end += 1,
            _ => return None,
        }
    }
    Some(end)
}

/// A text made of pieces of a secret in its forms, and of anything else.
fn echo(mut data: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    while !data.is_empty() && text.len() < 4000 {
        let op = byte(&mut data);
        if op >= 8 {
            text.push(op);
            continue;
        }
        let all: Vec<u8> = match op {
            0..=1 => SECRET.into(),
            2..=3 => {
                let every = 1 + usize::from(byte(&mut data) % 7);
                let escape = |(at, byte)| {
                    if at % every == 0 { format!("%{byte:02x}") } else { char::from(byte).to_string() }
                };
                SECRET.bytes().enumerate().map(escape).collect::<String>().into()
            }
            4 => base64(
                &[&b"Bearer ab"[usize::from(byte(&mut data) % 3)..], SECRET.as_bytes(), b"zz"].concat(),
                ['+', '/'],
            )
            .into(),
            5 => base64(
                &[&b"Bearer ab"[usize::from(byte(&mut data) % 3)..], SECRET.as_bytes()].concat(),
                ['-', '_'],
            )
            .into(),
            6 => b"%".into(),
            _ => vec![b'x'; usize::from(byte(&mut data)) * 8],
        };
        let (from, to) = match op % 2 {
            0 => (0, all.len()),
            _ => (
                usize::from(byte(&mut data)) % all.len().max(1),
                usize::from(byte(&mut data)) % (all.len() + 1),
            ),
        };
        text.extend_from_slice(&all[from.min(to)..to]);
    }
    text
}

/// However a text is cut, the secret is found where a plain search finds it, and no byte of it has left by then.
pub fn secret_guard(mut data: &[u8]) {
    let mut cuts = Cuts::of(&mut data);
    let text = echo(data);
    let guard = SecretGuard::new([SECRET]).expect("a guard");
    let forms = forms(SECRET);
    let found = (0..text.len()).flat_map(|at| forms.iter().map(move |form| (at, form)));
    let first = found.filter_map(|(at, form)| Some((matched(&text, at, form)?, at))).min();
    assert_eq!(guard.found_in(&text), first.is_some(), "{:?}", String::from_utf8_lossy(&text));
    let (mut scan, mut passed, mut rest) = (guard.scan(), Vec::new(), &text[..]);
    let mut withheld = false;
    while let Some(piece) = cuts.next(&mut rest)
        && !withheld
    {
        match scan.push(Bytes::copy_from_slice(piece)) {
            Ok(bytes) => passed.extend_from_slice(&bytes),
            Err(_) => withheld = true,
        }
    }
    match first {
        Some((_, at)) => {
            assert!(withheld, "it was not found: {:?}", String::from_utf8_lossy(&text));
            assert!(passed.len() <= at, "{} of {at}: {:?}", passed.len(), String::from_utf8_lossy(&text));
            assert!(text.starts_with(&passed));
        }
        None => {
            assert!(!withheld, "there is none: {:?}", String::from_utf8_lossy(&text));
            passed.extend_from_slice(&scan.finish());
            assert!(passed == text, "what passes is what came");
        }
    }
}

/// What upstream says, piece by piece; then it leaves, or says no more.
struct Said {
    pieces: VecDeque<Vec<u8>>,
    leaves: bool,
}

impl AsyncRead for Said {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.pieces.pop_front() {
            Some(mut piece) => {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(&piece);
                if !rest.is_empty() {
                    self.pieces.push_front(rest);
                }
                Poll::Ready(Ok(()))
            }
            None if self.leaves => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Said {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// How a body ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
    /// More may come.
    Open,
}

/// An answer, and whether another request may follow.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    status: u16,
    fields: Vec<(HeaderName, HeaderValue)>,
    body: Vec<u8>,
    end: Option<End>,
    stays: bool,
}

/// What is made of it; `None` where there is no head.
fn answer(connection: &mut Http1<Said>, method: &Method) -> Option<Outcome> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut request = Outgoing::new(method.clone(), PathAndQuery::from_static("/"));
    request.room.insert("x-request", HeaderValue::from_static("of the request"));
    let Poll::Ready(Ok(mut head)) = pin!(connection.ask(&mut request)).poll(&mut cx) else { return None };
    let (mut body, mut end) = (Vec::new(), None);
    if let Some(whole) = connection.whole(&mut head) {
        (body, end) = (whole.to_vec(), Some(End::Whole));
    }
    while end.is_none() {
        match connection.poll_body(&mut cx, &mut head.framing) {
            Poll::Ready(Some(Ok(data))) => body.extend_from_slice(&data),
            Poll::Ready(Some(Err(_))) => end = Some(End::Broken),
            Poll::Ready(None) => end = Some(End::Whole),
            Poll::Pending => end = Some(End::Open),
        }
    }
    let fields = head.parts.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    Some(Outcome { status: head.parts.status.as_u16(), fields, body, end, stays: head.stays })
}

/// However upstream's answer is cut, one thing is made of it, and nothing that it did not say; and where the connection may serve
/// again, the same said once more is the same answer, so nothing of one is ever taken for another's.
pub fn answers(mut data: &[u8]) {
    let mut cuts = Cuts::of(&mut data);
    let choice = byte(&mut data);
    let method = &[Method::GET, Method::HEAD, Method::POST, Method::OPTIONS][usize::from(choice) % 4];
    let leaves = choice & 4 != 0;
    let connection = |pieces| Http1::new(Said { pieces, leaves }, Timestamp::now());
    let at_once = |times| {
        let said = std::iter::repeat_n(data.to_vec(), times);
        connection(said.filter(|said| !said.is_empty()).collect())
    };
    let quiet = |mut connection: Http1<Said>| {
        let mut outcome = answer(&mut connection, method)?;
        outcome.stays &=
            outcome.end == Some(End::Whole) && connection.is_quiet(&mut Context::from_waker(Waker::noop()));
        Some(outcome)
    };
    let mut rest = data;
    let pieces = std::iter::from_fn(|| cuts.next(&mut rest).map(<[u8]>::to_vec)).collect();
    let whole = quiet(at_once(1));
    assert_eq!(whole, quiet(connection(pieces)));
    let Some(whole) = whole else { return };
    let said: usize = whole.fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    assert!(said + whole.body.len() <= data.len());
    let is_said = |value: &HeaderValue| {
        value.is_empty() || data.windows(value.len()).any(|piece| piece == value.as_bytes())
    };
    assert!(whole.fields.iter().all(|(_, value)| is_said(value)));
    if whole.stays {
        assert!(!leaves, "who has left is not asked again");
        let mut twice = at_once(2);
        for _ in 0..2 {
            assert_eq!(answer(&mut twice, method).as_ref(), Some(&whole));
        }
    }
}
