//! Asks an admin port, from the command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpStream;

use crate::time::timeout;

/// For the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Where to ask.
#[derive(Debug, Clone)]
pub struct Port {
    /// The address of the admin port; `0.0.0.0` and `[::]`, where a proxy listens on every address, are asked on loopback.
    pub addr: SocketAddr,
    /// Its token, where it is not on this machine.
    pub token: Option<SecretString>,
}

impl Port {
    /// GETs `path`; the status and the body, of which at most `longest` bytes are read.
    ///
    /// # Errors
    /// Why there is no answer, in words for an operator.
    pub async fn get(&self, path: &str, longest: usize) -> Result<(StatusCode, Bytes), String> {
        let addr = reachable(self.addr);
        match timeout(TIMEOUT, self.ask(addr, path, longest)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer from {addr} within {} s", TIMEOUT.as_secs())),
        }
    }

    async fn ask(&self, addr: SocketAddr, path: &str, longest: usize) -> Result<(StatusCode, Bytes), String> {
        let stream =
            TcpStream::connect(addr).await.map_err(|error| format!("can't connect to {addr}: {error}"))?;
        let broken = |error: hyper::Error| format!("{addr} did not answer in HTTP: {error}");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut request = Request::get(path).header(HOST, addr.to_string()).header(CONNECTION, "close");
        if let Some(token) = &self.token {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()));
            let mut value = value.map_err(|_| "the token holds what no field of HTTP may hold".to_owned())?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;

        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), longest).collect().await;
            match body {
                Ok(body) => Ok((status, body.to_bytes())),
                Err(error) if error.is::<LengthLimitError>() => {
                    Err(format!("{addr} answered {} with more than {longest} bytes", status.as_u16()))
                }
                Err(error) => Err(format!("{addr} did not answer in HTTP: {error}")),
            }
        };
        let mut exchange = std::pin::pin!(exchange);
        // The connection only moves while it is polled; when it ends first, the exchange learns of it.
        tokio::select! {
            answer = exchange.as_mut() => return answer,
            ended = connection => ended.map_err(broken)?,
        }
        exchange.await
    }
}

/// Where an address is reached that a server listens on.
pub fn reachable(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    addr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_asked_on_loopback() {
        let reachable = |addr: &str| reachable(addr.parse().expect("an address")).to_string();
        assert_eq!(reachable("0.0.0.0:9090"), "127.0.0.1:9090");
        assert_eq!(reachable("[::]:9090"), "[::1]:9090");
        assert_eq!(reachable("192.0.2.1:9090"), "192.0.2.1:9090");
    }
}
