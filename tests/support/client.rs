//! A caller: one request and its answer, over HTTP/1.1, HTTP/2 or bytes of the test's own.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

pub(crate) type Asked = Request<Full<Bytes>>;

/// A request; where `fields` name no `host`, the host is `proxy.test`.
pub(crate) fn request(method: &str, target: &str, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Asked {
    let mut request = Request::builder().method(method).uri(target);
    if !fields.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "proxy.test");
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).expect("a request")
}

/// A GET with a key and nothing else.
pub(crate) fn bearing(key: &str, target: &str) -> Asked {
    request("GET", target, &[("authorization", &format!("Bearer {key}"))], "")
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    /// A field's value; the empty string where it is missing.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status and the error's code.
    pub(crate) fn refusal(&self) -> (u16, String) {
        (self.status, self.json()["code"].as_str().unwrap_or("no code").to_owned())
    }

    /// How many items a list has.
    pub(crate) fn items(&self) -> usize {
        self.json()["items"].as_array().unwrap_or_else(|| panic!("no list: {self:?}")).len()
    }
}

/// A connection that can carry several requests.
pub(crate) enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    pub(crate) async fn http1(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.expect("a connection");
        TaskTracker::new().spawn(connection);
        Self::Http1(sender)
    }

    pub(crate) async fn http2(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let io = TokioIo::new(io);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("a connection");
        TaskTracker::new().spawn(connection);
        Self::Http2(sender)
    }

    /// The same HTTP/2 connection, to send over it at once.
    pub(crate) fn stream(&self) -> Self {
        match self {
            Self::Http1(_) => panic!("HTTP/1.1 carries one request at a time"),
            Self::Http2(sender) => Self::Http2(sender.clone()),
        }
    }

    /// `None` where the connection had ended before the request was on it: any client then sends it over another.
    pub(crate) async fn send_if_open(&mut self, request: Asked) -> Result<Option<Reply>, hyper::Error> {
        let ready = match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        };
        if ready.is_err() {
            return Ok(None);
        }
        let sent = match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(absolute(request)).await,
        };
        match sent {
            Ok(response) => read(response).await.map(Some),
            Err(mut error) => match error.take_message() {
                Some(_) => Ok(None),
                None => Err(error.into_error()),
            },
        }
    }

    /// The error is that of the head or of the body.
    pub(crate) async fn send(&mut self, request: Asked) -> Result<Reply, hyper::Error> {
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(absolute(request)).await?
            }
        };
        read(response).await
    }
}

async fn read(response: Response<Incoming>) -> Result<Reply, hyper::Error> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
}

/// HTTP/2 has the host in the target.
fn absolute(request: Asked) -> Asked {
    let (mut head, body) = request.into_parts();
    let host = head.headers.remove("host").expect("a host");
    let host = host.to_str().expect("text");
    head.uri = format!("http://{host}{}", head.uri).parse().expect("a URI");
    Request::from_parts(head, body)
}

pub(crate) async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

/// One request on a connection of its own.
pub(crate) async fn try_send(address: SocketAddr, request: Asked) -> Result<Reply, hyper::Error> {
    Connection::http1(connect(address).await).await.send(request).await
}

/// Sends bytes as they are, and reads until the other side closes.
pub(crate) async fn raw(address: SocketAddr, bytes: &str) -> String {
    let mut tcp = connect(address).await;
    tcp.write_all(bytes.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    // A reset after the answer is an end like any other.
    tcp.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}
