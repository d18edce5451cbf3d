//! The connection to Redis or Valkey: one, shared by all workers, made again whenever it is lost.
//!
//! One connection in RESP3 carries calls and what others publish alike. While there is none a call fails at once: the stores
//! above know how to go on without. Three calls in a row without an answer, each begun after the one before was given up, count
//! as a lost connection, because a stalled server, or one that a network swallowed, closes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError, Value,
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use secrecy::ExposeSecret as _;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::RedisUrl;
use crate::store::link::{Link, Lost, News, Script};
use crate::time::{Instant, sleep, timeout};

/// Calls without an answer, one begun after the other, that end a connection.
const MISSES: u32 = 3;
/// Until a new connection is ready.
const CONNECT: Duration = Duration::from_secs(2);
/// Between two attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Messages that a listener may be behind.
const BACKLOG: usize = 1024;

/// See the module.
#[derive(Clone)]
pub struct RedisLink(Arc<Shared>);

struct Shared {
    place: RedisUrl,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    channels: Vec<String>,
    timeout: Duration,
    current: ArcSwapOption<Current>,
    /// The user may not call scripts by their digest.
    whole_scripts: AtomicBool,
    /// Where a cluster keeps our keys, where it is not the place that was configured.
    moved: ArcSwapOption<(String, u16)>,
    news: broadcast::Sender<News>,
}

/// The connection in use.
struct Current {
    connection: MultiplexedConnection,
    /// It is of no use any more.
    broken: CancellationToken,
    /// Calls without an answer since the last one with, of those that began at once the first.
    misses: AtomicU32,
}

impl RedisLink {
    /// A link that is not connected yet: see [`run`](Self::run). What is published on `channels` is heard.
    ///
    /// # Errors
    /// Where the host is no name that a certificate could be checked against.
    pub fn new(
        place: RedisUrl,
        tls: Arc<ClientConfig>,
        timeout: Duration,
        channels: Vec<String>,
    ) -> Result<Self, String> {
        let tls = match place.tls {
            false => None,
            true => {
                let name = ServerName::try_from(place.host.clone()).map_err(|_| {
                    format!("{} is no name that a certificate could be checked against", place.host)
                })?;
                Some((TlsConnector::from(tls), name))
            }
        };
        Ok(Self(Arc::new(Shared {
            place,
            tls,
            channels,
            timeout,
            current: ArcSwapOption::empty(),
            whole_scripts: AtomicBool::new(false),
            moved: ArcSwapOption::empty(),
            news: broadcast::channel(BACKLOG).0,
        })))
    }

    /// Keeps it connected until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let drivers = TaskTracker::new();
        let mut pause = PAUSES.0;
        let mut told = false;
        while !stop.is_cancelled() {
            let started = Instant::now();
            let connected = tokio::select! {
                () = stop.cancelled() => return,
                connected = timeout(CONNECT, Box::pin(self.connect(&drivers))) => connected,
            };
            match connected.unwrap_or_else(|_| Err("no connection in time".to_owned())) {
                Ok(current) => {
                    tracing::info!(host = self.0.place.host, "connected to the shared store");
                    told = false;
                    let connected = Instant::now();
                    let broken = current.broken.clone();
                    self.0.current.store(Some(Arc::new(current)));
                    self.0.news.send(News::Connected).ok();
                    tokio::select! {
                        () = stop.cancelled() => return self.0.current.store(None),
                        () = broken.cancelled() => {}
                    }
                    self.0.current.store(None);
                    self.0.news.send(News::Disconnected).ok();
                    // One that refuses what is asked of it, as a primary that is none any more, is as good as unreachable.
                    if connected.elapsed() > PAUSES.1 {
                        pause = PAUSES.0;
                    }
                    tracing::warn!(host = self.0.place.host, "the connection to the shared store was lost");
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(host = self.0.place.host, error, "the shared store cannot be reached");
                }
                Err(error) => {
                    tracing::debug!(host = self.0.place.host, error, "the shared store cannot be reached")
                }
            }
            // Replicas that lost it together do not come back together. Never so soon that it would be a busy loop.
            let wait = pause.mul_f64(0.5 + fastrand::f64() / 2.0).saturating_sub(started.elapsed());
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(wait.max(Duration::from_millis(10))) => {}
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn connect(&self, drivers: &TaskTracker) -> Result<Current, String> {
        let moved = self.0.moved.load_full();
        let (host, port) = match &moved {
            Some(moved) => (moved.0.as_str(), moved.1),
            None => (self.0.place.host.as_str(), self.0.place.port),
        };
        let connected = async {
            let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
            stream.set_nodelay(true).ok();
            let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(15));
            SockRef::from(&stream).set_tcp_keepalive(&keepalive).ok();
            match &self.0.tls {
                None => self.greet(stream, drivers).await,
                Some((connector, name)) => {
                    let stream = connector.connect(name.clone(), stream).await;
                    self.greet(stream.map_err(|error| error.to_string())?, drivers).await
                }
            }
        };
        let connected = connected.await;
        if connected.is_err() {
            // A node that is no more: the place that was configured knows where the keys went.
            self.0.moved.store(None);
        }
        connected
    }

    async fn greet(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        drivers: &TaskTracker,
    ) -> Result<Current, String> {
        let place = &self.0.place;
        let mut info = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("metorial-proxy", env!("CARGO_PKG_VERSION"))
            .set_db(i64::from(place.database));
        if let Some(username) = &place.username {
            info = info.set_username(username);
        }
        if let Some(password) = &place.password {
            info = info.set_password(password.expose_secret());
        }
        let broken = CancellationToken::new();
        let (news, ended) = (self.0.news.clone(), broken.clone());
        let heard = move |push: PushInfo| {
            heard(&news, &ended, push);
            Ok::<_, ()>(())
        };
        // The time that a call may take is ours to keep.
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_push_sender(heard);
        let (mut connection, driver) = MultiplexedConnection::new_with_config(&info, stream, config)
            .await
            .map_err(|error| error.to_string())?;
        drivers.spawn(driver);
        for channel in &self.0.channels {
            connection.subscribe(channel).await.map_err(|error| error.to_string())?;
        }
        Ok(Current { connection, broken, misses: AtomicU32::new(0) })
    }

    async fn call(&self, command: &Cmd) -> Result<Value, Failed> {
        let Some(current) = self.0.current.load_full() else { return Err(Failed::Lost(Lost::Unreachable)) };
        let mut connection = current.connection.clone();
        let misses = current.misses.load(Ordering::Relaxed);
        let Ok(answer) = timeout(self.0.timeout, connection.send_packed_command(command)).await else {
            // However many there are at once, a server that stalls for a moment lacks one answer.
            let next = misses + 1;
            let counted = current.misses.compare_exchange(misses, next, Ordering::Relaxed, Ordering::Relaxed);
            if counted.is_ok() && next >= MISSES {
                current.broken.cancel();
            }
            return Err(Failed::Lost(Lost::Late));
        };
        current.misses.store(0, Ordering::Relaxed);
        answer.and_then(Value::extract_error).map_err(|error| self.0.failed(&current, error))
    }
}

/// Why a call has no answer.
enum Failed {
    /// The server does not know the script yet.
    NoScript,
    /// The user may not do this.
    NotPermitted(String),
    Lost(Lost),
}

impl From<Failed> for Lost {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::NoScript => Self::Refused("NOSCRIPT".to_owned()),
            Failed::NotPermitted(why) => Self::Refused(why),
            Failed::Lost(lost) => lost,
        }
    }
}

fn heard(news: &broadcast::Sender<News>, broken: &CancellationToken, push: PushInfo) {
    match (push.kind, push.data.as_slice()) {
        (PushKind::Disconnection, _) => broken.cancel(),
        (PushKind::Message, [Value::BulkString(channel), Value::BulkString(payload)]) => {
            let channel = String::from_utf8_lossy(channel).into_owned();
            news.send(News::Message { channel, payload: payload.clone() }).ok();
        }
        _ => {}
    }
}

impl Shared {
    fn failed(&self, current: &Current, error: RedisError) -> Failed {
        let refused = Lost::Refused(error.to_string());
        match error.code() {
            Some("NOSCRIPT") => return Failed::NoScript,
            Some("NOPERM") => return Failed::NotPermitted(error.to_string()),
            Some("MOVED") => {
                if let Some((host, port)) = error.redirect_node().and_then(|(node, _)| node.rsplit_once(':'))
                    && let Ok(port) = port.parse()
                {
                    let host = if host.is_empty() { self.place.host.as_str() } else { host };
                    self.moved.store(Some(Arc::new((host.to_owned(), port))));
                }
                current.broken.cancel();
            }
            // A primary that is none any more: its name leads to another now.
            Some("READONLY") => current.broken.cancel(),
            None if error.is_io_error() => {
                current.broken.cancel();
                return Failed::Lost(Lost::Unreachable);
            }
            _ => {}
        }
        Failed::Lost(refused)
    }
}

impl Link for RedisLink {
    async fn run(&self, script: &Script, keys: &[String], arguments: Vec<Vec<u8>>) -> Result<Value, Lost> {
        let command = |name: &str, script: &str| {
            let mut command = redis::cmd(name);
            command.arg(script).arg(keys.len());
            for word in keys.iter().map(String::as_bytes).chain(arguments.iter().map(Vec::as_slice)) {
                command.arg(word);
            }
            command
        };
        if !self.0.whole_scripts.load(Ordering::Relaxed) {
            match self.call(&command("EVALSHA", script.digest())).await {
                Err(Failed::NoScript) => {}
                Err(Failed::NotPermitted(_)) => self.0.whole_scripts.store(true, Ordering::Relaxed),
                answered => return answered.map_err(Lost::from),
            }
        }
        self.call(&command("EVAL", script.source())).await.map_err(Lost::from)
    }

    async fn command(&self, words: &[&[u8]]) -> Result<Value, Lost> {
        let mut command = Cmd::new();
        for word in words {
            command.arg(*word);
        }
        self.call(&command).await.map_err(Lost::from)
    }

    fn is_connected(&self) -> bool {
        self.0.current.load().is_some()
    }

    fn news(&self) -> broadcast::Receiver<News> {
        self.0.news.subscribe()
    }
}

#[cfg(test)]
mod tests;
