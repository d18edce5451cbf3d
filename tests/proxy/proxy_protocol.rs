//! The PROXY protocol: the caller is whom the balancer names, and nobody else may name one.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Connection, bearing, connect, request, try_send};
use crate::harness::{KEY, Proxy, load, pair};

const ON: &str = "server.proxy_protocol = true\nserver.trusted_proxies = ['127.0.0.0/8', '10.0.0.0/8']\n";

fn v1(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 10.0.0.1 4711 443\r\n").into_bytes()
}

fn v2(source: [u8; 4]) -> Vec<u8> {
    let ports = [0x12, 0x67, 0x01, 0xbb];
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", &source[..], &[10, 0, 0, 1], &ports].concat()
}

/// A connection that begins with these bytes.
async fn behind(address: SocketAddr, header: &[u8]) -> TcpStream {
    let mut tcp = connect(address).await;
    tcp.write_all(header).await.expect("sent");
    tcp
}

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
    // The balancer's own probes.
    for local in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        left(&proxy, local, &[]).await;
    }
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
    let get =
        format!("GET /providers HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n").into_bytes();
    let endless = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &[0; 4000]].concat();
    for bytes in [
        get.clone(),
        [b"PROXY NONSENSE\r\n", &get[..]].concat(),
        [&v1("203.0.113.1")[..20], &get].concat(),
        endless,
        b"PROXY TCP4 203.0".to_vec(),
        Vec::new(),
    ] {
        let mut tcp = behind(proxy.address, &bytes).await;
        let mut answer = Vec::new();
        // A reset is an end like any other.
        tcp.read_to_end(&mut answer).await.ok();
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    // A header is taken once, and a second one is no request.
    let twice = [v1("203.0.113.1"), v1("203.0.113.2"), get].concat();
    let mut answer = String::new();
    behind(proxy.address, &twice).await.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(mock.received(), 0);
    let ask = request("GET", "/metrics", &[("host", "localhost")], "");
    let metrics = try_send(proxy.admin, ask).await.expect("metrics");
    let metrics = String::from_utf8(metrics.body.to_vec()).expect("text");
    let line = "metorial_proxy_connections_refused_total{reason=\"proxy_protocol\"} 6";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn nobody_but_a_trusted_proxy_may_write_one() {
    let (mock, proxy) = pair("server.proxy_protocol = true\nserver.trusted_proxies = ['10.0.0.0/8']").await;
    let get =
        format!("GET /providers HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n").into_bytes();
    let mut tcp = behind(proxy.address, &[v1("10.0.0.1"), get].concat()).await;
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.ok();
    assert!(answer.is_empty() && mock.received() == 0);
    let faults = load("http://127.0.0.1:1", "server.proxy_protocol = true").expect_err("refused");
    assert!(faults.len() == 1 && faults[0].path == "server.proxy_protocol", "{faults:?}");
    // And where it is off, it is no request.
    let (_mock, off) = pair("").await;
    let mut answer = String::new();
    behind(off.address, &v1("203.0.113.1")).await.read_to_string(&mut answer).await.expect("an answer");
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
