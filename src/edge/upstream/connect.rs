//! New connections to the API: name, address, TLS, protocol.

use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tokio_util::task::TaskTracker;

use super::fault;
use super::http1::Http1;
use super::interim::{self, Counted};
use super::names::{self, Lookup, Names};
use crate::body::RequestBody;
use crate::config::Http2;
use crate::edge::executor::ThisThread;
use crate::edge::outbox::{Outbox, Socket};
use crate::rejection::UpstreamFault;
use crate::time::{Timestamp, timeout};

/// How long an address is waited for before the next one is tried beside it (RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(250);

/// What HTTP goes over.
pub(super) type Stream = Either<Socket, Box<TlsStream<Socket>>>;

/// A connection that is ready for a request.
pub(super) enum Connection {
    Http1(Box<Http1<Stream>>),
    /// And since when it is there.
    Http2(http2::SendRequest<RequestBody>, Timestamp),
}

/// Makes connections to one authority.
#[derive(Clone)]
pub struct Connector {
    names: Names,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    http2: Http2,
    timeout: Duration,
    /// Connection tasks end with their connections: nobody waits for them.
    pub(super) tasks: TaskTracker,
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
        Self::resolving(host, port, tls, http2, timeout, names::system())
    }

    pub(super) fn resolving(
        host: &str,
        port: u16,
        tls: Option<Arc<ClientConfig>>,
        http2: Http2,
        timeout: Duration,
        lookup: Lookup,
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
        Ok(Self { names: Names::new(host, port, lookup), tls, http2, timeout, tasks: TaskTracker::new() })
    }

    /// Whether it is the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.names.is(&other.names)
    }

    pub(super) async fn connect(&self, outbox: &Outbox) -> Result<Connection, Fault> {
        // Boxed: handshakes are rare, and their state is large.
        match timeout(self.timeout, Box::pin(self.open(outbox))).await {
            Ok(connection) => connection,
            Err(_) => Err((UpstreamFault::ConnectionTimeout, "no connection in time".to_owned())),
        }
    }

    async fn open(&self, outbox: &Outbox) -> Result<Connection, Fault> {
        let stream = self.dial().await?;
        stream.set_nodelay(true).ok();
        let stream = Socket::new(stream, outbox.clone(), None);
        let Some((connector, name)) = &self.tls else {
            let http2 = self.http2 == Http2::Always;
            return self.handshake(Either::Left(stream), http2).await;
        };
        let stream = connector
            .connect(name.clone(), stream)
            .await
            .map_err(|error| (fault::of_tls(&error), fault::chain(&error)))?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2") || self.http2 == Http2::Always;
        self.handshake(Either::Right(Box::new(stream)), http2).await
    }

    /// Tries the addresses of the name, each a little later than the one before it or as soon as that has failed; the first
    /// that answers is taken.
    async fn dial(&self) -> Result<TcpStream, Fault> {
        let addresses = self.names.addresses().await;
        let mut addresses = addresses.map_err(|error| (UpstreamFault::Dns, error.to_string()))?.into_iter();
        let head_start =
            HEAD_START.min(self.timeout / u32::try_from(addresses.len() + 1).unwrap_or(u32::MAX));
        let mut attempts = JoinSet::new();
        let mut last = (UpstreamFault::Dns, "no address".to_owned());
        loop {
            let more = addresses.next();
            if let Some(address) = more {
                attempts.spawn(async move { (address, TcpStream::connect(address).await) });
            }
            let ended = match more {
                Some(_) if addresses.len() > 0 => timeout(head_start, attempts.join_next()).await,
                _ => Ok(attempts.join_next().await),
            };
            match ended {
                Ok(Some(Ok((_, Ok(stream))))) => return Ok(stream),
                Ok(Some(Ok((address, Err(error))))) => {
                    last = (fault::of_io(&error), format!("{address}: {error}"));
                }
                Ok(None) => return Err(last),
                // Still under way, or gone with its task: the next one, then.
                Err(_) | Ok(Some(Err(_))) => {}
            }
        }
    }

    async fn handshake(&self, stream: Stream, http2: bool) -> Result<Connection, Fault> {
        if !http2 {
            return Ok(Connection::Http1(Box::new(Http1::new(stream, Timestamp::now()))));
        }
        let (sender, connection) = http2::Builder::new(ThisThread)
            .timer(TokioTimer::new())
            // While an answer is waited for: a peer that is gone is found out before an attempt ends.
            .keep_alive_interval(Duration::from_secs(4))
            .keep_alive_timeout(Duration::from_secs(4))
            .handshake(TokioIo::new(Counted::<_, interim::Http2>::new(stream)))
            .await
            .map_err(|error: hyper::Error| (fault::of_hyper(&error), fault::chain(&error)))?;
        self.tasks.spawn_local(ended(connection));
        Ok(Connection::Http2(sender, Timestamp::now()))
    }
}

/// A connection's failure reaches whoever sent a request over it; without one it concerns nobody.
async fn ended(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(error = fault::chain(&error), "a connection to upstream ended");
    }
}
