//! hyper and nothing else: answers every request with one page from memory. What a proxy adds is measured against it.
//!
//! `bare-hyper ADDRESS FILE`, HTTP/1.1; with a third argument `h2`, HTTP/2 with prior knowledge.

use std::convert::Infallible;
use std::error::Error;
use std::future::ready;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mimalloc::MiMalloc;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

/// As in the proxy.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err("usage: bare-hyper ADDRESS FILE [h2]".into());
    };
    let (page, h2) = (Bytes::from(std::fs::read(file)?), arguments.next().as_deref() == Some("h2"));
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (listener, connections) = (TcpListener::bind(address).await?, TaskTracker::new());
        // With an end of its own, a build with counters writes them (benches/profile).
        let mut stop = signal(SignalKind::terminate())?;
        loop {
            let (tcp, _) = tokio::select! {
                accepted = listener.accept() => accepted?,
                _ = stop.recv() => return Ok(()),
            };
            tcp.set_nodelay(true)?;
            let (tcp, page) = (TokioIo::new(tcp), page.clone());
            let answer = service_fn(move |_: Request<Incoming>| {
                let mut response = Response::new(Full::new(page.clone()));
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                ready(Ok::<_, Infallible>(response))
            });
            if h2 {
                connections.spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(tcp, answer));
            } else {
                connections.spawn(http1::Builder::new().serve_connection(tcp, answer));
            }
        }
    })
}
