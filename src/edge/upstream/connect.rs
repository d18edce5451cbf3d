//! New connections to the API: name, address, TLS, protocol.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use super::fault;
use crate::body::RequestBody;
use crate::config::Http2;
use crate::rejection::UpstreamFault;
use crate::time::{Instant, timeout};

/// A connection that is ready for a request.
pub(super) enum Connection {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// Makes connections to one authority.
#[derive(Clone)]
pub struct Connector {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    http2: Http2,
    timeout: Duration,
    /// Connection tasks end with their connections: nobody waits for them.
    tasks: TaskTracker,
}

type Fault = (UpstreamFault, String);

impl Connector {
    /// Connects to `host` and `port` within `timeout`, by TLS where `tls` says how.
    ///
    /// # Errors
    /// Where `host` is no name that a certificate could be checked against.
    pub fn new(
        host: &str,
        port: u16,
        tls: Option<Arc<ClientConfig>>,
        http2: Http2,
        timeout: Duration,
    ) -> Result<Self, String> {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match tls {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| format!("{host} is no name that a certificate could be checked against"))?;
                Some((TlsConnector::from(config), name))
            }
        };
        Ok(Self { host, port, tls, http2, timeout, tasks: TaskTracker::new() })
    }

    pub(super) async fn connect(&self) -> Result<Connection, Fault> {
        // Boxed: handshakes are rare, and their state is large.
        match timeout(self.timeout, Box::pin(self.open())).await {
            Ok(connection) => connection,
            Err(_) => Err((UpstreamFault::ConnectionTimeout, "no connection in time".to_owned())),
        }
    }

    async fn open(&self) -> Result<Connection, Fault> {
        let stream = self.dial().await?;
        stream.set_nodelay(true).ok();
        let Some((connector, name)) = &self.tls else {
            let http2 = self.http2 == Http2::Always;
            return self.handshake(stream, http2).await;
        };
        let stream = connector
            .connect(name.clone(), stream)
            .await
            .map_err(|error| (fault::of_tls(&error), fault::chain(&error)))?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2") || self.http2 == Http2::Always;
        self.handshake(stream, http2).await
    }

    /// Tries each address of the name, sharing the time that is left among those that are left.
    async fn dial(&self) -> Result<TcpStream, Fault> {
        let deadline = Instant::now() + self.timeout;
        let addresses: Vec<SocketAddr> = lookup_host((self.host.as_str(), self.port))
            .await
            .map_err(|error| (UpstreamFault::Dns, error.to_string()))?
            .collect();
        let mut last = (UpstreamFault::Dns, format!("{} has no address", self.host));
        for (at, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
            let error = match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => error,
                Err(_) => io::ErrorKind::TimedOut.into(),
            };
            last = (fault::of_io(&error), format!("{address}: {error}"));
        }
        Err(last)
    }

    async fn handshake<I>(&self, io: I, http2: bool) -> Result<Connection, Fault>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(io);
        let fault = |error: hyper::Error| (fault::of_hyper(&error), fault::chain(&error));
        if http2 {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(Duration::from_secs(20))
                .keep_alive_timeout(Duration::from_secs(10))
                .handshake(io)
                .await
                .map_err(fault)?;
            self.tasks.spawn(ended(connection));
            return Ok(Connection::Http2(sender));
        }
        let (mut sender, connection) = http1::Builder::new()
            .max_headers(128)
            .max_buf_size(512 * 1024)
            .handshake(io)
            .await
            .map_err(fault)?;
        self.tasks.spawn(ended(connection));
        sender.ready().await.map_err(fault)?;
        Ok(Connection::Http1(sender))
    }
}

/// A connection's failure reaches whoever sent a request over it; without one it concerns nobody.
async fn ended(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(error = fault::chain(&error), "a connection to upstream ended");
    }
}
