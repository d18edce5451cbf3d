use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Layer, Service};

use super::names::Lookup;
use super::*;
use crate::body::{Outbound, ResponseBody};
use crate::config::Http2;
use crate::domain::environment::Environment;
use crate::exchange::testing::permitted;
use crate::policy::forward::{ForwardLayer, Rules};
use crate::policy::inject::InjectLayer;
use crate::store::secrets::Secrets;
use crate::telemetry::metrics::Metrics;

#[path = "../../../tests/support/black_hole.rs"]
mod black_hole;

use black_hole::BlackHole;

/// A server that answers every request with its name, until it is stopped.
struct Host {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Host {
    async fn at(address: &str, name: &'static str) -> Self {
        let listener = TcpListener::bind(address).await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let stopped = stop.clone();
        tasks.clone().spawn_local(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                tasks.spawn_local(stopped.clone().run_until_cancelled_owned(async move {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                    let mut head = Vec::new();
                    while tcp.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
                        if head.ends_with(b"\r\n\r\n") {
                            head.clear();
                            tcp.write_all(answer.as_bytes()).await.ok();
                        }
                    }
                }));
            }
        }));
        Self { address, stop }
    }
}

/// A pool in front of a name that stands for whatever `addresses` holds.
fn pool(addresses: &Arc<Mutex<Vec<SocketAddr>>>, timeout: Duration) -> Upstream {
    let addresses = addresses.clone();
    let lookup: Lookup = Arc::new(move |_, _| {
        let found = addresses.lock().clone();
        Box::pin(async move { Ok(found) })
    });
    let connector =
        Connector::resolving("api.test", 80, None, Http2::Never, timeout, lookup).expect("a name");
    let authority = Authority::from_static("api.test");
    Upstream::new(connector, Outbox::default(), Scheme::HTTP, authority, 8, Duration::from_secs(3600))
}

async fn ask(pool: &Upstream) -> Result<String, UpstreamFault> {
    let mut request = Outgoing::new(Method::GET, PathAndQuery::from_static("/"));
    request.fields = vec![(HOST, HeaderValue::from_static("api.test"))];
    let answer = pool.send(&mut request, &Journal::of("req_test")).await.map_err(|error| error.fault)?;
    let body = match answer.body {
        Arriving::Held(body) => {
            answer.lease.into_iter().for_each(Lease::finish);
            body
        }
        Arriving::Wire(body) => {
            let body = Outbound::new(body, None, Duration::from_secs(5), answer.lease);
            ResponseBody::streaming(body).collect().await.expect("a body").to_bytes()
        }
    };
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Lets time pass for the pool alone.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "local")]
async fn a_busy_pool_follows_its_name_to_another_address_within_a_minute() {
    let old = Host::at("127.0.0.1:0", "old").await;
    let new = Host::at(&format!("127.0.0.2:{}", old.address.port()), "new").await;
    let addresses = Arc::new(Mutex::new(vec![old.address]));
    let pool = pool(&addresses, SOON);
    assert_eq!(ask(&pool).await.as_deref(), Ok("old"));
    *addresses.lock() = vec![new.address];
    pass(MAX_AGE / 2).await;
    assert_eq!(ask(&pool).await.as_deref(), Ok("old"), "a connection is worth keeping");
    pass(MAX_AGE / 2).await;
    assert_eq!(ask(&pool).await.as_deref(), Ok("new"));
    assert_eq!(pool.0.kept.borrow().idle.len(), 1);
    pass(MAX_AGE).await;
    pool.close_idle();
    assert!(pool.0.kept.borrow().idle.is_empty(), "and an idle one is closed");
}

#[tokio::test(flavor = "local")]
async fn a_pool_that_was_replaced_keeps_nothing_and_serves_what_is_under_way() {
    let host = Host::at("127.0.0.1:0", "here").await;
    let pool = pool(&Arc::new(Mutex::new(vec![host.address])), SOON);
    assert_eq!(ask(&pool).await.as_deref(), Ok("here"));
    assert_eq!(pool.0.kept.borrow().idle.len(), 1);
    pool.retire();
    assert!(pool.0.kept.borrow().idle.is_empty(), "nobody would close it");
    assert_eq!(ask(&pool).await.as_deref(), Ok("here"));
    assert!(pool.0.kept.borrow().idle.is_empty());
}

#[tokio::test(flavor = "local")]
async fn a_pool_recovers_when_its_host_goes_and_comes_back_elsewhere() {
    let old = Host::at("127.0.0.1:0", "old").await;
    let addresses = Arc::new(Mutex::new(vec![old.address]));
    let pool = pool(&addresses, SOON);
    assert_eq!(ask(&pool).await.as_deref(), Ok("old"));
    old.stop.cancel();
    pass(Duration::from_secs(1)).await;
    while ask(&pool).await == Ok("old".to_owned()) {}
    assert_eq!(ask(&pool).await, Err(UpstreamFault::ConnectionRefused));
    let new = Host::at("127.0.0.2:0", "new").await;
    *addresses.lock() = vec![new.address];
    pass(Duration::from_secs(1)).await;
    assert_eq!(ask(&pool).await.as_deref(), Ok("new"));
}

#[tokio::test(flavor = "local")]
async fn one_address_of_several_that_is_dead_costs_no_request() -> io::Result<()> {
    let alive = Host::at("127.0.0.1:0", "alive").await;
    let hole = BlackHole::at("127.0.0.3:0".parse().expect("an address"))?;
    let refused = SocketAddr::new("127.0.0.4".parse().expect("an address"), alive.address.port());
    for dead in [vec![hole.address], vec![refused], vec![hole.address, refused, hole.address]] {
        let addresses = Arc::new(Mutex::new([dead, vec![alive.address]].concat()));
        assert_eq!(ask(&pool(&addresses, SOON)).await.as_deref(), Ok("alive"));
        addresses.lock().reverse();
        assert_eq!(ask(&pool(&addresses, SOON)).await.as_deref(), Ok("alive"));
    }
    Ok(())
}

#[tokio::test(flavor = "local")]
async fn where_every_address_is_dead_it_is_said_how() -> io::Result<()> {
    let hole = BlackHole::at("127.0.0.3:0".parse().expect("an address"))?;
    let gone = Host::at("127.0.0.1:0", "gone").await;
    gone.stop.cancel();
    let short = Duration::from_millis(100);
    for (addresses, fault) in [
        (vec![hole.address], UpstreamFault::ConnectionTimeout),
        (vec![hole.address, hole.address], UpstreamFault::ConnectionTimeout),
        (
            vec![SocketAddr::new("127.0.0.4".parse().expect("an address"), 1)],
            UpstreamFault::ConnectionRefused,
        ),
        (Vec::new(), UpstreamFault::Dns),
    ] {
        assert_eq!(ask(&pool(&Arc::new(Mutex::new(addresses)), short)).await, Err(fault));
    }
    Ok(())
}

/// All of a future is copied to its box when a request is begun, so none has room for what few need.
#[tokio::test(flavor = "local")]
async fn what_waits_for_an_answer_is_small() {
    let environment = Environment::example("test");
    let secrets = Arc::new(Secrets::of(&environment));
    let rules = Rules {
        authority: Authority::from_static("api.test"),
        base_path: String::new(),
        forward_headers: Vec::new(),
        attempt_timeout: SOON,
        body_idle_timeout: SOON,
    };
    let forward = ForwardLayer::new(rules, Arc::new(Metrics::new()), Arc::default(), None);
    let mut forward = InjectLayer::new([(&environment, &secrets)].into_iter())
        .expect("a key")
        .layer(forward.layer(pool(&Arc::default(), SOON)));
    let waits = forward.call(permitted(Method::GET, "/providers", 1));
    assert!(size_of_val(&*waits) <= 640, "{} bytes", size_of_val(&*waits));
}

#[test]
fn what_this_machine_lacks_is_not_upstreams_fault() {
    for (errno, fault) in [
        (rustix::io::Errno::MFILE, UpstreamFault::OutOfConnections),
        (rustix::io::Errno::ADDRNOTAVAIL, UpstreamFault::OutOfConnections),
        (rustix::io::Errno::CONNREFUSED, UpstreamFault::ConnectionRefused),
        (rustix::io::Errno::HOSTUNREACH, UpstreamFault::Unavailable),
        (rustix::io::Errno::CONNRESET, UpstreamFault::ConnectionTerminated),
    ] {
        assert_eq!(fault::of_io(&errno.into()), fault, "{errno}");
    }
}
