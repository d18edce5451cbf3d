//! A stand-in API and a proxy in front of it, both in this process, on ports of the system's choice.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use metorial_proxy::config::{self, Config, Fault as ConfigFault, Sources};
use metorial_proxy::domain::quota::Quota;
use metorial_proxy::edge::admin::Status;
use metorial_proxy::mock::{self, Fault, MockHandle, Options, Record};
use metorial_proxy::server::Server;
use metorial_proxy::time::sleep;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use toml::{Table, Value};

use crate::client::{Asked, Reply, bearing, request, try_send};

/// Keys with different endings: the stand-in shows the last four characters of those it saw.
pub(crate) const SECRET: &str = "metorial_sk_9fQx2LrWn7TzYwN3mXc5HsRfUeJ2aLgPdQo8iWtEjVxSECR";
pub(crate) const OTHER_SECRET: &str = "metorial_sk_4kZp8BvYd1RqMhTs6WnXc3JfGgLoPaEiUtKyHrVwNbOTHR";
pub(crate) const KEY: &str = "metorial_pk_main7Tq2mWzXcVbNjHgFdSaQwErTyUiOpLkPUBL";
pub(crate) const OTHER_KEY: &str = "metorial_pk_other5Rt9nBvCxZaSdFgHjKlQwErTyUiOpMnPUB2";
/// A listed browser origin.
pub(crate) const ORIGIN: &str = "https://app.example";

/// What each test's own configuration is merged into. The environment has room, pages stay fresh, retries are quick.
const BASE: &str = r#"
    [server]
    listen = ["127.0.0.1:0"]
    admin = "127.0.0.1:0"
    workers = 1

    [upstream.retry]
    initial_backoff = "1ms"
    max_backoff = "2ms"

    [[environments]]
    name = "main"
    kind = "production"
    secret_key = { env = "METORIAL_SECRET_KEY" }
    publishable_keys = ["metorial_pk_main7Tq2mWzXcVbNjHgFdSaQwErTyUiOpLkPUBL"]
    origins = ["https://app.example"]
    allow = [
        "catalog", "GET /provider-deployments", "GET /provider-deployments/{id}", "POST /provider-deployments",
    ]

    [cache]
    ttl = "10m"
"#;

/// A second environment, to be appended; the test adds its secret key and what else is special.
pub(crate) const OTHER: &str = r#"
    [[environments]]
    [[environments]]
    name = "other"
    kind = "production"
    publishable_keys = ["metorial_pk_other5Rt9nBvCxZaSdFgHjKlQwErTyUiOpMnPUB2"]
    allow = ["catalog"]
"#;

/// The base with `toml` over it: tables are merged, so are the entries of lists of tables; all else is replaced.
pub(crate) fn load(upstream: impl Display, toml: &str) -> Result<Config, Vec<ConfigFault>> {
    let file = file(upstream, toml);
    let variable = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
    let env = [variable("METORIAL_SECRET_KEY", SECRET), variable("OTHER_SECRET_KEY", OTHER_SECRET)].into();
    let loaded = config::load(&Sources { file: Some(&file), env: &env });
    std::fs::remove_file(&file).expect("removed");
    loaded.map(|loaded| loaded.config)
}

/// The same as a file, which the test removes.
pub(crate) fn file(upstream: impl Display, toml: &str) -> PathBuf {
    static FILES: AtomicU64 = AtomicU64::new(0);
    let url = format!("upstream.url = '{upstream}'");
    let mut whole = Table::new();
    for layer in [BASE, &url, toml] {
        merge(&mut whole, layer.parse().expect("TOML"));
    }
    let file = FILES.fetch_add(1, Ordering::Relaxed);
    let file = scratch(&format!("{}-{file}.toml", std::process::id()));
    std::fs::write(&file, whole.to_string()).expect("written");
    file
}

fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (Some(Value::Array(base)), Value::Array(over)) if over.first().is_some_and(Value::is_table) => {
                for (at, entry) in over.into_iter().enumerate() {
                    match (base.get_mut(at), entry) {
                        (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
                        (_, entry) => base.push(entry),
                    }
                }
            }
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

/// A file of this test run alone.
pub(crate) fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A proxy that runs; it stops when dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    server: Option<Server>,
}

impl Proxy {
    /// In front of `upstream`, with `toml` over [`BASE`].
    pub(crate) fn start(upstream: impl Display, toml: &str) -> Self {
        let config = load(upstream, toml).unwrap_or_else(|faults| panic!("{faults:#?}"));
        let server = Server::start(&config).expect("a proxy");
        Self { address: server.addresses()[0], admin: server.admin(), server: Some(server) }
    }

    /// To drain it as the test wants.
    pub(crate) fn into_server(mut self) -> Server {
        self.server.take().expect("it runs")
    }

    pub(crate) fn status(&self) -> Status {
        self.server.as_ref().expect("it runs").status()
    }

    /// What `/metrics` says.
    pub(crate) async fn metrics(&self) -> String {
        let ask = request("GET", "/metrics", &[("host", "localhost")], "");
        let reply = try_send(self.admin, ask).await.expect("metrics");
        String::from_utf8(reply.body.to_vec()).expect("text")
    }

    pub(crate) async fn send(&self, request: Asked) -> Reply {
        try_send(self.address, request).await.expect("an answer")
    }

    /// With the publishable key of the first environment.
    pub(crate) async fn call(
        &self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let key = format!("Bearer {KEY}");
        let fields = [&[("authorization", key.as_str())], fields].concat();
        self.send(request(method, target, &fields, body.to_owned())).await
    }

    pub(crate) async fn get(&self, target: &str) -> Reply {
        self.call("GET", target, &[], "").await
    }

    pub(crate) async fn post(&self, target: &str, json: &str) -> Reply {
        self.call("POST", target, &[("content-type", "application/json")], json).await
    }

    /// With a key of the test's choice.
    pub(crate) async fn get_as(&self, key: &str, target: &str) -> Reply {
        self.send(bearing(key, target)).await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        // On a thread of its own: the test's runtime may be the one that has to go on for it.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let gone = server.drain(Duration::ZERO, Duration::ZERO, async {});
            runtime.expect("a runtime").block_on(gone);
        });
    }
}

/// A stand-in API that runs; it stops when dropped.
pub(crate) struct Mock {
    pub(crate) address: SocketAddr,
    pub(crate) handle: MockHandle,
    stop: CancellationToken,
}

impl Mock {
    /// With room for any test that isn't about limits; it takes both secret keys, each as an organisation's.
    pub(crate) async fn start() -> Self {
        Self::with(Options { limit: Quota::PRODUCTION, ..Options::default() }).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let options = Options { listen: ([127, 0, 0, 1], 0).into(), ..options };
        let mock = mock::bind(options).await.expect("a stand-in");
        let (address, handle, stop) = (mock.addr(), mock.handle(), CancellationToken::new());
        TaskTracker::new().spawn(mock.serve(stop.clone()));
        Self { address, handle, stop }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.handle.fault(fault).expect("a fault");
    }

    pub(crate) fn received(&self) -> u64 {
        self.handle.received()
    }

    /// The request that came last.
    pub(crate) fn last(&self) -> Record {
        self.handle.requests().pop().expect("a request")
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A stand-in API with room and a proxy in front of it.
pub(crate) async fn pair(toml: &str) -> (Mock, Proxy) {
    let mock = Mock::start().await;
    let proxy = Proxy::start(mock.url(), toml);
    (mock, proxy)
}

/// A server that reads a request's head, writes what `answer` says to the so manieth connection, and waits for the
/// other side to leave. Lasts as long as the test's runtime.
pub(crate) async fn scripted(
    answer: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static,
) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let accepted = Arc::new(AtomicU64::new(0));
    let (count, tasks) = (accepted.clone(), TaskTracker::new());
    tasks.clone().spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let answer = answer(count.fetch_add(1, Ordering::Relaxed));
            tasks.spawn(speak(tcp, answer));
        }
    });
    (url, accepted)
}

async fn speak(mut tcp: TcpStream, answer: Vec<u8>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match tcp.read_buf(&mut head).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    // The other side may have had enough.
    tcp.write_all(&answer).await.ok();
    tcp.read_to_end(&mut head).await.ok();
}

/// A server that answers each request with its protocol and the length of its body, by TLS where `tls` says how.
/// Counts its connections.
pub(crate) async fn upstream(tls: Option<Arc<rustls::ServerConfig>>) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", listener.local_addr().expect("an address"));
    let accepted = Arc::new(AtomicU64::new(0));
    let (count, tasks, tls) = (accepted.clone(), TaskTracker::new(), tls.map(TlsAcceptor::from));
    tasks.clone().spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            match tls.clone() {
                None => drop(tasks.spawn(serve(tcp))),
                Some(tls) => drop(tasks.spawn(async move {
                    if let Ok(stream) = tls.accept(tcp).await {
                        serve(stream).await;
                    }
                })),
            }
        }
    });
    (url, accepted)
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let connection = auto::Builder::new(TokioExecutor::new());
    // How it ended is seen by whoever asked.
    connection.serve_connection(TokioIo::new(io), service_fn(describe)).await.ok();
}

async fn describe(request: Request<Incoming>) -> hyper::Result<Response<String>> {
    let (version, host) = (format!("{:?}", request.version()), request.uri().host().map(str::to_owned));
    let length = request.into_body().collect().await?.to_bytes().len();
    let answer = serde_json::json!({"version": version, "host": host, "length": length});
    Ok(Response::new(answer.to_string()))
}

/// Polls until `condition` holds; `what` it waits for is named where it never does.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("still not: {what}");
}
