//! A running stand-in, and a client that sends what it is told.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::mock::{MockHandle, Options, bind};

pub(super) const SECRET: &str = "Bearer metorial_sk_0123456789";
pub(super) const PUBLISHABLE: &str = "Bearer metorial_pk_0123456789";

pub(super) struct Server {
    pub(super) addr: SocketAddr,
    pub(super) handle: MockHandle,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// A field's value; the empty string where it is missing.
    pub(super) fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

pub(super) async fn start(options: Options) -> Server {
    let mock = bind(Options { listen: ([127, 0, 0, 1], 0).into(), ..options }).await.expect("a free port");
    let (addr, handle) = (mock.addr(), mock.handle());
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    tasks.spawn(mock.serve(stop.clone()));
    Server { addr, handle, stop, tasks }
}

/// Room enough for any test that isn't about limits.
pub(super) async fn roomy() -> Server {
    let limit = crate::domain::quota::Quota::PRODUCTION;
    start(Options { limit, ..Options::default() }).await
}

pub(super) fn request(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Request<Full<Bytes>> {
    let method: Method = method.parse().expect("a method");
    let mut request = Request::builder().method(method).uri(target).header("host", "mock.test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::from(body.to_owned())).expect("a request")
}

impl Server {
    /// One request on a connection of its own. The error is that of the head or of the body.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply, hyper::Error> {
        let tcp = TcpStream::connect(self.addr).await.expect("a connection");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
        self.tasks.spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
    }

    /// The same by HTTP/2, knowing beforehand that it is spoken.
    pub(super) async fn send_h2(&self, request: Request<Full<Bytes>>) -> Result<Reply, hyper::Error> {
        let tcp = TcpStream::connect(self.addr).await.expect("a connection");
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await?;
        self.tasks.spawn(connection);
        let (mut parts, body) = request.into_parts();
        parts.headers.remove("host");
        parts.uri = format!("http://mock.test{}", parts.uri).parse().expect("an absolute URI");
        let (head, body) = sender.send_request(Request::from_parts(parts, body)).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
    }

    pub(super) async fn call(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        self.send(request(method, target, headers, body)).await.expect("an answer")
    }

    pub(super) async fn get(&self, target: &str) -> Reply {
        self.call("GET", target, &[("authorization", SECRET)], "").await
    }

    /// The body of a 200.
    pub(super) async fn json(&self, target: &str) -> Value {
        let reply = self.get(target).await;
        assert_eq!(reply.status, StatusCode::OK.as_u16(), "{target}: {reply:?}");
        reply.json()
    }

    pub(super) async fn post(&self, target: &str, body: &str) -> Reply {
        self.write("POST", target, body).await
    }

    pub(super) async fn write(&self, method: &str, target: &str, body: &str) -> Reply {
        let headers = [("authorization", SECRET), ("content-type", "application/json")];
        self.call(method, target, &headers, body).await
    }
}
