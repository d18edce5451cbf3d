//! How traces get to a collector: OTLP in protobuf over HTTP/1.1, one connection for each batch.
//!
//! The exporter calls from a thread of its own, which may block; the runtime it needs for that is its own too, so that a
//! collector that hangs holds nothing else up.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use crate::config::{Http2, Otlp};
use crate::edge::tls;
use crate::telemetry::traces::Traces;
use crate::time::timeout;

/// For one batch, retries included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A collector's answer holds a number and a sentence.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Traces that go to the collector of `config`.
///
/// # Errors
/// What keeps them from it, in words for an operator.
pub fn traces(config: &Otlp) -> Result<Traces, String> {
    let tls = match config.endpoint.scheme() == Some(&Scheme::HTTPS) {
        true => Some(tls::client(Http2::Never, None)?),
        false => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client { runtime: Some(runtime), tls })
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(config.endpoint.to_string())
        .with_timeout(TIMEOUT)
        .build();
    Ok(Traces::new(exporter.map_err(|error| error.to_string())?, config.sample))
}

struct Client {
    /// Always there but in `drop`.
    runtime: Option<Runtime>,
    tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Where it was never used, this may be another runtime's thread, which must not wait for one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

type Sending<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Client {
    fn send_bytes<'life0, 'async_trait>(&'life0 self, request: Request<Bytes>) -> Sending<'async_trait>
    where
        'life0: 'async_trait,
    {
        Box::pin(async move {
            let runtime = self.runtime.as_ref().ok_or("the exporter is shut down")?;
            let answer = runtime.block_on(async {
                timeout(TIMEOUT, self.exchange(request))
                    .await
                    .unwrap_or_else(|_| Err("no answer in time".into()))
            });
            // What the exporter makes of it says only that it failed.
            answer.inspect_err(|error| tracing::debug!(%error, "the collector was not reached"))
        })
    }
}

impl Client {
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let authority = request.uri().authority().cloned().ok_or("no authority")?;
        let port = authority.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        match &self.tls {
            None => send(stream, request, &authority).await,
            Some(config) => {
                let stream = TlsConnector::from(config.clone()).connect(ServerName::try_from(host)?, stream);
                send(stream.await?, request, &authority).await
            }
        }
    }
}

async fn send<I>(io: I, request: Request<Bytes>, authority: &Authority) -> Result<Response<Bytes>, HttpError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    let mut request = request.map(Full::new);
    let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    request.headers_mut().insert(HOST, HeaderValue::from_str(authority.as_str())?);
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    tokio::select! {
        answer = exchange => answer,
        // Its end is told to the exchange, too.
        Err(error) = connection => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::task::{Context, Poll, Waker};
    use std::thread;

    use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

    use super::*;

    /// Server and client that trust each other, for `localhost`.
    fn pair() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let server = server.expect("versions").with_no_client_auth();
        let key = made.signing_key.serialize_der().try_into().expect("a key");
        let server = server.with_single_cert(vec![made.cert.der().clone()], key).expect("a pair");
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = client.expect("versions").with_root_certificates(roots).with_no_client_auth();
        (Arc::new(server), Arc::new(client))
    }

    /// As the exporter's thread does: no runtime around it.
    fn send(client: &Client, url: &str) -> Result<Response<Bytes>, HttpError> {
        let request = Request::post(url).body(Bytes::from_static(b"spans")).expect("a request");
        match client.send_bytes(request).as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer,
            Poll::Pending => panic!("it blocks until there is an answer"),
        }
    }

    fn client(tls: Option<Arc<ClientConfig>>) -> Client {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Client { runtime: Some(runtime), tls }
    }

    #[test]
    fn a_collector_behind_tls_is_reached_by_its_name_and_its_certificate_checked() {
        let (server, trusting) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let url =
            format!("https://localhost:{}/v1/traces", listener.local_addr().expect("an address").port());
        let collector = thread::spawn(move || {
            let mut heads = Vec::new();
            for tcp in listener.incoming().take(2) {
                let session = ServerConnection::new(server.clone()).expect("a session");
                let mut tls = StreamOwned::new(session, tcp.expect("a connection"));
                let mut head = Vec::new();
                let mut buffer = [0; 1024];
                while !head.ends_with(b"spans") {
                    match tls.read(&mut buffer) {
                        Ok(0) | Err(_) => break,
                        Ok(read) => head.extend_from_slice(&buffer[..read]),
                    }
                }
                // Who does not trust us has left.
                tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok();
                heads.push(String::from_utf8(head).expect("text"));
            }
            heads
        });
        let stranger = send(&client(Some(tls::client(Http2::Never, None).expect("roots"))), &url);
        assert!(stranger.is_err_and(|error| error.to_string().contains("certificate")));
        assert_eq!(send(&client(Some(trusting)), &url).expect("an answer").status(), 200);
        let heads = collector.join().expect("a collector");
        assert_eq!(heads[0], "");
        assert!(
            heads[1].starts_with("POST /v1/traces HTTP/1.1\r\n") && heads[1].contains("host: localhost:"),
            "{heads:?}"
        );
    }

    #[test]
    fn a_collector_that_is_not_there_is_an_error() {
        let nobody =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("an address");
        assert!(send(&client(None), &format!("http://{nobody}/v1/traces")).is_err());
    }
}
