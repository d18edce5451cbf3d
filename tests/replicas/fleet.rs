//! Replicas, the way of each to the server, the server, and the stand-in API that counts what they send.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use metorial_proxy::domain::quota::Quota;
use metorial_proxy::mock::{Algorithm, Options};
use metorial_proxy::time::sleep;

use crate::client::{Reply, bearing, request, try_send};
use crate::harness::{KEY, Mock, Proxy, eventually};
use crate::redis_server::RedisServer;
use crate::relay::Relay;

/// What all replicas of these tests have in common: each request costs one of the budget, and only that is scarce.
pub(crate) fn settings(quota: Quota) -> String {
    format!(
        "
        cache.enabled = false
        upstream.retry.max_queue_wait = '500ms'
        [clients]
        limit = {{ requests = 1000000, window = '10s' }}
        [[environments]]
        limit = {{ requests = {}, window = '{}ms' }}
        ",
        quota.requests,
        quota.window.as_millis()
    )
}

/// The same, shared by way of the server at `url`; `more` are further keys with their whole names.
pub(crate) fn shared(quota: Quota, url: &str, more: &str) -> String {
    format!("store.url = '{url}'\n{more}\n{}", settings(quota))
}

/// So many requests at once; how many were served, and that the others were refused by us.
pub(crate) async fn served(address: SocketAddr, asked: usize) -> usize {
    let replies = join_all((0..asked).map(|_| try_send(address, bearing(KEY, "/providers?limit=1")))).await;
    let status: Vec<u16> = replies.into_iter().map(|reply| reply.expect("an answer").status).collect();
    assert!(status.iter().all(|status| [200, 429].contains(status)), "{status:?}");
    status.iter().filter(|status| **status == 200).count()
}

/// An API that counts over a trailing window, as the real one does.
pub(crate) async fn api(quota: Quota) -> Mock {
    Mock::with(Options { limit: quota, algorithm: Algorithm::Trailing, ..Options::default() }).await
}

/// What is asked here and there of the admin port.
pub(crate) async fn admin(proxy: &Proxy, target: &str) -> Reply {
    let host = proxy.admin.to_string();
    try_send(proxy.admin, request("GET", target, &[("host", &host)], "")).await.expect("an answer")
}

pub(crate) fn is_partitioned(proxy: &Proxy) -> bool {
    proxy.status().store.partitioned
}

/// That `/status`, `/metrics` and `/readyz` say what is so.
pub(crate) async fn assert_tells(proxy: &Proxy, partitioned: bool) {
    let status = admin(proxy, "/status").await.json();
    assert_eq!(status["store"]["kind"], "redis");
    assert_eq!(status["store"]["partitioned"], partitioned, "{status}");
    let metrics = admin(proxy, "/metrics").await;
    let line = format!("metorial_proxy_store_partitioned {}\n", u8::from(partitioned));
    assert!(String::from_utf8_lossy(&metrics.body).contains(&line), "not {line}");
    assert_eq!(admin(proxy, "/readyz").await.status, 200, "readiness does not depend on the store");
}

/// All of it.
pub(crate) struct Fleet {
    pub(crate) quota: Quota,
    pub(crate) mock: Mock,
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) relays: Vec<Relay>,
    redis: Arc<Mutex<RedisServer>>,
}

impl Fleet {
    /// So many replicas that know of each other.
    pub(crate) async fn start(quota: Quota, replicas: usize) -> Self {
        Self::on(RedisServer::start(), quota, replicas).await
    }

    /// With a server of the test's own.
    pub(crate) async fn on(redis: RedisServer, quota: Quota, replicas: usize) -> Self {
        let (mock, mut relays, mut proxies) = (api(quota).await, Vec::new(), Vec::new());
        for _ in 0..replicas {
            let relay = Relay::to(redis.port()).await;
            proxies.push(replica(&mock, &relay, quota));
            relays.push(relay);
        }
        let fleet = Self { quota, mock, proxies, relays, redis: Arc::new(Mutex::new(redis)) };
        fleet.settled().await;
        fleet
    }

    /// A further one, or one that takes the place of another.
    pub(crate) fn replica(&self, at: usize) -> Proxy {
        replica(&self.mock, &self.relays[at], self.quota)
    }

    /// Until every replica shares with every other.
    pub(crate) async fn settled(&self) {
        let replicas = self.proxies.len() as u32;
        for proxy in &self.proxies {
            let shares = || {
                let store = proxy.status().store;
                !store.partitioned && store.replicas == replicas
            };
            eventually("all share", shares).await;
        }
    }

    /// Does something to the server that takes a moment, while everything else goes on.
    pub(crate) async fn redis<T: Send + 'static>(
        &self,
        done: impl FnOnce(&mut RedisServer) -> T + Send + 'static,
    ) -> T {
        let redis = self.redis.clone();
        let done = move || done(&mut redis.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(done).await.expect("no panic")
    }

    /// A command, told to the server past all relays.
    pub(crate) async fn command(&self, words: &'static [&'static str]) -> redis::Value {
        self.redis(move |redis| command(redis, words)).await
    }

    /// Messages that replicas have sent to this server since it was started.
    pub(crate) async fn exchanges(&self) -> u64 {
        self.redis(|redis| exchanges(redis)).await
    }

    pub(crate) async fn windows(&self, windows: f64) {
        sleep(self.quota.window.mul_f64(windows)).await;
    }
}

fn replica(mock: &Mock, relay: &Relay, quota: Quota) -> Proxy {
    Proxy::start(mock.url(), &shared(quota, &relay.url("redis"), ""))
}

/// On a connection of its own.
pub(crate) fn command(redis: &RedisServer, words: &[&str]) -> redis::Value {
    let client = redis::Client::open(redis.url()).expect("a client");
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(5)).expect("a connection");
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query(&mut connection).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// How often a script was run.
pub(crate) fn exchanges(redis: &RedisServer) -> u64 {
    let told: String = redis::from_redis_value(command(redis, &["INFO", "commandstats"])).expect("text");
    let calls = |line: &str| line.split_once("calls=")?.1.split(',').next()?.parse::<u64>().ok();
    let runs = told.lines().filter(|line| line.starts_with("cmdstat_eval"));
    runs.filter_map(calls).sum()
}
