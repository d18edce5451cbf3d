//! What it costs to search an answer for the secret, and what passing one through costs in all: the guard's share.

#![expect(clippy::expect_used, reason = "a benchmark that measures something else must not go on")]

use std::future::ready;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self as client, SendRequest};
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use metorial_proxy::config::{self, Config, Sources, Variables};
use metorial_proxy::domain::secret_guard::SecretGuard;
use metorial_proxy::server::Server;
use mimalloc::MiMalloc;
use setup::{SECRET, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio_util::task::TaskTracker;

#[path = "setup/pages.rs"]
mod setup;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50)
        .configure_from_args();
    let guard = SecretGuard::new([SECRET]).expect("a guard");
    let echoed = format!("{}{SECRET}", json(20_000, ""));
    assert!(guard.scan().push(echoed.into()).is_err(), "the secret is found");
    for (name, body) in [
        ("20 KB of JSON", json(20_000, "")),
        ("20 KB of JSON with escapes", json(20_000, "https://example.com/?q=a%20b%2Fc")),
        ("20 KB of escapes alone", "%7B".repeat(20_000 / 3)),
        ("20 KB of candidates", SECRET[..8].repeat(20_000 / 8)),
        ("64 KB of JSON", json(64_000, "")),
    ] {
        scan(&mut criterion, &guard, name, body.into());
    }
    pass_through(&mut criterion, json(20_000, "").into());
    criterion.final_summary();
}

/// A request over sockets of this machine, to an upstream that does nothing but answer.
fn pass_through(criterion: &mut Criterion, page: Bytes) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let length = page.len();
    let upstream = upstream(page);
    let server = runtime.block_on(async { Server::start(&config(upstream)) }).expect("a proxy");
    let mut sender = runtime.block_on(connect(server.addresses()[0]));
    criterion.bench_function("pass through, 20 KB of JSON over loopback", |bencher| {
        bencher.iter(|| assert_eq!(runtime.block_on(ask(&mut sender)), length));
    });
    runtime.block_on(server.drain(Duration::ZERO, Duration::ZERO, async {}));
}

async fn connect(proxy: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let tcp = TcpStream::connect(proxy).await.expect("a connection");
    tcp.set_nodelay(true).expect("no delay");
    let (sender, connection) = client::handshake(TokioIo::new(tcp)).await.expect("HTTP");
    TaskTracker::new().spawn(connection);
    sender
}

/// The length of the answer.
async fn ask(sender: &mut SendRequest<Empty<Bytes>>) -> usize {
    let request = Request::get("/providers/pro_0")
        .header("host", "proxy.example.com")
        .header("authorization", "Bearer metorial_pk_bench")
        .body(Empty::new())
        .expect("a request");
    sender.ready().await.expect("a connection");
    let answer = sender.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    answer.into_body().collect().await.expect("a body").to_bytes().len()
}

/// On a thread of its own, as long as the process lives.
fn upstream(page: Bytes) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    listener.set_nonblocking(true).expect("not blocking");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let (listener, tasks) =
                (TcpListener::from_std(listener).expect("a listener"), TaskTracker::new());
            loop {
                let (tcp, _) = listener.accept().await.expect("a connection");
                tcp.set_nodelay(true).expect("no delay");
                let page = page.clone();
                let answer = service_fn(move |_: Request<Incoming>| {
                    let response = Response::builder().header("content-type", "application/json");
                    ready(response.body(Full::new(page.clone())))
                });
                tasks.spawn(server::Builder::new().serve_connection(TokioIo::new(tcp), answer));
            }
        });
    });
    address
}

fn config(upstream: SocketAddr) -> Config {
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nadmin = \"127.0.0.1:0\"\nworkers = 1\n\
         [clients]\nlimit = {{ requests = 10000000, window = \"1s\" }}\n\
         [upstream]\nurl = \"http://{upstream}\"\n\
         egress_limit = {{ requests = 10000000, window = \"1s\" }}\n\
         [[environments]]\nname = \"production\"\nsecret_key = {{ env = \"SECRET\" }}\n\
         limit = {{ requests = 10000000, window = \"1s\" }}\npublishable_keys = [\"metorial_pk_bench\"]\n\
         [telemetry]\naccess_log = false\n"
    );
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("guard-{}.toml", std::process::id()));
    std::fs::write(&file, text).expect("a file");
    let env = Variables::from([("SECRET".into(), SECRET.into())]);
    let loaded = config::load(&Sources { file: Some(&file), env: &env });
    std::fs::remove_file(&file).expect("a file");
    loaded.expect("a configuration").config
}

fn scan(criterion: &mut Criterion, guard: &SecretGuard, name: &str, body: Bytes) {
    let mut group = criterion.benchmark_group("secret guard");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let mut scan = guard.scan();
            let passed = scan.push(body.clone()).expect("the secret is not there").len();
            let held = scan.finish().len();
            assert_eq!(passed + held, body.len());
        });
    });
    group.finish();
}
