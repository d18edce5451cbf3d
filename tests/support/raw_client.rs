//! A caller who writes bytes, and reads answers as a strict reader of HTTP/1.1 does.

use std::net::SocketAddr;
use std::time::Duration;

use metorial_proxy::time::timeout;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No answer takes longer, here.
const PATIENCE: Duration = Duration::from_secs(10);

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
    /// It ended where its head said.
    pub(crate) whole: bool,
}

impl Answer {
    /// Whether nothing may follow it.
    pub(crate) fn closes(&self) -> bool {
        self.head.to_ascii_lowercase().contains("\r\nconnection: close\r\n")
    }
}

pub(crate) struct RawClient {
    tcp: TcpStream,
    buffer: Vec<u8>,
}

impl RawClient {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.expect("a connection");
        tcp.set_nodelay(true).expect("an option");
        Self { tcp, buffer: Vec::new() }
    }

    /// The other side may have closed already.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.tcp.write_all(bytes).await.is_ok()
    }

    /// Nothing more will be sent.
    pub(crate) async fn finish(&mut self) {
        self.tcp.shutdown().await.ok();
    }

    /// The next answer, interim ones apart; `None`: the connection has ended, or nothing came in time.
    pub(crate) async fn answer(&mut self, to_head: bool) -> Option<Answer> {
        timeout(PATIENCE, self.next(to_head)).await.ok().flatten()
    }

    /// Whether the other side ends the connection, without another byte.
    pub(crate) async fn is_closed(&mut self) -> bool {
        matches!(timeout(PATIENCE, self.more()).await, Ok(false)) && self.buffer.is_empty()
    }

    async fn next(&mut self, to_head: bool) -> Option<Answer> {
        loop {
            let end = loop {
                if let Some(at) = self.buffer.windows(4).position(|end| end == b"\r\n\r\n") {
                    break at + 4;
                }
                if !self.more().await {
                    return None;
                }
            };
            let head: Vec<u8> = self.buffer.drain(..end).collect();
            let head = String::from_utf8(head).expect("text");
            let status: u16 = head.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let lower = head.to_ascii_lowercase();
            let field = |name: &str| {
                let mut values = lower.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                let value = values.next();
                assert_eq!(values.next(), None, "{name} twice in {head}");
                value.map(str::to_owned)
            };
            let (length, coding) = (field("content-length"), field("transfer-encoding"));
            assert!(length.is_none() || coding.is_none(), "two lengths in {head}");
            let (body, whole) = match (length, coding) {
                _ if to_head || status == 204 || status == 304 => (Vec::new(), true),
                (Some(length), _) => self.sized(length.parse().expect("a number")).await,
                (None, Some(_)) => self.chunked().await,
                (None, None) => (self.rest().await, true),
            };
            return Some(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned(), whole });
        }
    }

    async fn sized(&mut self, length: usize) -> (Vec<u8>, bool) {
        while self.buffer.len() < length {
            if !self.more().await {
                return (std::mem::take(&mut self.buffer), false);
            }
        }
        (self.buffer.drain(..length).collect(), true)
    }

    async fn chunked(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            while let Some(at) = self.buffer.windows(2).position(|end| end == b"\r\n") {
                let size = String::from_utf8_lossy(&self.buffer[..at]).into_owned();
                let size = usize::from_str_radix(&size, 16).expect("a plain size");
                if self.buffer.len() < at + 2 + size + 2 {
                    break;
                }
                body.extend_from_slice(&self.buffer[at + 2..at + 2 + size]);
                self.buffer.drain(..at + 2 + size + 2);
                if size == 0 {
                    return (body, true);
                }
            }
            if !self.more().await {
                return (body, false);
            }
        }
    }

    async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.buffer)
    }

    async fn more(&mut self) -> bool {
        matches!(self.tcp.read_buf(&mut self.buffer).await, Ok(count) if count > 0)
    }
}
