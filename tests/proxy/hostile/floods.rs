//! Floods over HTTP/2: each ends its own connection at once, and nobody else notices.

use std::time::Duration;

use metorial_proxy::time::timeout;

use crate::h2_client::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, H2Client, HEADERS, PADDED, PING,
    PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, integer,
};
use crate::harness::{KEY, Proxy};
use crate::raw_client::RawClient;
use crate::raw_upstream::{RawUpstream, Script, answer};

/// How often a piece of a flood is sent; none may be taken as often.
const ROUNDS: u32 = 5000;
/// Of all streams that are opened and reset, so many may have gone upstream.
const FEW: usize = 100;

/// A head that opens `stream`, of a request that no page answers.
fn open(method: &str, stream: u32, ends: u8) -> Vec<u8> {
    let bearer = format!("Bearer {KEY}");
    let path = match method {
        "POST" => "/provider-deployments".to_owned(),
        _ => format!("/providers/{stream}"),
    };
    let fields: [(&[u8], &[u8]); 5] = [
        (b":method", method.as_bytes()),
        (b":scheme", b"http"),
        (b":authority", b"proxy.test"),
        (b":path", path.as_bytes()),
        (b"authorization", bearer.as_bytes()),
    ];
    frame(HEADERS, END_HEADERS | ends, stream, &block(&fields))
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

/// The so manieth piece of a flood; `stream` is a new one each time, and 1 was opened before for a body.
type Piece = fn(stream: u32) -> Vec<u8>;

const FLOODS: &[(&str, Piece)] = &[
    ("opened and reset", |stream| [open("GET", stream, END_STREAM), reset(stream)].concat()),
    ("opened for a body and reset", |stream| [open("POST", stream, 0), reset(stream)].concat()),
    ("opened and left", |stream| open("POST", stream, 0)),
    ("a window that moves by nothing", |stream| {
        [open("GET", stream, END_STREAM), window(stream, 0)].concat()
    }),
    ("a window that moves too far", |stream| {
        [open("GET", stream, END_STREAM), window(stream, 0x7fff_ffff)].concat()
    }),
    ("data behind the end", |stream| {
        [open("GET", stream, END_STREAM), frame(DATA, 0, stream, b"x")].concat()
    }),
    ("a head behind the end", |stream| {
        [open("GET", stream, END_STREAM), open("GET", stream, END_STREAM)].concat()
    }),
    ("a priority on itself", |stream| {
        [
            open("GET", stream, END_STREAM),
            frame(PRIORITY, 0, stream, &[stream.to_be_bytes().as_slice(), &[1]].concat()),
        ]
        .concat()
    }),
    ("more data than its length", |stream| {
        let mut head = open("POST", stream, 0);
        head.extend(block(&[(b"content-length", b"1")]));
        let length = u32::try_from(head.len() - 9).expect("short").to_be_bytes();
        head[..3].copy_from_slice(&length[1..]);
        [head, frame(DATA, 0, stream, b"xx")].concat()
    }),
    ("malformed heads", |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[(b"x-a", b"b")]))),
    ("PING", |_| frame(PING, 0, 0, &[0; 8])),
    ("answers to no PING", |_| frame(PING, ACK, 0, &[0; 8])),
    ("SETTINGS", |_| frame(SETTINGS, 0, 0, &[])),
    ("SETTINGS that say something", |stream| {
        frame(SETTINGS, 0, 0, &[&[0, 4], stream.to_be_bytes().as_slice()].concat())
    }),
    ("answers to no SETTINGS", |_| frame(SETTINGS, ACK, 0, &[])),
    ("PRIORITY", |stream| frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 1])),
    ("WINDOW_UPDATE", |_| window(0, 1)),
    ("WINDOW_UPDATE of a stream", |_| window(1, 1)),
    ("empty DATA", |_| frame(DATA, 0, 1, b"")),
    ("DATA of a byte", |_| frame(DATA, 0, 1, b"x")),
    ("DATA of padding", |_| frame(DATA, PADDED, 1, &[&[99], [0; 99].as_slice()].concat())),
    ("frames of no kind", |_| frame(0xfa, 0, 0, b"grease")),
    ("PUSH_PROMISE", |stream| frame(PUSH_PROMISE, END_HEADERS, 1, &stream.to_be_bytes())),
    ("GOAWAY", |_| frame(GOAWAY, 0, 0, &[0; 8])),
    ("empty CONTINUATION", |stream| {
        if stream == 3 { frame(HEADERS, 0, 3, b"") } else { frame(CONTINUATION, 0, 3, b"") }
    }),
    ("CONTINUATION", |stream| {
        let fields = block(&[(b"x-a", &[b'y'; 1000])]);
        if stream == 3 { frame(HEADERS, 0, 3, &fields) } else { frame(CONTINUATION, 0, 3, &fields) }
    }),
    // A field of 4000 bytes is put in the table once, and then named 4000 times a request.
    ("a bomb of fields", |stream| {
        let mut bomb = Vec::new();
        if stream == 3 {
            bomb.extend([0x40, 3, b'x', b'-', b'a']);
            integer(&mut bomb, 0, 7, 4000);
            bomb.extend([b'y'; 4000]);
        }
        bomb.extend([0xbe; 4000]);
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &bomb)
    }),
    ("trailers without end", |stream| {
        if stream == 3 {
            open("POST", 3, 0)
        } else {
            frame(HEADERS, END_HEADERS, 3, &block(&[(b"x-a", b"b")]))
        }
    }),
];

async fn bystander(proxy: &Proxy, name: &str) {
    let mut client = RawClient::connect(proxy.address).await;
    let request =
        format!("GET /providers/probe HTTP/1.1\r\nhost: proxy.test\r\nauthorization: Bearer {KEY}\r\n\r\n");
    client.send(request.as_bytes()).await;
    let answer = client.answer(false).await.unwrap_or_else(|| panic!("no answer in {name}"));
    assert_eq!((answer.status, answer.body.as_str()), (200, "GET /providers/probe"), "in {name}");
}

/// Sends the flood until nobody takes it; whether that came to pass.
async fn flood(client: &mut H2Client, piece: Piece) -> bool {
    client.open();
    if !client.send(&open("POST", 1, 0)).await {
        return true;
    }
    for _ in 0..ROUNDS {
        let stream = client.open();
        if !client.send(&piece(stream)).await {
            return true;
        }
    }
    client.is_ended().await
}

#[tokio::test]
async fn a_flood_ends_its_connection_and_nobody_else_notices() {
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, "clients.limit = { requests = 1000000, window = '1s' }");
    let mut wrong = Vec::new();
    for (name, piece) in FLOODS {
        let mut client = H2Client::connect(proxy.address, &[]).await;
        let (ended, ()) = tokio::join!(flood(&mut client, *piece), bystander(&proxy, name));
        bystander(&proxy, name).await;
        let reached = upstream.got().len();
        if !ended || reached > FEW {
            wrong.push(format!("{name}: ended: {ended}, went upstream: {reached}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_client_that_reads_in_small_pieces_is_no_flood() {
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, "clients.limit = { requests = 1000000, window = '1s' }");
    let mut client = H2Client::connect(proxy.address, &[]).await;
    for _ in 0..1000 {
        let stream = client.open();
        // Asks, says that it lives, moves both windows, and loses interest in every other answer once it has come.
        client.send(&[open("GET", stream, END_STREAM), frame(PING, 0, 0, &[1; 8])].concat()).await;
        let came = timeout(Duration::from_secs(10), client.outcome(stream)).await.expect("in time");
        assert!(matches!(came, crate::h2_client::Came::Answer { status: 200, whole: true, .. }), "{came:?}");
        client.send(&[window(0, 4), window(0, 4)].concat()).await;
        if stream % 4 == 1 {
            client.send(&reset(stream)).await;
        }
    }
}

/// A window of nothing for every stream.
const NO_WINDOW: &[u8] = &[0, 4, 0, 0, 0, 0];

#[tokio::test]
async fn who_asks_much_and_takes_nothing_is_cut_off_and_who_asks_little_is_waited_for() {
    let upstream = RawUpstream::start().await;
    let proxy = Proxy::start(&upstream.url, "");
    // Asks for no more than a few at a time, and will have a look at them later.
    let mut slow = H2Client::connect(proxy.address, NO_WINDOW).await;
    let streams: Vec<u32> = (0..7).map(|_| slow.open()).collect();
    for stream in &streams {
        assert!(slow.send(&open("GET", *stream, END_STREAM)).await);
    }
    for (settings, most) in [(NO_WINDOW, 8), (NO_WINDOW, 100), (&[0, 4, 0, 0, 0, 1], 100)] {
        let mut client = H2Client::connect(proxy.address, settings).await;
        for _ in 0..most {
            let stream = client.open();
            client.send(&open("GET", stream, END_STREAM)).await;
        }
        for _ in 0..10 {
            bystander(&proxy, "closed windows").await;
        }
        assert!(client.is_ended().await, "{most} answers that nobody takes");
    }
    let refused = "metorial_proxy_connections_refused_total{reason=\"flood\"} 3\n";
    assert!(proxy.metrics().await.contains(refused));
    for stream in streams {
        slow.send(&window(stream, 1000)).await;
    }
    take(&mut slow, 7).await;
}

/// Takes so many answers to their ends.
async fn take(client: &mut H2Client, answers: usize) {
    let mut taken = 0;
    while taken < answers {
        let frame = timeout(Duration::from_secs(10), client.frame()).await.expect("in time");
        taken += usize::from(ends(&frame.expect("a frame")));
    }
}

fn ends(frame: &Frame) -> bool {
    frame.kind == DATA && frame.flags & END_STREAM != 0
}

#[tokio::test]
async fn who_reads_none_of_what_its_windows_were_for_is_cut_off_and_who_reads_some_is_not() {
    let upstream = RawUpstream::start().await;
    upstream.says(Script::keep(answer(&"x".repeat(60_000))));
    let proxy = Proxy::start(&upstream.url, "");
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = H2Client::connect(proxy.address, &[]).await;
        for _ in 0..40 {
            let stream = client.open();
            client.send(&open("GET", stream, END_STREAM)).await;
        }
        clients.push(client);
    }
    let [mut slow, mut deaf] = clients.try_into().ok().expect("two");
    // One moves the connection's window a little each time that the answers stand still, and takes all that came of it.
    let mut whole = 0;
    let moves = async {
        loop {
            while let Ok(Some(frame)) = timeout(Duration::from_millis(500), slow.frame()).await {
                whole += usize::from(ends(&frame));
            }
            assert!(slow.send(&window(0, 2000)).await, "it reads");
        }
    };
    tokio::select! {
        ended = deaf.is_ended() => assert!(ended, "it takes nothing"),
        () = moves => {}
    }
    assert!(whole < 10, "little was asked for");
    slow.send(&window(0, 4_000_000)).await;
    take(&mut slow, 40 - whole).await;
}
