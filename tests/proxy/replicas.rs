//! Replicas that share a store: one fetch for all, writes that all know of, and what remains of that without the store.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use metorial_proxy::domain::quota::Quota;
use metorial_proxy::mock::{Fault, Options};
use metorial_proxy::time::sleep;
use tokio_util::task::TaskTracker;

use crate::client::{Reply, bearing, request, try_send};
use crate::harness::{KEY, Mock, Proxy, SECRET, eventually, file};
use crate::process::Process;
use crate::redis::RedisServer;
use crate::relay::Relay;

const LIST: &str = "/provider-deployments?limit=100";
/// A machine that is busy with other tests is no reason to do without the store.
const CALM: &str = "store.timeout = '10s'";

fn sharing(url: &str, more: &str) -> String {
    format!("store.url = '{url}'\n{more}")
}

/// So many replicas in front of `mock`, connected.
async fn replicas(count: usize, mock: &Mock, redis: &RedisServer, more: &str) -> Vec<Proxy> {
    let start = |_| Proxy::start(mock.url(), &sharing(&redis.url(), more));
    let all: Vec<Proxy> = (0..count).map(start).collect();
    for replica in &all {
        connected(replica).await;
    }
    all
}

async fn connected(replica: &Proxy) {
    eventually("pages are shared", || !replica.status().store.pages_partitioned).await;
}

async fn metric(replica: &Proxy, series: &str) -> u64 {
    let ask = request("GET", "/metrics", &[("host", "localhost")], "");
    let text = try_send(replica.admin, ask).await.expect("metrics").body;
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.expect("a series").parse().expect("a number")
}

/// Waits until a replica has found that the store has no page.
async fn has_looked(replica: &Proxy) {
    for _ in 0..2000 {
        // Once to read it, once to fetch it.
        if metric(replica, "metorial_proxy_shared_pages_total{result=\"miss\"}").await >= 2 {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not look");
}

fn is_hit(reply: &Reply) -> bool {
    reply.field("cache-status").starts_with("metorial-proxy; hit; ttl=")
}

#[tokio::test]
async fn a_page_that_one_replica_fetched_is_a_hit_in_the_others() {
    let (mock, redis) = (Mock::start().await, RedisServer::start());
    let all = replicas(3, &mock, &redis, CALM).await;
    let miss = all[0].get(LIST).await;
    assert_eq!((miss.status, miss.field("cache-status")), (200, "metorial-proxy; fwd=uri-miss; stored"));
    // The store may have it a moment later, in which the second one waits for it; the third finds it.
    let second = all[1].get(LIST).await;
    let third = all[2].get(LIST).await;
    assert!(is_hit(&third), "{third:?}");
    for reply in [&second, &third] {
        assert_eq!((reply.status, &reply.body), (200, &miss.body));
        assert_eq!(reply.field("etag"), miss.field("etag"));
        assert!(reply.field("age").parse::<u64>().is_ok(), "{reply:?}");
    }
    assert_eq!(mock.received(), 1);
    // What the page came with is asked about in the same way.
    let unchanged = all[2].call("GET", LIST, &[("if-none-match", miss.field("etag"))], "").await;
    assert_eq!(unchanged.status, 304);
}

#[tokio::test]
async fn a_cold_page_is_fetched_once_for_all_replicas() {
    let latency = Duration::from_millis(300);
    let mock = Mock::with(Options { limit: Quota::PRODUCTION, latency, ..Options::default() }).await;
    let redis = RedisServer::start();
    let all = replicas(3, &mock, &redis, CALM).await;
    for round in 1..=3 {
        let target = format!("/providers?limit={round}");
        let asked = all.iter().flat_map(|replica| (0..30).map(|_| replica.get(&target)));
        for reply in join_all(asked).await {
            assert_eq!((reply.status, reply.items()), (200, round), "{reply:?}");
        }
        assert_eq!(mock.received(), round as u64);
    }
}

#[tokio::test]
async fn replicas_do_not_wait_for_what_may_not_be_shared() {
    let latency = Duration::from_millis(100);
    let mock = Mock::with(Options { limit: Quota::PRODUCTION, latency, ..Options::default() }).await;
    let redis = RedisServer::start();
    let all = replicas(2, &mock, &redis, CALM).await;
    let private = [("cache-control".to_owned(), Some("private".to_owned()))];
    mock.fault(Fault { next: 2, headers: private.into(), ..Fault::default() });
    for reply in join_all(all.iter().map(|replica| replica.get("/providers"))).await {
        assert_eq!((reply.status, reply.field("cache-status")), (200, "metorial-proxy; fwd=uri-miss"));
    }
    assert_eq!(mock.received(), 2);
}

#[tokio::test]
async fn when_the_replica_that_fetches_is_killed_another_one_does_once() {
    let (mock, redis) = (Mock::start().await, RedisServer::start());
    let config = sharing(&redis.url(), &format!("{CALM}\nupstream.attempt_timeout = '3s'"));
    let all: Vec<Proxy> = (0..2).map(|_| Proxy::start(mock.url(), &config)).collect();
    for replica in &all {
        connected(replica).await;
    }
    let file = file(mock.url(), &config);
    let path = file.to_str().expect("text");
    let mut leader =
        Process::start(&["run", "--config", path], &[("METORIAL_SECRET_KEY", SECRET)]).expect("a process");
    let url = leader.url("proxy").expect("listening");
    let address = url.trim_start_matches("http://").parse().expect("an address");
    mock.fault(Fault { delay_ms: Some(60_000), ..Fault::default() });
    let tasks = TaskTracker::new();
    let lost = tasks.spawn(try_send(address, bearing(KEY, LIST)));
    eventually("the leader asks upstream", || mock.received() == 1).await;
    let waiting = join_all(all.iter().flat_map(|replica| (0..10).map(|_| replica.get(LIST))));
    let kill = async {
        for replica in &all {
            has_looked(replica).await;
        }
        assert_eq!(mock.received(), 1, "they wait");
        leader.child.kill().expect("killed");
    };
    let (replies, ()) = tokio::join!(waiting, kill);
    for reply in replies {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    assert!(lost.await.expect("no panic").is_err());
    assert_eq!(mock.received(), 2);
    std::fs::remove_file(file).expect("removed");
}

#[tokio::test]
async fn a_write_through_one_replica_is_in_every_list_afterwards() {
    let (mock, redis) = (Mock::start().await, RedisServer::start());
    let all = replicas(3, &mock, &redis, CALM).await;
    let items = all[0].get(LIST).await.items();
    let stop = AtomicBool::new(false);
    // Readers keep pages and fetches under way everywhere.
    let readers = join_all(all.iter().map(async |replica| {
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(replica.get(LIST).await.status, 200);
            // Within what one client may ask.
            sleep(Duration::from_millis(10)).await;
        }
    }));
    let writer = async {
        for round in 1..=36 {
            let reply = all[round % 3].post("/provider-deployments", r#"{"name": "Fresh"}"#).await;
            assert_eq!(reply.status, 200, "{reply:?}");
            for replica in &all {
                let list = replica.get(LIST).await;
                assert_eq!(
                    list.items(),
                    items + round,
                    "{} {}",
                    list.field("cache-status"),
                    list.field("age")
                );
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(readers, writer);
}

#[tokio::test]
async fn a_write_waits_for_a_replica_that_hears_of_it_late() {
    let (mock, redis) = (Mock::start().await, RedisServer::start());
    let relay = Relay::to(redis.port()).await;
    let near = Proxy::start(mock.url(), &sharing(&redis.url(), CALM));
    let far = Proxy::start(mock.url(), &sharing(&relay.url("redis"), CALM));
    for replica in [&near, &far] {
        connected(replica).await;
    }
    relay.slow(Duration::from_millis(50));
    let items = far.get(LIST).await.items();
    for round in 1..=8 {
        assert_eq!(near.post("/provider-deployments", r#"{"name": "Fresh"}"#).await.status, 200);
        assert_eq!(far.get(LIST).await.items(), items + round);
    }
}

#[tokio::test]
async fn a_replica_that_is_cut_off_serves_what_is_fresh_says_so_and_heals() {
    let (mock, redis) = (Mock::start().await, RedisServer::start());
    let ttl = "cache.ttl = '2s'";
    let relay = Relay::to(redis.port()).await;
    let ours = Proxy::start(mock.url(), &sharing(&redis.url(), ttl));
    let cut = Proxy::start(mock.url(), &sharing(&relay.url("redis"), ttl));
    for replica in [&ours, &cut] {
        connected(replica).await;
    }
    let items = cut.get(LIST).await.items();
    for (round, interrupt) in [Relay::cut as fn(&Relay), Relay::stall].into_iter().enumerate() {
        let (before, after) = (items + 2 * round, items + 2 * round + 1);
        interrupt(&relay);
        eventually("it says so", || cut.status().store.pages_partitioned).await;
        assert!(!ours.status().store.pages_partitioned);
        assert_eq!(ours.post("/provider-deployments", r#"{"name": "Fresh"}"#).await.status, 200);
        assert_eq!(ours.get(LIST).await.items(), after);
        loop {
            let reply = cut.get(LIST).await;
            if reply.items() == after {
                break;
            }
            assert_eq!((reply.status, reply.items()), (200, before), "{reply:?}");
            assert!(is_hit(&reply) && !reply.field("cache-status").contains("ttl=-"), "{reply:?}");
            assert!(reply.field("age").parse::<u64>().expect("seconds") <= 2, "{reply:?}");
            sleep(Duration::from_millis(20)).await;
        }
        // A write of its own is in its own list at once.
        assert_eq!(cut.post("/provider-deployments", r#"{"name": "Alone"}"#).await.status, 200);
        assert_eq!(cut.get(LIST).await.items(), after + 1);
        relay.mend();
        connected(&cut).await;
        // And in everybody's as soon as the store has heard of it.
        while ours.get(LIST).await.items() != after + 1 {
            sleep(Duration::from_millis(5)).await;
        }
    }
    for round in 1..=5 {
        assert_eq!(ours.post("/provider-deployments", r#"{"name": "Fresh"}"#).await.status, 200);
        assert_eq!(cut.get(LIST).await.items(), items + 4 + round);
    }
}

#[tokio::test]
async fn what_others_wrote_into_the_store_is_a_miss() {
    let (mock, redis) = (Mock::start().await, RedisServer::start());
    let all = replicas(3, &mock, &redis, CALM).await;
    let page = all[0].get(LIST).await;
    all[1].get(LIST).await;
    assert_eq!(mock.received(), 1);
    let client = ::redis::Client::open(redis.url()).expect("a client");
    let mut connection = client.get_connection().expect("a connection");
    let names: Vec<String> = ::redis::cmd("KEYS").arg("*:page:*").query(&mut connection).expect("names");
    assert_eq!(names.len(), 1, "{names:?}");
    ::redis::cmd("SET").arg(&names[0]).arg("{\"items\": []}").exec(&mut connection).expect("set");
    let reply = all[2].get(LIST).await;
    assert_eq!((reply.status, &reply.body), (200, &page.body));
    assert_eq!(mock.received(), 2);
    assert!(metric(&all[2], "metorial_proxy_shared_pages_total{result=\"broken\"}").await >= 1);
}

#[tokio::test]
async fn a_store_that_is_lost_or_stalls_under_load_costs_no_answer() {
    let mock = Mock::start().await;
    let mut redis = RedisServer::start();
    let all = replicas(2, &mock, &redis, "cache.ttl = '50ms'").await;
    for replica in &all {
        eventually("each has its part of the budget", || replica.status().store.replicas == 2).await;
    }
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let callers = join_all((0..8).map(async |caller: usize| {
        let replica = &all[caller % 2];
        while !stop.load(Ordering::Relaxed) {
            let reply = match caller {
                0 => replica.post("/provider-deployments", r#"{"name": "Fresh"}"#).await,
                _ => replica.get(&format!("/providers?limit={}", 1 + caller % 3)).await,
            };
            assert_eq!(reply.status, 200, "{reply:?}");
            answered.fetch_add(1, Ordering::Relaxed);
            // The API's limit is not what this is about.
            sleep(Duration::from_millis(10)).await;
        }
    }));
    let more = async |count: usize| {
        let before = answered.load(Ordering::Relaxed);
        eventually("answers", || answered.load(Ordering::Relaxed) >= before + count).await;
    };
    let cut = async |expected: bool| {
        for replica in &all {
            eventually("it is seen", || replica.status().store.pages_partitioned == expected).await;
        }
    };
    let trouble = async {
        more(40).await;
        redis.kill();
        cut(true).await;
        more(40).await;
        assert!(redis.restart());
        cut(false).await;
        more(40).await;
        redis.signal("STOP");
        cut(true).await;
        more(40).await;
        redis.signal("CONT");
        cut(false).await;
        more(40).await;
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(callers, trouble);
}
