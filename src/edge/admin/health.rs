//! The `health` command: asks `/readyz`, for images without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::time::timeout;

/// For the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of an answer that are worth showing.
const SHOWN: usize = 256;

/// Asks the proxy whose admin port is `addr` whether it is ready. `0.0.0.0` and `[::]`, where a proxy listens on every
/// address, are asked on loopback.
///
/// # Errors
/// Why it isn't, in words for an operator.
pub async fn check(addr: SocketAddr) -> Result<(), String> {
    let addr = reachable(addr);
    match timeout(TIMEOUT, ask(addr)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer from {addr} within {} s", TIMEOUT.as_secs())),
    }
}

fn reachable(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    addr
}

async fn ask(addr: SocketAddr) -> Result<(), String> {
    let stream =
        TcpStream::connect(addr).await.map_err(|error| format!("can't connect to {addr}: {error}"))?;
    let broken = |error: hyper::Error| format!("{addr} did not answer in HTTP: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get("/readyz")
        .header(HOST, addr.to_string())
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;

    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(());
        }
        let body = Limited::new(response.into_body(), SHOWN).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        Err(format!("{addr} answered {}: {}", status.as_u16(), String::from_utf8_lossy(&body).trim()))
    };
    let mut exchange = std::pin::pin!(exchange);
    // The connection only moves while it is polled; when it ends first, the exchange learns of it.
    tokio::select! {
        answer = exchange.as_mut() => return answer,
        ended = connection => ended.map_err(broken)?,
    }
    exchange.await
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn every_address_is_asked_on_loopback() {
        let reachable = |addr: &str| reachable(addr.parse().expect("an address")).to_string();
        assert_eq!(reachable("0.0.0.0:9090"), "127.0.0.1:9090");
        assert_eq!(reachable("[::]:9090"), "[::1]:9090");
        assert_eq!(reachable("192.0.2.1:9090"), "192.0.2.1:9090");
    }

    #[tokio::test]
    async fn a_closed_port_is_told_as_such() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        drop(listener);
        let error = check(addr).await.expect_err("nobody listens");
        assert!(error.starts_with(&format!("can't connect to {addr}: ")), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        assert_eq!(check(addr).await, Err(format!("no answer from {addr} within 3 s")));
    }
}
