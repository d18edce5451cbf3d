//! Two replicas behind a balancer are restarted one after the other, under load, and no caller notices.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use command_fds::{CommandFdExt, FdMapping};
use futures_util::stream;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use metorial_proxy::time::sleep;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::client::{Connection, bearing, connect, request, try_send};
use crate::harness::{KEY, SECRET, scratch};
use crate::process::Process;

const CHUNK: &[u8] = b"still here\n";
const CHUNKS: usize = 40;
/// Of each replica; no more than a part of it is ever used.
const LIMIT: u64 = 1_000_000;

#[test]
fn ten_rolling_restarts_under_load_fail_no_request() {
    rolling(10);
}

#[test]
#[ignore = "takes minutes"]
fn fifty_rolling_restarts_under_load_fail_no_request() {
    rolling(50);
}

fn rolling(restarts: usize) {
    let load = Load::default();
    let upstream = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = upstream.local_addr().expect("bound");
    let mut replicas = ["a", "b"].map(|name| Replica::start(name, address));
    let balancer = Balancer::start(&replicas);
    balancer.wait_for_both();
    let callers = {
        let (load, tcp, http) = (load.clone(), balancer.tcp, balancer.http);
        std::thread::spawn(move || {
            runtime().block_on(async {
                serve(upstream, load.received.clone());
                load.run(tcp, http).await;
            });
        })
    };
    for restart in 0..restarts {
        load.goes_on();
        replicas[restart % 2].restart();
        balancer.wait_for_both();
    }
    load.goes_on();
    load.stop.store(true, Ordering::Relaxed);
    callers.join().expect("the callers");
    let failures = load.failures.lock().expect("no panic");
    assert!(failures.is_empty(), "{} beside {:?}:\n{}", failures.len(), load.answered(), failures.join("\n"));
    // What was spent is written when stopping and read when starting: nothing is forgotten, nothing counted twice.
    let spent: u64 = replicas.iter().map(|replica| LIMIT - runtime().block_on(replica.remaining())).sum();
    assert_eq!(spent, load.received.load(Ordering::Relaxed));
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// One replica, always on the same two ports.
struct Replica {
    name: &'static str,
    addresses: [SocketAddr; 2],
    /// Bound and never listening: while the replica is away nobody else is given its ports.
    _held: [Socket; 2],
    upstream: SocketAddr,
    process: Option<Process>,
}

impl Replica {
    fn start(name: &'static str, upstream: SocketAddr) -> Self {
        let held = [(); 2].map(|()| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.set_reuse_address(true).expect("set");
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bound");
            socket
        });
        let addresses =
            [0, 1].map(|at: usize| held[at].local_addr().expect("bound").as_socket().expect("an address"));
        let mut replica = Self { name, addresses, _held: held, upstream, process: None };
        replica.process = Some(replica.run());
        replica
    }

    fn run(&self) -> Process {
        let (name, [listen, admin], upstream) = (self.name, self.addresses, self.upstream);
        let file = scratch(&format!("{}-rolling-{name}.toml", std::process::id()));
        let state = file.with_extension("json");
        let text = format!(
            r#"
            server.listen = ["{listen}"]
            server.admin = "{admin}"
            server.drain.settle = "500ms"
            clients.limit = {{ requests = {LIMIT}, window = "10s" }}
            upstream.url = "http://{upstream}"
            upstream.egress_limit = {{ requests = {LIMIT}, window = "10s" }}
            store.state_file = {state:?}
            telemetry.access_log = false

            [[environments]]
            name = "main"
            limit = {{ requests = {LIMIT}, window = "1h" }}
            secret_key = {{ env = "METORIAL_SECRET_KEY" }}
            publishable_keys = ["{KEY}"]
            "#
        );
        std::fs::write(&file, text).expect("written");
        let arguments = ["run", "--config", file.to_str().expect("text")];
        let mut process = Process::start(&arguments, &[("METORIAL_SECRET_KEY", SECRET)]).expect("a process");
        process.url("admin").unwrap_or_else(|error| panic!("{error}"));
        process
    }

    fn restart(&mut self) {
        let process = self.process.take().expect("it runs");
        process.signal("TERM");
        let (code, log) = process.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("\"stopped\"") && !log.contains("\"level\":\"WARN\""), "{log}");
        self.process = Some(self.run());
    }

    /// What is left of the environment's budget.
    async fn remaining(&self) -> u64 {
        let host = self.addresses[1].to_string();
        let reply = try_send(self.addresses[1], request("GET", "/status", &[("host", &host)], "")).await;
        let status: Value = reply.expect("an answer").json();
        status["environments"][0]["remaining"].as_u64().expect("a number")
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        for kind in ["toml", "json", "json.lock"] {
            std::fs::remove_file(scratch(&format!("{}-rolling-{}.{kind}", std::process::id(), self.name)))
                .ok();
        }
    }
}

/// haproxy in front of both: one port passes connections on, the other requests.
struct Balancer {
    child: Child,
    tcp: SocketAddr,
    http: SocketAddr,
    stats: SocketAddr,
}

impl Balancer {
    fn start(replicas: &[Replica]) -> Self {
        let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [tcp, http, stats] = [0, 1, 2].map(|at: usize| sockets[at].local_addr().expect("bound"));
        let servers: String = replicas
            .iter()
            .map(|Replica { name, addresses: [listen, admin], .. }| {
                format!("    server {name} {listen} check port {}\n", admin.port())
            })
            .collect();
        let checks = "
    option httpchk GET /readyz
    default-server inter 100ms fastinter 50ms fall 1 rise 1";
        let file = scratch(&format!("{}-rolling.cfg", std::process::id()));
        let text = format!(
            "
global
    stats socket fd@5 level user
defaults
    timeout connect 5s
    timeout check 5s
    timeout client 30s
    timeout server 30s
    option redispatch
listen tcp
    mode tcp
    bind fd@3{checks}
{servers}
listen http
    mode http
    bind fd@4{checks}
{servers}"
        );
        std::fs::write(&file, text).expect("written");
        let mappings = sockets
            .into_iter()
            .zip(3..)
            .map(|(socket, child_fd)| FdMapping { parent_fd: OwnedFd::from(socket), child_fd });
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("haproxy");
        // Where Debian puts it, which is on no user's path.
        command.env("PATH", format!("{path}:/usr/sbin")).args(["-db", "-q", "-f"]).arg(&file);
        command.stdin(Stdio::null()).fd_mappings(mappings.collect()).expect("no fd twice");
        let child = command.spawn().expect("haproxy runs: tests/run installs it");
        Self { child, tcp, http, stats }
    }

    /// Waits until either port would use either replica.
    fn wait_for_both(&self) {
        for _ in 0..3000 {
            let mut stats = TcpStream::connect(self.stats).expect("haproxy runs");
            stats.write_all(b"show stat\n").expect("sent");
            let mut table = String::new();
            stats.read_to_string(&mut table).expect("an answer");
            let is_up = |line: &&str| {
                let fields: Vec<&str> = line.split(',').collect();
                fields.len() > 17 && ["a", "b"].contains(&fields[1]) && fields[17] == "UP"
            };
            if table.lines().filter(is_up).count() == 4 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("haproxy does not take both replicas for ready");
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        std::fs::remove_file(scratch(&format!("{}-rolling.cfg", std::process::id()))).ok();
    }
}

/// The callers, and what became of what they asked.
#[derive(Clone, Default)]
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<Mutex<BTreeMap<&'static str, u64>>>,
    failures: Arc<Mutex<Vec<String>>>,
    /// Requests that came out behind the proxies.
    received: Arc<AtomicU64>,
}

impl Load {
    async fn run(self, tcp: SocketAddr, http: SocketAddr) {
        let mut callers = JoinSet::new();
        for _ in 0..4 {
            callers.spawn(self.clone().call("HTTP/1.1", tcp, "/providers/some"));
            callers.spawn(self.clone().call("HTTP/1.1 by request", http, "/providers/some"));
        }
        for _ in 0..2 {
            callers.spawn(self.clone().call("HTTP/2", tcp, "/providers/some"));
            callers.spawn(self.clone().call("streams over HTTP/1.1", tcp, "/providers/stream"));
            callers.spawn(self.clone().call("streams over HTTP/2", tcp, "/providers/stream"));
        }
        callers.join_all().await;
    }

    /// One caller, who keeps a connection for as long as it is kept for him.
    async fn call(self, kind: &'static str, to: SocketAddr, target: &str) {
        let expected = if target.ends_with("stream") { CHUNK.repeat(CHUNKS) } else { b"{}".to_vec() };
        while !self.stop.load(Ordering::Relaxed) {
            let tcp = connect(to).await;
            let mut connection = match kind.ends_with("HTTP/2") {
                true => Connection::http2(tcp).await,
                false => Connection::http1(tcp).await,
            };
            while !self.stop.load(Ordering::Relaxed) {
                match connection.send_if_open(bearing(KEY, target)).await {
                    Ok(None) => break,
                    Ok(Some(reply)) if reply.status == 200 && reply.body == expected => {
                        *self.answered.lock().expect("no panic").entry(kind).or_default() += 1;
                    }
                    Ok(Some(reply)) => {
                        self.failures.lock().expect("no panic").push(format!("{kind}: {reply:?}"));
                    }
                    Err(error) => {
                        self.failures.lock().expect("no panic").push(format!("{kind}: {error:?}"));
                        break;
                    }
                }
                // The pace of the load.
                sleep(Duration::from_millis(5)).await;
            }
        }
    }

    fn answered(&self) -> BTreeMap<&'static str, u64> {
        self.answered.lock().expect("no panic").clone()
    }

    /// Waits until each kind of caller has been answered once more.
    fn goes_on(&self) {
        let before = self.answered();
        for _ in 0..3000 {
            let now = self.answered();
            if now.len() == 5 && now.iter().all(|(kind, count)| before.get(kind).is_none_or(|n| n < count)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("some callers are not answered: {before:?}, {:?}", self.answered());
    }
}

/// An API that answers at once, or for as long as [`CHUNKS`] take; it counts.
fn serve(listener: TcpListener, received: Arc<AtomicU64>) {
    listener.set_nonblocking(true).expect("set");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let received = received.clone();
            tasks.spawn(async move {
                let service = service_fn(move |request| {
                    received.fetch_add(1, Ordering::Relaxed);
                    async move { Ok::<_, Infallible>(answer(&request)) }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                builder.serve_connection(TokioIo::new(tcp), service).await.ok();
            });
        }
    });
}

fn answer(request: &Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    let body = if request.uri().path().ends_with("stream") {
        let chunks = stream::unfold(0, |sent| async move {
            sleep(Duration::from_millis(20)).await;
            (sent < CHUNKS).then(|| (Ok(Frame::data(Bytes::from_static(CHUNK))), sent + 1))
        });
        BodyExt::boxed(StreamBody::new(chunks))
    } else {
        Full::from("{}").boxed()
    };
    let response = Response::builder().header("content-type", "application/json");
    // As if nobody had spent anything: what a replica knows is what it remembers.
    let response = response.header("ratelimit-limit", LIMIT).header("ratelimit-remaining", LIMIT);
    response.header("ratelimit-reset", 600).body(body).expect("a response")
}
