//! The PROXY protocol: the caller is whom the balancer names, and nobody else may name one.

use std::net::{Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Connection, bearing, connect, request, try_send};
use crate::harness::{KEY, Proxy, load, pair};

const ON: &str = "server.proxy_protocol = true\nserver.trusted_proxies = ['127.0.0.0/8', '10.0.0.0/8']\n";

fn v1(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 10.0.0.1 4711 443\r\n").into_bytes()
}

fn v2(source: [u8; 4]) -> Vec<u8> {
    named(0x21, 0x11, &[&source[..], &[10, 0, 0, 1], &[0x12, 0x67, 0x01, 0xbb]].concat())
}

fn v1_of_6(source: &str) -> Vec<u8> {
    format!("PROXY TCP6 {source} 2001:db8::443 4711 443\r\n").into_bytes()
}

fn v2_of_6(source: &str) -> Vec<u8> {
    let source: Ipv6Addr = source.parse().expect("an address");
    named(0x21, 0x21, &[&source.octets()[..], &[0; 16], &[0; 4]].concat())
}

/// Version 2: command, family, and what stands for the addresses.
fn named(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = u16::try_from(addresses.len()).expect("short").to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, addresses].concat()
}

fn get() -> Vec<u8> {
    format!("GET /providers HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\r\n")
        .into_bytes()
}

/// What comes back for these bytes, until the proxy closes.
async fn answer_to(address: SocketAddr, bytes: &[u8]) -> String {
    let mut answer = Vec::new();
    // A reset is an end like any other.
    behind(address, bytes).await.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// How many connections were refused for `reason`.
async fn refused(proxy: &Proxy, reason: &str) -> Option<u64> {
    let ask = request("GET", "/metrics", &[("host", "localhost")], "");
    let metrics = try_send(proxy.admin, ask).await.expect("metrics");
    let metrics = String::from_utf8(metrics.body.to_vec()).expect("text");
    let series = format!("metorial_proxy_connections_refused_total{{reason=\"{reason}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok())
}

/// A connection that begins with these bytes.
async fn behind(address: SocketAddr, header: &[u8]) -> TcpStream {
    let mut tcp = connect(address).await;
    tcp.write_all(header).await.expect("sent");
    tcp
}

/// What a request without a key costs its caller, once it has been answered.
const COST: u64 = 10;

/// What of its limit the caller has left, as the answer tells.
async fn left(proxy: &Proxy, header: &[u8], fields: &[(&str, &str)]) -> u64 {
    let mut connection = Connection::http1(behind(proxy.address, header).await).await;
    let reply = connection.send(request("GET", "/providers", fields, "")).await.expect("an answer");
    assert_eq!(reply.status, 401);
    let (_, rest) = reply.field("ratelimit").split_once("r=").expect("a limit");
    rest.split(';').next().and_then(|left| left.parse().ok()).expect("a number")
}

#[tokio::test]
async fn the_caller_is_whom_the_balancer_names() {
    let (_mock, proxy) = pair(&format!("{ON}clients.limit = {{ requests = 1000, window = '1h' }}")).await;
    let mut connection = Connection::http1(behind(proxy.address, &v1("203.0.113.1")).await).await;
    for _ in 0..3 {
        assert_eq!(connection.send(bearing(KEY, "/providers")).await.expect("an answer").status, 200);
    }
    let first = left(&proxy, &v1("203.0.113.1"), &[]).await;
    assert!(first < 997, "the same caller again: {first}");
    assert_eq!(left(&proxy, &v1("203.0.113.2"), &[]).await, 999, "another one");
    assert_eq!(left(&proxy, &v2([203, 0, 113, 3]), &[]).await, 999);
    // What the caller itself writes is not believed, and what a proxy behind the balancer writes is.
    let forwarded = [("x-forwarded-for", "203.0.113.2")];
    assert_eq!(left(&proxy, &v1("203.0.113.4"), &forwarded).await, 999);
    assert!(left(&proxy, &v1("10.9.9.9"), &forwarded).await < 999);
}

#[tokio::test]
async fn a_caller_by_ipv6_is_known_by_its_prefix_in_either_version() {
    let (_mock, proxy) = pair(&format!("{ON}clients.limit = {{ requests = 1000, window = '24h' }}")).await;
    for (at, header) in [
        v1_of_6("2001:db8:1:2::9"),
        v2_of_6("2001:db8:1:2::9"),
        v1_of_6("2001:db8:1:2::a"),
        v2_of_6("2001:db8:1:2:ffff::"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(
            left(&proxy, &header, &[]).await,
            999 - COST * at as u64,
            "one client, in whichever version"
        );
    }
    assert_eq!(left(&proxy, &v2_of_6("2001:db8:1:3::9"), &[]).await, 999, "another one");
    assert_eq!(left(&proxy, &v1("203.0.113.1"), &[]).await, 999);
    for (at, header) in [v1_of_6("::ffff:203.0.113.1"), v2_of_6("::ffff:203.0.113.1")].iter().enumerate() {
        assert_eq!(
            left(&proxy, header, &[]).await,
            999 - COST * (at as u64 + 1),
            "and a mapped address is that of IPv4"
        );
    }
}

#[tokio::test]
async fn where_a_header_names_nobody_the_caller_is_the_peer_itself() {
    let (_mock, proxy) = pair(&format!("{ON}clients.limit = {{ requests = 1000, window = '24h' }}")).await;
    let address = [&[203, 0, 113, 1][..], &[10, 0, 0, 1], &[0x12, 0x67, 0x01, 0xbb]].concat();
    for (at, header) in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 203.0.113.1 10.0.0.1 4711 443\r\n".to_vec(),
        // LOCAL: the balancer's own probe, whatever stands behind it.
        named(0x20, 0x00, b""),
        named(0x20, 0x11, &address),
        named(0x20, 0x11, b""),
        named(0x20, 0x77, b"whatever"),
        // PROXY, of an unspecified family and by a Unix socket.
        named(0x21, 0x00, b""),
        named(0x21, 0x00, &address),
        named(0x21, 0x31, &[b'/'; 216]),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(left(&proxy, &header, &[]).await, 999 - COST * at as u64, "{header:?}");
    }
    assert_eq!(left(&proxy, &v1("127.0.0.1"), &[]).await, 999 - COST * 9, "which is this");
    assert_eq!(left(&proxy, &v1("203.0.113.1"), &[]).await, 999, "and not whom they did not name");
}

#[tokio::test]
async fn a_header_and_a_request_in_one_write_are_told_apart() {
    let (mock, proxy) = pair(ON).await;
    for header in [
        v1("203.0.113.1"),
        v1_of_6("2001:db8::1"),
        v2([203, 0, 113, 1]),
        v2_of_6("2001:db8::1"),
        b"PROXY UNKNOWN\r\n".to_vec(),
        named(0x20, 0x00, b""),
        named(0x21, 0x00, &[0xee; 600]),
    ] {
        let answer = answer_to(proxy.address, &[&header[..], &get()].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{header:?}: {answer}");
    }
    assert_eq!(mock.received(), 1, "and the page was kept for all of them");
    assert_eq!(refused(&proxy, "proxy_protocol").await, Some(0));
}

#[tokio::test]
async fn a_header_of_version_2_that_is_cut_off_is_closed_and_counted() {
    let (mock, proxy) = pair(&format!("{ON}server.header_read_timeout = '200ms'")).await;
    let header = v2([203, 0, 113, 1]);
    let cuts = [1, 11, 12, 15, 16, 20, header.len() - 1];
    for cut in cuts {
        // The other side has said all it will.
        let mut tcp = behind(proxy.address, &header[..cut]).await;
        tcp.shutdown().await.expect("half closed");
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.ok();
        assert!(answer.is_empty(), "cut at {cut}");
    }
    // Or says no more; and one that is shorter than its own addresses, with a request behind it.
    assert_eq!(answer_to(proxy.address, &header[..20]).await, "");
    let short = [named(0x21, 0x21, &[0; 12]), get()].concat();
    assert_eq!(answer_to(proxy.address, &short).await, "");
    assert_eq!(refused(&proxy, "proxy_protocol").await, Some(cuts.len() as u64 + 2));
    assert_eq!(mock.received(), 0);
}

#[tokio::test]
async fn a_header_in_pieces_is_read_and_http_2_follows_it_as_well() {
    let (_mock, proxy) = pair(ON).await;
    for header in [v1("203.0.113.1"), v2([203, 0, 113, 1])] {
        let mut tcp = connect(proxy.address).await;
        tcp.set_nodelay(true).expect("no delay");
        for byte in header {
            tcp.write_all(&[byte]).await.expect("sent");
            tokio::task::yield_now().await;
        }
        let mut connection = Connection::http2(tcp).await;
        assert_eq!(connection.send(bearing(KEY, "/providers")).await.expect("an answer").status, 200);
    }
}

#[tokio::test]
async fn a_connection_without_a_header_is_closed_and_counted() {
    let (mock, proxy) = pair(&format!("{ON}server.header_read_timeout = '200ms'")).await;
    let get = get();
    let endless = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &[0; 4000]].concat();
    for bytes in [
        get.clone(),
        [b"PROXY NONSENSE\r\n", &get[..]].concat(),
        [&v1("203.0.113.1")[..20], &get].concat(),
        endless,
        b"PROXY TCP4 203.0".to_vec(),
        Vec::new(),
    ] {
        assert_eq!(answer_to(proxy.address, &bytes).await, "");
    }
    // A header is taken once, and a second one is no request.
    let twice = [v1("203.0.113.1"), v1("203.0.113.2"), get].concat();
    let answer = answer_to(proxy.address, &twice).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(mock.received(), 0);
    assert_eq!(refused(&proxy, "proxy_protocol").await, Some(6));
}

#[tokio::test]
async fn nobody_but_a_trusted_proxy_may_write_one() {
    let (mock, proxy) = pair("server.proxy_protocol = true\nserver.trusted_proxies = ['10.0.0.0/8']").await;
    for header in [v1("10.0.0.1"), v2([10, 0, 0, 1]), b"PROXY UNKNOWN\r\n".to_vec(), Vec::new()] {
        assert_eq!(answer_to(proxy.address, &[header, get()].concat()).await, "");
    }
    assert_eq!(mock.received(), 0);
    assert_eq!(refused(&proxy, "untrusted_proxy").await, Some(4));
    assert_eq!(refused(&proxy, "proxy_protocol").await, Some(0), "whatever it wrote was not looked at");
    let faults = load("http://127.0.0.1:1", "server.proxy_protocol = true").expect_err("refused");
    assert!(faults.len() == 1 && faults[0].path == "server.proxy_protocol", "{faults:?}");
    // And where it is off, it is no request.
    let (_mock, off) = pair("").await;
    let answer = answer_to(off.address, &v1("203.0.113.1")).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn connections_count_for_the_caller_they_are_made_for() {
    let (_mock, proxy) = pair(&format!("{ON}server.max_connections_per_ip = 1")).await;
    let mut first = Connection::http1(behind(proxy.address, &v1("203.0.113.1")).await).await;
    assert_eq!(first.send(bearing(KEY, "/providers")).await.expect("an answer").status, 200);
    let mut second = behind(proxy.address, &v1("203.0.113.1")).await;
    let mut answer = Vec::new();
    second.read_to_end(&mut answer).await.ok();
    assert!(answer.is_empty(), "one is enough");
    let mut other = Connection::http1(behind(proxy.address, &v1("203.0.113.2")).await).await;
    assert_eq!(other.send(bearing(KEY, "/providers")).await.expect("an answer").status, 200);
}
