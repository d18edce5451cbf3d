//! The `health` command: asks `/readyz`, for images without curl.

use std::net::SocketAddr;

use http::StatusCode;

use super::client::{Port, reachable};

/// Bytes of an answer that are read; what is worth showing is far shorter.
const LONGEST: usize = 16 * 1024;
/// Characters of it that are shown.
const SHOWN: usize = 256;

/// Asks the proxy whose admin port is `addr` whether it is ready. `0.0.0.0` and `[::]`, where a proxy listens on every
/// address, are asked on loopback.
///
/// # Errors
/// Why it isn't, in words for an operator.
pub async fn check(addr: SocketAddr) -> Result<(), String> {
    let (status, body) = Port { addr, token: None }.get("/readyz", LONGEST).await?;
    if status == StatusCode::OK {
        return Ok(());
    }
    let body = String::from_utf8_lossy(&body);
    let shown: String = body.trim().chars().take(SHOWN).collect();
    Err(format!("{} answered {}: {shown}", reachable(addr), status.as_u16()))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

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
